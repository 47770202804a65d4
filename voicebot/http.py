"""The service as one ASGI callable: webhooks, calls API, health, and the way to the media path.

    lifespan    `open_service` is entered once per process, around quart's own lifespan
    websocket   `STREAM_PATH` goes to the service's `serve_media`, raw; all else is refused
    http        quart

The media socket never enters quart: its versions differ in how they end a WebSocket, and each
message would cost more. Nothing here knows what a call is made of; `switchboard.py` decides who
gets in, `telephony.py` speaks to Twilio.

`hypercorn --worker-class trio voicebot.http:app` serves the module's `app`, which reads the
settings when the server starts.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import trio
from quart import Blueprint, Response, request, send_file
from quart_trio import QuartTrio
from werkzeug.exceptions import BadHost, HTTPException, UnsupportedMediaType

from voicebot import __version__, telephony, twiml
from voicebot import log as log_setup
from voicebot.admission import Admission
from voicebot.archive import Archive
from voicebot.botfile import load_bot
from voicebot.call_record import CallRecord
from voicebot.client_address import networks
from voicebot.config import E164, Settings, load
from voicebot.doors import ApiDoor, check_doors, who
from voicebot.drain import drain
from voicebot.errors import (
    CallBarred,
    CallRefused,
    ConfigError,
    Draining,
    ProviderError,
    StoreError,
    VoicebotError,
)
from voicebot.idempotency import KEY_CHARS, InProgress, KeyReused
from voicebot.metrics import CONTENT_TYPE
from voicebot.outbound import missing_settings, read_call
from voicebot.service import Service, open_service, open_sole_service
from voicebot.serving import contain
from voicebot.store import dial_key
from voicebot.switchboard import BadRequest, Switchboard, call_of
from voicebot.ws import Receive, Scope, Send

MAX_BODY_BYTES: Final = 64 * 1024  # a webhook is some 1 KiB, a request of the calls API less
BODY_TIMEOUT_S: Final = 5  # both arrive in one piece; a slow sender is holding a socket
LISTED_CALLS: Final = 100
MOST_LISTED: Final = 1_000  # of 300 bytes and more each
UNCERTAIN: Final = "a call may have been placed; look at GET /calls before trying again"
KEEP_S: Final = 6  # for the database to take an answer; a little more than it has
RETRY_AFTER_S: Final = 10  # a server that nobody is on the line of is back by then
OPENAPI: Final = Path(__file__).with_name("openapi.json")  # all of these routes
NOTED: Final[tuple[str, int, dict[str, str]]] = ("", 204, {})

log = logging.getLogger(__name__)

TextReply = tuple[str, int, dict[str, str]]
BytesReply = tuple[bytes, int, dict[str, str]]
Reply = tuple[dict[str, Any], int] | tuple[dict[str, Any], int, dict[str, str]]
OpenService = Callable[[Switchboard], AbstractAsyncContextManager[Service]]


def create_app(settings: Settings, open_service: OpenService = open_service) -> App:
    """Return the ASGI callable for these settings. Opens nothing before its lifespan starts.

    Each request is let in or not by itself; `doors.check_doors` is for whoever starts a server.
    """
    return App(Switchboard(settings), open_service)


class App:
    """The ASGI callable of one process, and how it drains.

    Owns: the service, from `lifespan.startup` to `lifespan.shutdown`. Without a lifespan it
    answers, but is never ready and takes no call.
    """

    def __init__(self, board: Switchboard, open_service: OpenService) -> None:
        self.board = board
        self.service: Service | None = None
        self._open_service = open_service
        board.metrics.build.info({"version": __version__})
        self._quart = _create_quart(self)
        # Who may connect and ask; whoever serves this application goes by it.
        self.admission = Admission(board.settings.limits, networks(board.settings.trusted_proxies))
        board.metrics.show_refused(self.admission.refused)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._serve_lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        else:
            try:
                await self._quart(scope, receive, send)  # type: ignore[arg-type]  # its scope type is hypercorn's
            except* BadHost:  # raised before quart has a context, which its error handlers need
                await _refuse_host(send)

    async def drain(self, again: Callable[[], Awaitable[object]]) -> None:
        """Take no new call, and let those there are end; `again` waits for the next signal.

        Returns when the port may be closed. See `drain.py`.
        """
        await drain(self.board, self._part, again)

    def _part(self) -> None:
        if self.service is not None:
            self.service.part()

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != telephony.STREAM_PATH:
            await _refuse_upgrade(scope, send, 404)
        elif self.service is None:
            await _refuse_upgrade(scope, send, 503)
        else:
            await self.service.serve_media(scope, receive, send)

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unless_complete(message: Any) -> None:
            # The server cancels the lifespan once shutdown is complete; close the service first.
            if message["type"] != "lifespan.shutdown.complete":
                await send(message)

        failure = None
        async with AsyncExitStack() as stack:
            try:
                self.service = await stack.enter_async_context(self._open_service(self.board))
            except Exception as exc:
                failure = exc  # told below: the server raises from `send`, and not "during" this
            if failure is not None:
                await _fail_startup(failure, receive, send)
                return
            try:
                await self._quart(scope, receive, send_unless_complete)  # type: ignore[arg-type]  # as above
            finally:
                self.service = None
        await send({"type": "lifespan.shutdown.complete"})


class _AppFromEnvironment:
    """The module's `app`: reads the settings when the server starts, not at import."""

    _app: App | None = None

    @property
    def admission(self) -> Admission | None:
        """As `App.admission`; there is one before there are connections."""
        return None if self._app is None else self._app.admission

    async def drain(self, again: Callable[[], Awaitable[object]]) -> None:
        """As `App.drain`."""
        if self._app is not None:
            await self._app.drain(again)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure = None
        if scope["type"] == "lifespan":
            try:
                settings = load(env_file=Path(".env"))
                check_doors(settings)
                log_setup.configure(settings.log_level)
                bot = load_bot(settings.bot) if settings.bot else None
                self._app = create_app(settings, partial(open_sole_service, bot=bot))
            except ConfigError as exc:
                failure = exc
        if failure is not None:
            await _fail_startup(failure, receive, send)
            return
        if self._app is None:
            raise RuntimeError("voicebot.http:app needs a server with lifespan support")
        await self._app(scope, receive, send)


