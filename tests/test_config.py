"""Settings: every problem at once, by name, and no secret in the text."""

from __future__ import annotations

from pathlib import Path

import pytest

from voicebot.config import DEFAULT_GREETING, load
from voicebot.errors import ConfigError
from voicebot.recognition import Recognition

SID = "AC" + "0123456789abcdef" * 2
TELEPHONE = {
    "TWILIO_ACCOUNT_SID": SID,
    "TWILIO_AUTH_TOKEN": "token-of-twilio",
    "PUBLIC_URL": "https://bot.example.com",
}


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


def names(environ: dict[str, str]) -> list[str]:
    return [problem.split(":")[0] for problem in problems(environ)]


def test_no_settings_at_all_mean_the_embedded_parts() -> None:
    settings = load({})
    assert (settings.telephony, settings.deepgram, settings.groq) == (False, False, False)
    assert settings.call_limit == settings.max_embedded_calls


def test_vendors_names_and_our_own() -> None:
    settings = load(
        {
            **TELEPHONE,
            "TWILIO_FROM_NUMBER": "+15550100123",
            "DEEPGRAM_API_KEY": "key-of-deepgram",
            "GROQ_API_KEY": "key-of-groq",
            "VOICEBOT_MAX_CALLS": "7",
            "VOICEBOT_PACING__LEAD_MS": "150",
            "VOICEBOT_INTERRUPTION__POLICY": "commit",
            "VOICEBOT_TIMEOUTS__MEDIA_S": "2.5",
            "OTHER": "ignored",
        }
    )
    assert (settings.telephony, settings.deepgram, settings.groq) == (True, True, True)
    assert settings.call_limit == 7
    assert settings.pacing.lead_ms == 150
    assert settings.interruption.policy == "commit"
    assert settings.timeouts.media_s == 2.5


