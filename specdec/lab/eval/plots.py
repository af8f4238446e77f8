"""The plots of an evaluation, as PNGs: quality by effort, and hidden states by layer. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specdec.errors import InvalidArgumentError
from specdec.lab.eval.plan import DENSE
from specdec.lab.eval.report import Evaluation, Row, Share, TextScore, table
from specdec.lab.theme import LIGHT, WIDTH_IN, Theme, style, to_png
from specdec.whole_file import write_output

# What the text shows: file, title, axis, value, standard error, logarithmic.
_OF_TEXT: tuple[tuple[str, str, str, Callable[[TextScore], float], Callable[[TextScore], float], bool], ...] = (
    (
        "perplexity",
        "perplexity",
        "perplexity",
        lambda one: one.perplexity,
        lambda one: one.perplexity * one.nll_increase_error,
        True,
    ),
    (
        "kl",
        "divergence",
        "KL, nats per token",
        lambda one: one.kl,
        lambda one: one.kl_error,
        True,
    ),
    (
        "agreement",
        "agreement",
        "share of tokens",
        lambda one: one.agreement,
        lambda one: one.agreement_error,
        False,
    ),
)
_QUESTIONS = {"basicq": ("BasicQ", 0.5), "quiz": ("quiz", 0.25), "humaneval": ("HumanEval", None)}


def write_plots(folder: Path, evaluation: Evaluation, *, title: str, theme: Theme = LIGHT) -> Path:
    """Write a PNG for everything that was measured, and the table as `table.txt`.

    Returns:
        The folder, made when missing.

    Raises:
        InvalidArgumentError: it cannot be written.
    """
    with mpl.rc_context(style(theme)):  # type: ignore[arg-type]
        pictures = {name: to_png(figure) for name, figure in _figures(evaluation, title, theme)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in pictures.items():
            write_output(folder / f"{name}.png", content)
        write_output(folder / "table.txt", ("\n".join(table(evaluation)) + "\n").encode())
    except OSError as error:
        raise InvalidArgumentError(f"cannot write the report into {folder}: {error.strerror}") from None
    return folder


def _figures(evaluation: Evaluation, title: str, theme: Theme) -> list[tuple[str, Figure]]:
    figures = []
    if evaluation.rows[0].text is not None:
        for name, what, axis, value, error, logarithmic in _OF_TEXT:
            figure, axes = _canvas(f"{title}: {what}", axis)
            _by_effort(axes, evaluation, theme, _text_value(value), _text_value(error), logarithmic=logarithmic)
            figures.append((name, figure))
        if evaluation.rows[0].text.cosine:
            figures += _layer_figures(evaluation, title, theme)
    answers = _answers(evaluation, title, theme)
    if answers is not None:
        figures.append(("answers", answers))
    return figures


def _text_value(read: Callable[[TextScore], float]) -> Callable[[Row], float]:
    def value(row: Row) -> float:
        assert row.text is not None
        return read(row.text)

    return value


def _canvas(title: str, y_axis: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylabel(y_axis)
    axes.grid(visible=True)
    return figure, axes


def _views(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(row.setting.view for row in evaluation.rows))


def _of_view(evaluation: Evaluation, view: str) -> list[Row]:
    whole = (row for row in evaluation.rows if row.setting.view == view and row.setting.load_share == 1)
    return sorted(whole, key=lambda row: row.setting.effort)


def _by_effort(
    axes: Axes,
    evaluation: Evaluation,
    theme: Theme,
    value: Callable[[Row], float],
    error: Callable[[Row], float],
    *,
    logarithmic: bool,
) -> None:
    """A line for each view, with one standard error up and down."""
    for view, colour in zip(_views(evaluation), theme.series, strict=False):
        rows = [row for row in _of_view(evaluation, view) if not logarithmic or value(row) > 0]
        if rows:
            _line(axes, rows, value, error, colour=colour, label=view)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel("effort (share of the multiplications)")
    axes.set_xlim(0, 1.02)
    if len(_views(evaluation)) > 1:
        axes.legend()


def _line(
    axes: Axes,
    rows: Sequence[Row],
    value: Callable[[Row], float],
    error: Callable[[Row], float],
    *,
    colour: str,
    label: str,
) -> None:
    axes.errorbar(
        [row.setting.effort for row in rows],
        [value(row) for row in rows],
        yerr=[error(row) for row in rows],
        color=colour,
        marker="o",
        markersize=4,
        linewidth=1.6,
        elinewidth=1,
        label=label,
    )


def _layer_figures(evaluation: Evaluation, title: str, theme: Theme) -> list[tuple[str, Figure]]:
    """For each view, cosine by layer, a line for each effort: the paler, the lower."""
    figures = []
    for view in _views(evaluation):
        rows = [row for row in _of_view(evaluation, view) if row.setting != DENSE]
        if not rows:
            continue
        figure, axes = _canvas(f"{title}: hidden states, {view}", "cosine with the model itself")
        for place, row in enumerate(rows):
            assert row.text is not None
            layers = range(1, len(row.text.cosine) + 1)
            shade = 0.25 + 0.75 * (place + 1) / len(rows)
            axes.plot(
                layers, row.text.cosine, color=theme.blue, alpha=shade, linewidth=1.6, label=f"{row.setting.effort:g}"
            )
        axes.set_xlabel("layers passed")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside right center", title="effort", fontsize=9)
        figures.append((f"layers-{view}", figure))
    return figures


def _answers(evaluation: Evaluation, title: str, theme: Theme) -> Figure | None:
    """Shares of right answers by effort, with the level of guessing; other views than the first are dashed."""
    measured = [name for name in _QUESTIONS if getattr(evaluation.rows[0], name) is not None]
    if not measured:
        return None
    figure, axes = _canvas(f"{title}: right answers", "share of right answers")
    for name, colour in zip(measured, theme.series, strict=False):
        label, guessing = _QUESTIONS[name]
        for place, view in enumerate(_views(evaluation)):

            def share(row: Row, name: str = name) -> Share:
                found: Share = getattr(row, name)
                return found

            rows = _of_view(evaluation, view)
            several = len(_views(evaluation)) > 1
            _line(
                axes,
                rows,
                lambda row, share=share: share(row).share,  # type: ignore[misc]
                lambda row, share=share: share(row).error,  # type: ignore[misc]
                colour=colour,
                label=f"{label}, {view}" if several else label,
            )
            if place:
                axes.lines[-1].set_linestyle("--")
        if guessing is not None:
            axes.axhline(guessing, color=colour, linewidth=1, linestyle=":")
    axes.set_xlabel("effort (share of the multiplications); dotted: guessing")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=9)
    return figure
