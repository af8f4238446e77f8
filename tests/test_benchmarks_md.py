"""BENCHMARKS.md and the README's figures are those of the files in `benchmarks/results`, and no others."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not (BENCHMARKS / "render.py").exists(), reason="needs the source tree")
pytest.importorskip("matplotlib", reason="needs matplotlib: install the extra `report`")


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/render.py`, which is a script beside its own modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("render")


def test_benchmarks_md_is_what_the_results_say(render):
    assert (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8") == render.render(), "run python benchmarks/render.py"


def test_figures_of_the_readme_are_what_the_results_say(render):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == render.with_section(readme, render.how_fast(render.RESULTS)), "run python benchmarks/render.py"


def test_every_result_is_shown_and_says_where_it_comes_from(render):
    text = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    for path in sorted((BENCHMARKS / "results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert f"`results/{path.name}`, {record['machine']['date']}: `{record['command']}`" in text
        script = re.match(r"python benchmarks/(\S+)", record["command"])
        assert script is None or (BENCHMARKS / script[1]).exists(), f"{path.name}: {record['command']}"


def test_every_figure_is_there():
    text = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(benchmarks/results/([^)]+)\)", text))
    assert shown
    assert shown == {path.name for path in (BENCHMARKS / "results").glob("*.svg")}
