"""What is played to the ears: recordings of people and music, and sounds that are generated.

Speakers and sources are split (`split.json`): settings are chosen on one part, "tuning", and the
other, "held-out", is played once a release. Recordings come from Debian packages (CC-BY-SA-3.0,
codec2-examples LGPL-2.1, bucklespring-data and tuxpaint-data GPL-2+), of which nothing is shipped
with this project.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voicebot import audio

Samples = NDArray[np.float64]  # full scale is 1
Pattern = list[tuple[tuple[float, ...], float]]  # frequencies in Hz and their seconds

RATE: Final = audio.RATE_HZ
BLOCK: Final = RATE // 100  # onsets are labelled to 10 ms
CALLER_DBOV: Final = (-32.0, -26.0, -20.0)  # levels of telephone speech
BOT_DBOV: Final = -22.0
LINE_DBOV: Final = -65.0  # noise of a good line
BAND_HZ: Final = (300.0, 3_400.0)  # of a telephone
NOT_SPEECH: Final = {"beep", "beeperr", "confbridge-join", "confbridge-leave"}  # and *tone*
CHILD: Final = 1.4  # a grown-up's voice so much higher, and faster, is like a child's
SPLIT: Final = Path(__file__).parent / "split.json"


@dataclass(frozen=True)
class Clip:
    """One recorded utterance with the time of its first and last audible block."""

    samples: Samples
    onset_ms: float
    end_ms: float
    name: str = ""
    text: str = ""  # what is said, where that is known


def read_wav(path: Path) -> Samples:
    """Return a mono 16-bit WAV of 8,000 Hz."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"{path}: not mono, 16 bit, 8,000 Hz")
        pcm = file.readframes(file.getnframes())
    return np.frombuffer(pcm, dtype="<i2").astype(np.float64) / 32_768


