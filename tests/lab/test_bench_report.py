"""The page of `specdec bench --report` and its plots: whole, self-contained, in both themes, true to the findings."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import run
from scripted_model import Clock, scripted_model

import specdec.cli.main
from specdec.errors import InvalidArgumentError
from specdec.lab.bench.findings import Findings

matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib: install the extra `report`")

NAMES = ("speed", "speedup", "tasks", "split", "places", "acceptance", "efforts", "prediction")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on the scripted model, under two conditions; `auto` learns, so that every plot has something to show."""
    folder = tmp_path_factory.mktemp("report")
    prompts = folder / "prompts.jsonl"
    rows = [
        {"task": task, "prompt": text} for task in ("<b>one</b>", "two") for text in ("a b a b a b a b", "abcd" * 4)
    ]
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(time, "perf_counter", clock)
        patch.setattr(specdec, "load", lambda *_, **__: scripted_model(clock))
        patch.setenv("SPECDEC_HOME", str(folder / "home"))
        words = [
            "--max-tokens",
            "60",
            "--repeat",
            "2",
            "--contender",
            "auto",
            "--contender",
            "int4:1:3",
            "--temperature",
            "0",
            "0.8",
            "--seed",
            "3",
        ]
        paths = ["--prompts", str(prompts), "--report", str(folder / "out"), "--json", str(folder / "out.json")]
        code = specdec.cli.main.main(["bench", "scripted", *words, *paths])
    assert code == 0
    return folder


class Parsed(HTMLParser):
    """Tags that were opened and not closed, and what was seen on the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        found = dict(attrs)
        self.ids.update([found["id"]] if found.get("id") else [])
        self.links += [found[name] or "" for name in ("href", "src", "xlink:href") if name in found]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_needs_nothing_else(report):
    text = (report / "out" / "index.html").read_text(encoding="utf-8")
    page = Parsed(text)
    assert page.open == []
    assert max(page.ids.values()) == 1
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"<script|@import|url\((?!#)", text)
    addresses = set(re.findall(r"https?://[^\"' )]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "prefers-color-scheme:dark" in text
    assert "#5dec" not in text  # every colour has become a name
    assert text.count("<svg") == 2 * len(NAMES)
    assert "&lt;b&gt;one&lt;/b&gt;" in text  # what a user wrote stays text


def test_the_page_says_what_was_found(report):
    findings = Findings.from_record(json.loads((report / "out.json").read_text()))
    words = " ".join(Parsed((report / "out" / "index.html").read_text()).words)
    for condition in findings.conditions:
        for contender in findings.contenders:
            row = findings.row(condition, "all", contender)
            assert f"{row.tok_per_s:.4g}" in words
            assert f"{row.speedup:.2f}" in words
    for unit in ("tokens per second", "milliseconds per emitted token", "place in the draft", "(times)"):
        assert unit in words
    assert findings.command in words


def test_plots_lie_beside_the_page(report):
    names = {path.name for path in (report / "out").iterdir()}
    expected = {
        f"{name}-{condition}{suffix}"
        for name in NAMES
        for condition in ("greedy", "temperature-0.8-seed-3")
        for suffix in (".svg", ".png", "-dark.png")
    }
    assert names == expected | {"index.html"}
    for path in (report / "out").glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        width = int.from_bytes(path.read_bytes()[16:20])
        assert width == 1000
    for path in (report / "out").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme:dark" in path.read_text()
        assert "#5dec" not in path.read_text()


def test_plots_are_the_same_each_time(report):
    from specdec.lab.bench.plots import PLOTS
    from specdec.lab.bench.report import draw
    from specdec.lab.theme import standalone

    findings = Findings.from_record(json.loads((report / "out.json").read_text()))
    first = draw(findings, plots=PLOTS[:1])[0]
    assert standalone(first.svg) == (report / "out" / "speed-greedy.svg").read_text()


def test_findings_survive_their_file(report):
    record = json.loads((report / "out.json").read_text())
    assert json.loads(json.dumps(Findings.from_record(record).to_record())) == record
    with pytest.raises(InvalidArgumentError, match="not a record of specdec bench"):
        Findings.from_record(record | {"benchmark": "other"})


def test_a_report_of_little_leaves_out_what_it_cannot_show(capsys, monkeypatch, home, tmp_path):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(specdec, "load", lambda *_, **__: scripted_model(clock))
    (tmp_path / "prompts.txt").write_text("one")
    arguments = ("--prompts", tmp_path / "prompts.txt", "--max-tokens", 2, "--repeat", 1, "--contender", "int4:1:2")
    done = run(capsys, "bench", "scripted", *arguments, "--report", tmp_path / "out")
    assert done.code == 0, done.err
    assert {path.stem for path in (tmp_path / "out").glob("*.svg")} == {"speed", "speedup", "split"}


def contrast(left: str, right: str) -> float:
    """Ratio of luminances (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(left), luminance(right)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_in_both_themes():
    from specdec.lab.theme import DARK, LIGHT

    for theme in (LIGHT, DARK):
        assert contrast(theme.ink, theme.surface) >= 7
        assert contrast(theme.muted, theme.surface) >= 4.5
        assert all(contrast(colour, theme.surface) >= 3 for colour in theme.series)
        # Numbers in the cells of a map stand on `good` or `bad`, at 85 % at most.
        for fill in (theme.good, theme.bad):
            mixed = "#" + "".join(
                f"{round(0.85 * int(fill[i : i + 2], 16) + 0.15 * int(theme.surface[i : i + 2], 16)):02x}"
                for i in (1, 3, 5)
            )
            assert contrast(theme.ink, mixed) >= 4.5, (fill, mixed)
