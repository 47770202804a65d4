"""One codec under atheris: `many.py` starts this with libFuzzer's arguments behind the name."""

import sys

import atheris  # type: ignore[import-untyped]  # of the extra `fuzz`, ships no types

# Whose branches guide it. Nothing of the package may have been imported before.
CODECS = ["voicebot.twilio", "voicebot.deepgram", "voicebot.deepgram_speech", "voicebot.flux"]
CODECS += ["voicebot.sse", "voicebot.completions", "voicebot.thoughts", "voicebot.refusals"]
CODECS += ["voicebot.local.wire", "json.decoder", "json.scanner", "tests.fuzz.targets"]

with atheris.instrument_imports(include=CODECS):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