def read_sound(path: Path) -> Samples:
    """Return the first channel of a 16-bit WAV of any rate, as a telephone carries it."""
    with wave.open(str(path)) as file:
        rate, channels = file.getframerate(), file.getnchannels()
        pcm = file.readframes(file.getnframes())
    whole = np.frombuffer(pcm, dtype="<i2").astype(np.float64)[::channels] / 32_768
    length = len(whole) * RATE // rate
    samples: Samples = np.fft.irfft(np.fft.rfft(whole)[: length // 2 + 1], length) * length
    return telephone(samples / len(whole))


def telephone(samples: Samples) -> Samples:
    """Return the sound without what a telephone does not carry."""
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1 / RATE)
    spectrum[(hz < BAND_HZ[0]) | (hz > BAND_HZ[1])] = 0
    narrow: Samples = np.fft.irfft(spectrum, len(samples))
    return narrow


def level(samples: Samples) -> float:
    """Return the level in dBov."""
    return 10 * math.log10(float(np.mean(samples**2)) + 1e-12)


def block_levels(samples: Samples) -> Samples:
    """Return the level of each 10 ms in dBov."""
    blocks = samples[: len(samples) // BLOCK * BLOCK].reshape(-1, BLOCK)
    levels: Samples = 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-12)
    return levels


def to_level(samples: Samples, dbov: float) -> Samples:
    """Return the sound with its active part at a level."""
    levels = block_levels(samples)
    active = levels[levels > levels.max() - 30]
    now = 10 * math.log10(float(np.mean(10 ** (active / 10))))
    return samples * 10 ** ((dbov - now) / 20)


def label(samples: Samples, name: str = "", text: str = "") -> Clip | None:
    """Find the onset and the end of speech by energy; None for a clip without clear ones."""
    levels = block_levels(samples)
    if len(levels) < 5 or levels.max() < -50:
        return None
    loud = levels > np.quantile(levels, 0.95) - 25
    runs = np.flatnonzero(loud[:-2] & loud[1:-1] & loud[2:])  # 30 ms, so that no click counts
    if not len(runs):
        return None
    return Clip(samples, 10.0 * int(runs[0]), 10.0 * (int(runs[-1]) + 3), name, text)


def white(rng: np.random.Generator, seconds: float) -> Samples:
    """Return white noise."""
    return rng.standard_normal(int(seconds * RATE))


def pink(rng: np.random.Generator, seconds: float) -> Samples:
    """Return noise with 3 dB less per octave, in the telephone band."""
    spectrum = np.fft.rfft(white(rng, seconds))
    hz = np.fft.rfftfreq(int(seconds * RATE), 1 / RATE)
    samples: Samples = np.fft.irfft(spectrum / np.sqrt(np.maximum(hz, 1)), int(seconds * RATE))
    return telephone(samples)


def tones(pattern: Pattern, seconds: float) -> Samples:
    """Return tones in turn, each for its seconds, over and over."""
    parts = []
    for frequencies, length in pattern:
        t = np.arange(int(length * RATE)) / RATE
        parts.append(sum((np.sin(2 * np.pi * f * t) for f in frequencies), np.zeros(len(t))))
    once = np.concatenate(parts)
    return np.resize(once, int(seconds * RATE))


def dtmf(rng: random.Random, seconds: float) -> Samples:
    """Return random digits, 100 ms on and 100 ms off."""
    rows, columns = (697.0, 770.0, 852.0, 941.0), (1_209.0, 1_336.0, 1_477.0, 1_633.0)
    keys = [(rng.choice(rows), rng.choice(columns)) for _ in range(int(seconds * 5))]
    return tones([part for key in keys for part in ((key, 0.1), ((), 0.1))], seconds)


def bursts(rng: np.random.Generator, seconds: float, length_ms: int, every_s: float) -> Samples:
    """Return bursts of pink noise with a round envelope: clicks if short, breath if long."""
    samples = np.zeros(int(seconds * RATE))
    length = length_ms * RATE // 1_000
    for start in np.arange(0.5, seconds - 1, every_s):
        at = int((start + rng.uniform(0, every_s / 2)) * RATE)
        samples[at : at + length] += pink(rng, length / RATE) * np.hanning(length)
    return samples


def again_and_again(sounds: list[Samples], rng: random.Random, seconds: float) -> Samples:
    """Return these sounds at random, half a second and what each of them lasts apart at most."""
    samples = np.zeros(int(seconds * RATE))
    at = RATE // 2
    while at + len(sound := rng.choice(sounds)) <= len(samples):
        samples[at : at + len(sound)] += sound
        at += int(rng.uniform(0.1, 0.5) * RATE) + len(sound) // 2
    return samples


def mix(*parts: Samples) -> Samples:
    """Return the sum, as long as the longest."""
    total = np.zeros(max(map(len, parts)))
    for part in parts:
        total[: len(part)] += part
    return total


def frames(samples: Samples) -> list[bytes]:
    """Return mu-law frames, through 16 bits as a telephone line carries it."""
    pcm = np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype("<i2").tobytes()
    mulaw = audio.encode(pcm)
    size = audio.FRAME_BYTES
    return [mulaw[i : i + size] for i in range(0, len(mulaw) - size + 1, size)]


def child(clip: Clip) -> Clip | None:
    """Return the clip as a small person might say it: higher and faster."""
    length = int(len(clip.samples) / CHILD)
    positions = np.arange(length) * CHILD
    samples = np.interp(positions, np.arange(len(clip.samples)), clip.samples)
    return label(telephone(samples), clip.name, clip.text)


def non_speech(rng: random.Random, part: Part, seconds: float) -> Iterator[tuple[str, Samples]]:
    """Yield each kind of non-speech with its name: so many seconds of it, music as a whole."""
    noise = np.random.default_rng(rng.randrange(2**32))
    yield "digital silence", np.zeros(int(seconds * RATE))
    for dbov in (-65, -55, -45):
        yield f"comfort noise {dbov}", to_level(white(noise, seconds), dbov)
    for dbov in (-50, -40, -30):
        yield f"pink noise {dbov}", to_level(pink(noise, seconds), dbov)
    for path in part.music:
        whole = read_wav(path)
        for dbov in (-35, -25):
            yield f"{path.stem} {dbov}", to_level(telephone(whole), dbov)
        yield f"{path.stem} -25, full band", to_level(whole, -25)
    yield "DTMF -15", to_level(dtmf(rng, seconds), -15)
    progress: dict[str, Pattern] = {
        "dial tone EU": [((425.0,), 1.0)],
        "dial tone US": [((350.0, 440.0), 1.0)],
        "ringback US": [((440.0, 480.0), 2.0), ((), 4.0)],
        "busy EU": [((425.0,), 0.5), ((), 0.5)],
        "information tone": [((950.0,), 0.33), ((1_400.0,), 0.33), ((1_800.0,), 0.33), ((), 1.0)],
    }
    for name, pattern in progress.items():
        yield f"{name} -20", to_level(tones(pattern, seconds), -20)
    yield "clicks 5 ms -15", to_level(bursts(noise, seconds, 5, 0.7), -15)
    yield "knocks 60 ms -20", to_level(bursts(noise, seconds, 60, 0.9), -20)
    yield "breath 700 ms -35", to_level(bursts(noise, seconds, 700, 2.5), -35)
    for name, paths in part.sounds.items():
        recorded = again_and_again([read_sound(path) for path in paths], rng, seconds)
        for dbov in (-35, -25):
            yield f"{name} {dbov}", to_level(recorded, dbov)


# --- the split -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One side of the split: recorded people by speaker, music, and other sounds."""

    name: str
    speakers: dict[str, list[Clip]]
    music: list[Path]
    sounds: dict[str, list[Path]]

    @property
    def clips(self) -> list[Clip]:
        """All speakers', in turn."""
        rows = list(self.speakers.values())
        longest = max(map(len, rows), default=0)
        return [row[i] for i in range(longest) for row in rows if i < len(row)]


def load_part(name: str, seed: int) -> Part:
    """Read one side of the split, in an order drawn by the seed; what is not installed is left out.

    Raises:
        SystemExit: nothing of it is installed.
    """
    split: dict[str, Any] = json.loads(SPLIT.read_text())[name]
    speakers = {}
    for speaker, source in split["speakers"].items():
        texts = _texts(Path(source["texts"])) if "texts" in source else {}
        root = Path(source["folder"])
        paths = sorted(root / file for file in source["files"])
        clips = []
        for path in paths:
            if path.exists() and len(samples := read_wav(path)):
                text = texts.get(str(path.relative_to(root).with_suffix("")), "")
                clip = label(telephone(samples), path.stem, text)
                if clip is not None:
                    clips.append(clip)
        random.Random(seed).shuffle(clips)
        if clips:
            speakers[speaker] = clips
    if not speakers:
        raise SystemExit(f"nothing of {name!r} is installed: apt-get install {split['packages']}")
    sounds = {
        kind: paths
        for kind, files in split["sounds"].items()
        if (paths := [Path(file) for file in files if Path(file).exists()])
    }
    return Part(name, speakers, [Path(p) for p in split["music"] if Path(p).exists()], sounds)


def _texts(path: Path) -> dict[str, str]:
    """Return the words of each prompt, by its name."""
    if not path.exists():
        return {}
    lines = gzip.decompress(path.read_bytes()).decode("utf-8", "replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    return {name.strip(): re.sub(r"\(.*?\)|\[.*?\]", "", text).strip() for name, text in pairs}


def write_split() -> None:
    """Write `split.json` from what is installed: by speaker and by source, nothing by result."""
    sounds, moh = Path("/usr/share/asterisk/sounds"), Path("/usr/share/asterisk/moh")

    def speaker(folder: str, language: str) -> dict[str, Any]:
        root = sounds / folder
        files = [
            str(path.relative_to(root))
            for path in sorted(root.rglob("*.wav"))
            if "tone" not in path.stem
            and path.stem not in NOT_SPEECH
            and "silence" not in path.parts
        ]
        texts = f"/usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
        return {"folder": str(root), "texts": texts, "files": files}

    tracks = [str(path) for path in sorted(moh.glob("*.wav"))]
    codec2 = Path("/usr/share/codec2/wav")
    people = ("forig", "hts1a", "hts2a", "mmt1", "morig", "ve9qrp", "vk5qi")
    files = [f"{name}.wav" for name in people if (codec2 / f"{name}.wav").exists()]
    packages = "asterisk-core-sounds-{0} asterisk-core-sounds-{0}-wav"
    music_package = "asterisk-moh-opsound-wav"
    tuxpaint, buckle = Path("/usr/share/tuxpaint/sounds"), Path("/usr/share/buckle/wav")
    split = {
        "tuning": {
            "packages": " ".join(
                [*map(packages.format, ("en", "it")), music_package, "tuxpaint-data"]
            ),
            "speakers": {
                "Allison (en)": speaker("en_US_f_Allison", "en"),
                "Carlo (it)": speaker("it_IT_m_Carlo", "it"),
            },
            "music": tracks[:3],
            "sounds": {
                "a giggle": [str(tuxpaint / "giggle.wav")],
                "a key": [str(tuxpaint / "keyclick.wav")],
            },
        },
        "held-out": {
            "packages": " ".join(
                [
                    *map(packages.format, ("fr", "ru")),
                    music_package,
                    "codec2-examples",
                    "bucklespring-data",
                ]
            ),
            "speakers": {
                "June (fr)": speaker("fr_CA_f_June", "fr"),
                "Ivrvoice (ru)": speaker("ru_RU_f_IvrvoiceRU", "ru"),
                "men and women of codec2": {"folder": str(codec2), "files": files},
            },
            "music": tracks[3:],
            "sounds": {"typing": [str(path) for path in sorted(buckle.glob("*.wav"))]},
        },
    }
    SPLIT.write_text(json.dumps(split, indent=1) + "\n")


if __name__ == "__main__":
    write_split()
