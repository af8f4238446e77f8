"""The plots of a report: each a figure of what a run has found under one condition. Files are made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specdec.lab.bench.analysis import ALL, Row, Steps
from specdec.lab.bench.findings import Findings
from specdec.lab.bench.grid import PLAIN
from specdec.lab.theme import WIDTH_IN, Theme

_LEAST = 10  # tokens that a share is made of, at least
_MOST_PLACES = 8
_MOST_LINES = 8
_MOST_ROWS = 18
_MOST_EFFORTS = 8  # of one contender; more are rounded to tenths


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of a report.

    Attributes:
        name: of its files.
        title: above it.
        caption: below it: how to read it.
        draw: makes the figure from findings, the name of a condition and a theme; None where there is nothing to show.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Findings, str, Theme], Figure | None]


def speed(findings: Findings, condition: str, theme: Theme) -> Figure | None:
    """Tokens a second by contender, with the quartiles of single answers."""
    rows = _rows(findings, condition)
    figure, axes = _bars(len(rows))
    places = np.arange(len(rows))
    colours = [theme.plain if row.contender == PLAIN else theme.good for row in rows]
    axes.barh(places, [row.tok_per_s for row in rows], color=colours, height=0.62)
    low, high = (np.array([row.rate_quartiles[k] for row in rows]) for k in (0, 2))
    axes.hlines(places, low, high, color=theme.ink, linewidth=1.6)
    axes.plot(np.concatenate([low, high]), [*places, *places], "|", color=theme.ink, markersize=8, markeredgewidth=1.6)
    _names(axes, [row.contender for row in rows])
    axes.set_xlabel("tokens per second")
    axes.grid(axis="x")
    return figure


def speedup(findings: Findings, condition: str, theme: Theme) -> Figure | None:
    """Speed-up over plain decoding by contender, with its interval."""
    rows = [row for row in _rows(findings, condition) if row.contender != PLAIN]
    if not rows:
        return None
    figure, axes = _bars(len(rows))
    axes.axvline(1.0, color=theme.plain, linewidth=1.6)
    for place, row in enumerate(rows):
        low, high = row.speedup_interval or (row.speedup, row.speedup)
        colour = theme.blue if low > 1 else theme.orange if high < 1 else theme.muted
        axes.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot(row.speedup, place, "o", color=colour, markersize=7)
        axes.annotate(
            f"{row.speedup:.2f}", (row.speedup, place), xytext=(0, 7), textcoords="offset points", ha="center"
        )
    _names(axes, [row.contender for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.margins(x=0.12)
    axes.set_xlabel("speed-up over plain decoding (times)")
    axes.grid(axis="x")
    return figure


def tasks(findings: Findings, condition: str, theme: Theme) -> Figure | None:
    """Speed-up by contender and task, as a map."""
    kinds = [task for task in findings.tasks if task != ALL]
    names = [name for name in findings.contenders if name != PLAIN]
    if len(kinds) < 2 or not names:
        return None
    cells = [[findings.row(condition, task, name).speedup for task in kinds] for name in names]
    most = max(2.0, *(value for line in cells for value in line))

    def colour(value: float) -> tuple[str, float]:
        if value >= 1:
            return theme.good, 0.85 * (value - 1) / (most - 1)
        return theme.bad, min(0.85, 1.7 * (1 - value))

    return _map(kinds, names, cells, colour, theme, "{:.2f}".format)


def split(findings: Findings, condition: str, theme: Theme) -> Figure | None:
    """Parts of the time per emitted token."""
    rows = _rows(findings, condition)
    figure, axes = _bars(len(rows), extra_in=0.35)
    left = np.zeros(len(rows))
    parts = (
        ("draft", "draft_ms", theme.orange),
        ("verify", "verify_ms", theme.good),
        ("rest", "overhead_ms", theme.plain),
    )
    for name, key, colour in parts:
        widths = np.array([getattr(row, key) for row in rows])
        axes.barh(np.arange(len(rows)), widths, left=left, color=colour, height=0.62, label=name)
        left += widths
    _names(axes, [row.contender for row in rows])
    axes.set_xlabel("milliseconds per emitted token")
    axes.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def places(findings: Findings, condition: str, theme: Theme) -> Figure | None:
    """Share of drafted tokens that is kept, by place in the draft, a line for each contender."""
    lines = [(name, shares) for name in findings.contenders if (shares := _kept_by_place(findings, condition, name))]
    if not lines:
        return None
    if len(lines) > _MOST_LINES:
        cells = [[_share(shares, place) for place in range(_MOST_PLACES)] for _, shares in lines]
        return _share_map([str(p + 1) for p in range(_MOST_PLACES)], [name for name, _ in lines], cells, theme)
    figure = Figure(figsize=(WIDTH_IN, 3.1 + 0.22 * ((len(lines) + 1) // 2)), layout="constrained")
    axes = figure.add_subplot()
    for (name, shares), colour, marker in zip(lines, theme.series, "osD^vPX*", strict=False):
        there = [place for place in range(_MOST_PLACES) if _share(shares, place) is not None]
        middle = [_share(shares, place) or 0.0 for place in there]
        low, high = zip(*(_wilson(shares[1][place], shares[0][place]) for place in there), strict=True)
        x = [place + 1 for place in there]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, middle, color=colour, marker=marker, markersize=5, label=name)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("place in the draft")
    axes.set_ylabel("share kept, of those looked at")
    axes.grid()
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def acceptance(findings: Findings, condition: str, theme: Theme) -> Figure | None:
    """Share of drafted tokens that is kept, by contender, draft step and place in the draft, as a map."""
    steps = [one for one in _steps(findings, condition) if sum(one.checked) >= 2 * _LEAST]
    if not steps:
        return None
    least = sorted((sum(one.checked) for one in steps), reverse=True)[:_MOST_ROWS][-1]
    steps = [one for one in steps if sum(one.checked) >= least]
    count = min(_MOST_PLACES, max(len(one.checked) for one in steps))
    cells = [[_share((one.checked, one.accepted), place) for place in range(count)] for one in steps]
    return _share_map([str(place + 1) for place in range(count)], [_step_name(one) for one in steps], cells, theme)


def efforts(findings: Findings, condition: str, theme: Theme) -> Figure | None:
    """How often each kind of draft step was taken, for contenders that choose among several."""
    chosen: dict[str, list[Steps]] = {}
    for one in _steps(findings, condition):
        chosen.setdefault(one.contender, []).append(one)
    chosen = {name: steps for name, steps in chosen.items() if len(steps) > 1}
    if not chosen:
        return None
    kinds = sorted({(-(one.effort or 0.0), one.step) for steps in chosen.values() for one in steps})
    size = 11 if len(kinds) <= 7 else 8
    figure = Figure(figsize=(WIDTH_IN, 0.9 + 1.6 * len(chosen)), layout="constrained")
    all_axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, steps) in zip(all_axes, chosen.items(), strict=True):
        drafted, accepted = ({one.step: sum(getattr(one, of)) for one in steps} for of in ("drafted", "accepted"))
        total = sum(drafted.values())
        for counts, colour in ((drafted, theme.grid), (accepted, theme.good)):
            axes.bar(range(len(kinds)), [counts.get(kind, 0) / total for _, kind in kinds], color=colour, width=0.72)
        for place, (_, kind) in enumerate(kinds):
            if share := drafted.get(kind, 0) / total:
                at = {"xy": (place, share), "xytext": (0, 2), "textcoords": "offset points"}
                axes.annotate(_percent(share), ha="center", fontsize=size, **at)
        axes.set_title(f"{name}: {total} drafted", fontsize=11, loc="left")
        axes.margins(y=0.2)
        axes.set_ylabel("share")
        axes.grid(axis="y")
    words = [kind.removeprefix("effort ").split() for _, kind in kinds]
    views = {one[0] for one in words if len(one) > 1}
    labels = [one[-1] if len(views) == 1 else "\n".join(one) for one in words]
    all_axes[-1].set_xticks(range(len(kinds)), labels, fontsize=size)
    of = f"effort of {views.pop()} draft steps" if len(views) == 1 else "view and effort of draft steps"
    all_axes[-1].set_xlabel(f"{of}, or drafter")
    return figure


def prediction(findings: Findings, condition: str, theme: Theme) -> Figure | None:
    """Speed-up against what the policy predicted, a point for each prompt."""
    points: dict[str, dict[tuple[str, str], list[float]]] = {}
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for one in findings.answers:
        if one["condition"] == condition:
            prompt = (one["task"], one["prompt"])
            seconds.setdefault((one["contender"], *prompt), []).append(one["seconds"])
            if one["predicted_gain"]:
                points.setdefault(one["contender"], {}).setdefault(prompt, []).append(one["predicted_gain"])
    if not points:
        return None
    figure = Figure(figsize=(WIDTH_IN, 4.6), layout="constrained")
    axes = figure.add_subplot()
    reach = [1.0]
    for (name, prompts), colour, marker in zip(points.items(), theme.series, "osD^vPX*", strict=False):
        x = [float(np.median(gains)) for gains in prompts.values()]
        y = [float(np.median(seconds[PLAIN, *p]) / np.median(seconds[name, *p])) for p in prompts]
        axes.plot(x, y, marker, color=colour, markersize=6, alpha=0.8, label=name, linestyle="none")
        reach += [*x, *y]
    ends = [0.94 * min(reach), 1.06 * max(reach)]
    axes.plot(ends, ends, color=theme.plain, linewidth=1.4, zorder=1.5)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    axes.set_xlabel("speed-up that the policy predicted (times)")
    axes.set_ylabel("speed-up measured (times)")
    axes.grid()
    figure.legend(loc="outside upper center", ncols=2)
    return figure


PLOTS = (
    Plot("speed", "Tokens a second", "Bars: all tokens over all time. Lines: quartiles of single answers.", speed),
    Plot("speedup", "Speed-up", "With 95 % bootstrap intervals; the grey line is plain decoding.", speedup),
    Plot("tasks", "Speed-up by task", "Times plain decoding's speed on the same prompts.", tasks),
    Plot("split", "Where the time goes", "Time after the prompt was read, for each token that came out.", split),
    Plot(
        "places",
        "Acceptance by place in the draft",
        "Of tokens that the verifier looked at, all before them having been kept; bands are 95 % intervals.",
        places,
    ),
    Plot(
        "acceptance",
        "Acceptance by effort and place",
        "Share kept of those looked at; empty where fewer than 10 were. A row for each kind of draft step; the most "
        "frequent ones, where there are many.",
        acceptance,
    ),
    Plot(
        "efforts",
        "Draft steps chosen",
        "Share of the drafted tokens; blue: kept tokens. Where there are many efforts, they are rounded to tenths.",
        efforts,
    ),
    Plot(
        "prediction",
        "Speed-up against prediction",
        "A point for each prompt; on the grey line, the policy got what it expected.",
        prediction,
    ),
)


def _rows(findings: Findings, condition: str) -> list[Row]:
    return [findings.row(condition, ALL, name) for name in findings.contenders]


def _steps(findings: Findings, condition: str) -> list[Steps]:
    """What became of drafted tokens; the efforts of a contender that has very many, rounded to tenths."""
    own = [one for one in findings.steps if one.condition == condition]
    merged: dict[tuple[str, str], Steps] = {}
    for one in own:
        step = one.step
        if one.effort is not None and sum(other.contender == one.contender for other in own) > _MOST_EFFORTS:
            step = f"{step.rpartition(' ')[0]} {max(0.1, round(one.effort, 1)):g}"
        into = merged.setdefault((one.contender, step), Steps(condition=condition, contender=one.contender, step=step))
        for name in ("drafted", "checked", "accepted"):
            counts, more = getattr(into, name), getattr(one, name)
            counts.extend([0] * (len(more) - len(counts)))
            counts[: len(more)] = [left + right for left, right in zip(counts, more, strict=False)]
    return list(merged.values())


def _bars(count: int, *, extra_in: float = 0.0) -> tuple[Figure, Axes]:
    """A figure for `count` horizontal bars."""
    figure = Figure(figsize=(WIDTH_IN, 0.85 + extra_in + 0.42 * count), layout="constrained")
    return figure, figure.add_subplot()


def _names(axes: Axes, names: Sequence[str]) -> None:
    """Contenders along the vertical axis, the first one on top."""
    axes.set_yticks(range(len(names)), [_wrapped(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _wrapped(name: str) -> str:
    """A long name on two lines, broken at a comma or a space near its middle."""
    if len(name) <= 18:
        return name
    breaks = [index for index, character in enumerate(name) if character == " "]
    if not breaks:
        return name
    at = min(breaks, key=lambda index: abs(index - len(name) / 2))
    return f"{name[:at]}\n{name[at + 1 :]}"


def _map(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    colour: Callable[[float], tuple[str, float]],
    theme: Theme,
    shown: Callable[[float], str],
    *,
    title: str | None = None,
) -> Figure:
    """Numbers in coloured cells; None leaves one empty. A colour comes with its opacity."""
    has_long_names, is_dense = max(map(len, columns)) > 6, len(columns) > 6 or len(rows) > 10
    height = 0.5 + 0.32 * len(rows) + (0.055 * max(map(len, columns)) if has_long_names else 0.2)
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    axes = figure.add_subplot()
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            if value is not None:
                fill, alpha = colour(value)
                axes.bar(x, 0.92, bottom=y - 0.46, width=0.94, color=fill, alpha=alpha, linewidth=0)
                size = 9 if is_dense else 11
                axes.annotate(shown(value), (x, y), ha="center", va="center", color=theme.ink, fontsize=size)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xticks(
        range(len(columns)),
        columns,
        rotation=40 if has_long_names else 0,
        ha="left" if has_long_names else "center",
        rotation_mode="anchor" if has_long_names else "default",
    )
    _names(axes, rows)
    if is_dense:
        axes.tick_params(axis="y", labelsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    if title is not None:
        axes.set_xlabel(title)
        axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)
    return figure


def _share_map(
    columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[float | None]], theme: Theme
) -> Figure:
    return _map(
        columns, rows, cells, lambda share: (theme.good, 0.85 * share), theme, _percent, title="place in the draft"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _step_name(one: Steps) -> str:
    """Contender and draft step, without what the one says of the other."""
    step = one.step.removeprefix("effort ")
    return one.contender if step.split()[0] in one.contender.replace(":", " ").split() else f"{one.contender}: {step}"


_Counts = tuple[list[int], list[int]]  # by place: looked at, kept


def _kept_by_place(findings: Findings, condition: str, contender: str) -> _Counts | None:
    """What became of a contender's drafted tokens, by place; None where there are too few."""
    own = [one for one in findings.steps if (one.condition, one.contender) == (condition, contender)]
    length = max((len(one.checked) for one in own), default=0)
    counts: Any = tuple(
        [sum(getattr(one, name)[place] for one in own if place < len(one.checked)) for place in range(length)]
        for name in ("checked", "accepted")
    )
    return counts if length and counts[0][0] >= _LEAST else None


def _share(counts: _Counts, place: int) -> float | None:
    """Share kept at a place; None where too few were looked at."""
    checked, accepted = counts
    return accepted[place] / checked[place] if place < len(checked) and checked[place] >= _LEAST else None


def _wilson(kept: int, of: int, *, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share, scale = kept / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    reach = z * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / scale
    return float(middle - reach), float(middle + reach)
