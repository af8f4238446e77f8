"""Figures of BENCHMARKS.md as SVG, drawn from the same results as its tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP = 74, 26, 130, 66


def heat_map(
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    *,
    column_title: str,
) -> str:
    """An SVG table of shares, 0 to 1, coloured from white to blue; None leaves a cell empty."""
    width, height = LEFT + CELL_WIDTH * len(columns) + 12, TOP + CELL_HEIGHT * len(rows) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, 20, title, weight="bold", anchor="start"),
        _text(LEFT - 8, 40, column_title, anchor="end"),
    ]
    for x, name in enumerate(columns):
        parts.append(_text(LEFT + CELL_WIDTH * (x + 0.5), TOP - 10, name))
    for y, name in enumerate(rows):
        parts.append(_text(LEFT - 8, TOP + CELL_HEIGHT * (y + 0.66), name, anchor="end"))
        for x, share in enumerate(cells[y]):
            if share is None:
                continue
            left, top = LEFT + CELL_WIDTH * x, TOP + CELL_HEIGHT * y
            parts.append(
                f'<rect x="{left}" y="{top}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" '
                f'fill="{_colour(share)}"/>'
            )
            ink = "#ffffff" if share > 0.6 else "#1a1a1a"
            parts.append(_text(left + CELL_WIDTH / 2 - 1, top + CELL_HEIGHT * 0.66, f"{share:.2f}", ink=ink))
    return "\n".join([*parts, "</svg>\n"])


def _text(
    x: float, y: float, words: str, *, weight: str = "normal", anchor: str = "middle", ink: str = "#1a1a1a"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}" fill="{ink}">{escape(words)}</text>'
    )


def _colour(share: float) -> str:
    """White at 0, dark blue at 1."""
    return "#" + "".join(f"{round(255 + (end - 255) * share):02x}" for end in (12, 66, 150))
