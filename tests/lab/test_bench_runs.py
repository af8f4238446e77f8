"""Runs of `specdec bench`: interrupted and gone on with, refused, different, too noisy; grids, prompts, mistakes."""

from __future__ import annotations

import csv
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, run, start
from scripted_model import Clock, ScriptedRuntime, scripted_model
from specdec.policies import registry

import specdec
from specdec.engine.policy import DraftPlan
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.lab.bench.grid import Condition, Grid, make_grid, parse_contender
from specdec.lab.bench.plan import Plan
from specdec.lab.bench.prompts import BUILT_IN, TaskPrompt, fingerprint, load_prompts
from specdec.lab.bench.run import measure
from specdec.lab.bench.sample import open_answers

ARGUMENTS = ("--max-tokens", 5, "--repeat", 2, "--contender", "int4:1:2", "--contender", "policy=fixed drafter=ngram")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a b a b a b\n\nsomething else\n")
    return path


class Bench:
    """`specdec bench` on scripted models, a new one each time."""

    def __init__(self, capsys: Any, patch: pytest.MonkeyPatch, clock: Clock, prompts: Path, result: Path) -> None:
        self.capsys, self.patch, self.clock, self.prompts, self.result = capsys, patch, clock, prompts, result
        self.runtime = ScriptedRuntime(clock)

    def __call__(self, *arguments: object, **model: object) -> Outcome:
        loaded = scripted_model(self.clock, **model)
        self.runtime = loaded.runtime
        self.patch.setattr(specdec, "load", lambda *_, **__: loaded)
        self.result.unlink(missing_ok=True)
        return run(self.capsys, "bench", "m", "--prompts", self.prompts, *ARGUMENTS, "--json", self.result, *arguments)

    def record(self) -> Any:
        return json.loads(self.result.read_text())


@pytest.fixture
def bench(capsys, monkeypatch, clock, prompts, home, tmp_path) -> Bench:
    return Bench(capsys, monkeypatch, clock, prompts, tmp_path / "result.json")


