"""Fuzzes the codecs for long: coverage-guided by atheris, or at random by Hypothesis.

    python -m tests.fuzz.many atheris --inputs 1000000               each codec in turn
    python -m tests.fuzz.many atheris --only twilio_stream --inputs 5000000
    python -m tests.fuzz.many hypothesis --inputs 100000

atheris is installed by `pip install '.[fuzz]'`. What it finds is left in the working directory as
`crash-…`; `python -m tests.fuzz.many replay twilio_stream crash-…` runs that once more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.targets import BINARY, SEEDS, SEPARATOR, TARGETS, join

MAX_BYTES = 4_096  # ten messages; longer inputs find nothing that these do not, more slowly


def main() -> int:
    """Run one kind of fuzzing; the exit status is 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("atheris", "hypothesis"):
        one = commands.add_parser(name)
        one.add_argument("--inputs", type=int, default=100_000, help="for each codec")
        one.add_argument("--only", choices=TARGETS, action="append")
    replay = commands.add_parser("replay")
    replay.add_argument("target", choices=TARGETS)
    replay.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.command == "replay":
        TARGETS[args.target](args.file.read_bytes())
        return 0
    failed = 0
    for target in args.only or TARGETS:
        began = time.monotonic()
        run = _with_atheris if args.command == "atheris" else _with_hypothesis
        status = run(target, args.inputs)
        took = time.monotonic() - began
        print(f"{target}: {args.inputs} inputs, {'found' if status else 'nothing'}, {took:.0f} s")
        failed |= status != 0
    return int(failed)


def _with_atheris(target: str, inputs: int) -> int:
    """Run libFuzzer in a process of its own, which it ends itself."""
    seeds = [json.dumps(seed).encode() for seed in SEEDS[target]]
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for number, messages in enumerate([*([seed] for seed in seeds), seeds, [*seeds, *seeds]]):
            (corpus / f"seed-{number}").write_bytes(join(target, messages))
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in _words(seeds)))
        command = [sys.executable, "-m", "tests.fuzz.under_atheris", target, str(corpus)]
        limits = [f"-runs={inputs}", f"-max_len={MAX_BYTES}", "-timeout=10"]
        ran = subprocess.run(
            [*command, *limits, f"-dict={words}", "-verbosity=0"], check=False, capture_output=True
        )
    if ran.returncode:
        sys.stderr.buffer.write(ran.stdout[-4_000:] + ran.stderr[-4_000:])
    return ran.returncode


def _words(seeds: list[bytes]) -> list[bytes]:
    """Return what messages are made of, so that changes of one make another."""
    found = set(re.findall(rb'"[^"\\]*"', b"".join(seeds)))
    others = (SEPARATOR, BINARY, b"data: ", b"\n\n", b'":', b"null", b"1e999", b"[[", b"\\ud800")
    return sorted(found | set(others))


def _escaped(word: bytes) -> str:
    """Return a word as libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def _with_hypothesis(target: str, inputs: int) -> int:
    name = "tests/fuzz/test_codecs.py::test_a_codec_keeps_its_promises_whatever_it_is_given"
    environ = {**os.environ, "VOICEBOT_FUZZ_INPUTS": str(inputs)}
    command = [sys.executable, "-m", "pytest", "-q", f"{name}[{target}]"]
    return subprocess.run(command, check=False, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
