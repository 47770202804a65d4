"""A whole call with a bot of a bot file, in virtual time: its tools, variables and hooks.

    call = hold_bot(bot, Script((caller_says("a table for two"),)))
    assert call.summary.turns[1].heard == "Booked for 2."

Sync tools and hooks run in the loop here, not in a thread: virtual time waits for no thread.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from voicebot.bot import Bot
from voicebot.call import Call
from voicebot.config import load, plan_of
from voicebot.hooks import open_hooks
from voicebot.phrases import Phrases
from voicebot.plan import CallPlan
from voicebot.ports import Chat, Ports
from voicebot.record import Moment
from voicebot.simulator import Network, Script
from voicebot.simulator.network import PERFECT
from voicebot.testing.call import IDENTITY, HeldCall, hold_call, toy_ports
from voicebot.testing.seeded import run_seeded
from voicebot.testing.toy import say

#: What {{today}} and {{now}} say, so that a test says the same on every day. A Friday.
NOW: Final = datetime.datetime(2026, 11, 27, 10, 30)


async def hold_bot_call(
    bot: Bot,
    script: Script,
    *,
    chat: Chat | None = None,
    call: Call | None = None,
    ports: Ports | None = None,
    network: Network = PERFECT,
    now: datetime.datetime = NOW,
    watch: Callable[[Moment], None] | None = None,
    failed: Callable[[str], None] = lambda hook: None,
) -> HeldCall:
    """Hold one call with a bot, as a server holds it; return when its hooks have run as well.

    Args:
        chat: its language model; None: the bot's own brain, or one that says it has none.
        call: what is known of the call, for example `Call(metadata={"name": "Ann"})`.
        ports: instead of `toy_ports()`; chat and tools are set in any case.
        failed: told the name of each hook that raised or was late. They are logged as well.

    Raises and is cancelled as `hold_call`.
    """
    call = call or Call(IDENTITY.call_sid, caller="+15550100199", number="+15550100123")
    call.declare(bot.variables)
    base = plan_of(bot.settings(load({})))
    async with open_hooks(bot, None, failed) as all_hooks:
        with all_hooks.of(call) as hooks:
            await hooks.start()
            ports = replace(
                ports or replace(toy_ports(), canned=_sounds(bot, base).get),
                chat=chat or bot.call_brain(call),
                tools=bot.call_tools(call, now, None),
            )
            held = await hold_call(
                script,
                ports,
                bot.plan(base, call, now),
                network=network,
                watch=watch,
                on_turn=hooks.turn,
            )
            hooks.end(held.summary)
    return held


def _sounds(bot: Bot, base: CallPlan) -> dict[str, bytes]:
    """Return what a server would have learned by now."""
    return {
        piece: say(piece) for piece in Phrases(bot.resting_plan(base), bot.tool_fillers).missing
    }


def hold_bot(
    bot: Bot,
    script: Script,
    *,
    chat: Chat | None = None,
    call: Call | None = None,
    ports: Ports | None = None,
    network: Network = PERFECT,
    now: datetime.datetime = NOW,
    seed: int | None = 0,
) -> HeldCall:
    """Hold one call with a bot in virtual time, from a test that is not async.

    See `hold_bot_call`, and `hold` for `seed`.
    """
    held = partial(
        hold_bot_call, bot, script, chat=chat, call=call, ports=ports, network=network, now=now
    )
    return run_seeded(seed, held)