def test_interrupted_anywhere_and_gone_on_with_is_the_same_report(bench, home):
    done = bench()
    assert done.code == 0, done.err
    whole, passes = bench.record(), bench.runtime.passes
    assert not list((home / "bench").iterdir())  # nothing to continue from once it is reported
    for fail_at in range(1, passes + 1, 3):
        first = bench(fail_at=fail_at)
        assert first.code == 130
        assert "continues" in first.err
        assert not bench.result.exists()
        second = bench(fail_at=bench.runtime.passes // 2)  # and once more, early or late
        third = bench() if second.code else second
        assert third.code == 0, third.err
        assert bench.record() == whole, fail_at


def test_killed_at_any_byte_and_gone_on_with_is_the_same_report(bench, tmp_path):
    journal = tmp_path / "answers.jsonl"
    bench("--resume", journal)
    whole, content = bench.record(), journal.read_bytes()
    ends = [index for index, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 1 + 2 * 2 * 3
    cuts = {0, 1, 10, 17, *(end + off for end in ends for off in (-1, 0, 1)), *range(0, len(content), 1009)}
    for cut in sorted(cuts):
        journal.write_bytes(content[:cut])
        done = bench("--resume", journal)
        assert done.code == 0, done.err
        assert bench.record()["results"] == whole["results"], cut
        assert (bench.runtime.passes > 0) == (cut <= ends[-1])  # what was there was not asked for again
        assert journal.read_bytes().count(b"\n") == len(ends)


def test_a_killed_process_loses_no_answer(text_model, tmp_path, home):
    """A real model, a real process, and a kill that it cannot catch."""
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    answers, result = tmp_path / "answers.jsonl", tmp_path / "result.json"
    ways = ("--contender", "int4:0.5:2", "--contender", "drafter=ngram", "--runtime", "reference")
    where = ("--prompts", tmp_path / "prompts.txt", "--resume", answers, "--json", result)
    command = ("bench", text_model, *ways, *where, "--max-tokens", 4, "--repeat", 4, "--force")
    process = start(*command)
    deadline_s = time.monotonic() + 120
    while (not answers.exists() or answers.read_bytes().count(b"\n") < 3) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    kept = answers.read_bytes().rpartition(b"\n")[0].split(b"\n")
    assert 3 <= len(kept) <= 1 + 2 * 3 * 4
    done = start(*command)
    _, told = done.communicate()
    assert done.returncode == 0, told.decode()
    assert f"going on with {len(kept) - 1} answers" in told.decode()
    assert answers.read_bytes().split(b"\n")[: len(kept)] == kept
    assert len(json.loads(result.read_text())["results"]["answers"]) == 2 * 3 * 4


def test_finished_answers_are_reported_again_without_the_model(bench, tmp_path):
    journal = tmp_path / "answers.jsonl"
    bench("--resume", journal)
    first = bench.record()["results"]
    assert bench("--resume", journal).code == 0
    assert (bench.record()["results"], bench.runtime.passes) == (first, 0)
    bench("--resume", journal, "--restart")
    assert bench.runtime.passes > 0


def test_more_repetitions_join_those_that_are_there(bench, tmp_path):
    journal = tmp_path / "answers.jsonl"
    bench("--resume", journal)
    before = bench.runtime.passes
    assert bench("--resume", journal, "--repeat", 3).code == 0
    assert 0 < bench.runtime.passes < before
    assert bench.record()["results"]["settings"]["repeat"] == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--max-tokens", 6), "its max_tokens is 5, and 6 was asked for"),
        (("--contender", "auto"), "its contenders is"),
        (("--temperature", 1), "its conditions is"),
        (("--raw",), "its chat is true"),
    ],
)
def test_answers_of_another_run_are_refused(bench, tmp_path, arguments, told):
    journal = tmp_path / "answers.jsonl"
    bench("--resume", journal)
    content = journal.read_bytes()
    assert told in bench("--resume", journal, *arguments).error
    assert journal.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"model": "mine", "notes": 1}\n', "holds no results of specdec bench"),
        (b"my notes, without an end of line", "holds no results of specdec bench"),
        (b"\xff\xfe\x00", "holds no results of specdec bench"),
        (b'{"specdec bench": 99, "of": {}}\n', "another version"),
    ],
)
def test_other_files_are_refused_and_left_alone(bench, tmp_path, content, told):
    journal = tmp_path / "notes.txt"
    journal.write_bytes(content)
    assert told in bench("--resume", journal).error
    assert journal.read_bytes() == content


def test_damage_in_the_middle_is_refused(bench, tmp_path):
    journal = tmp_path / "answers.jsonl"
    bench("--resume", journal)
    lines = journal.read_bytes().split(b"\n")
    lines[3] = lines[3][:40]
    journal.write_bytes(b"\n".join(lines))
    assert "damaged in line 4" in bench("--resume", journal).error


def test_other_versions_answers_are_refused(bench, tmp_path, monkeypatch):
    journal = tmp_path / "answers.jsonl"
    bench("--resume", journal)
    monkeypatch.setattr("specdec.lab.bench.plan.version", lambda: "9.9")
    assert "its version is" in bench("--resume", journal).error


def test_an_answer_that_differs_ends_the_run(bench):
    done = bench(lie_at=13)  # the third token of the first prompt's answer, if several rows share the pass
    assert done.code == 1
    assert "CHECK FAILED" in done.err
    assert re.search(r"prompts prompt 1 \(greedy\): token \d is \d+, and \d+ in plain decoding", done.err)
    assert (done.out, bench.result.exists()) == ("", False)
    assert bench(lie_at=13).code == 1  # going on does not make it right


