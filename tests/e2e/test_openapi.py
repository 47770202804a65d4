"""The server's HTTP surface against its OpenAPI document, tried by schemathesis over a socket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.e2e.test_real_call import environment
from tests.e2e.test_records import served
from tests.keys import API_KEY
from voicebot.http import OPENAPI
from voicebot.standins import open_standins

#: Requests for each operation, beside the edges of each field, which are the same each time.
EXAMPLES = int(os.environ.get("VOICEBOT_FUZZ_REQUESTS", "5"))

# What the API is and the document cannot say: which calls are known, that `voicemail` needs
# `machine_detection`, and that /calls/refused has another meaning than /calls/{sid} for GET only.
UNSAID = "positive_data_acceptance,allow_header_conformance"
PARTS = {
    "api": ["--exclude-path-regex", "^/twilio/", "--exclude-checks", UNSAID],
    # A form that is signed is Twilio's, whatever is in it.
    "webhooks": [
        *("--include-path-regex", "^/twilio/", "--checks"),
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance",
    ],
}


@pytest.mark.parametrize("part", PARTS)
async def test_every_answer_is_one_that_the_document_has(part: str, tmp_path: Path) -> None:
    with trio.fail_after(60 + EXAMPLES * 12):
        async with open_standins() as standins:
            environ = {
                **environment(standins),
                "VOICEBOT_DATABASE_URL": f"sqlite:///{tmp_path}/calls.db",
            }
            async with served(environ) as (url, process):
                command = [sys.executable, "-m", "schemathesis.cli", "run", str(OPENAPI)]
                command += ["--url", url, "--header", f"Authorization: Bearer {API_KEY}"]
                command += ["--max-examples", str(EXAMPLES), "--seed", "7", "--no-shrink"]
                command += ["--phases", "examples,coverage,fuzzing", "--continue-on-failure"]
                ran = await trio.run_process(
                    [*command, *PARTS[part]],
                    check=False,
                    stdin=subprocess.DEVNULL,
                    capture_stdout=True,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.signing"},
                    cwd=tmp_path,
                )
                assert process.returncode is None
        said = ran.stdout.decode()
        assert ran.returncode == 0, said[-20_000:]
        assert "Network Error" not in said
