"""Draws the table of onset to clear in `bench/README.md` as `docs/plots/onset.svg`.

    python -m bench.plots

From the table as it was written, and not from a new evaluation, which takes half an hour.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PLOT: Final = ROOT / "docs" / "plots" / "onset.svg"
LINES: Final = ("clean", "20 dB", "10 dB", "5 dB")  # signal to noise
KINDS: Final = ("sentence", "short word")
WIDTH, LEFT, ROW, SCALE = 700, 130, 26, 0.95  # pixels; and a millisecond


def svg(figures: dict[tuple[str, str], tuple[int, int]]) -> str:
    """Return the drawing.

    Args:
        figures: median and p95 in milliseconds, by kind of speech and line.
    """
    rows, y = [], 34
    for kind in KINDS:
        for line in LINES:
            median, p95 = figures[kind, line]
            rows += [
                f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{kind}, {line}</text>',
                f'<rect x="{LEFT}" y="{y}" width="{p95 * SCALE:.0f}" height="18" fill="#c9d7ee"/>',
                f'<rect x="{LEFT}" y="{y}" width="{median * SCALE:.0f}" height="18" '
                'fill="#33659e"/>',
                f'<text x="{LEFT + p95 * SCALE + 6:.0f}" y="{y + 13}">{median} / {p95} ms</text>',
            ]
            y += ROW
        y += 8
    title = "First sound of the caller to clear: median (dark) and p95 (light), held-out recordings"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{y}" fill="white"/><text x="8" y="18">{title}</text>'
        + "".join(rows)
        + "</svg>\n"
    )


def read(table: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the figures of the table in `bench/README.md`."""
    row = re.compile(r"^\| (sentence|short word), (clean|\d+ dB) \| \d+ \| (\d+) / (\d+) \|", re.M)
    return {(kind, line): (int(p50), int(p95)) for kind, line, p50, p95 in row.findall(table)}


if __name__ == "__main__":
    PLOT.parent.mkdir(exist_ok=True)
    PLOT.write_text(svg(read((ROOT / "bench" / "README.md").read_text())))
    sys.stdout.write(f"written: {PLOT}\n")
