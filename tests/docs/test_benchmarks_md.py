"""BENCHMARKS.md and the README show the tables of `benchmarks/results`, and every table has commands that parse."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from places import ROOT

from specdec.cli.main import build_parser

BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
pytestmark = pytest.mark.skipif(not (BENCHMARKS / "render.py").exists(), reason="needs the source tree")
NAMES = sorted(path.stem for path in RESULTS.glob("*.json"))
MACHINE = {"device": "CPU", "cores": 2, "python": "3.11", "versions": {"numpy": "2"}, "date": "2026-01-02"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of the folder `benchmarks`, whose names do not stay around."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in ("render", "tables"):
        sys.modules.pop(name, None)


def page(name: str = "BENCHMARKS.md") -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def record(results: dict[str, Any], command: str = "specdec bench tiny.store") -> dict[str, Any]:
    return {"command": command, "machine": MACHINE, "results": results}


@pytest.mark.parametrize("document", ["BENCHMARKS.md", "README.md"])
def test_the_tables_are_those_of_the_results(script: Any, document: str) -> None:
    assert page(document) == script("render").render(document, page(document)), "run python benchmarks/render.py"


def test_a_changed_result_changes_the_page(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, render = script("tables"), script("render")
    folder = Path(shutil.copytree(RESULTS, tmp_path / "results"))
    table = tables.read("faster")
    table.rows[0][1] = "987654.3"
    tables.write(table, "faster", folder)
    monkeypatch.setattr(tables, "RESULTS", folder)
    assert "987654.3" in render.render("BENCHMARKS.md", page())


def test_every_result_is_shown_and_every_table_has_a_result(script: Any) -> None:
    shown = re.findall(r"^<!-- table ([\w-]+) -->$", page(), re.M)
    assert sorted(shown) == NAMES
    assert set(NAMES) == set(script("tables").TABLES)
    assert [path.name for path in RESULTS.iterdir() if path.suffix != ".json"] == []


def test_the_page_is_short_and_begins_with_the_answer() -> None:
    text = page()
    assert len(text.splitlines()) <= 250
    assert text.index("<!-- table faster -->") < 400
    assert max(path.stat().st_size for path in RESULTS.iterdir()) < 10_000


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_whole_and_says_where_it_comes_from(script: Any, name: str) -> None:
    table = script("tables").read(name)
    assert table.sources
    assert table.rows
    assert all(len(row) == len(table.columns) for row in table.rows)
    for source in table.sources:
        assert f"`{source['command']}` ({source['date']}, " in page()
        assert source["machine"] in page()
        _check_command(shlex.split(source["command"]))


def _check_command(words: list[str]) -> None:
    """A `specdec` command parses; a script exists and has the options that it is given."""
    if words[0] == "specdec":
        build_parser().parse_args(words[1:])
        return
    assert words[0] == "python"
    path = ROOT / words[1]
    assert path.is_relative_to(BENCHMARKS)
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"^(?:from|import) (\w+)", text, re.M):  # of the scripts that it shares its options with
        if (other := BENCHMARKS / f"{name}.py").exists():
            text += other.read_text(encoding="utf-8")
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"{path.name} has no option {word}"


def test_files_that_commands_read_exist() -> None:
    for grid in re.findall(r"--grid (\S+)", page()):
        assert (BENCHMARKS / grid).exists()


def test_numbers_in_the_prose_are_in_a_table() -> None:
    """Text between the tables names no measured figure that a table does not show."""
    text = page()
    prose = "\n".join(line for line in text.splitlines() if not line.startswith(("|", "Printed by", "Machines:")))
    cells = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert [number for number in re.findall(r"\d+\.\d+", prose) if number not in cells] == []


def test_faster_compares_the_same_weights(script: Any) -> None:
    rows = [
        {"contender": name, "task": "all", "tok_per_s": speed, "ratio_to_plain": ratio}
        for name, speed, ratio in (
            ("specdec plain", 10.0, 1.0),
            ("specdec auto", 15.0, 1.5),
            ("llama.cpp original", 30.0, 3.0),  # other weights: not compared with
            ("llama.cpp dithered F16", 8.0, 0.8),
            ("llama.cpp dithered F16, lookup", 9.0, 0.75),
            ("transformers bfloat16", 2.0, 0.2),
            ("transformers bfloat16, lookup", 3.0, 0.3),
        )
    ]
    table = script("tables").faster([record({"settings": {"specdec_weights": "twin"}, "rows": rows})])
    assert table.rows == [["twin", "10.0", "15.0", "8.0", "9.0", "-", "3.0", "-", "1.25", "1.88"]]


def test_kinds_shows_auto_by_task(script: Any) -> None:
    shared = {"contender": "auto", "speedup": 1.2345, "mean_of_tasks": 1.5, "speedup_interval": [1.1, 1.9]}
    rows = [shared | {"task": task, "drafted": 8, "accepted": 2} for task in ("qa", "all")]
    rows.append(rows[0] | {"contender": "other", "speedup": 9.0})
    settings = {"model": "tiny", "tasks": ["qa"]}
    table = script("tables").kinds([record({"settings": settings, "rows": rows, "noise": {"error": 0.0251}})])
    assert table.rows == [["tiny", "1.23", "1.50", "1.10 to 1.90", "2.5%", "0.25"]]


def test_acceptance_leaves_out_what_rests_on_few_tokens(script: Any) -> None:
    step = {"view": "int4", "effort": 0.5, "position": 1}
    rows = [
        step | {"entropy": "low", "entropy_class": 0, "looked_at": 4, "kept": 4},
        step | {"entropy": "high", "entropy_class": 1, "looked_at": 6, "kept": 3},
        step | {"entropy": "high", "entropy_class": 1, "looked_at": 2, "kept": 1, "position": 2},
    ]
    table = script("tables").acceptance([record({"settings": {"model": "tiny.store"}, "rows": rows})])
    assert table.columns == ["model", "view", "effort", "low", "high"]
    assert table.rows == [["tiny", "int4", "0.5", "-", "0.50 (8)"]]


def test_a_table_is_written_and_read_back(script: Any, tmp_path: Path) -> None:
    tables = script("tables")
    path = tmp_path / "record.json"
    found = record({"steps": [], "gpu": "GPU"}, "python benchmarks/gpu_step.py")
    found["results"]["steps"] = [{"step": "µ", "effort": 1.0, "rows": 1, "ms": 2.0, "of MLX's dense step": 0.5}]
    path.write_text(tables.json.dumps(found), encoding="utf-8")
    table = tables.table_of("gpu_steps", [path])
    tables.write(table, "gpu_steps", tmp_path)
    assert tables.read("gpu_steps", tmp_path) == table
    assert table.rows == [["µ", "1", "1", "2.000", "0.500"]]
    assert table.sources == [
        {"command": found["command"], "date": "2026-01-02", "machine": "GPU with CPU, 2 cores, Python 3.11, numpy 2"}
    ]
