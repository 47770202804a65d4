"""The environment that Pipecat has to itself, for who compares us with it.

Ours stays free of its packages, and its own are what it asks for and no others.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

VENV: Final = Path(__file__).parents[1] / ".venv-peer"
PACKAGES: Final = (
    "pipecat-ai[silero,deepgram,groq,websocket]==1.14.0",  # BSD-2-Clause
    "uvicorn[standard]",  # what its documentation serves with; with uvloop. BSD-3-Clause
)


def peer_python() -> Path:
    """Return its interpreter; the environment is made if it is missing or has other packages.

    Raises:
        SystemExit: it cannot be installed.
    """
    python, ready = VENV / "bin" / "python", VENV / ".ready"
    wanted = " ".join(PACKAGES)
    if not ready.exists() or ready.read_text() != wanted:
        print(f"installing {wanted} into {VENV}", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        except subprocess.CalledProcessError as exc:
            raise SystemExit(f"{wanted} cannot be installed: {exc}") from exc
        ready.write_text(wanted)
    return python
