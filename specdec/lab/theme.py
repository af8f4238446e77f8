"""Colours and sizes of plots, light and dark, and how a drawn figure becomes a file. What is drawn lives elsewhere.

An SVG holds names of colours instead of colours (CSS variables), so that one drawing serves both themes.
"""

from __future__ import annotations

import io
import re
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 4.4  # 317 points: at the width of a phone, letters keep their size
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours by what they are for.

    Attributes:
        surface: background of everything.
        ink: text.
        muted: text of less weight, and axes.
        grid: lines under the data.
        plain: plain decoding, and references.
        good, bad: above and below plain decoding; `good` is also the colour of shares.
        series: of contenders, in order.
    """

    surface: str
    ink: str
    muted: str
    grid: str
    plain: str
    good: str
    bad: str
    blue: str
    orange: str
    green: str
    purple: str
    red: str
    teal: str
    brown: str
    pink: str

    @property
    def series(self) -> tuple[str, ...]:
        """Colours that differ also for readers who see red and green alike."""
        return self.blue, self.orange, self.green, self.purple, self.red, self.teal, self.brown, self.pink


LIGHT = Theme(
    surface="#ffffff", ink="#1b1f24", muted="#59626c", grid="#dfe3e8", plain="#8a939d", good="#4f93dc", bad="#e2894a",
    blue="#2468b4", orange="#c4570a", green="#1a7f4b", purple="#7b4fb5", red="#b8324f", teal="#0d7f8c",
    brown="#80603a", pink="#b04a94",
)  # fmt: skip
DARK = Theme(
    surface="#171a1f", ink="#e8eaed", muted="#a3abb5", grid="#343a42", plain="#868f99", good="#2f6fb8", bad="#a8551c",
    blue="#6fb1f5", orange="#f59b54", green="#5cc78d", purple="#b99cf0", red="#f2849b", teal="#56c4d1",
    brown="#c9a678", pink="#e592cb",
)  # fmt: skip
# Colours that stand for their names while drawing: their place in the theme, in the last byte.
_NAMES = tuple(one.name for one in fields(Theme))
NAMED = Theme(**{name: f"#5dec{index:02x}" for index, name in enumerate(_NAMES)})


def css_variables(theme: Theme) -> str:
    """The theme as CSS declarations."""
    return "".join(f"--{name}:{colour};" for name, colour in zip(_NAMES, astuple(theme), strict=True))


def style(theme: Theme) -> dict[str, object]:
    """Settings of matplotlib."""
    return {
        "font.size": 11,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "svg.hashsalt": "specdec",
        "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface,
        "axes.facecolor": theme.surface,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
    }


def to_png(figure: Figure) -> bytes:
    """A picture, 1000 points wide."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=1000 / WIDTH_IN, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure, *, name: str) -> str:
    """An SVG drawn in `NAMED`, for a page that says what the colours are: it fills the width that it is given.

    Args:
        figure: what was drawn.
        name: of the figure; its elements' ids begin with it, so that many can stand in a page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"#5dec([0-9a-f]{2})", lambda found: f"var(--{_NAMES[int(found[1], 16)]})", text)
    text = re.sub(r"(font(?:-family)?: [^;\"]*?)'DejaVu Sans'[^;\"]*", lambda found: found[1] + FONT, text)
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{name}-", text)
    head, body = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + f' role="img">{body}'


def standalone(svg: str) -> str:
    """A file of its own from an SVG of `to_svg`: it brings its colours along, and follows the reader's theme."""
    head, body = svg.split(">", 1)
    width, height = (float(number) for number in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)[0])
    colours = f":root{{{css_variables(LIGHT)}}}@media(prefers-color-scheme:dark){{:root{{{css_variables(DARK)}}}}}"
    return f'{head} width="{width:g}pt" height="{height:g}pt"><style>{colours}</style>{body}'
