"""Draws tables of `bench/README.md` as plots of `docs/tuning.md`.

    python -m bench.plots

From the tables as they were written, and not from a new evaluation, which takes half an hour.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
TABLES: Final = ROOT / "bench" / "README.md"
PLOTS: Final = ROOT / "docs" / "plots"
WIDTH, LEFT, BARS, ROW = 900, 260, 310, 26  # pixels; room for names, for bars, and a bar's height


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured, median and p95 in milliseconds, and what is written beside its bar."""

    name: str
    median: int
    p95: int
    more: str = ""


def svg(title: str, rows: Sequence[Row]) -> str:
    """Return the drawing: a dark bar to the median, a light one to the p95."""
    scale = BARS / max(row.p95 for row in rows)
    parts, y = [], 34
    for row in rows:
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{row.name}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{row.p95 * scale:.0f}" height="18" fill="#c9d7ee"/>',
            f'<rect x="{LEFT}" y="{y}" width="{row.median * scale:.0f}" height="18" '
            'fill="#33659e"/>',
            f'<text x="{LEFT + row.p95 * scale + 6:.0f}" y="{y + 13}">'
            f"{row.median} / {row.p95} ms{row.more}</text>",
        ]
        y += ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 8}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{y + 8}" fill="white"/>'
        f'<text x="8" y="18">{title}: median (dark) and p95 (light)</text>' + "".join(parts)
        + "</svg>\n"
    )  # fmt: skip


def onset(tables: str) -> list[Row]:
    """Return how soon the bot is told to be silent, by kind of speech and noise."""
    row = r"^\| ((?:sentence|short word), [^|]+?) \| (\d+) \| (\d+) / (\d+) \|"
    return [
        Row(f"{name} (n = {n})", int(p50), int(p95))
        for name, n, p50, p95 in re.findall(row, tables, re.M)
    ]


def policies(tables: str) -> list[Row]:
    """Return how long the bot talks over the caller, and what a "mm-hm" costs, by policy."""
    row = (
        r"^\| ((?:resume|duck|commit)[^|]*?) \| ([\d.]+) [^|]+\| ([^|]+) \|"
        r"[^|]+\|[^|]+\|[^|]+\| (.+) \|$"
    )
    rows = []
    for name, lost, gap, over in re.findall(row, tables, re.M):
        p50, p95 = map(int, over.split(" / "))
        pause = "" if gap == "–" else f", pause {gap.partition(' /')[0]} ms"
        rows.append(Row(name.replace("`", ""), p50, p95, f'; "mm-hm": {lost} % lost{pause}'))
    return rows


def turns(tables: str) -> list[Row]:
    """Return how soon a turn is over, and how often a pause cuts it off, by who decides."""
    row = r"^\| ((?:local|provider)[^|]*?) \| 120 \| (\d+) / (\d+) \|[^|]+\| ([\d.]+) [^|]+\|"
    rows: dict[str, Row] = {}
    for name, p50, p95, cut in re.findall(row, tables, re.M):
        if "guesses" not in name and name not in rows:  # held-out comes first, then tuning
            more = f"; cut off {cut} %"
            rows[name] = Row(name.replace("`", ""), int(p50), int(p95), more)
    return list(rows.values())


def drawings(tables: str) -> dict[Path, str]:
    """Return every plot by its file."""
    return {
        PLOTS / "onset.svg": svg("First sound of the caller to clear", onset(tables)),
        PLOTS / "policies.svg": svg("Bot over an interrupting caller", policies(tables)),
        PLOTS / "turns.svg": svg(
            "End of speech to end of turn, and turns cut off by a pause of 0.5 s", turns(tables)
        ),
    }


if __name__ == "__main__":
    PLOTS.mkdir(exist_ok=True)
    for path, drawing in drawings(TABLES.read_text()).items():
        path.write_text(drawing)
        sys.stdout.write(f"written: {path.relative_to(ROOT)}\n")