contain()  # hypercorn's command line imports this module before it serves
app = _AppFromEnvironment()


async def _fail_startup(exc: Exception, receive: Receive, send: Send) -> None:
    """Make the server stop. One that sees the exception itself goes on without a lifespan."""
    if not isinstance(exc, VoicebotError):
        log.critical("startup_failed", exc_info=exc)
    text = str(exc) if isinstance(exc, VoicebotError) else f"{type(exc).__name__}: {exc}"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": f"voicebot cannot start:\n{text}"})


async def _refuse_host(send: Send) -> None:
    body = json.dumps(_error(400, "the Host header is no host")[0]).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse_upgrade(scope: Scope, send: Send, status: int) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-length", b"0")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b""})


# --- HTTP


def _create_quart(app: App) -> QuartTrio:
    quart = QuartTrio("voicebot", static_folder=None)
    quart.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    quart.config["BODY_TIMEOUT"] = BODY_TIMEOUT_S
    quart.config["RESPONSE_TIMEOUT"] = 10  # seconds; whoever does not take 1 KB by then is gone
    quart.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider
    quart.register_error_handler(HTTPException, _http_error)
    quart.register_blueprint(_health(app))
    quart.register_blueprint(_webhooks(app))
    door = ApiDoor(app.board.settings)
    quart.register_blueprint(_calls(app, door))
    quart.register_blueprint(_metrics(app.board, door))
    return quart


def _error(status: int, message: str, **more: Any) -> Reply:
    return {"error": {"message": message, **more}}, status


async def _http_error(exc: HTTPException) -> Reply:
    body, status = _error(exc.code or 500, exc.description or exc.name)[:2]
    headers = {name: value for name, value in exc.get_headers() if name != "Content-Type"}
    return body, status, headers  # Allow, Retry-After


