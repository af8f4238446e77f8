"""The benchmark of first answers against plain decoding: what it measures, how it goes on, and its sums."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the source tree")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, whose name is not to stay around."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("never_slower")
    for name in ("never_slower", "common"):
        sys.modules.pop(name, None)


def pair(kind: str, prompt: int, repeat: int, ratio: float, plain_s: float = 1.0) -> dict[str, object]:
    """An answer that drafting made `ratio` times as fast."""
    way = {"plain": {"decode_s": plain_s}, "auto": {"decode_s": plain_s / ratio}}
    return {"kind": kind, "prompt": str(prompt), "repeat": repeat, **way}


def pairs(**ratios: list[float]) -> dict[str, dict[str, object]]:
    """Three repeats of a prompt for each ratio, one of which is far off."""
    found = {}
    for kind, of_kind in ratios.items():
        for prompt, ratio in enumerate(of_kind):
            for repeat, off in enumerate((1.0, 0.5, 1.01)):
                found[f"{kind}/{prompt}/{repeat}"] = pair(kind, prompt, repeat, ratio * off)
    return found


def test_kinds_are_summed_up_by_medians(benchmark: ModuleType) -> None:
    good, weak, bad = [1.2, 1.3, 1.4, 1.5], [0.96] * 8, [0.8, 0.81, 0.82, 0.83, 0.8, 0.81, 0.82, 0.83]
    rows = {row["kind"]: row for row in benchmark.summarise(pairs(good=good, weak=weak, bad=bad))}
    assert rows["good"]["median"] == pytest.approx(1.35)  # over prompts, of the median of their repeats
    assert rows["good"]["least"] == pytest.approx(1.2)
    assert (rows["good"]["flag"], rows["weak"]["flag"], rows["bad"]["flag"]) == (
        "",
        "below 0.97",
        "significantly below 0.95",
    )
    assert (rows["good"]["slower"], rows["bad"]["slower"]) == (0, 8)
    assert rows["bad"]["sign test"] == pytest.approx(1 / 256)
    assert rows["bad"]["low"] <= rows["bad"]["median"] <= rows["bad"]["high"] < 0.95
    assert rows["mean"]["median"] == pytest.approx((1.35 + 0.96 + 0.815) / 3)
    assert rows["mean"]["prompts"] == 20
    assert "bad" in rows["mean"]["flag"]


def test_nothing_measured_is_no_table(benchmark: ModuleType) -> None:
    assert benchmark.summarise({}) == []


def measured(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> list[dict]:
    """The rows that a run prints, from its JSON file."""
    monkeypatch.setattr(sys, "argv", ["never_slower.py", *map(str, words)])
    benchmark.main()
    return json.loads(Path(words[-1]).read_text())["results"]["rows"]


def test_a_run_goes_on_where_it_stopped_and_runs_are_merged(
    benchmark: ModuleType, text_model: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "own.jsonl"
    lines = [{"task": task, "id": number, "prompt": f"{task} {number}"} for task in ("a", "b") for number in range(3)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(benchmark, "_SETTLE_S", 0.0)
    common = (
        text_model,
        "--sets",
        prompts,
        "--prompts",
        2,
        "--max-tokens",
        6,
        "--raw",
        "--json",
        tmp_path / "out.json",
    )
    journal = tmp_path / "answers.jsonl"
    options = ("--resume", journal, "--kinds", "a", "--repeats")
    rows = measured(benchmark, monkeypatch, *options, 1, *common)
    assert [(row["kind"], row["prompts"], row["pairs"]) for row in rows] == [("a", 2, 2), ("mean", 2, 2)]
    rows = measured(benchmark, monkeypatch, *options, 2, *common)
    assert rows[0]["pairs"] == 4
    assert len(journal.read_text().splitlines()) == 5
    assert measured(benchmark, monkeypatch, "--budget-s", 0, *options, 3, *common)[0]["pairs"] == 4
    other = tmp_path / "others.jsonl"
    measured(benchmark, monkeypatch, "--loaded", "--resume", other, "--kinds", "b", "--repeats", 1, *common)
    first = json.loads(journal.read_text().splitlines()[1])["value"]
    assert first["auto"]["tokens"] == first["plain"]["tokens"]
    assert "estimated_gain" in first["auto"]["policy"]
    assert set(map(int, first["verify_s"])) >= {1, 3, 5, 9}
    assert not (home / "costs").exists()  # costs of a run are nobody else's
    with pytest.raises(SystemExit, match="other settings"):
        measured(benchmark, monkeypatch, "--merge", journal, other, "--json", tmp_path / "all.json")
    last = measured(benchmark, monkeypatch, "--merge", journal, "--json", tmp_path / "all.json")
    assert last[0]["pairs"] == 4