def test_only_a_choice_may_be_left_empty_on_purpose(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("VOICEBOT_GREETING=\nVOICEBOT_PROMPT=\n")

    settings = load({}, tmp_path / ".env")

    assert settings.greeting == ""
    assert settings.prompt == load({}).prompt != ""
    assert load({"VOICEBOT_GREETING": ""}).greeting == ""
    assert load({"VOICEBOT_RECORDING__CONSENT": ""}).recording.consent == ""
    assert load({}).greeting != ""


@pytest.mark.parametrize(
    "environ, models",
    [
        ({}, ("openai/gpt-oss-20b", "openai/gpt-oss-120b")),
        ({"VOICEBOT_GROQ_MODEL": "openai/gpt-oss-120b"}, ("openai/gpt-oss-120b",)),
        (
            {"VOICEBOT_GROQ_FALLBACK_MODELS": " a,b , a,"},
            ("openai/gpt-oss-20b", "a", "b"),
        ),
        ({"VOICEBOT_GROQ_FALLBACK_MODELS": ""}, ("openai/gpt-oss-20b",)),
        # Another server has other models.
        ({"GROQ_BASE_URL": "http://127.0.0.1:1", "VOICEBOT_GROQ_MODEL": "m"}, ("m",)),
        (
            {
                "GROQ_BASE_URL": "http://127.0.0.1:1",
                "VOICEBOT_GROQ_MODEL": "m",
                "VOICEBOT_GROQ_FALLBACK_MODELS": "n",
            },
            ("m", "n"),
        ),
    ],
)
def test_models_are_asked_in_order(environ: dict[str, str], models: tuple[str, ...]) -> None:
    assert load(environ).groq_models == models


def test_a_model_is_no_fallback_for_itself() -> None:
    environ = {"VOICEBOT_GROQ_FALLBACK_MODELS": "other,openai/gpt-oss-20b"}
    assert names(environ) == ["VOICEBOT_GROQ_FALLBACK_MODELS"]


def test_a_prompt_must_leave_room_for_a_conversation() -> None:
    environ = {"VOICEBOT_PROMPT": "Be kind. " * 300, "VOICEBOT_CONTEXT_TOKENS": "1500"}
    assert load(environ).context_tokens == 1_500
    (problem,) = problems({**environ, "VOICEBOT_CONTEXT_TOKENS": "1300"})
    assert problem.startswith("VOICEBOT_CONTEXT_TOKENS: 1300 is too few for VOICEBOT_PROMPT")
    tokens = problem.split("set it to ")[1].split()[0]
    assert load({**environ, "VOICEBOT_CONTEXT_TOKENS": tokens}).context_tokens == int(tokens)


def test_lists_of_words_have_commas() -> None:
    settings = load({"VOICEBOT_INTERRUPTION__STOPPING": "abort mission, halt,"})
    assert settings.interruption.stopping == ("abort mission", "halt")
    assert settings.interruption.listening == ()


def test_recognition_is_set_by_name() -> None:
    settings = load(
        {
            "VOICEBOT_RECOGNITION__KEYTERMS": "Trattoria Aurora, ragù,",
            "VOICEBOT_RECOGNITION__EAGER_EOT_THRESHOLD": "0.4",
            "VOICEBOT_RECOGNITION__ENDPOINTING_MS": "200",
        }
    )
    assert settings.recognition == Recognition(
        keyterms=("Trattoria Aurora", "ragù"), eager_eot_threshold=0.4, endpointing_ms=200
    )
    assert load({}).recognition.eager_eot_threshold is None


FLUX = {"VOICEBOT_DEEPGRAM_STT_MODEL": "flux-general-en"}


@pytest.mark.parametrize(
    "name, environ",
    [
        ("RECOGNITION__EOT_THRESHOLD", {"VOICEBOT_RECOGNITION__EOT_THRESHOLD": "0.4"}),
        (
            "RECOGNITION__EAGER_EOT_THRESHOLD",
            {"VOICEBOT_RECOGNITION__EAGER_EOT_THRESHOLD": "0.2"},
        ),
        (
            "RECOGNITION__EAGER_EOT_THRESHOLD",
            {"VOICEBOT_RECOGNITION__EAGER_EOT_THRESHOLD": "0.8"},  # above eot_threshold
        ),
        ("RECOGNITION__EOT_TIMEOUT_MS", {"VOICEBOT_RECOGNITION__EOT_TIMEOUT_MS": "400"}),
        ("RECOGNITION__UTTERANCE_END_MS", {"VOICEBOT_RECOGNITION__UTTERANCE_END_MS": "999"}),
        ("RECOGNITION__ENDPOINTING_MS", {"VOICEBOT_RECOGNITION__ENDPOINTING_MS": "-1"}),
        ("LANGUAGE", {**FLUX, "VOICEBOT_LANGUAGE": "de"}),
        (
            "RECOGNITION__KEYTERMS",
            {**FLUX, "VOICEBOT_RECOGNITION__KEYTERMS": ",".join(f"t{n}" for n in range(101))},
        ),
        ("RECOGNITION__KEYTERMS", {"VOICEBOT_RECOGNITION__KEYTERMS": "a b c d e," * 101}),
        (
            "RECOGNITION__KEYTERMS",
            {
                "VOICEBOT_DEEPGRAM_STT_MODEL": "nova-2-phonecall",
                "VOICEBOT_RECOGNITION__KEYTERMS": "Aurora",
            },
        ),
    ],
)
def test_what_deepgram_would_refuse_is_refused_at_the_start(
    name: str, environ: dict[str, str]
) -> None:
    assert names(environ) == [f"VOICEBOT_{name}"]


@pytest.mark.parametrize(
    "environ",
    [
        {**FLUX, "VOICEBOT_LANGUAGE": "en-GB"},
        {"VOICEBOT_DEEPGRAM_STT_MODEL": "flux-general-multi", "VOICEBOT_LANGUAGE": "de"},
        {"VOICEBOT_LANGUAGE": "de"},
        {**FLUX, "VOICEBOT_RECOGNITION__KEYTERMS": "a b c d e f," * 100},
        {"VOICEBOT_RECOGNITION__KEYTERMS": ",".join(f"t{n}" for n in range(101))},
        {**FLUX, "VOICEBOT_RECOGNITION__EOT_THRESHOLD": "1.0"},
        {"VOICEBOT_RECOGNITION__EAGER_EOT_THRESHOLD": "0.7"},
    ],
)
def test_what_deepgram_takes_is_taken(environ: dict[str, str]) -> None:
    load(environ)


@pytest.mark.parametrize(
    "name, value",
    [
        ("VOICEBOT_INTERRUPTION__POLICY", "sometimes"),
        ("VOICEBOT_INTERRUPTION__CONFIRM_MS", "-1"),
        ("VOICEBOT_ENDPOINTING__GUESSES", "-1"),
    ],
)
def test_rules_of_turn_taking_that_make_no_sense_are_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load({name: value})


def test_secrets_do_not_show() -> None:
    settings = load({**TELEPHONE, "DEEPGRAM_API_KEY": "key-of-deepgram", "GROQ_API_KEY": "gk-1"})
    for text in (repr(settings), str(settings.model_dump())):
        assert not any(secret in text for secret in ("token-of", "key-of", "gk-1"))


def test_every_problem_is_reported_at_once_by_name() -> None:
    assert names(
        {
            "TWILIO_AUTH_TOKEN": "x",
            "TWILIO_FROM_NUMBER": "0123",
            "PUBLIC_URL": "bot.example.com",
            "DEEPGRAM_URL": "ftp://x",
            "GROQ_BASE_URL": "http://user@host",
            "TWILIO_API_URL": "http://[x",
            "VOICEBOT_MAX_CALLS": "many",
            "VOICEBOT_PACING__LEAD_MS": "long",
            "VOICEBOT_DRAIN_S": "-1",
            "VOICEBOT_LOG_LEVEL": "LOUD",
        }
    ) == [
        "VOICEBOT_MAX_CALLS",
        "VOICEBOT_DRAIN_S",
        "VOICEBOT_PACING__LEAD_MS",
        "TWILIO_ACCOUNT_SID",
        "TWILIO_FROM_NUMBER",
        "PUBLIC_URL",
        "TWILIO_API_URL",
        "DEEPGRAM_URL",
        "GROQ_BASE_URL",
        "VOICEBOT_LOG_LEVEL",
    ]


@pytest.mark.parametrize(
    "change,name",
    [
        ({"PUBLIC_URL": ""}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "http://bot.example.com"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "https://bot.example.com/path"}, "PUBLIC_URL"),
        ({"TWILIO_AUTH_TOKEN": ""}, "TWILIO_AUTH_TOKEN"),
        ({"TWILIO_ACCOUNT_SID": "AC1"}, "TWILIO_ACCOUNT_SID"),
        ({"TWILIO_ACCOUNT_SID": SID.upper()}, "TWILIO_ACCOUNT_SID"),
    ],
)
def test_a_telephone_needs_all_of_its_settings(change: dict[str, str], name: str) -> None:
    assert names({**TELEPHONE, **change}) == [name]


