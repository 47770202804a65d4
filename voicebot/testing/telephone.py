"""Telephone calls over real sockets: the simulator's network behind the stand-in's REST API.

async with open_standins() as standins:
    ...  # a server that uses them
    async with open_telephone(standins.twilio, url, account, {NUMBER: Person(...)}) as phones:
        ...  # POST /calls {"to": NUMBER}
        [call] = phones.calls.values()
        await call.over.wait()
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from voicebot.simulator import telephone
from voicebot.simulator.dial import Account
from voicebot.simulator.network import PERFECT, Network
from voicebot.simulator.telephone import Person, PhoneCall, Telephone
from voicebot.standins.twilio import Twilio


@asynccontextmanager
async def open_telephone(
    twilio: Twilio,
    server: str,
    account: Account,
    people: Mapping[str, Person] | None = None,
    *,
    pace: float = 0.0,
    network: Network = PERFECT,
) -> AsyncGenerator[Telephone]:
    """Yield a telephone network on which the REST API places, redirects and ends calls.

    Args: as `simulator.telephone.open_telephone`; Twilio's own voice takes no time here.

    Owns: the calls that were placed.
    """

    def follow(call: PhoneCall) -> None:
        known = twilio.adopt(call.sid, from_=call.from_, to=call.to)
        known.status, known.answered_by = call.status, call.answered_by or None

    async with telephone.open_telephone(
        server, account, people, pace=pace, network=network
    ) as phones:
        phones.on_status = follow
        twilio.network = phones
        try:
            yield phones
        finally:
            twilio.network = None
