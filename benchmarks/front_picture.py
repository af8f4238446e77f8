"""The picture of `effort_front.py`: KL against the time of a row, one panel a model, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

INK, MUTED, LINE = "#1b1f24", "#59626c", "#dfe3e8"
COLOURS = {"inputs": "#2468b4", "tiers": "#b4552d", "int4": "#2f8f5b", "q8_0": "#7a4fb0"}
NAMES = {"inputs": "exact, whole inputs", "tiers": "exact, tiers", "int4": "int4", "q8_0": "Q8_0"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 360, 300, 56, 40, 80
MOST_TIME = 1.6
KL_DECADES = (-4, 1)


def picture(models: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    """SVG of one panel for each (name, points); a point has layout, effort, row and kl."""
    width, height = LEFT + len(models) * (WIDTH + GAP), TOP + HEIGHT + 74
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img"><title>KL against the time of a row</title>',
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
    ]
    for number, (name, points) in enumerate(models):
        parts += _panel(LEFT + number * (WIDTH + GAP), name, points)
    for number, layout in enumerate(COLOURS):
        x, y = LEFT + number * 165, TOP + HEIGHT + 58
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{COLOURS[layout]}"/>' + _text(x + 9, y, NAMES[layout]))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, name: str, points: Sequence[dict[str, Any]]) -> list[str]:
    parts = [_text(left, TOP - 14, f"{name}: KL (nats) and time of a row, in rows at effort 1", INK, weight=600)]
    for tenth in range(0, 17, 2):
        x = _x(left, tenth / 10)
        parts.append(f'<path d="M{x:.1f} {TOP}V{TOP + HEIGHT}" stroke="{LINE}"/>')
        parts.append(_text(x, TOP + HEIGHT + 16, f"{tenth / 10:.1f}", anchor="middle"))
    for decade in range(KL_DECADES[0], KL_DECADES[1] + 1):
        y = _y(10.0**decade)
        parts.append(f'<path d="M{left} {y:.1f}H{left + WIDTH}" stroke="{LINE}"/>')
        parts.append(_text(left - 6, y + 4, f"{10.0**decade:g}", anchor="end"))
    for layout, colour in COLOURS.items():
        own = sorted((p for p in points if p["layout"] == layout and p["kl"] > 1e-9), key=lambda p: float(p["effort"]))
        places = [(_x(left, p["row"]), _y(p["kl"])) for p in own]
        if len(own) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for p, (x, y) in zip(own, places, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(_text(x + 6, y - 5, f"{p['effort']:g}", colour))
    return parts


def _x(left: int, time: float) -> float:
    return left + WIDTH * min(time, MOST_TIME) / MOST_TIME


def _y(kl: float) -> float:
    low, high = KL_DECADES
    share = (math.log10(max(kl, 10.0**low)) - low) / (high - low)
    return TOP + HEIGHT * (1 - min(share, 1.0))


def _text(x: float, y: float, words: str, colour: str = MUTED, *, anchor: str = "start", weight: int = 400) -> str:
    style = f'fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