def test_a_wrong_secret_is_not_repeated() -> None:
    text = "\n".join(problems({"TWILIO_AUTH_TOKEN": "hush", "VOICEBOT_DRAIN_S": "hush"}))
    assert "hush" not in text


@pytest.mark.parametrize(
    "environ,groq",
    [
        ({"GROQ_BASE_URL": "http://127.0.0.1:11434"}, True),
        ({"GROQ_BASE_URL": "http://localhost:11434"}, True),
        ({"GROQ_BASE_URL": "https://models.example.com"}, False),
        ({"GROQ_BASE_URL": "https://models.example.com", "GROQ_API_KEY": "k"}, True),
    ],
)
def test_a_local_model_server_needs_no_key(environ: dict[str, str], groq: bool) -> None:
    assert load(environ).groq is groq


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("VOICEBOT_GREETING=from the file\nVOICEBOT_PROMPT=from the file\n")
    settings = load({"VOICEBOT_GREETING": "from outside"}, env_file)
    assert (settings.greeting, settings.prompt) == ("from outside", "from the file")
    assert load({}, tmp_path / "absent").greeting == DEFAULT_GREETING


def test_the_process_environment_is_read_once_and_wrong_values_are_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VOICEBOT_VOICE", "bob-the-secret")
    monkeypatch.setenv("VOICEBOT_MAX_CALLS", "0")
    with pytest.raises(ConfigError) as caught:
        load()
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "VOICEBOT_VOICE",
        "VOICEBOT_MAX_CALLS",
    ]
    assert "bob" not in str(caught.value)
    assert load({}).voice == "auto"