def test_too_much_noise_is_not_reported_unless_forced(bench, home, tmp_path):
    stalls = {number: 1.0 + 0.5 * (number // 11 % 2) for number in range(400)}
    done = bench(stalls=stalls)
    assert done.code == 3
    assert (done.out, bench.result.exists()) == ("", False)
    for word in ("TOO NOISY TO TELL", "at most 5% is allowed", "--restart", "--repeat", "--force"):
        assert word in done.err
    forced = bench("--force", stalls=stalls)
    assert forced.code == 0
    assert "TOO NOISY TO TELL" in forced.out
    assert bench.record()["results"]["noise"]["is_too_loud"] is True
    assert bench("--max-noise", 2, stalls=stalls).code == 0


def test_one_repetition_tells_no_noise(bench):
    done = bench("--repeat", 1)
    assert done.code == 0
    assert "noise: not known" in done.out


def test_every_contender_takes_every_place_in_the_row() -> None:
    grid = make_grid(singles=["int4:1:2", "drafter=ngram"])
    plan = Plan(grid=grid, prompts=tuple(TaskPrompt("t", str(i), "x") for i in range(3)), repeat=2)
    places = list(plan.places())
    rows = [[one.contender for one in places[start : start + 3]] for start in range(0, len(places), 3)]
    assert all(sorted(row) == sorted(rows[0]) for row in rows)  # plain decoding is in each
    assert Counter(row.index("plain") for row in rows) == {0: 2, 1: 2, 2: 2}
    assert len(set(places)) == len(places)


class Remembering:
    """A policy that writes down how often it was there before."""

    seen: list[int] = []  # noqa: RUF012

    def begin(self, knowledge: Any) -> None:
        count = knowledge.memory.get(("remembering", "count"), 0)
        knowledge.memory["remembering", "count"] = count + 1
        self.seen.append(count)

    def plan(self, state: Any) -> DraftPlan:
        return DraftPlan(num_draft_tokens=1, effort=1.0)

    def next_step(self, signals: Any) -> None:
        return None

    def observe(self, outcome: Any) -> None:
        pass


def test_what_a_policy_learns_stays_within_contender_and_repetition(clock, tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registry._own, "remembering", Remembering)
    Remembering.seen.clear()
    grid = make_grid(singles=["policy=remembering", "name=other policy=remembering"])
    plan = Plan(grid=grid, prompts=tuple(TaskPrompt("t", str(i), "text") for i in range(3)), repeat=2, max_tokens=3)
    model = scripted_model(clock)
    measure(model, plan, open_answers(tmp_path / "answers.jsonl", plan.header(model)))
    # Two warm-ups, then in each of two repetitions of two contenders: the first prompt, the second, the third.
    assert Remembering.seen == [*[0, 0], *[0] * 4, *[1] * 4, *[2] * 4]


def test_grids_are_all_combinations(tmp_path):
    grid = make_grid(
        lists={"draft_view": ["int4", "bucket"], "draft_len": [2, 4], "temperature": [0.0, 1.0], "seed": [1, 2]}
    )
    assert [one.name for one in grid.contenders] == [
        "plain", "fixed, int4, 2 tokens", "fixed, int4, 4 tokens", "fixed, bucket, 2 tokens", "fixed, bucket, 4 tokens",
    ]  # fmt: skip
    assert grid.conditions == (Condition(), Condition(1.0, 1.0, 1), Condition(1.0, 1.0, 2))
    assert [one.name for one in grid.conditions] == ["greedy", "temperature 1, seed 1", "temperature 1, seed 2"]
    file = tmp_path / "grid.yaml"
    file.write_text(
        "contenders:\n  - auto\n  - int4:0.5:2\n  - {policy: fixed, drafter: effort, draft_view: [int4, bucket], "
        "draft_effort: 0.25, draft_len: [1, 2]}\n  - {name: lookup, drafter: ngram}\ntemperature: 0.7\n"
    )
    grid = make_grid(file=file, singles=["auto"], lists={"verify_effort": [0.6]})
    assert [one.name for one in grid.contenders] == [
        "plain", "auto", "int4:0.5:2", "int4:0.25:1", "int4:0.25:2", "bucket:0.25:1", "bucket:0.25:2", "lookup",
    ]  # fmt: skip
    assert grid.contenders[-1].options == {"drafter": "ngram"}
    assert grid.conditions == (Condition(0.6, 0.7, 0),)


def test_a_way_means_the_same_however_it_is_told():
    told = parse_contender("policy=fixed drafter=effort draft_view=int4 draft_effort=0.70 draft_len=4")
    assert parse_contender("int4:0.7:4") == told
    assert make_grid(singles=["int4:0.7:4", "int4:0.70:4"]).contenders[1:] == (told,)
    # A lookup reads no weights, so views and efforts make no difference to it.
    lookups = make_grid(lists={"drafter": ["ngram"], "draft_view": ["int4", "bucket"], "draft_len": [3]})
    assert [one.name for one in lookups.contenders] == ["plain", "fixed, ngram, 3 tokens"]
    assert isinstance(make_grid(), Grid)
    assert [one.name for one in make_grid().contenders] == ["plain", "auto", "int4:0.7:4", "auto, ngram"]
    assert [one.learns for one in make_grid().contenders] == [False, True, False, True]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fast", "a contender must be auto, VIEW:EFFORT:LENGTH"),
        ("int4:2:4", "draft_effort must be"),
        ("int4:0.5:0", "draft_len must be a whole number of at least 1"),
        ("int4:0.5:1.5", "draft_len must be a whole number"),
        ("int4:much:4", "draft_effort must be a number"),
        ("speed=9", "no option 'speed'"),
        ("policy=auto draft_len=4", "draft_len is for the policy fixed"),
        ("policy=quick", "unknown policy 'quick'"),
        ("drafter=ngram;oracle", "unknown drafter 'oracle'"),
        ("policy=fixed:length=x", "refuses its parameters"),
        ("'", "a contender must be"),
        ("", "a contender must be"),
    ],
)
def test_ways_that_make_no_sense_are_refused(text, told):
    with pytest.raises((InvalidArgumentError, UnknownNameError), match=re.escape(told)):
        parse_contender(text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("contenders: auto", "must be a YAML file with contenders"),
        ("- auto", "must be a YAML file"),
        ("contenders: [auto]\nspeed: 9", "must be a YAML file"),
        ("contenders: [3]", "a contender must be text or options"),
        ("contenders: [{policy: [fixed], draft_len: [x]}]", "draft_len must be a number"),
        ("{", "must be a YAML file"),
        ("contenders: [{name: one, policy: fixed}, {name: one, policy: auto}]", "two contenders are called 'one'"),
        ("contenders: [{name: plain, policy: fixed}]", "two contenders are called 'plain'"),
        ("temperature: -1", "temperature must be"),
        ("temperature: hot", "temperature must be a number"),
        ("verify_effort: 2", "verify_effort must be"),
    ],
)
def test_grid_files_that_make_no_sense_are_refused(tmp_path, content, told):
    file = tmp_path / "grid.yaml"
    file.write_text(content)
    with pytest.raises(InvalidArgumentError, match=re.escape(told)):
        make_grid(file=file)


