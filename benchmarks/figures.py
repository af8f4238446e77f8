"""Figures of BENCHMARKS.md as SVG, drawn from the same results as its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


SERIES = ("#0c4296", "#d1660f", "#2c8a3c", "#8a3ca0", "#6b6b6b", "#b8860b")


def dot_plot(title: str, rows: Sequence[str], series: Mapping[str, Sequence[float]], *, axis: str) -> str:
    """An SVG with a line for each row and a dot on it for each series; a grey line marks 1."""
    names = list(series)
    highest = max(2.0, *(value for values in series.values() for value in values))
    left, plot, line = 130, 470, 24
    top = 40 + 20 * ((len(names) + 2) // 3)
    width, height = left + plot + 30, top + line * len(rows) + 44

    def place(value: float) -> float:
        return left + plot * value / (highest * 1.02)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, 20, title, weight="bold", anchor="start"),
    ]
    for index, name in enumerate(names):
        x, y = 20 + 205 * (index % 3), 42 + 20 * (index // 3)
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{SERIES[index]}"/>')
        parts.append(_text(x + 10, y, name, anchor="start"))
    bottom = top + line * len(rows)
    for tick in range(int(highest) + 1):
        ink = "#888888" if tick == 1 else "#dddddd"
        parts.append(f'<line x1="{place(tick):g}" x2="{place(tick):g}" y1="{top}" y2="{bottom}" stroke="{ink}"/>')
        parts.append(_text(place(tick), bottom + 16, str(tick)))
    parts.append(_text(left + plot / 2, bottom + 34, axis))
    for number, row in enumerate(rows):
        y = top + line * (number + 0.5)
        parts.append(_text(left - 8, y + 4, row, anchor="end"))
        parts.append(f'<line x1="{left}" x2="{left + plot}" y1="{y:g}" y2="{y:g}" stroke="#eeeeee"/>')
        for index, name in enumerate(names):
            x = place(series[name][number])
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{SERIES[index]}" fill-opacity="0.8"/>')
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