@pytest.mark.parametrize(
    "environ,name",
    [
        ({"VOICEBOT_PACING__CHUNK_MS": "50"}, "VOICEBOT_PACING__CHUNK_MS"),
        ({"VOICEBOT_PACING__CHUNK_MS": "0"}, "VOICEBOT_PACING__CHUNK_MS"),
        ({"VOICEBOT_PACING__LEAD_MS": "70"}, "VOICEBOT_PACING__LEAD_MS"),
        ({"VOICEBOT_TIMEOUTS__MEDIA_S": "-1"}, "VOICEBOT_TIMEOUTS__MEDIA_S"),
    ],
)
def test_numbers_that_would_silence_the_bot_are_refused(environ: dict[str, str], name: str) -> None:
    assert names(environ) == [name]


@pytest.mark.parametrize(
    "name,hint",
    [
        ("VOICEBOT_ENDPOINTING__RESUMEE", "VOICEBOT_ENDPOINTING__RESUME"),
        ("VOICEBOT_MAXCALLS", "VOICEBOT_MAX_CALLS"),
        ("VOICEBOT_ENDPOINTING", ""),
    ],
)
def test_a_misspelt_setting_is_a_problem(name: str, hint: str) -> None:
    [problem] = problems({name: "1"}) if hint else problems({name: "{}"})[-1:]
    assert problem.startswith(f"{name}: there is no such setting")
    assert hint in problem


@pytest.mark.parametrize("name", ["DEEPGRAM", "GROQ"])
def test_a_second_key_without_a_first_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}_API_KEY: is missing, {name}_FALLBACK_API_KEY"):
        load({f"{name}_FALLBACK_API_KEY": "two"})
    settings = load({f"{name}_API_KEY": "one", f"{name}_FALLBACK_API_KEY": "hush"})
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("COUNTRIES", "US,XX", "XX is no country"),
        ("COUNTRIES", "+1", "write US or CA"),
        ("COUNTRIES", "US,+8", "+8 begins with no country code"),
        ("KINDS", "premium,dear", "dear is none of premium"),
        ("AT_ONCE", "-1", "must not be negative"),
        ("MINUTES_PER_DAY", "many", "valid integer"),
    ],
)
def test_whom_to_call_is_checked_at_the_start(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({f"VOICEBOT_OUTBOUND__{name}": value})
    [problem] = caught.value.problems
    assert f"VOICEBOT_OUTBOUND__{name}" in problem
    assert said in problem


@pytest.mark.parametrize(
    "environ, name",
    [
        ({"TWILIO_AUTH_TOKEN_SECONDARY": "hush"}, "TWILIO_ACCOUNT_SID"),
        ({"TWILIO_WEBHOOK_KEYS": "k:hush"}, "TWILIO_ACCOUNT_SID"),
        (TELEPHONE | {"TWILIO_WEBHOOK_KEYS": "hush"}, "TWILIO_WEBHOOK_KEYS"),
        (TELEPHONE | {"TWILIO_WEBHOOK_KEYS": "k:"}, "TWILIO_WEBHOOK_KEYS"),
        (TELEPHONE | {"TWILIO_WEBHOOK_KEYS": ":hush"}, "TWILIO_WEBHOOK_KEYS"),
        (TELEPHONE | {"VOICEBOT_ACCEPT_SHA1": "false"}, "TWILIO_WEBHOOK_KEYS"),
        (TELEPHONE | {"PUBLIC_URL": "https://:hush@bot.example.com"}, "PUBLIC_URL"),
        (TELEPHONE | {"PUBLIC_URL": "https://me@bot.example.com"}, "PUBLIC_URL"),
        ({"VOICEBOT_API_KEYS": "hush"}, "VOICEBOT_API_KEYS"),
        ({"VOICEBOT_DEV": "perhaps"}, "VOICEBOT_DEV"),
    ],
)
def test_doors_that_would_not_close_are_refused(environ: dict[str, str], name: str) -> None:
    [problem] = problems(environ)
    assert problem.startswith(f"{name}:")
    assert "hush" not in problem


def test_shared_keys_have_an_id_each_and_do_not_show() -> None:
    settings = load(TELEPHONE | {"TWILIO_WEBHOOK_KEYS": "one:hush, two:hu:sh"})
    assert settings.webhook_keys == {"one": "hush", "two": "hu:sh"}
    assert "hush" not in repr(settings)