def test_built_in_prompts():
    every = load_prompts(BUILT_IN)
    assert Counter(one.task for one in every) == {
        "mt_bench": 40, "translation": 40, "summarization": 40, "qa": 40, "math_reasoning": 40, "rag": 40,
        "humaneval": 82,
    }  # fmt: skip
    few = load_prompts(BUILT_IN, per_task=2, tasks=["qa", "humaneval"])
    assert [one.task for one in few] == ["qa", "qa", "humaneval", "humaneval"]
    assert few == [one for one in every if one in few]
    assert fingerprint(few) != fingerprint(few[:3])
    assert fingerprint(few) == fingerprint(load_prompts(BUILT_IN, per_task=2, tasks=["humaneval", "qa"]))


def test_own_prompts(tmp_path):
    rows = [
        {"prompt": "one"},
        {"turns": ["two", "then"], "task": "talk", "id": 7},
        {"messages": [{"role": "user", "content": "three", "more": 1}], "task": "talk"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert load_prompts([str(file)]) == [
        TaskPrompt("mine", "1", "one"),
        TaskPrompt("talk", "7", "two"),
        TaskPrompt("talk", "3", ({"role": "user", "content": "three"},)),
    ]
    text = tmp_path / "lines.txt"
    text.write_text(" first \n\nsecond\r\n", newline="")
    assert [(one.task, one.name, one.content) for one in load_prompts([str(text)])] == [
        ("lines", "1", "first"), ("lines", "3", "second"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b"{", "line 1 must be a JSON object"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": ""}', "line 2 must be"),
        ("a.jsonl", b'{"prompt": "x", "turns": ["y"]}', "line 1 must be"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1 must be"),
        ("a.jsonl", b'"text"', "line 1 must be"),
        ("a.txt", b"\n \n", "holds no prompts"),
        ("a.txt", b"\xff", "not valid UTF-8"),
    ],
)
def test_prompt_files_that_make_no_sense_are_refused(tmp_path, name, content, told):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=told):
        load_prompts([str(file)])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--prompts", "spec_bench"), "no prompt set and no file 'spec_bench': choose from spec-bench, humaneval"),
        (("--prompts", "gone.jsonl"), "cannot read the prompts gone.jsonl"),
        (("--tasks", "cooking"), "no task 'cooking' among the prompts: choose from"),
        (("--per-task", 0), "per_task must be"),
        (("--repeat", 0), "repeat must be"),
        (("--max-tokens", 0), "max_tokens must be"),
        (("--max-noise", 0), "--max-noise must be a share above 0"),
        (("--grid", "gone.yaml"), "cannot read the grid gone.yaml"),
        (("--contender", "fast"), "a contender must be"),
        (("--policy", "quick"), "unknown policy"),
        (("--draft-effort", 3), "--draft-effort must be"),
        (("--seed", -1), "seed"),
        (("--json", "gone/away.json"), "the folder gone does not exist"),
        (("--csv", "gone/away.csv"), "the folder gone does not exist"),
        (("--resume", "gone/away.jsonl"), "the folder gone does not exist"),
        (("--draft-view", "int9"), "int9"),
        (("--repeat", 10**9), "repeat must be at most 10000, not 1000000000"),
        (("--json", "one", "--csv", "./one"), "--json and --csv need different files"),
        (("--csv", "one", "--resume", "one"), "--csv and --resume need different files"),
        (("--report", "/dev/null/report"), "--report /dev/null/report: /dev/null is not a folder"),
        (("--report", "/dev/null"), "--report /dev/null is a file: name a folder"),
    ],
)
def test_mistakes_are_told_in_a_sentence(bench, home, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    error = bench(*arguments).error
    assert told in error
    assert not bench.result.exists()
    assert not list(home.rglob("*.jsonl"))


def test_a_prompt_that_does_not_fit_is_told_before_the_run(bench, prompts):
    prompts.write_text("short\n" + "long " * 200)
    assert "prompts prompt 2: the prompt has" in bench().error
    assert bench.runtime.passes == 0


def test_a_report_needs_matplotlib(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("specdec.cli.common.importlib.util.find_spec", lambda *_: None)
    assert "pip install 'specdec-mlx[report]'" in bench("--report", tmp_path / "report").error


def test_a_report_replaces_its_own_page_only(bench, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "report" / "index.html"
    for _ in range(2):
        assert bench("--report", page.parent, "--restart").code == 0
    page.write_text("<title>my page</title>")
    assert f"--report would replace {page}, which is not a page of bench" in bench("--report", page.parent).error
    assert page.read_text() == "<title>my page</title>"


def test_a_table_as_csv(bench, tmp_path):
    bench("--csv", tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [(row["task"], row["contender"]) for row in rows[:3]] == [
        ("all", "plain"),
        ("prompts", "plain"),
        ("all", "int4:1:2"),
    ]
    there = bench.record()["results"]["rows"]
    assert [float(row["speedup"]) for row in rows] == [row["speedup"] for row in there]
    assert rows[0]["speedup_low"] == rows[0]["acceptance"] == ""