def _health(app: App) -> Blueprint:
    """`/healthz`: the process answers. `/readyz`: it takes calls, or says why not."""
    routes = Blueprint("health", __name__)
    description = json.loads(OPENAPI.read_bytes())
    description["info"]["version"] = __version__

    @routes.get("/")
    async def root() -> Reply:
        return {
            "voicebot": __version__,
            "try": {
                "inbound": "point a Twilio number's voice webhook at POST /twilio/voice",
                "outbound": 'POST /calls {"to": "+15550100123"}, or: voicebot call +15550100123',
                "calls": "GET /calls",
            },
        }, 200

    @routes.get("/openapi.json")
    async def openapi() -> Reply:
        return description, 200

    @routes.get("/healthz")
    async def healthz() -> Reply:
        return {"healthy": True}, 200

    @routes.get("/readyz")
    async def readyz() -> Reply:
        # Full is ready: a caller who hears that the lines are busy is better off than one
        # whose webhook goes to a server that has been taken out.
        reason = None
        if app.service is None:
            reason = "starting or stopped"
        elif app.board.draining:
            reason = "draining"
        elif app.service.is_slow():
            # Those who are on the line stay; one more would be heard by all of them.
            reason = "too slow: see loop_held in the log, and VOICEBOT_READY_LAG_MS"
        lines = app.board.lines.taken(trio.current_time())
        body = {"ready": reason is None, "lines_taken": lines, "lines": app.board.lines.limit}
        return (body, 200) if reason is None else ({**body, "reason": reason}, 503)

    return routes


def _metrics(board: Switchboard, door: ApiDoor) -> Blueprint:
    """How calls go, for a monitoring system."""
    routes = Blueprint("metrics", __name__)
    needs = door.guard(routes)

    @routes.get("/metrics")
    @needs("metrics")
    async def metrics() -> BytesReply:
        parts = []
        for part in board.metrics.parts():
            parts.append(part)
            await trio.lowlevel.checkpoint()  # calls go on meanwhile
        return b"".join(parts), 200, {"Content-Type": CONTENT_TYPE}

    return routes


def _webhooks(app: App) -> Blueprint:
    """What Twilio asks of us and tells us: signed form POSTs."""
    board = app.board
    routes = Blueprint("webhooks", __name__, url_prefix="/twilio")

    @routes.before_request
    async def check() -> None:
        # Twilio's signature covers the fields of a form. Of JSON, or of files beside the fields, it
        # would cover the URL or a part.
        if request.mimetype != "application/x-www-form-urlencoded":
            raise UnsupportedMediaType("a webhook is application/x-www-form-urlencoded")
        board.admit_webhook(request.scope, await request.form)

    @routes.errorhandler(CallRefused)
    async def refused(exc: CallRefused) -> Reply:
        return _error(403, str(exc))

    @routes.errorhandler(BadRequest)
    async def bad(exc: BadRequest) -> Reply:
        return _error(400, str(exc))

    @routes.errorhandler(StoreError)
    async def unshared(exc: StoreError) -> TextReply:
        """Answer while nobody knows how the call stands, for other processes have it, too."""
        log.error("webhook_unanswered", extra={"path": request.path, "error": str(exc)})
        asks = request.path.removeprefix("/twilio") in {"/voice", "/after-stream", "/after-dial"}
        return _twiml(twiml.sorry_twiml()) if asks else ("", 503, {})

    @routes.post("/voice")
    async def voice() -> TextReply:
        if app.service is not None:
            app.service.warm()  # the media socket opens some 0.3 s later
        key = request.args.get(telephony.DIAL_ARGUMENT, "")
        turned_away = telephony.TURNED_AWAY_ARGUMENT in request.args
        form, scope = await request.form, request.scope
        answer = partial(board.answer, scope, form, key, turned_away=turned_away)
        keys = tuple(filter(None, {call_of(form), key}))
        return _twiml(await board.shared.step(keys, answer, counts=True))

    @routes.post("/after-stream")
    async def after_stream() -> TextReply:
        form = await request.form
        after = partial(board.after_stream, request.scope, form)
        return _twiml(await board.shared.step((call_of(form),), after, counts=True))

    @routes.post("/after-dial")
    async def after_dial() -> TextReply:
        form = await request.form
        after = partial(board.after_dial, request.scope, form)
        return _twiml(await board.shared.step((call_of(form),), after, counts=True))

    @routes.post("/whisper")
    async def whisper() -> TextReply:
        call = request.args.get("call", "")
        return _twiml(await board.shared.step((call,), partial(board.whisper, call)))

    @routes.post("/amd")
    async def amd() -> TextReply:
        form = await request.form

        def take() -> tuple[str, str, bool]:
            call_sid, who = board.take_amd(form)
            return call_sid, who, board.live_elsewhere(call_sid)

        call_sid, who, elsewhere = await board.shared.step((call_of(form),), take)
        if app.service is not None and not elsewhere:  # else who has it is told; see `shared.py`
            await app.service.answered_by(call_sid, who)
        return NOTED

    @routes.post("/status")
    async def status() -> TextReply:
        form = await request.form
        await board.shared.step((call_of(form),), partial(board.take_status, form))
        return NOTED

    @routes.post("/stream-status")
    async def stream_status() -> TextReply:
        form = await request.form
        await board.shared.step((call_of(form),), partial(board.take_stream_status, form))
        return NOTED

    return routes


