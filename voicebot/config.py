"""Settings: read once from the environment and `.env`, checked as a whole, frozen.

Names of accounts and keys are the vendors' own (`TWILIO_ACCOUNT_SID`, …); everything else is
`VOICEBOT_…`, groups with two underscores (`VOICEBOT_PACING__LEAD_MS`). Every problem is
reported at once, by name, before the server listens. Nothing else reads the environment.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from voicebot.allowance import Outbound
from voicebot.api_keys import Keyring, parse_keys
from voicebot.audio import FRAME_MS
from voicebot.client_address import networks
from voicebot.context import CONTEXT_TOKENS, tokens_of
from voicebot.errors import ConfigError
from voicebot.hearing import Hearing
from voicebot.limits import Limits
from voicebot.patience import Endpointing
from voicebot.plan import CONNECTING, CallPlan, Timeouts
from voicebot.playout import Pacing
from voicebot.recognition import Recognition
from voicebot.recording import Recording
from voicebot.redaction import Redaction, Retention
from voicebot.turns import Interruption

if TYPE_CHECKING:
    from voicebot.tolls import Tolls

E164: Final = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)  # ITU-T E.164: at most 15 digits
_MAY_BE_EMPTY: Final = frozenset(
    {
        *("VOICEBOT_GREETING", "VOICEBOT_GROQ_FALLBACK_MODELS", "VOICEBOT_DATABASE_URL"),
        "VOICEBOT_RECORDING__CONSENT",
    }
)
_DATABASE: Final = re.compile(r"sqlite:///?[^/]|sqlite:////|postgres(ql)?(\+psycopg)?://")
_ACCOUNT_SID: Final = re.compile(r"AC[0-9a-f]{32}", re.ASCII)

MOST_WORKERS: Final = 64  # cores of a large machine
SHARES_NOTHING: Final = (
    "VOICEBOT_DATABASE_URL: is empty, and several processes agree by way of it; set it, or do "
    "without VOICEBOT_WORKERS and VOICEBOT_SHARED"
)

DEFAULT_PROMPT: Final = (
    "You are the receptionist of Trattoria Aurora, on the phone. Answer in one or two short "
    "sentences of plain spoken English: no lists, no markup, no emoji. The restaurant is open "
    "Tuesday to Sunday from noon to ten in the evening. You can take a table booking: ask for "
    "the day, the time and the number of guests. If you do not know something, say so."
)
DEFAULT_GREETING: Final = "Hello, this is Trattoria Aurora. How can I help you?"


def _named(*names: str, default: Any, why: str) -> Any:
    return Field(
        default=default, validation_alias=AliasChoices(*names, names[0].lower()), description=why
    )


class Settings(BaseSettings):
    """Everything that can be set. Frozen; secrets do not show in its repr.

    Build it with `load`, which turns pydantic's errors into one `ConfigError`.
    """

    model_config = SettingsConfigDict(
        env_prefix="VOICEBOT_",
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        populate_by_name=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values only as given: `load` alone reads the environment."""
        return (init_settings,)

    # Accounts and addresses, under the vendors' names.
    twilio_account_sid: str = _named(
        "TWILIO_ACCOUNT_SID", default="", why="AC…; empty: no telephone, only the simulator"
    )
    twilio_auth_token: SecretStr = _named(
        "TWILIO_AUTH_TOKEN", default=SecretStr(""), why="signs Twilio's requests to us"
    )
    twilio_auth_token_secondary: SecretStr = _named(
        "TWILIO_AUTH_TOKEN_SECONDARY",
        default=SecretStr(""),
        why="signs them as well, while the token is changed: at promotion Twilio goes over to it",
    )
    twilio_webhook_keys: SecretStr = _named(
        "TWILIO_WEBHOOK_KEYS",
        default=SecretStr(""),
        why="id:secret of the SharedKey that signs them with HMAC-SHA256 (Public Beta), "
        "comma-separated while it is changed; empty: who claims one is refused",
    )
    twilio_from_number: str = _named(
        "TWILIO_FROM_NUMBER", default="", why="E.164; caller id of outbound calls"
    )
    twilio_api_url: str = _named(
        "TWILIO_API_URL", default="https://api.twilio.com", why="a stand-in can take its place"
    )
    deepgram_api_key: SecretStr = _named(
        "DEEPGRAM_API_KEY", default=SecretStr(""), why="empty: embedded speech"
    )
    deepgram_url: str = _named(
        "DEEPGRAM_URL",
        default="https://api.deepgram.com",
        why="http(s); the WebSocket takes the same host as ws(s)",
    )
    deepgram_fallback_api_key: SecretStr = _named(
        "DEEPGRAM_FALLBACK_API_KEY",
        default=SecretStr(""),
        why="of another project, used while the first fails",
    )
    groq_fallback_api_key: SecretStr = _named(
        "GROQ_FALLBACK_API_KEY",
        default=SecretStr(""),
        why="of another organisation, used while the first fails",
    )
    groq_api_key: SecretStr = _named(
        "GROQ_API_KEY", default=SecretStr(""), why="empty: the scripted brain"
    )
    groq_base_url: str = _named(
        "GROQ_BASE_URL",
        default="https://api.groq.com",
        why="any OpenAI-compatible server that answers under /openai/v1; a loopback one needs "
        "no key",
    )
    public_url: str = _named(
        "PUBLIC_URL", default="", why="https://… under which Twilio reaches this server"
    )

    otel_exporter_otlp_endpoint: str = _named(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        default="",
        why="http(s)://host:4318 of a collector that takes traces by OTLP over HTTP; empty: none "
        "are made. Headers, time-outs and sampling: OpenTelemetry's own variables",
    )
    otel_service_name: str = _named(
        "OTEL_SERVICE_NAME", default="voicebot", why="what traces are of"
    )

    # Models.
    deepgram_stt_model: str = Field(
        "nova-3", description="speech to text: flux-… by v2 listen, everything else by v1"
    )
    deepgram_tts_model: str = Field("aura-2-thalia-en", description="the voice")
    deepgram_tts_transport: Literal["rest", "websocket"] = Field(
        "rest",
        description="how speech is asked for. rest: a request for each sentence, at most 15 at "
        "once for a project. websocket: 45 or 60 at once, and a barge-in costs no connection, but "
        "each takes 2,400 characters and 20 sentences a minute, and its corners are less "
        "documented",
    )
    groq_model: str = Field(
        "openai/gpt-oss-20b", description="production model of 2026, about 1,000 tokens/s"
    )
    groq_fallback_models: str = Field(
        "openai/gpt-oss-120b",
        description="asked in this order when the first fails; comma-separated, empty: none. "
        "A rate limit is of one model, and this is the other production model",
    )
    context_tokens: Annotated[int, Field(ge=1_000, le=131_072)] = Field(
        CONTEXT_TOKENS,
        description="what the prompt, the tools and the conversation may cost together, by a "
        "high estimate; the oldest of the conversation goes first. Fits the least of Groq's plans",
    )
    voice: Literal["auto", "piper", "espeak"] = Field(
        "auto", description="the embedded voice; auto: piper where it is installed, else espeak-ng"
    )
    language: str = Field("en", description="BCP 47 tag given to speech to text")

    # The bot.
    bot: str = Field(
        "",
        description="the bot file: bot.py, bot.py:name or package.module[:name]; empty: a bot of "
        "the prompt and greeting below",
    )
    prompt: str = Field(DEFAULT_PROMPT, description="system prompt")
    greeting: str = Field(DEFAULT_GREETING, description="spoken first; empty: the caller begins")

    fallback_speech: Literal["none", "embedded"] = Field(
        "none",
        description="what hears and speaks while Deepgram fails; embedded costs half a gigabyte, "
        "and two cores keep up with four calls",
    )
    transfer_to: str = Field(
        "", description="E.164; who is called when the bot cannot go on; empty: it hangs up"
    )

    # The service.
    api_keys: str = Field(
        "",
        repr=False,
        description="who may use the calls API: name:scopes:SHA-256 of each key, comma-separated; "
        "`voicebot keys new NAME` makes one. Empty: nobody",
    )
    api_key: SecretStr = Field(
        SecretStr(""),
        description="the key that `voicebot call` and `voicebot simulate` send to a server",
    )
    dev: bool = Field(
        False,
        description="for trying things on one machine: what is not configured, Twilio's signature "
        "or keys, is not asked of direct loopback requests. Never behind a proxy or a tunnel",
    )
    accept_sha1: bool = Field(
        True,
        description="signatures by the auth token (HMAC-SHA1) are accepted. Twilio does not say "
        "whether media sockets are signed with a SharedKey; false once you have seen that all is",
    )
    max_calls: Annotated[int, Field(ge=1, le=10_000)] = Field(
        40,
        description="calls at once; a further caller hears that the line is busy. 40 is 65 % "
        "of a core with Deepgram and Groq",
    )
    kept_calls: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        1_000,
        description="records of ended calls in memory, for the calls API; 1,000 are some 3 MB, and "
        "days of a small office. With a database all others are there",
    )
    max_embedded_calls: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="calls at once while speech is embedded: two cores keep up with four"
    )
    start_timeout_s: Annotated[float, Field(gt=0, le=60)] = Field(
        5.0, description="a media socket must send start within this; Twilio does in < 1 s"
    )
    token_ttl_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        60.0, description="a stream token lives this long; Twilio connects within a few seconds"
    )
    drain_s: Annotated[float, Field(ge=0, le=7200)] = Field(
        5.0,
        description="live calls may go on this long after SIGTERM, then they hear an apology. 5 "
        "is for who stops a server by hand; a service has minutes",
    )
    drain_to: str = Field(
        "",
        description="PUBLIC_URL of another server, which takes new calls while this one stops; "
        "empty: callers hear an apology",
    )
    send_deadline_s: Annotated[float, Field(gt=0, le=60)] = Field(
        5.0, description="a socket that takes no byte for this long is dropped, and its call ends"
    )
    ready_lag_ms: Annotated[int, Field(ge=0, le=10_000)] = Field(
        100,
        description="with something in each of five seconds later than this /readyz says 503, "
        "so that new calls go elsewhere: at 200 ms callers hear gaps. 0: never",
    )
    spare_connections: Annotated[int, Field(ge=0, le=16)] = Field(
        2,
        description="connections to each of Groq and Deepgram's speech that are ready beyond "
        "those in use: a barge-in costs one, and a new one takes 0.2 s. With one barge-in a "
        "minute in each of 40 calls, two suffice 99 times in 100",
    )
    database_url: SecretStr = Field(
        SecretStr("sqlite:///voicebot.db"),
        description="where records of calls are kept: sqlite:///FILE or "
        "postgresql://USER:PASSWORD@HOST/NAME; empty: only as long as the process runs. The "
        "default is in the folder where .env is read from as well",
    )
    trusted_proxies: str = Field(
        "",
        description="addresses or CIDRs of proxies in front of this server, comma-separated: whose "
        "X-Forwarded-For says who asks. Empty: nobody's, and what a proxy passes on is the proxy's",
    )
    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = Field(
        1,
        description="processes of `serve`, one for each core, which share one port and the "
        "database; each has VOICEBOT_MAX_CALLS. Embedded speech takes two cores for one",
    )
    shared: bool = Field(
        False,
        description="whether other processes serve under the same PUBLIC_URL with this database. "
        "Set by VOICEBOT_WORKERS; set it for processes that are started otherwise. Each step of "
        "a call then asks the database",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    # The engine; the defaults and their reasons stand beside the code that uses them.
    hearing: Hearing = Hearing()
    recognition: Recognition = Recognition()
    endpointing: Endpointing = Endpointing()
    interruption: Interruption = Interruption()
    pacing: Pacing = Pacing()
    timeouts: Timeouts = Timeouts()
    outbound: Outbound = Outbound()
    retention: Retention = Retention()
    redaction: Redaction = Redaction()
    recording: Recording = Recording()
    limits: Limits = Limits()

    @field_validator("interruption", "recognition", mode="before")
    @classmethod
    def _split_words(cls, given: Any) -> Any:
        """Take words and phrases with commas between."""
        if not isinstance(given, Mapping):
            return given
        return {
            name: _names(value)
            if name in {"listening", "stopping", "keyterms"} and isinstance(value, str)
            else value
            for name, value in given.items()
        }

    @property
    def telephony(self) -> bool:
        """Whether a Twilio account is configured."""
        return bool(self.twilio_account_sid)

    @property
    def keyring(self) -> Keyring:
        """The keys of the calls API. Raises `ConfigError`, but not for what `load` has checked."""
        return parse_keys(self.api_keys)

    @property
    def webhook_keys(self) -> dict[str, str]:
        """The secrets of the shared keys, by id."""
        entries = _names(self.twilio_webhook_keys.get_secret_value())
        return {name: secret for name, _, secret in (entry.partition(":") for entry in entries)}

    @property
    def deepgram(self) -> bool:
        """Whether Deepgram hears and speaks; the embedded parts do otherwise."""
        return bool(self.deepgram_api_key.get_secret_value())

    @property
    def groq(self) -> bool:
        """Whether a language model answers; the scripted brain does otherwise."""
        return bool(self.groq_api_key.get_secret_value()) or (
            "groq_base_url" in self.model_fields_set and _is_loopback(self.groq_base_url)
        )

    @property
    def groq_models(self) -> tuple[str, ...]:
        """The models to ask, in order. Another server than Groq has only those it is said to."""
        fallbacks = _names(self.groq_fallback_models)
        if {"groq_base_url", "groq_fallback_models"} & self.model_fields_set == {"groq_base_url"}:
            fallbacks = ()
        return tuple(dict.fromkeys((self.groq_model, *fallbacks)))

    @property
    def call_limit(self) -> int:
        """Calls at once, by what the configured parts can carry."""
        return self.max_calls if self.deepgram else min(self.max_calls, self.max_embedded_calls)


def load(environ: Mapping[str, str] | None = None, env_file: Path | None = None) -> Settings:
    """Read and check all settings.

    Args:
        environ: instead of the process environment, for tests.
        env_file: a `.env` file; the environment wins over it. It may be absent.

    Raises:
        ConfigError: with every problem, each naming the variable and what to do.
    """
    variables = {
        **(dotenv_values(env_file) if env_file else {}),
        **(os.environ if environ is None else environ),
    }
    source = EnvSettingsSource(Settings)
    # Left empty is not given, but where that is a choice.
    source.env_vars = {
        name.lower(): value
        for name, value in variables.items()
        if value or (value == "" and name.upper() in _MAY_BE_EMPTY)
    }
    given = source()
    try:
        settings, problems = Settings.model_validate(given), []
    except ValidationError as exc:
        problems = [_describe(error) for error in exc.errors()]
        # The rest is checked as well, so that one start shows everything there is to mend.
        wrong = {str(error["loc"][0]) for error in exc.errors()}
        settings = Settings.model_validate(
            {name: value for name, value in given.items() if name not in wrong}
        )
    problems += _contradictions(settings)
    problems += _misspelt(variables)
    if problems:
        raise ConfigError(problems)
    return settings


def plan_of(settings: Settings) -> CallPlan:
    """Return how calls are run by these settings alone."""
    values: dict[str, Any] = {
        name: getattr(settings, name)
        for name in (
            *("prompt", "greeting", "language", "pacing", "endpointing", "interruption"),
            *("timeouts", "send_deadline_s", "context_tokens"),
        )
    }
    values["recorded"] = bool(settings.recording.path)
    values["consent"] = settings.recording.consent
    if settings.transfer_to:
        values["trouble"] = CONNECTING
        if settings.telephony:  # without it there is nobody who could put anybody through
            values["people"] = {"a person": settings.transfer_to}
    return CallPlan(**values)


def tolls_of(settings: Settings) -> Tolls:
    """Return which numbers may be called.

    Raises:
        ValueError: a country or a kind that there is not; `load` has seen to that.
    """
    from voicebot.tolls import Tolls  # costs 0.03 s; who calls nobody never needs it

    countries, kinds = _names(settings.outbound.countries), _names(settings.outbound.kinds)
    return Tolls(countries, kinds, settings.twilio_from_number)


def _describe(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    name = "__".join(path).upper()
    if path[0].lower() not in _VENDOR_NAMES:
        name = f"VOICEBOT_{name}"
    # The value itself may be a secret, so it is not repeated.
    return f"{name}: {error['msg'][:1].lower()}{error['msg'][1:]}"


_VENDOR_NAMES: Final = frozenset(
    name for name, info in Settings.model_fields.items() if info.validation_alias is not None
)


def _misspelt(variables: Mapping[str, Any]) -> list[str]:
    """Return a problem for every setting of ours that does not exist."""
    known = set()
    for name in set(Settings.model_fields) - _VENDOR_NAMES:
        group = getattr(Settings.model_fields[name].default, "__dataclass_fields__", None)
        if group is None:
            known.add(f"VOICEBOT_{name.upper()}")
        else:
            known |= {f"VOICEBOT_{name.upper()}__{field.upper()}" for field in group}
    problems = []
    for name in variables:
        if name.upper().startswith("VOICEBOT_") and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, 1)
            hint = f"; is it {near[0]}?" if near else ""
            problems.append(f"{name}: there is no such setting{hint}")
    return problems


def _contradictions(settings: Settings) -> list[str]:
    """Return what is wrong between settings that are each well-formed."""
    problems = []
    if settings.twilio_account_sid and not _ACCOUNT_SID.fullmatch(settings.twilio_account_sid):
        problems.append(
            "TWILIO_ACCOUNT_SID: must be AC and 32 lowercase hexadecimal digits; "
            "copy it from the Twilio Console"
        )
    if settings.twilio_account_sid and not settings.twilio_auth_token.get_secret_value():
        problems.append("TWILIO_AUTH_TOKEN: is missing, TWILIO_ACCOUNT_SID is set")
    if settings.twilio_auth_token.get_secret_value() and not settings.twilio_account_sid:
        problems.append("TWILIO_ACCOUNT_SID: is missing, TWILIO_AUTH_TOKEN is set")
    problems += _wrong_doors(settings)
    if settings.twilio_from_number and not E164.fullmatch(settings.twilio_from_number):
        problems.append("TWILIO_FROM_NUMBER: must be E.164, like +15550100123")
    if settings.transfer_to and not E164.fullmatch(settings.transfer_to):
        problems.append("VOICEBOT_TRANSFER_TO: must be E.164, like +15550100123")
    if settings.telephony and not settings.public_url:
        problems.append(
            "PUBLIC_URL: is missing; set it to the https:// address under which Twilio reaches "
            "this server, for example that of your tunnel"
        )
    if settings.public_url:
        problems += _check_url("PUBLIC_URL", settings.public_url, allow_path=False)
        if settings.telephony and settings.public_url.startswith("http://"):
            problems.append("PUBLIC_URL: must begin with https://; Twilio streams to wss:// only")
    if settings.drain_to:
        problems += _check_url("VOICEBOT_DRAIN_TO", settings.drain_to, allow_path=False)
        if settings.drain_to.rstrip("/") == settings.public_url.rstrip("/"):
            problems.append("VOICEBOT_DRAIN_TO: must be another server's; it is PUBLIC_URL")
        elif settings.telephony and settings.drain_to.startswith("http://"):
            problems.append("VOICEBOT_DRAIN_TO: must begin with https://")
    database = settings.database_url.get_secret_value()
    if database and not _DATABASE.match(database):  # which is not repeated: it may have a password
        problems.append(
            "VOICEBOT_DATABASE_URL: must be sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/NAME, or empty"
        )
    if (settings.shared or settings.workers > 1) and not database:
        problems.append(SHARES_NOTHING)
    problems += _check_url("TWILIO_API_URL", settings.twilio_api_url)
    if settings.otel_exporter_otlp_endpoint:
        problems += _check_url("OTEL_EXPORTER_OTLP_ENDPOINT", settings.otel_exporter_otlp_endpoint)
    problems += _check_url("DEEPGRAM_URL", settings.deepgram_url)
    problems += _check_url("GROQ_BASE_URL", settings.groq_base_url)
    if settings.deepgram_fallback_api_key.get_secret_value() and not settings.deepgram:
        problems.append("DEEPGRAM_API_KEY: is missing, DEEPGRAM_FALLBACK_API_KEY is set")
    groq_key = settings.groq_api_key.get_secret_value()
    if settings.groq_fallback_api_key.get_secret_value() and not groq_key:
        problems.append("GROQ_API_KEY: is missing, GROQ_FALLBACK_API_KEY is set")
    chosen = "groq_fallback_models" in settings.model_fields_set
    if chosen and settings.groq_model in _names(settings.groq_fallback_models):
        problems.append(
            "VOICEBOT_GROQ_FALLBACK_MODELS: names VOICEBOT_GROQ_MODEL, which has failed then"
        )
    if (prompt := tokens_of(settings.prompt)) > settings.context_tokens * 3 // 4:
        problems.append(
            f"VOICEBOT_CONTEXT_TOKENS: {settings.context_tokens} is too few for VOICEBOT_PROMPT, "
            f"which takes about {prompt}, and a conversation; set it to {prompt * 2} or shorten it"
        )
    try:
        networks(settings.trusted_proxies)
    except ValueError as exc:
        problems.append(f"VOICEBOT_TRUSTED_PROXIES: {exc}; give CIDRs, like 10.0.0.0/8")
    for name, value in asdict(settings.limits).items():
        if value <= 0:
            problems.append(f"VOICEBOT_LIMITS__{name.upper()}: must be above 0")
    if 0 < settings.limits.connections < 2 * settings.max_calls:
        problems.append(
            f"VOICEBOT_LIMITS__CONNECTIONS: must be at least {2 * settings.max_calls}, a stream "
            "and a webhook for each of VOICEBOT_MAX_CALLS"
        )
    pacing = settings.pacing
    if pacing.chunk_ms < FRAME_MS or pacing.chunk_ms % FRAME_MS:
        problems.append(f"VOICEBOT_PACING__CHUNK_MS: must be a multiple of {FRAME_MS}")
    if pacing.lead_ms < pacing.chunk_ms + FRAME_MS:
        problems.append(
            f"VOICEBOT_PACING__LEAD_MS: must be at least VOICEBOT_PACING__CHUNK_MS + {FRAME_MS}"
        )
    for name, what in settings.recognition.problems(settings.deepgram_stt_model, settings.language):
        problems.append(
            f"VOICEBOT_{f'RECOGNITION__{name.upper()}' if name else 'LANGUAGE'}: {what}"
        )
    if settings.recording.path and settings.redaction.words == "none":
        problems.append(
            "VOICEBOT_RECORDING__PATH: is set, and by VOICEBOT_REDACTION__WORDS=none nothing of "
            "what is said is kept; unset one of them"
        )
    for group in (
        *("recognition", "pacing", "endpointing", "interruption", "timeouts", "retention"),
        *("recording", "outbound"),
    ):
        for name, value in asdict(getattr(settings, group)).items():
            if isinstance(value, int | float) and value < 0:
                problems.append(f"VOICEBOT_{group.upper()}__{name.upper()}: must not be negative")
    if settings.outbound.countries or settings.outbound.kinds:
        try:
            tolls_of(settings)
        except ValueError as exc:
            problems.append(f"VOICEBOT_OUTBOUND__COUNTRIES, VOICEBOT_OUTBOUND__KINDS: {exc}")
    if settings.log_level.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        problems.append("VOICEBOT_LOG_LEVEL: must be DEBUG, INFO, WARNING or ERROR")
    return problems


def _wrong_doors(settings: Settings) -> list[str]:
    """Return what is wrong with the secrets by which requests are known."""
    problems = [
        f"TWILIO_ACCOUNT_SID: is missing, {name.upper()} is set"
        for name in ("twilio_auth_token_secondary", "twilio_webhook_keys")
        if getattr(settings, name).get_secret_value() and not settings.telephony
    ]
    if not all(name and secret for name, secret in settings.webhook_keys.items()):
        problems.append("TWILIO_WEBHOOK_KEYS: must be id:secret, comma-separated")
    if not settings.accept_sha1 and not settings.webhook_keys:
        problems.append("TWILIO_WEBHOOK_KEYS: is missing, VOICEBOT_ACCEPT_SHA1 is false")
    try:
        _ = settings.keyring
    except ConfigError as exc:
        problems += [f"VOICEBOT_API_KEYS: {problem}" for problem in exc.problems]
    return problems


def _names(text: str) -> tuple[str, ...]:
    """Return the items of a list as a person writes it: with commas."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def _check_url(name: str, url: str, *, allow_path: bool = True) -> list[str]:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return [f"{name}: is not a URL"]
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return [f"{name}: must be http(s)://host[:port]"]
    if (
        parts.query
        or parts.fragment
        or "@" in parts.netloc
        or (not allow_path and parts.path.strip("/"))
    ):
        return [f"{name}: must be only a scheme, a host and maybe a port"]
    return []


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")
