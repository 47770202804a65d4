"""A telephone network with Twilio in the middle: calls come in, are placed, redirected, ended.

What Twilio does with a call, towards one server: it asks for TwiML and obeys it, holds the media
streams, tells the status as it changes, listens for answering machines, and does what its REST
API is told (`place`, `update`). Who is at the other end is a `Person` for each number.

    async with open_telephone(server, account, {"+15550100199": Person(script)}) as phones:
        call = await phones.call_in(Script((Utterance("hello", mulaw),)))
        assert call.said == ["All lines are busy. Please call again later."]

In real time over real sockets. A number at which nobody is known does not answer. Not simulated:
queues, conferences, recordings, and TwiML that no voice bot needs.

Source: twilio.com/docs/voice (TwiML, call resource, answering machine detection).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from math import inf
from typing import Final, Literal
from urllib.parse import urljoin, urlsplit

import httpx
import trio

from voicebot.errors import CallRefused
from voicebot.simulator.call import Identity, Network, Script, run_call
from voicebot.simulator.dial import (
    CALLED,
    CALLER,
    VOICE_PATH,
    WEBHOOK_S,
    Account,
    as_websocket,
    open_line,
)
from voicebot.simulator.network import PERFECT
from voicebot.simulator.recording import Recording
from voicebot.simulator.twiml import (
    Connect,
    Dial,
    Hangup,
    Pause,
    Play,
    Redirect,
    Say,
    Verb,
    read_verbs,
)

SPOKEN_S: Final = 0.065  # per letter, of Twilio's voice
KEY_S: Final = 0.25  # each key that Twilio plays; a w is half a second
DETECTION_S: Final = 30.0  # Twilio listens so long for a machine, unless told otherwise
HOPS: Final = 40  # documents of TwiML in one call; more is a loop

Status = Literal[
    "queued", "initiated", "ringing", "in-progress",
    "completed", "busy", "no-answer", "canceled", "failed",
]  # fmt: skip
Form = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Person:
    """Who is at a number, and what they do when it rings.

    Each media stream of a call has the next of `scripts`; where there is none, nobody speaks.
    `taken_for` is what Twilio's machine detection says, `detected_s` after the answer. Once put
    through to a person, they talk for `talks_s`.
    """

    scripts: tuple[Script, ...] = ()
    does: Literal["answers", "busy", "no-answer", "failed"] = "answers"
    rings_s: float = 0.0
    taken_for: str = "human"
    detected_s: float = 0.0
    talks_s: float = 0.0


@dataclass(eq=False, slots=True)
class PhoneCall:
    """A call, and what became of it, as Twilio and the people saw it.

    `said`, `digits`: what Twilio's own voice said to them, and the keys that it played.
    `errors`: what Twilio would have in its error log, and end the call for.
    """

    sid: str
    direction: Literal["inbound", "outbound-api", "outbound-dial"]
    from_: str
    to: str
    person: Person
    status: Status = "queued"
    answered_by: str = ""
    said: list[str] = field(default_factory=list)
    digits: list[str] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)
    dialled: list[PhoneCall] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)
    _sequence: int = 0
    _began: float = 0.0
    _next: Redirect | list[Verb] | None = None  # what the REST API has it do instead
    _doing: trio.CancelScope | None = None  # a verb other than a stream
    _stream_away: trio.Event | None = None  # of the stream that runs

    @property
    def recording(self) -> Recording:
        """The only media stream there was."""
        [only] = self.recordings
        return only

    @property
    def streaming(self) -> bool:
        """Whether there is a media stream now."""
        return self._stream_away is not None

    def go_on_with(self, what: Redirect | list[Verb]) -> None:
        """Leave what is being done, and do this."""
        self._next = what
        if self._stream_away is not None:
            self._stream_away.set()
        elif self._doing is not None:
            self._doing.cancel(reason="redirected")


class _Over(Exception):
    """The call has ended under the verb."""


class Telephone:
    """Made by `open_telephone`. `calls` is by SID; `people` may be changed at any time.

    `on_status` is told of a call when its status has changed; `pace` is how fast Twilio's own voice
    speaks and keys are played: 0 is at once.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        client: httpx.AsyncClient,
        server: str,
        account: Account,
        people: Mapping[str, Person],
        pace: float,
        network: Network,
    ) -> None:
        self.people = dict(people)
        self.calls: dict[str, PhoneCall] = {}
        self.on_status: Callable[[PhoneCall], None] = lambda call: None
        self._nursery = nursery
        self._client = client
        self._server = server.rstrip("/")
        self._account = account
        self._public_url = (account.public_url or server).rstrip("/")
        self._pace = pace
        self._network = network

    async def call_in(self, *scripts: Script, from_: str = CALLER, to: str = CALLED) -> PhoneCall:
        """Have somebody call the server; return when the call is over.

        Cancellation: the line is dropped.
        """
        call = PhoneCall(_sid("CA"), "inbound", from_, to, Person(scripts), "ringing")
        self.calls[call.sid] = call
        await self._hold(call, {"Url": self._public_url + VOICE_PATH}, [])
        return call

    def place(self, sid: str, form: Form) -> None:
        """Call a number, as `POST Calls.json` with this form; the call goes on by itself."""
        fields, events = (
            dict(form),
            [value for name, value in form if name == "StatusCallbackEvent"],
        )
        person = self.people.get(fields["To"], Person(does="no-answer"))
        call = PhoneCall(sid, "outbound-api", fields["From"], fields["To"], person)
        self.calls[sid] = call
        self._nursery.start_soon(self._hold, call, fields, events or ["completed"])

    def update(self, sid: str, form: Form) -> None:
        """Do what a `POST Calls/{sid}.json` with this form says to a live call."""
        fields, call = dict(form), self.calls[sid]
        if fields.get("Status") in {"completed", "canceled"}:
            call.go_on_with([Hangup()])
        elif url := fields.get("Url"):
            call.go_on_with(Redirect(url))
        elif twiml := fields.get("Twiml"):
            call.go_on_with(read_verbs(twiml.encode()))

    # The life of a call.

    async def _hold(
        self, call: PhoneCall, fields: Mapping[str, str], events: Sequence[str]
    ) -> None:
        async def change(status: Status, event: str, **more: str) -> None:
            call.status = status
            self.on_status(call)
            if event in events and (url := fields.get("StatusCallback")):
                await self._tell(call, url, status, more)

        try:
            async with trio.open_nursery() as listening:  # owns: the detection of a machine
                if call.direction == "inbound" or await self._ring(call, fields, change):
                    call._began = trio.current_time()
                    await change("in-progress", "answered")
                    with trio.move_on_after(float(fields.get("TimeLimit", inf))) as limit:
                        await self._listen(call, fields, listening)
                        await self._obey(call, fields)
                    if limit.cancelled_caught:
                        call.errors.append("32015: the maximum duration was reached")
                    seconds = str(round(trio.current_time() - call._began))
                    await change("completed", "completed", CallDuration=seconds, Duration="1")
                listening.cancel_scope.cancel(reason="call is over")
        finally:
            call.over.set()

    async def _ring(
        self,
        call: PhoneCall,
        fields: Mapping[str, str],
        change: Callable[[Status, str], Awaitable[None]],
    ) -> bool:
        """Return whether it is answered."""
        person = call.person
        await change("initiated", "initiated")
        if person.does in {"busy", "failed"}:
            await change(person.does, "completed")
            return False
        await change("ringing", "ringing")
        timeout_s = float(fields.get("Timeout", 60))
        rings_s = timeout_s if person.does == "no-answer" else min(person.rings_s, timeout_s)
        with trio.move_on_after(rings_s) as call._doing:
            if call._next is None:
                await trio.sleep_forever()
        call._doing = None
        if call._next is not None:  # only ending it is possible now
            await change("canceled", "completed")
            return False
        if person.does == "no-answer" or person.rings_s > timeout_s:
            await change("no-answer", "completed")
            return False
        return True

    async def _listen(
        self, call: PhoneCall, fields: Mapping[str, str], nursery: trio.Nursery
    ) -> None:
        """Listen for a machine, if that is wanted: before the TwiML is asked for, or meanwhile."""
        if "MachineDetection" not in fields:
            return
        timeout_s = float(fields.get("MachineDetectionTimeout", DETECTION_S))
        late = call.person.detected_s > timeout_s
        waits_s, found = min(call.person.detected_s, timeout_s), call.person.taken_for
        found = "unknown" if late else found
        if fields.get("AsyncAmd") != "true":
            await trio.sleep(waits_s)
            call.answered_by = found
            return

        async def detect() -> None:
            await trio.sleep(waits_s)
            call.answered_by = found
            more = {"AnsweredBy": found, "MachineDetectionDuration": str(round(waits_s * 1_000))}
            if url := fields.get("AsyncAmdStatusCallback"):
                form = {"CallSid": call.sid, "AccountSid": self._account.sid, **more}
                await self._notify(call, url, form)

        nursery.start_soon(detect)

    async def _obey(self, call: PhoneCall, fields: Mapping[str, str]) -> None:
        """Do what the TwiML says, until nothing is left to do."""
        verbs: list[Verb] = [Redirect(fields["Url"])] if "Url" in fields else []
        if not verbs:
            verbs = read_verbs(fields.get("Twiml", "<Response/>").encode())
        try:
            for _ in range(HOPS):
                ahead: list[Verb] | None = await self._do_all(call, verbs)
                if ahead is None:
                    return
                verbs = ahead
            call.errors.append(f"the TwiML goes on for ever; given up after {HOPS} documents")
        except CallRefused as exc:
            call.errors.append(str(exc))
        except _Over:
            pass

    async def _do_all(self, call: PhoneCall, verbs: Sequence[Verb]) -> list[Verb] | None:
        """Do one verb after the other; return what to go on with instead of the rest."""
        for verb in verbs:
            if call._next is None:
                with trio.CancelScope() as call._doing:
                    ahead = await self._do(call, verb)
                    if ahead is not None:
                        return ahead
                call._doing = None
            if call._next is not None:
                instead, call._next = call._next, None
                return [instead] if isinstance(instead, Redirect) else instead
        return None

    async def _do(self, call: PhoneCall, verb: Verb) -> list[Verb] | None:
        """Do what one verb says; return what to go on with, if not with the next."""
        match verb:
            case Say(text):
                call.said.append(text)
                await trio.sleep(len(text) * SPOKEN_S * self._pace)
            case Play(digits=digits):
                call.digits.append(digits)
                await trio.sleep(len(digits) * KEY_S * self._pace)
            case Pause(seconds):
                await trio.sleep(seconds * self._pace)
            case Redirect(url):
                return await self._ask(call, url, {})
            case Hangup():
                raise _Over
            case Dial():
                return await self._dial(call, verb)
            case Connect():  # pragma: no branch - the union has no other member
                return await self._connect(call, verb)
        return None

    async def _dial(self, call: PhoneCall, verb: Dial) -> list[Verb] | None:
        person = self.people.get(verb.number, Person(does="no-answer"))
        other = PhoneCall(
            _sid("CA"), "outbound-dial", verb.caller_id or call.from_, verb.number, person
        )
        self.calls[other.sid] = other
        call.dialled.append(other)
        began = trio.current_time()
        answered = person.does == "answers" and person.rings_s <= verb.timeout_s
        if answered:
            await trio.sleep(person.rings_s)
            other.status = "in-progress"
            if verb.number_url:
                await self._do_all(other, await self._ask(other, verb.number_url, {}))
            await trio.sleep(person.talks_s)
            other.status = "completed"
        else:
            other.status = "no-answer" if person.does == "answers" else person.does
            if other.status == "no-answer":
                await trio.sleep(verb.timeout_s)
        other.over.set()
        if not verb.action:
            return None
        more = {"DialCallStatus": other.status, "DialCallSid": other.sid}
        if answered:
            more["DialCallDuration"] = str(round(trio.current_time() - began))
        return await self._ask(call, verb.action, more)

    async def _connect(self, call: PhoneCall, verb: Connect) -> list[Verb] | None:
        number = len(call.recordings)
        scripts = call.person.scripts
        script = scripts[number] if number < len(scripts) else Script((), hang_up_after_s=inf)
        identity = Identity(self._account.sid, call.sid, _sid("MZ"), verb.parameters)
        url = urljoin(as_websocket(self._public_url) + "/", verb.stream_url)
        call._stream_away = trio.Event()
        try:
            async with open_line(self._server, url, self._account) as line:
                await self._tell_stream(call, verb, identity, "stream-started")
                recording = await run_call(
                    line, script, identity, self._network, taken_away=call._stream_away
                )
                call.recordings.append(recording)
                await self._tell_stream(call, verb, identity, "stream-stopped")
        except CallRefused as exc:
            call.errors.append(f"31920: {exc}")
            await self._tell_stream(call, verb, identity, "stream-error", str(exc))
            return await self._ask(call, verb.action, {}) if verb.action else None
        finally:
            call._stream_away = None
        if recording.ended.by == "caller":
            raise _Over
        if verb.action and call._next is None:
            return await self._ask(call, verb.action, {})
        return None

    # Requests to the server.

    async def _ask(self, call: PhoneCall, url: str, more: Mapping[str, str]) -> list[Verb]:
        """Ask for TwiML."""
        form = self._form(call, call.status) | dict(more)
        if call.answered_by:
            form["AnsweredBy"] = call.answered_by
        return read_verbs(await self._post(url, form))

    async def _tell(self, call: PhoneCall, url: str, status: str, more: Mapping[str, str]) -> None:
        form = self._form(call, status) | {
            "CallbackSource": "call-progress-events",
            "SequenceNumber": str(call._sequence),
            "Timestamp": formatdate(),
            **more,
        }
        if call.answered_by:
            form["AnsweredBy"] = call.answered_by
        call._sequence += 1
        await self._notify(call, url, form)

    async def _tell_stream(
        self, call: PhoneCall, verb: Connect, identity: Identity, event: str, error: str = ""
    ) -> None:
        if verb.status_url:
            form = {
                "AccountSid": self._account.sid,
                "CallSid": call.sid,
                "StreamSid": identity.stream_sid,
                "StreamName": identity.stream_sid,
                "StreamEvent": event,
            }
            more = {"StreamError": error} if error else {}
            await self._notify(call, verb.status_url, form | more)

    def _form(self, call: PhoneCall, status: str) -> dict[str, str]:
        return {
            "CallSid": call.sid,
            "AccountSid": self._account.sid,
            "From": call.from_,
            "To": call.to,
            "Caller": call.from_,
            "Called": call.to,
            "CallStatus": status,
            "Direction": call.direction,
            "ApiVersion": "2010-04-01",
        }

    async def _notify(self, call: PhoneCall, url: str, form: Mapping[str, str]) -> None:
        """Send a webhook whose answer does not matter to the call."""
        try:
            await self._post(url, form)
        except CallRefused as exc:
            call.errors.append(str(exc))

    async def _post(self, url: str, form: Mapping[str, str]) -> bytes:
        """Send a signed webhook to where the server really is; return its answer.

        Raises:
            CallRefused: none in time, or an error.
        """
        public_url = urljoin(self._public_url + "/", url)
        parts = urlsplit(public_url)
        where = self._server + parts.path + (f"?{parts.query}" if parts.query else "")
        headers = self._account.signature(public_url, form)
        try:
            with trio.fail_after(WEBHOOK_S):
                response = await self._client.post(where, data=dict(form), headers=headers)
        except trio.TooSlowError as exc:
            raise CallRefused(f"11205: {where}: no answer within {WEBHOOK_S:.0f} s") from exc
        except httpx.HTTPError as exc:
            raise CallRefused(f"11205: {where}: {str(exc) or type(exc).__name__}") from exc
        if not response.is_success:
            raise CallRefused(f"11200: {where}: answered {response.status_code}")
        return response.content


def _sid(prefix: str) -> str:
    return prefix + secrets.token_hex(16)


@asynccontextmanager
async def open_telephone(
    server: str,
    account: Account | None = None,
    people: Mapping[str, Person] | None = None,
    *,
    pace: float = 1.0,
    network: Network = PERFECT,
) -> AsyncGenerator[Telephone]:
    """Yield a telephone network that knows one server.

    Args:
        server: where it listens; what it believes to be its address is `account.public_url`.
        people: by number.
        network: between Twilio and the server, for media.

    Owns: the calls that were placed; they are dropped when the block is left.
    """
    # trust_env: a proxy of the environment is not meant for the server under test.
    async with (
        httpx.AsyncClient(trust_env=False, timeout=WEBHOOK_S) as client,
        trio.open_nursery() as nursery,  # owns: a task for each call that was placed
    ):
        yield Telephone(nursery, client, server, account or Account(), people or {}, pace, network)
        nursery.cancel_scope.cancel(reason="telephone network is taken down")