def _twiml(text: str) -> TextReply:
    return text, 200, {"Content-Type": "text/xml"}


def _calls(app: App, door: ApiDoor) -> Blueprint:
    """Place a call, look at calls, hang up."""
    routes = Blueprint("calls", __name__, url_prefix="/calls")
    board, store, settings = app.board, app.board.store, app.board.settings
    needs = door.guard(routes)

    @routes.errorhandler(ProviderError)
    async def failed(exc: ProviderError) -> Reply:
        return failure(exc)

    def failure(exc: ProviderError) -> Reply:
        refusal = telephony.explain(exc)
        log.warning("twilio_refused", extra={"code": refusal.code, "status": refusal.status})
        more: dict[str, Any] = {"hint": refusal.hint, "twilio_code": refusal.code}
        if refusal.field:
            more["fields"] = {refusal.field: refusal.message.removeprefix(f"{refusal.field} ")}
        return _error(refusal.status, refusal.message, **more)

    async def barred(exc: CallBarred, to: str) -> Reply:
        """Answer a call that may not be placed, and put it on record."""
        await board.tollgate.refuse(opened(), exc, to, who())
        more: dict[str, Any] = {"reason": exc.reason, "hint": exc.hint}
        if exc.setting:
            more["setting"] = exc.setting
        if exc.retry_after_s is None:
            problem = str(exc).removeprefix("to ")
            return _error(403, str(exc), **more, fields={"to": problem})
        body, status = _error(429, str(exc), **more)[:2]
        return body, status, {"Retry-After": str(exc.retry_after_s)}

    def opened() -> Archive | None:
        return None if app.service is None else app.service.archive

    @routes.errorhandler(StoreError)
    async def unread(exc: StoreError) -> Reply:
        return _error(503, str(exc))

    @routes.post("")
    @needs("place")
    async def place() -> Reply:
        if request.mimetype != "application/json":
            # Also what keeps a web page from calling through its visitor's browser.
            return _error(415, "the content type must be application/json")
        body = cast("bytes", await request.get_data())  # text is not asked for
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return await place_once(body)
        if not 0 < len(key) <= KEY_CHARS:
            return _error(400, f"Idempotency-Key must have 1 to {KEY_CHARS} characters")
        key = f"{who()} {key}"  # two clients may think of the same one
        try:
            before = await begin(key, body)
        except KeyReused:
            return _error(422, "this Idempotency-Key was used for another request")
        except InProgress:
            return _error(409, "the first request of this Idempotency-Key is being carried out")
        if before is not None:
            return dict(before[0]), before[1], {"Idempotency-Replayed": "true"}
        # Whoever is broken off here, by a client that has gone or by a bug, may have placed it.
        kept: tuple[Mapping[str, Any], int] | None = _error(504, UNCERTAIN)[:2]
        try:
            try:
                answer = await place_once(body)
                kept = answer[:2] if answer[1] == 201 else None
            except ProviderError as exc:
                answer = failure(exc)
                kept = None if telephony.surely_not_placed(exc) else answer[:2]
            except StoreError:  # before Twilio was asked; after it nothing of the database matters
                kept = None
                raise
        finally:
            board.idempotency.end(key, kept)
            if (archive := opened()) is not None:
                with trio.move_on_after(KEEP_S, shield=True):  # also if the client has gone
                    await archive.end_request(key, kept)
        return answer

    async def begin(key: str, body: bytes) -> tuple[Mapping[str, Any], int] | None:
        """Return what this request was answered before; None: it is new, here and elsewhere."""
        before = board.idempotency.begin(key, body, trio.current_time())
        archive = opened()
        if before is not None or archive is None:
            return before
        new = False
        try:
            before = await archive.begin_request(key, body)
            new = before is None
        finally:
            if not new:
                board.idempotency.end(key, before)
        return before

    async def place_once(body: bytes) -> Reply:
        if app.service is None:
            return _error(503, "the server is starting or stopped")
        phone = app.service.telephony
        fields = _json_object(body)
        asked = read_call(fields or {}, settings)
        if fields is None:
            text = 'the body must be a JSON object like {"to": "+15550100123"}'
            return _error(400, text, fields=asked if isinstance(asked, dict) else {})
        # The default of "from" is one of the settings named below.
        if isinstance(asked, dict) and not (phone is None and asked == {"from": "is missing"}):
            text = "; ".join(f"{name} {problem}" for name, problem in asked.items())
            return _error(400, text, fields=asked)
        if phone is None or isinstance(asked, dict):
            needed = missing_settings(settings, from_given="from" in fields)
            return _error(503, f"no call can be placed; set {', '.join(needed)}")
        try:
            board.tollgate.check_number(asked.to, asked.from_)
            line = dial_key()
            await board.shared.step((line,), partial(board.dial, asked, line), counts=True)
        except CallBarred as exc:
            return await barred(exc, asked.to)
        except Draining as exc:
            return *_error(503, str(exc))[:2], {"Retry-After": str(RETRY_AFTER_S)}
        except CallRefused as exc:
            return _error(503, str(exc))
        held = board.tollgate.reserved(opened(), asked.to, who(), asked.ring_timeout_s)
        call: telephony.PlacedCall | None = None
        try:
            async with held as reservation:
                call = await phone.place_call(asked, line)
                reservation.sid = call.sid
                await board.shared.step((line, call.sid), partial(board.placed, line, asked, call))
        except CallBarred as exc:
            return await barred(exc, asked.to)
        except StoreError as exc:
            if call is None:
                raise
            log.error("placed_not_shared", extra={"call_sid": call.sid, "error": str(exc)})
        finally:
            if call is None:
                with trio.move_on_after(KEEP_S, shield=True):  # also if the client has gone
                    await undial(line)
        log.info("call_placed", extra={"call_sid": call.sid, "pii_to": asked.to, "who": who()})
        shown = {
            "call_sid": call.sid, "status": call.status, "to": asked.to, "from": asked.from_,
        }  # fmt: skip
        return shown, 201, {"Location": f"/calls/{call.sid}"}

    async def undial(line: str) -> None:
        try:
            await board.shared.step((line,), partial(board.undial, line))
        except StoreError as exc:  # it frees itself when nobody can answer any more
            log.error("line_not_freed", extra={"error": str(exc)})

    @routes.get("")
    @needs("read")
    async def latest() -> Reply:
        archive = opened()
        text = request.args.get("limit", str(LISTED_CALLS))
        if not re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII) or int(text) > MOST_LISTED:
            return _error(400, f"limit must be from 1 to {MOST_LISTED}")
        limit, behind, before = int(text), request.args.get("before"), None
        if behind is not None:
            before = store.get(behind) if archive is None else await archive.get(behind)
            if before is None:
                return _error(400, "before must be the call_sid of a call that is known")
        # One more, which says whether there is a next page.
        if archive is None:
            known = store.latest(limit + 1, before)
        else:
            known = await archive.latest(limit + 1, before)
        shown = known[:limit]
        more = f"/calls?limit={limit}&before={shown[-1].sid}" if len(known) > limit else None
        return {"calls": [record.as_json(brief=True) for record in shown], "next": more}, 200

    @routes.get("/refused")  # no SID is called that
    @needs("read")
    async def refused() -> Reply:
        return {"refused": await board.tollgate.latest_refusals(opened(), LISTED_CALLS)}, 200

    @routes.get("/<sid>")
    @needs("read")
    async def one(sid: str) -> Reply:
        archive = opened()
        record = store.get(sid) if archive is None else await archive.get(sid)
        return _error(404, "no such call") if record is None else (record.as_json(), 200)

    @routes.delete("/<sid>")
    @needs("delete")
    async def forget(sid: str) -> Reply | TextReply:
        archive = opened()
        record = store.get(sid) if archive is None else await archive.get(sid)
        # What is known of it may be a fraction of a second behind.
        forgotten = await board.shared.step((sid,), partial(board.forget, sid))
        if not forgotten or (record is not None and record.live):
            return _error(409, "the call is live; hang up first")
        # The record last: as long as it is there, whoever was told 503 knows what to ask for.
        recorder = None if app.service is None else app.service.recorder
        recorded = recorder is not None and await recorder.delete(sid)
        if archive is not None:
            await archive.forget(sid)
        store.forget(sid)
        log.info("call_deleted", extra={"call_sid": sid, "who": who()})
        return NOTED if record is not None or recorded else _error(404, "no such call")

    @routes.get("/<sid>/recording")
    @needs("recordings")
    async def recording(sid: str) -> Reply | Response:
        recorder = None if app.service is None else app.service.recorder
        if recorder is None:
            return _error(404, "calls are not recorded: VOICEBOT_RECORDING__PATH is empty")
        path = await recorder.find(sid)
        if path is None:
            return _error(404, "there is no recording of this call")
        try:
            response = await send_file(path.absolute(), mimetype="audio/wav")
        except FileNotFoundError:  # deleted just now
            return _error(404, "there is no recording of this call")
        # An hour is 58 MB. Who takes no byte for `send_deadline_s` is dropped by the server.
        response.timeout = None
        return response

    async def known(sid: str) -> CallRecord | None:
        """Return the record of a call, whichever process has it."""
        record, archive = store.get(sid), opened()
        return record if record is not None or archive is None else await archive.get(sid)

    async def live_phone(sid: str) -> telephony.Telephony | Reply:
        """Return what can do something with a call, or why nothing can."""
        if await known(sid) is None:
            return _error(404, "no such call")
        if app.service is None or app.service.telephony is None:
            return _error(503, "no Twilio account is configured")
        return app.service.telephony

    async def our_number(sid: str) -> str:
        record = await known(sid)
        if record is None:
            return ""
        return record.to if record.direction == "inbound" else record.from_

    @routes.post("/<sid>/hangup")
    @needs("hang_up")
    async def hang_up(sid: str) -> Reply:
        phone = await live_phone(sid)
        if isinstance(phone, tuple):
            return phone
        hung_up = await phone.end_call(sid)
        log.info("call_hung_up", extra={"call_sid": sid, "who": who()})
        return {"call_sid": sid, "hung_up": hung_up}, 200

    @routes.post("/<sid>/redirect")
    @needs("place")
    async def redirect(sid: str) -> Reply:
        phone = await live_phone(sid)
        if isinstance(phone, tuple):
            return phone
        fields = _json_object(await request.get_data()) or {}
        to = fields.get("to")
        if set(fields) != {"to"} or not isinstance(to, str) or not E164.fullmatch(to):
            return _error(400, 'the body must be {"to": "+15550100123"}: who takes the call')
        try:
            board.tollgate.check_number(to, await our_number(sid))
            async with board.tollgate.reserved(opened(), to, who()) as reservation:
                await phone.redirect_call(sid, twiml.parting_twiml("", "en", to))
                reservation.sid = sid
        except CallBarred as exc:
            return await barred(exc, to)
        log.info("call_redirected", extra={"call_sid": sid, "pii_to": to, "who": who()})
        return {"call_sid": sid, "to": to}, 200

    return routes


def _json_object(body: bytes | str) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
