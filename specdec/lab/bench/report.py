"""Findings as one page, `index.html`, with everything in it, and its plots as files in the same folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from specdec.lab.bench.analysis import ALL, Row
from specdec.lab.bench.findings import Findings
from specdec.lab.bench.grid import PLAIN
from specdec.lab.bench.plots import PLOTS, Plot
from specdec.lab.bench.table import noise_sentence
from specdec.lab.theme import DARK, FONT, LIGHT, NAMED, Theme, css_variables, standalone, style, to_png, to_svg
from specdec.whole_file import write_output

_CSS = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--surface);color:var(--ink);font:16px/1.5 FONT}
main{max-width:80rem;margin:0 auto;padding:1.25rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:.25rem 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:0 0 .5rem}
p{margin:.4rem 0}
.facts{color:var(--muted)}
.loud{border-left:4px solid var(--bad);padding:.5rem .75rem;font-weight:600}
.wide{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--surface)}
th{font-weight:600;color:var(--muted)}
.plots{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,23rem),1fr));align-items:start}
figure{margin:0;padding:.9rem;border:1px solid var(--grid);border-radius:.5rem;min-width:0}
figure svg{display:block;width:100%;height:auto}
figcaption{color:var(--muted);font-size:.875rem;margin-top:.5rem}
@media(max-width:40rem){table{font-size:.9rem}th,td{padding:.3rem .5rem}}
pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.6rem .75rem;border:1px solid var(--grid);border-radius:.4rem;
font-size:.85rem}
dt{font-weight:600;margin-top:.5rem}
dd{margin:0}
"""

_COLUMNS = (
    "", "speed-up", "95 %", "tokens/s", "quartiles", "mean of tasks", "accepted", "tokens a round", "predicted",
)  # fmt: skip

_NOTES = (
    (
        "Speed",
        "Emitted tokens over the time after the prompt was read, all prompts together; of the repetitions of an answer "
        "the median time counts. Quartiles are of single answers.",
    ),
    (
        "Speed-up",
        "Time of plain decoding over the contender's, for the same tokens of the same prompts: weighted by tokens. "
        "Intervals come from a seeded bootstrap over prompts within their task, and over repetitions. "
        "“Mean of tasks” counts every task the same.",
    ),
    (
        "Order",
        "Every prompt is answered by every way in turn, and the order moves on by one each time. What a policy learns "
        "stays with its way and repetition.",
    ),
    ("Accepted", "Drafted tokens that were kept. A token counts as looked at when all before it were kept."),
    (
        "Predicted",
        "What the policy expected of its own decisions, over the same answers; empty for policies that expect nothing.",
    ),
    (
        "Noise",
        "Spread of plain decoding's time over repetitions of the same answer, and the standard error that it alone "
        "makes in a speed-up over all prompts. Above the limit nothing is reported, unless that is forced.",
    ),
)


def write_report(folder: Path, findings: Findings) -> Path:
    """Write the page and its plots into a folder, created when missing; returns the page's path.

    Next to the page is every plot as `NAME.svg`, which follows the reader's theme, `NAME.png` and `NAME-dark.png`.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings = draw(findings)
    for one in drawings:
        write_output(folder / f"{one.name}.svg", standalone(one.svg).encode())
        for theme, suffix in ((LIGHT, ""), (DARK, "-dark")):
            write_output(folder / f"{one.name}{suffix}.png", to_png(one.figure(theme)))
    page = folder / "index.html"
    write_output(page, to_html(findings, drawings).encode())
    return page


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot of findings under a condition.

    Attributes:
        plot: what it shows.
        condition: its name.
        name: of its files.
        svg: for a page.
        figure: draws it again in a theme.
    """

    plot: Plot
    condition: str
    name: str
    svg: str
    figure: Callable[[Theme], Figure]


