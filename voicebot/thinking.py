"""The think scope of a reply: a language model and its tools, or a fixed text, into pieces to say.

Nothing here is heard: pieces go to synthesis, tools to the nursery of the call. The newest reply's
scope is cancelled from outside, when an interruption was meant or nobody can speak the pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from voicebot.dialog import Dialog
from voicebot.errors import ProviderError, ReplyCut, RequestTooLong
from voicebot.failover import FailoverChat
from voicebot.floor import Floor
from voicebot.parting import Parting, read_arguments
from voicebot.ports import Tool, ToolCall
from voicebot.record import Outcome
from voicebot.reply import Notes, Reply
from voicebot.sentences import SentenceSplitter
from voicebot.speakers import Mouth, Speaking
from voicebot.toolbox import NOT_STARTED, Job, Run, Toolbox

_log = logging.getLogger(__name__)

TOOL_ROUNDS: Final = 5  # times a reply may ask for tools; then the model must answer without

#: Gives the pieces of a reply.
Think = Callable[[SentenceSplitter, "trio.MemorySendChannel[Piece]", Reply], Awaitable[None]]
#: What is to be said, and how.
Piece = tuple[str, Speaking]


class Thinker:
    """Thinks for one call, one reply after the other; at times for a guess beside nothing.

    `jobs` is where tools are handed over to be run. `scope` is that of the newest reply.
    """

    jobs: trio.MemorySendChannel[Run]

    def __init__(
        self,
        mouth: Mouth,
        chat: FailoverChat,
        dialog: Dialog,
        toolbox: Toolbox,
        floor: Floor,
        notes: Notes,
    ) -> None:
        self._mouth = mouth
        self._chat = chat
        self._dialog = dialog
        self._toolbox = toolbox
        self._floor = floor
        self._journal, self._note, self._first = notes.journal, notes.note, notes.first
        self.scope = trio.CancelScope()

    async def think(self, step: Think, pieces: trio.MemorySendChannel[Piece], reply: Reply) -> None:
        """Turn the reply's words into pieces to be spoken; apologise if there are none."""
        splitter, failed = SentenceSplitter(self._mouth.plan.language), False
        with pieces, trio.CancelScope() as self.scope:
            try:
                await step(splitter, pieces, reply)
            except ProviderError:
                self._journal.count("thinking_failures")
                self._note("thinking_failed")
                _log.warning("thinking_failed", exc_info=True)
                failed, reply.failed = True, Outcome.NO_ANSWERS
            # A model may also answer with nothing to say.
            if failed or not reply.pieces:
                text = self._mouth.plan.apology if reply.parting is None else reply.parting.text
                await self._give(text, pieces, reply)

    async def answer(
        self, splitter: SentenceSplitter, pieces: trio.MemorySendChannel[Piece], reply: Reply
    ) -> None:
        """Answer with the language model, which may ask for tools before it has answered."""
        with trio.move_on_after(self._mouth.plan.timeouts.tool_patience_s):
            for job in self._toolbox.untorn():
                await job.done.wait()
        offered = self._toolbox.offered
        for left in reversed(range(TOOL_ROUNDS + 1)):
            calls = await self._ask(splitter, pieces, reply, offered if left else ())
            if not calls:
                return
            await self._run_calls(calls, reply)
            splitter = SentenceSplitter(self._mouth.plan.language)  # which may have changed
            if reply.record.goodbye:
                if reply.pieces:
                    return  # the goodbye has been said with the call
                offered = ()

    async def _ask(
        self,
        splitter: SentenceSplitter,
        pieces: trio.MemorySendChannel[Piece],
        reply: Reply,
        tools: Sequence[Tool],
        *,
        again: bool = True,
        until: float | None = None,
    ) -> list[ToolCall]:
        """Stream one answer of the language model; return the tools it asks for.

        One that breaks off before its first sentence is there is asked for once more (`again`):
        nobody has heard of it. To the caller that is one silence, which has one end: `until`, and
        where nothing was asked before, `answer_s` from now.
        """
        calls, before = [], len(reply.pieces)
        if until is None:
            until = trio.current_time() + self._mouth.plan.timeouts.answer_s
        try:
            messages = self._dialog.messages("" if reply.begun else reply.text)
            async with self._chat.open_reply(messages, tools, until=until) as answer:
                async for delta in answer:
                    if isinstance(delta, ToolCall):
                        calls.append(self._toolbox.name(delta))
                    else:
                        for piece in splitter.push(delta):
                            await self._give(piece, pieces, reply)
                for piece in splitter.flush():  # and not behind a stream slow to close
                    await self._give(piece, pieces, reply)
        except RequestTooLong:
            if not self._dialog.shrink():
                raise
            self._journal.count("contexts_shrunk")
            return await self._ask(splitter, pieces, reply, tools, again=again, until=until)
        except ReplyCut as cut:
            self._journal.count("replies_cut")
            self._note("reply_cut", reason=cut.reason)
            _log.warning("reply_cut", extra={"reason": cut.reason})
            for piece in splitter.settle():
                await self._give(piece, pieces, reply)
            rest = splitter.flush()
            # Half of one is said where it is all there is, and nobody took offence at it.
            if not reply.pieces and cut.reason == "length":
                for piece in rest:
                    await self._give(piece, pieces, reply)
        except ProviderError as exc:
            broke_off = splitter.flush()  # half a sentence, which is not said
            again = again and trio.current_time() < until
            if not (again and broke_off and exc.retryable and len(reply.pieces) == before):
                raise
            self._journal.count("answers_begun_again")
            return await self._ask(splitter, pieces, reply, tools, again=False, until=until)
        return calls

    async def _run_calls(self, calls: Sequence[ToolCall], reply: Reply) -> None:
        """Have tools run and wait for all of them.

        Cancellation: what has not started never will; what runs is broken off, unless that
        could do harm: it goes on, and its result is recorded when it is there.
        """
        if reply.guess is not None and not await reply.guess.is_right():
            await trio.sleep_forever()  # the turn nursery is being cancelled
        begun = reply.parts[-1] if reply.parts else 0
        reply.parts.append(len(reply.pieces))
        self._dialog.tools_called(" ".join(reply.pieces[begun:]), calls)
        waiting: list[Job] = []
        ahead: list[Job] = []
        for call in calls:
            if parting := self._toolbox.parting(call):
                self._dialog.tool_returned(call.id, self._take_leave(parting, call, reply))
                continue
            job, problem = self._toolbox.ask(call)
            if job is None:
                self._note("tool_refused", name=call.name)
                self._dialog.tool_returned(call.id, problem)
            elif job.result is not None:
                self._dialog.tool_returned(call.id, job.result)
            else:
                waiting.append(job)
                if job not in ahead and job not in self._toolbox.unfinished:
                    ahead.append(job)
        try:
            for job in tuple(ahead):
                if not job.tool.idempotent:
                    await self._floor.decided()  # the caller may be saying: no, stop
                await self.jobs.send(Run(job, reply.record))
                ahead.remove(job)
                reply.running.append((trio.current_time(), job))
                reply.news.ring()
            for job in waiting:
                await job.done.wait()
        finally:
            for job in ahead:
                self._toolbox.forget(job)
                for call_id in job.calls:
                    self._dialog.tool_returned(call_id, NOT_STARTED)
            for job in waiting:
                job.break_off("reply abandoned")

    def _take_leave(self, parting: Parting, call: ToolCall, reply: Reply) -> str:
        """Have a reply end the stream, if all is well; return what the model is told."""
        arguments = read_arguments(call.arguments)
        read = parting.read(arguments) if isinstance(arguments, dict) else arguments
        if isinstance(read, str):
            self._note("tool_refused", name=call.name)
            return read
        reply.parting, reply.arguments, reply.parting_id = parting, read, call.id
        reply.record.goodbye = True
        return parting.result

    def recite(self, text: str) -> Think:
        """Return a think step that says a fixed text."""

        async def recite(
            splitter: SentenceSplitter, pieces: trio.MemorySendChannel[Piece], reply: Reply
        ) -> None:
            for piece in (*splitter.push(text), *splitter.flush()):
                await self._give(piece, pieces, reply)

        return recite

    async def _give(self, piece: str, pieces: trio.MemorySendChannel[Piece], reply: Reply) -> None:
        reply.pieces.append(piece)
        reply.record.generated = " ".join(reply.pieces)
        self._first("first_text", reply)
        await pieces.send((piece, self._mouth.now))
