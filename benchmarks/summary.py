"""Writes the table and the plot of docs/measured.md from the figures in docs/measured/summary.toml.

python -m benchmarks.summary
"""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = DOCS / "measured" / "summary.toml"
PAGE = DOCS / "measured.md"
PICTURE = DOCS / "pictures" / "measured.svg"

_BEGIN, _END = "<!-- table, made by `make reference` -->", "<!-- end of table -->"

_WIDTH, _ROW, _LABEL, _PLOT = 960, 22, 232, 225

_STYLE = """
svg { color-scheme: light dark; }
rect.page { fill: #ffffff; } text { fill: #1f2328; } .faint { fill: #59636e; } line { stroke: #d1d9e0; } line.span { stroke: #59636e; }
.gsec { fill: #0969da; stroke: #0969da; } .peer { fill: #bc4c00; stroke: #bc4c00; } .published { stroke: #59636e; fill: none; stroke-width: 1.8; }
@media (prefers-color-scheme: dark) {
  rect.page { fill: #0d1117; } text { fill: #f0f6fc; } .faint { fill: #9198a1; } line { stroke: #3d444d; } line.span { stroke: #9198a1; }
  .gsec { fill: #58a6ff; stroke: #58a6ff; } .peer { fill: #f0883e; stroke: #f0883e; } .published { stroke: #9198a1; }
}
""".strip()


def groups() -> list[dict[str, Any]]:
    """The groups of figures in the file."""
    found: list[dict[str, Any]] = tomllib.loads(FIGURES.read_text())["group"]
    return found


def table() -> str:
    """The table in Markdown, with one row for each figure. Encoder, machine and command are in the first row of a group."""
    lines = ["| measured | gsec | beside it | encoder; machine | command, with a link to the proof |", "| --- | --- | --- | --- | --- |"]
    for group in groups():
        if "name" in group:
            lines.append(f"| **{group['name']}** | | | | |")
        by = f"{group['encoder']}; {group['machine']} | [`{group['command']}`](measured/{group['proof']})"
        for row in group["rows"]:
            beside = f"{row['beside']} {row['peer']}" + (f"; published {row['published']}" if "published" in row else "")
            lines.append(f"| {row['what']} | {row['gsec']} | {beside} | {by} |")
            by = "|"
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its table replaced by that of the current figures."""
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n\n{table()}\n\n{_END}{rest.split(_END)[1]}"


def number(text: str) -> float:
    """The number at the beginning of a text: 47.4 for "47.4 ± 0.4"."""
    [found] = re.findall(r"^[\d.]+", text)
    return float(found)


def svg() -> str:
    """The plot: three panels with ACC, seconds as multiples of the peer's, and MiB. Its colours are light or dark as the reader's system is."""
    rows = {panel: [row for group in groups() if group["panel"] == panel for row in group["rows"]] for panel in ("quality", "speed", "memory")}
    height = 76 + _ROW * max(len(rows["quality"]), len(rows["speed"]) + len(rows["memory"]) + 3)
    right, below = _WIDTH / 2, 66 + _ROW * (len(rows["speed"]) + 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12.5" role="img">',
        "<title>Quality beside k-means, speed and memory beside a peer; the figures are in the table below</title>",
        f'<style>\n{_STYLE}\n</style>\n<rect class="page" width="{_WIDTH}" height="{height}"/>',
        *_legend(),
        *_panel(rows["quality"], 0, 66, "ACC in %: more is better", _linear(30, 90), (30, 45, 60, 75, 90), _points),
        *_panel(rows["speed"], right, 66, "seconds, times the peer's: less is better", _log(0.01, 30), (0.01, 0.1, 1, 10), _ratio),
        *_panel(rows["memory"], right, below, "peak of memory, MiB: less is better", _log(100, 20000), (100, 1000, 10000), _points),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _linear(least: float, most: float) -> Callable[[float], float]:
    return lambda value: _LABEL + _PLOT * (value - least) / (most - least)


def _log(least: float, most: float) -> Callable[[float], float]:
    return lambda value: _LABEL + _PLOT * float(np.log(value / least) / np.log(most / least))


def _legend() -> Iterator[str]:
    for x, mark, words in ((20, "gsec", "gsec"), (90, "peer", "what it stands beside"), (255, "published", "the method as published")):
        yield _mark(mark, x, 20) + f'<text x="{x + 12}" y="24">{words}</text>'


def _mark(kind: str, x: float, y: float) -> str:
    if kind == "gsec":
        return f'<circle class="gsec" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    if kind == "peer":
        return f'<rect class="peer" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<path class="published" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'


def _panel(
    rows: list[dict[str, Any]],
    left: float,
    top: float,
    title: str,
    place: Callable[[float], float],
    ticks: tuple[float, ...],
    marks: Callable[[dict[str, Any]], dict[str, float]],
) -> Iterator[str]:
    yield f'<text x="{left + _LABEL + _PLOT:.1f}" y="{top - 20:.1f}" text-anchor="end" font-weight="bold">{title}</text>'
    for tick in ticks:
        x = left + place(tick)
        yield f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{top + _ROW * len(rows):.1f}"/>'
        yield f'<text class="faint" x="{x:.1f}" y="{top - 4:.1f}" text-anchor="middle" font-size="11">{tick:,g}</text>'
    for position, row in enumerate(rows):
        y = top + _ROW * (position + 0.5)
        found = {kind: left + place(value) for kind, value in marks(row).items()}
        yield f'<text x="{left + _LABEL - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{row["what"].replace("`", "")}</text>'
        yield f'<line class="span" x1="{min(found.values()):.1f}" y1="{y:.1f}" x2="{max(found.values()):.1f}" y2="{y:.1f}"/>'
        yield from (_mark(kind, x, y) for kind, x in reversed(found.items()))


def _points(row: dict[str, Any]) -> dict[str, float]:
    return {kind: number(row[kind]) for kind in ("gsec", "peer", "published") if kind in row}


def _ratio(row: dict[str, Any]) -> dict[str, float]:
    ratio = number(row["gsec"]) / number(row["peer"])
    return {"gsec": 1 / ratio if row.get("rate") else ratio, "peer": 1.0}


def main() -> None:
    PAGE.write_text(page(PAGE.read_text()))
    PICTURE.write_text(svg())


if __name__ == "__main__":
    main()