def draw(findings: Findings, *, plots: Sequence[Plot] = PLOTS) -> list[Drawing]:
    """Every plot under every condition, except plots that have nothing to show."""
    drawings = []
    for condition, plot in itertools.product(findings.conditions, plots):
        figure = _figure(plot, findings, condition, NAMED)
        if figure is not None:
            name = plot_name(plot, findings, condition)
            again: Any = partial(_figure, plot, findings, condition)
            with matplotlib.rc_context(style(NAMED)):  # type: ignore[arg-type]
                drawings.append(Drawing(plot, condition, name, to_svg(figure, name=name), again))
    return drawings


def plot_name(plot: Plot, findings: Findings, condition: str) -> str:
    """What the files of a plot are called, without what tells their kind."""
    if len(findings.conditions) == 1:
        return plot.name
    return f"{plot.name}-{re.sub('[^a-z0-9.]+', '-', condition.lower())}"


def _figure(plot: Plot, findings: Findings, condition: str, theme: Theme) -> Figure | None:
    with matplotlib.rc_context(style(theme)):  # type: ignore[arg-type]
        return plot.draw(findings, condition, theme)


def to_html(findings: Findings, drawings: Sequence[Drawing]) -> str:
    """The page."""
    css = _CSS.replace("FONT", FONT) + (
        f":root{{{css_variables(LIGHT)}}}@media(prefers-color-scheme:dark){{:root{{{css_variables(DARK)}}}}}"
    )
    title = f"specdec bench: {findings.settings['model']}"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{css}</style></head><body><main>",
            f"<h1>{escape(title)}</h1>",
            *_facts(findings),
            *(part for condition in findings.conditions for part in _condition(findings, condition, drawings)),
            "<h2>How to read this</h2><dl>",
            *(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _NOTES),
            "</dl><h2>Command</h2>",
            f"<pre>{escape(findings.command)}</pre>",
            "</main></body></html>\n",
        ]
    )


def _facts(findings: Findings) -> Iterator[str]:
    settings, machine = findings.settings, findings.machine
    threads = "" if settings["threads"] is None else f", {settings['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield f'<p class="facts">{escape(settings["runtime"])}{threads} on {escape(machine["device"])}, '
    yield f"{machine['cores']} cores; {escape(versions)}; {machine['date']}</p>"
    yield (
        f'<p class="facts">{settings["prompts"]} prompts of {len(settings["tasks"])} tasks, at most '
        f"{settings['max_tokens']} tokens, {settings['repeat']} times each. Every answer is plain decoding's, token "
        "for token.</p>"
    )
    loud = ' class="loud"' if findings.noise.is_too_loud else ' class="facts"'
    sentence = noise_sentence(findings.noise)
    yield f"<p{loud}>{escape(sentence[0].upper() + sentence[1:])}.</p>"


def _condition(findings: Findings, condition: str, drawings: Sequence[Drawing]) -> Iterator[str]:
    yield f"<h2>{escape(condition[0].upper() + condition[1:])}</h2>"
    rows = [_cells(findings.row(condition, ALL, name)) for name in findings.contenders]
    yield from _table(_COLUMNS, rows)
    yield '<div class="plots">'
    for one in drawings:
        if one.condition == condition:
            yield f"<figure><h3>{escape(one.plot.title)}</h3>{one.svg}"
            yield f"<figcaption>{escape(one.plot.caption)}</figcaption></figure>"
    yield "</div>"


def _cells(row: Row) -> list[str]:
    low, _, high = row.rate_quartiles
    return [
        row.contender,
        f"{row.speedup:.2f}",
        "" if row.speedup_interval is None else "{:.2f} to {:.2f}".format(*row.speedup_interval),
        f"{row.tok_per_s:.4g}",
        f"{low:.4g} to {high:.4g}",
        "" if row.mean_of_tasks is None or row.contender == PLAIN else f"{row.mean_of_tasks:.2f}",
        "" if row.acceptance is None else f"{row.acceptance:.0%}",
        f"{row.tokens_per_round:.2f}",
        "" if row.predicted_speedup is None else f"{row.predicted_speedup:.2f}",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield '<div class="wide"><table><thead><tr>'
    yield "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</tbody></table></div>"
