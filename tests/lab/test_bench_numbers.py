"""`specdec bench` on an engine of known acceptance and costs: the numbers come out as they went in, to the last bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from scripted_model import PASS_S, expect, scripted_model

import specdec
from specdec.engine.stats import Stats
from specdec.lab.bench.analysis import analyse, count_steps
from specdec.lab.bench.bootstrap import ratio_interval
from specdec.lab.bench.findings import Findings
from specdec.lab.bench.grid import Contender, Grid
from specdec.lab.bench.noise import noise
from specdec.lab.bench.plan import Plan
from specdec.lab.bench.prompts import TaskPrompt
from specdec.lab.bench.sample import Place, Sample

PROMPTS = [("short", "ab"), ("short", "abcde"), ("long", "a longer prompt, of another kind")]
MOST = 21  # tokens of an answer


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"task": task, "prompt": text}) for task, text in PROMPTS))
    return path


def bench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: specdec.Model, *arguments: object
) -> Any:
    monkeypatch.setattr(specdec, "load", lambda *_, **__: model)
    return run(capsys, "bench", "scripted", "--per-task", 9, "--max-tokens", MOST, *arguments)


def test_known_acceptance_and_costs_come_back(capsys, monkeypatch, clock, prompts, home, tmp_path):
    result = tmp_path / "result.json"
    done = bench(
        capsys, monkeypatch, scripted_model(clock), "--prompts", prompts, "--contender", "int4:1.0:3",
        "--contender", "int4:0.5:2", "--repeat", 2, "--json", result,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = Findings.from_record(json.loads(result.read_text()))
    assert found.contenders == ["plain", "int4:1:3", "int4:0.5:2"]
    assert found.tasks == ["all", "short", "long"]
    assert (found.noise.spread, found.noise.error, found.noise.pairs) == (0.0, 0.0, 3)
    plain_s = MOST * PASS_S
    for contender, length, effort in (("plain", 0, 1.0), ("int4:1:3", 3, 1.0), ("int4:0.5:2", 2, 0.5)):
        for task in found.tasks:
            row = found.row("greedy", task, contender)
            answers = [expect(len(text), MOST, length, effort) for of, text in PROMPTS if task in ("all", of)]
            count = len(answers)
            seconds = sum(one.seconds for one in answers)
            assert (row.prompts, row.answers, row.tokens) == (count, 2 * count, count * MOST)
            assert row.seconds == seconds
            assert row.tok_per_s == count * MOST / seconds
            assert row.speedup == count * plain_s / seconds
            rates = [MOST / one.seconds for one in answers for _ in range(2)]
            assert row.rate_quartiles == tuple(np.quantile(rates, (0.25, 0.5, 0.75)))
            drafted, accepted = (2 * sum(getattr(one, name) for one in answers) for name in ("drafted", "accepted"))
            assert (row.drafted, row.accepted) == (drafted, accepted)
            assert row.acceptance == (accepted / drafted if drafted else None)
            assert row.tokens_per_round == count * MOST / sum(one.rounds for one in answers)
            # Seconds are exact; thousandths of them over a number of tokens are rounded, so these are close only.
            draft_ms, verify_ms = (
                1e3 * sum(getattr(one, name) for one in answers) / (count * MOST) for name in ("draft_s", "verify_s")
            )
            assert (row.draft_ms, row.verify_ms) == pytest.approx((draft_ms, verify_ms), rel=1e-12)
            assert row.overhead_ms == 0.0
        whole = found.row("greedy", "all", contender)
        assert whole.mean_of_tasks == sum(found.row("greedy", task, contender).speedup for task in found.tasks[1:]) / 2


def test_fate_of_drafts_by_step_and_place(capsys, monkeypatch, clock, prompts, home, tmp_path):
    result = tmp_path / "result.json"
    bench(
        capsys, monkeypatch, scripted_model(clock), "--prompts", prompts, "--contender", "int4:0.5:3",
        "--repeat", 1, "--json", result,
    )  # fmt: skip
    (steps,) = Findings.from_record(json.loads(result.read_text())).steps
    answers = [expect(len(text), MOST, 3, 0.5) for _, text in PROMPTS]
    assert (steps.contender, steps.step, steps.effort) == ("int4:0.5:3", "effort int4 0.5", 0.5)
    for name in ("drafted", "checked", "accepted"):
        assert getattr(steps, name) == [sum(getattr(one, f"{name}_by_place")[j] for one in answers) for j in range(3)]


def test_the_same_run_gives_the_same_result_and_the_table_says_it(capsys, monkeypatch, clock, prompts, home, tmp_path):
    arguments = ("--prompts", prompts, "--contender", "int4:1:3", "--contender", "drafter=ngram", "--repeat", 2)
    results = []
    for name in ("a.json", "b.json"):
        done = bench(capsys, monkeypatch, scripted_model(clock), *arguments, "--json", tmp_path / name)
        results.append(json.loads((tmp_path / name).read_text())["results"])
        assert done.code == 0, done.err
    assert results[0] == results[1]
    row = next(row for row in results[0]["rows"] if row["contender"] == "int4:1:3" and row["task"] == "all")
    (line,) = [line for line in done.out.splitlines() if line.startswith("int4:1:3") and "%" in line]
    assert f"{row['tok_per_s']:.4g}" in line
    assert f"{row['speedup']:.2f}x" in line
    assert f"{row['acceptance']:.0%}" in line


def test_prediction_of_the_policy_is_weighed_by_time() -> None:
    samples = [
        *answer("plain", 0, [2.0]), *answer("plain", 1, [6.0]),
        *answer("auto", 0, [1.0], gain=2.0), *answer("auto", 1, [6.0], gain=1.5),
    ]  # fmt: skip
    row = next(row for row in analyse(plan(2, 1), samples) if row.contender == "auto" and row.task == "all")
    assert row.predicted_speedup == (2.0 + 6.0) / (2.0 / 2.0 + 6.0 / 1.5)
    assert row.speedup == 8.0 / 7.0


def test_median_of_repetitions_counts_and_tokens_weigh() -> None:
    samples = [
        *answer("plain", 0, [1.0, 1.0, 50.0], tokens=10), *answer("plain", 1, [9.0, 8.0, 8.0], tokens=80),
        *answer("auto", 0, [0.5, 0.5, 0.5], tokens=10), *answer("auto", 1, [7.0, 8.0, 40.0], tokens=80),
    ]  # fmt: skip
    rows = {row.contender: row for row in analyse(plan(2, 3), samples) if row.task == "all"}
    assert (rows["plain"].seconds, rows["plain"].tok_per_s) == (9.0, 10.0)
    # The short answer's 2x hardly counts beside the long one's 1x: time over time, not the mean of ratios.
    assert rows["auto"].speedup == 9.0 / 8.5
    assert rows["auto"].tok_per_s == 90 / 8.5


def test_intervals_repeat_by_seed_and_hold_the_ratio() -> None:
    generator = np.random.default_rng(3)
    own = generator.uniform(1.0, 2.0, (12, 3))
    strata = np.repeat([0, 1, 2], 4)
    first = ratio_interval(2 * own, own, strata=strata, seed=5)
    assert first == pytest.approx((2.0, 2.0), abs=1e-12)  # an exact ratio stays one, whatever is drawn
    plain = own * generator.uniform(1.5, 2.5, own.shape)
    low, high = ratio_interval(plain, own, strata=strata, seed=5)
    ratio = np.median(plain, axis=1).sum() / np.median(own, axis=1).sum()
    assert low < ratio < high
    assert (low, high) == ratio_interval(plain, own, strata=strata, seed=5)
    assert (low, high) != ratio_interval(plain, own, strata=strata, seed=6)


def test_an_interval_draws_prompts_within_their_task() -> None:
    # Each task's prompts are alike, so that drawing within tasks changes nothing; across tasks it would.
    own = np.repeat([1.0, 1.0, 1.0, 4.0, 4.0, 4.0], 2).reshape(6, 2)
    plain = np.repeat([3.0, 3.0, 3.0, 4.0, 4.0, 4.0], 2).reshape(6, 2)
    assert ratio_interval(plain, own, strata=np.repeat([0, 1], 3), seed=0) == (21 / 15, 21 / 15)
    low, high = ratio_interval(plain, own, strata=np.zeros(6, int), seed=0)
    assert low < 21 / 15 < high


def test_prompts_alone_in_their_task_are_drawn_among_each_other() -> None:
    own, plain = np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[2.0, 2.0], [4.0, 4.0]])
    assert ratio_interval(plain, own, strata=np.array([0, 1]), seed=0) == (2.0, 4.0)
    # Beside a task of several the two keep to themselves: 2 and 4 each half the time, and the others stay at 3.
    own, plain = np.ones((5, 2)), np.repeat([3.0, 2.0, 3.0, 4.0, 3.0], 2).reshape(5, 2)
    found = ratio_interval(plain, own, strata=np.array([1, 0, 1, 2, 1]), seed=0)
    assert found == ((3 * 3 + 2 * 2) / 5, (3 * 3 + 2 * 4) / 5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        own = generator.lognormal(0.0, 0.1, (30, 3))
        plain = 1.5 * generator.lognormal(0.0, 0.1, (30, 3))
        low, high = ratio_interval(plain, own, strata=np.zeros(30, int), seed=trial, resamples=400)
        hits += low <= 1.5 <= high
    # 95 % of 200 is 190 with a standard deviation of 3; resampling repetitions as well as prompts makes intervals
    # somewhat wider than they need be, never narrower.
    assert hits >= 180


@pytest.mark.parametrize("shape", [(1, 9), (2, 1), (3, 1)])
def test_no_interval_from_too_little(shape) -> None:
    times = np.ones(shape)
    assert ratio_interval(times, times, strata=np.zeros(shape[0], int), seed=0) is None


def test_noise_is_the_spread_of_plain_repetitions() -> None:
    generator = np.random.default_rng(1)
    samples = [
        one
        for prompt in range(200)
        for one in answer("plain", prompt, list(np.exp(generator.normal(prompt % 5, 0.04, 3))))
    ]
    found = noise(samples)
    assert found.pairs == 600
    assert found.spread == pytest.approx(0.04, rel=0.1)  # 600 pairs that share draws: 4 % or so
    # A stall now and then does not move it, and other contenders do not matter.
    stalled = [
        replace(one, stats=one.stats | {"decode_s": 30 * one.seconds}) if index % 25 == 0 else one
        for index, one in enumerate(samples)
    ]
    assert noise(stalled).spread == pytest.approx(0.04, rel=0.25)
    assert noise([*samples, *answer("auto", 0, [1.0, 99.0])]) == found
    assert noise(answer("plain", 0, [1.0])).spread is None


@pytest.mark.parametrize("repetitions", [2, 3, 4, 6, 9])
def test_error_of_a_speedup_is_what_noise_alone_makes_of_it(repetitions) -> None:
    generator = np.random.default_rng(2)
    works = np.array([1.0, 1.0, 2.0, 5.0])  # seconds of four answers, for both sides
    times = works[:, None] * np.exp(generator.normal(0.0, 0.05, (2, 20000, 4, repetitions)))
    sums = np.median(times, axis=3).sum(axis=2)
    observed = float(np.std(np.log(sums[0] / sums[1])))
    samples = [
        one
        for prompt, work in enumerate(works)
        for one in answer("plain", prompt, list(work * np.exp(np.linspace(-1, 1, repetitions))))
    ]
    found = noise(samples)
    # Per unit of spread: what a single run says of its own spread is not asked here. The square root of pi / 2 n is
    # 3 % too large where it begins to be used, and 20000 draws tell a standard deviation to half a percent.
    assert found.error / found.spread == pytest.approx(observed / 0.05, rel=0.05)


def test_steps_without_effort_and_with_it() -> None:
    sample = answer("auto", 0, [1.0])[0]
    counts = {"drafted": [4, 3], "checked": [4, 2], "accepted": [3, 1]}
    sample.stats["by_step"] = {"ngram": counts, "effort int4 0.5": counts, "effort int4 1": counts}
    other = answer("auto", 1, [1.0])[0]
    other.stats["by_step"] = {"ngram": {"drafted": [1, 1, 1], "checked": [1, 1, 1], "accepted": [1, 1, 0]}}
    steps = count_steps(plan(2, 1), [other, sample])
    assert [(one.step, one.effort) for one in steps] == [
        ("effort int4 1", 1.0),
        ("effort int4 0.5", 0.5),
        ("ngram", None),
    ]
    assert (steps[2].drafted, steps[2].checked, steps[2].accepted) == ([5, 4, 1], [5, 3, 1], [4, 2, 0])


def plan(prompts: int, repeat: int) -> Plan:
    return Plan(
        grid=Grid((Contender("plain", {"speculate": False}), Contender("auto"))),
        prompts=tuple(TaskPrompt("task", str(index), "text") for index in range(prompts)),
        repeat=repeat,
    )


def answer(contender: str, prompt: int, seconds: list[float], *, tokens: int = 8, gain: float = 0.0) -> list[Sample]:
    """The repetitions of an answer, made up."""
    stats = Stats(
        emitted=tokens, rounds=tokens, verify_s=1.0, policy={"predicted_gain": gain} if gain else {}
    ).to_dict()
    return [
        Sample(Place(0, prompt, contender, repetition), [1] * tokens, "max_tokens", stats | {"decode_s": one})
        for repetition, one in enumerate(seconds)
    ]
