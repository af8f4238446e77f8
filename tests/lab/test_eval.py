"""What an evaluation says: known distributions give known numbers, and an interrupted one says the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime, fake_config

from specdec.cli.main import main
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.lab.eval.humaneval import Problem, load_problems, to_program, write_answer
from specdec.lab.eval.passages import score_passage
from specdec.lab.eval.plan import DENSE, Plan, Setting, make_settings
from specdec.lab.eval.questions import answer_questions, encode_question, load_questions
from specdec.lab.eval.report import table
from specdec.lab.eval.run import evaluate
from specdec.lab.eval.sandbox import run_program
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import Pass, Rows, forward_one

HALF = Setting("exact", 0.5)


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


class Calls:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))


class KnownRuntime(FakeRuntime):
    """Gives every next byte the logits of a table, whatever was before, and hidden states at a known angle."""

    def __init__(self, dense: np.ndarray, lowered: np.ndarray) -> None:
        super().__init__(fake_config(max_context=2048))
        self.rows = {True: dense.astype(np.float32), False: lowered.astype(np.float32)}

    def forward(self, batch: Sequence[Rows], *, view: str = "exact", states: bool = False) -> list[Pass]:
        return [self._known(rows, found) for rows, found in zip(batch, super().forward(batch), strict=True)]

    def _known(self, rows: Rows, found: Pass) -> Pass:
        states = np.zeros((2, len(rows.tokens), 8), np.float32)
        states[:, :, 0] = 3
        if not rows.efforts.is_full:
            states[1, :, 1] = 4  # 3-4-5: the cosine is 3 / 5
        return Pass(np.tile(self.rows[rows.efforts.is_full], (len(found.logits), 1)), 0, states)


def known_model() -> Model:
    """Uniform over 256 bytes when dense; at a lower effort "a" is twice as likely as any other byte."""
    dense = np.full(258, -1e4)  # as good as impossible
    dense[:256] = 0.0
    lowered = dense.copy()
    lowered[ord("a")] = np.log(2.0)
    return Model(KnownRuntime(dense, lowered), ByteTokenizer())  # type: ignore[arg-type]


def fake(home: Path, **options: object) -> Model:
    return Model(FakeRuntime(fake_config(max_context=1024), **options), ByteTokenizer())  # type: ignore[arg-type]


def text_file(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_known_distribution_gives_its_perplexity_and_divergence(home: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path, "ab" * 50)
    plan = Plan(settings=(HALF,), measures=("text",), text=text, passages=1, passage_tokens=100)
    dense, half = evaluate(known_model(), plan, progress=silent).rows
    assert dense.text is not None
    assert half.text is not None
    assert half.text.count == 99
    assert dense.text.perplexity == pytest.approx(256, rel=1e-12)  # rounding of one logarithm
    # 49 times "a" with 2/257 and 50 times "b" with 1/257.
    assert half.text.perplexity == pytest.approx(257 / 2 ** (49 / 99), rel=1e-6)  # float32 logits
    assert half.text.kl == pytest.approx(np.log(257 / 256) - np.log(2) / 256, rel=1e-4)
    assert half.text.agreement == 0  # byte 0 is the lowest of equally likely ones, and "a" stands out
    assert half.text.cosine == pytest.approx([1, 0.6])


def test_effort_1_is_the_dense_model_exactly(home: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path, "Some text, long enough for a passage or two of it.")
    plan = Plan(settings=(DENSE,), measures=("text",), text=text, passages=2, passage_tokens=20)
    (row,) = evaluate(fake(home), plan, progress=silent).rows
    assert row.text is not None
    assert (row.text.kl, row.text.nll_increase, row.text.agreement) == (0, 0, 1)


def test_passages_that_the_context_cuts_are_warned_of(home: Path, tmp_path: Path) -> None:
    model = Model(FakeRuntime(fake_config(max_context=30)), ByteTokenizer())  # type: ignore[arg-type]
    plan = Plan(settings=(DENSE,), measures=("text",), text=text_file(tmp_path, "ab" * 50), passages=1)
    with pytest.warns(UserWarning, match="passages have 30 tokens, which the model's context holds, not 256"):
        evaluate(model, plan, progress=silent)


def test_two_passes_of_the_same_logits_have_no_divergence() -> None:
    logits = np.random.default_rng(0).standard_normal((33, 1023)).astype(np.float32)
    score = score_passage(list(range(33)), Pass(logits, None), Pass(logits.copy(), None))
    assert score.kl == 0
    assert score.nll_increase_sq == 0
    assert score.agreed == score.count == 32
    assert score.cosine == []


def test_choices_are_shuffled_by_seed_alone() -> None:
    for name, count, choices in (("basicq", 104, 2), ("quiz", 70, 4)):
        first, again, other = (load_questions(name, seed=seed) for seed in (3, 3, 4))
        assert first == again
        assert first != other
        assert len(first) == count
        for one, two in zip(first, other, strict=True):
            assert len(one.choices) == choices
            assert sorted(one.choices) == sorted(two.choices)
            assert one.choices[one.answer] == two.choices[two.answer]
        assert len({one.answer for one in first}) == choices  # the right one is anywhere


def test_the_likeliest_choice_is_taken_over_all_its_tokens() -> None:
    questions = [encode_question(one, ByteTokenizer()) for one in load_questions("quiz", seed=0)]  # type: ignore[arg-type]
    runtime = FakeRuntime(fake_config(max_context=1024))
    found = list(answer_questions(runtime, questions[:12], view="exact", effort=1.0))
    for question, choice in zip(questions, found, strict=False):
        scores = []
        for tail in question.tails:  # from nothing, one token at a time
            cache, score, ids = runtime.new_cache(999), 0.0, question.ids + tail
            for place, token in enumerate(ids[:-1]):
                row = forward_one(runtime, [token], cache, effort=EffortSchedule()).logits[0].astype(np.float64)
                if place + 1 >= len(question.ids):
                    score += row[ids[place + 1]] - np.log(np.exp(row).sum())
            scores.append(score)
        assert choice == int(np.argmax(scores))


def test_interrupted_and_resumed_equals_uninterrupted(home: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path, "Some text that is long enough for three passages of twenty bytes each, or so.")
    plan = Plan(
        settings=make_settings(["exact", "int4"], [0.3, 1.0]),
        measures=("text", "quiz"),
        text=text,
        passages=3,
        passage_tokens=20,
    )
    expected = evaluate(fake(home), plan, progress=silent).to_dict()
    for stop_at in (1, 7, 40, 200):
        model = fake(home)
        model.runtime.fail_at_pass = stop_at  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, plan, progress=silent)
        (kept,) = (home / "eval").iterdir() if stop_at > 2 else (None,)
        if kept is not None:
            kept.write_bytes(kept.read_bytes() + b'{"name": "torn')  # as if the machine had stopped while writing
        resumed = Calls()
        assert evaluate(fake(home), plan, progress=resumed).to_dict() == expected
        assert stop_at < 40 or resumed.calls[0][:2] != ("text", 0)  # it did not begin anew
        assert not list((home / "eval").iterdir())


def test_a_run_of_other_settings_does_not_take_up_the_results(home: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path, "Some text that is long enough.")
    plan = Plan(settings=(HALF,), measures=("text",), text=text, passages=1, passage_tokens=20)
    model = fake(home)
    model.runtime.fail_at_pass = 2  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, plan, progress=silent)
    text.write_text("Another text that is long enough, too.", encoding="utf-8")
    assert evaluate(fake(home), plan, progress=silent).rows[0].text is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": None, "passage_tokens": 10**6}, "needs at least"),
        ({"measures": ("wit",)}, "unknown measure 'wit'"),
        ({"settings": (Setting("exact", 0.0),)}, "effort"),
        ({"passages": 0}, "passages must be a whole number of at least 1"),
        ({"text": "/nowhere/at/all.txt"}, "cannot read the text"),
        ({"settings": (Setting("int3", 0.5),)}, "unknown view 'int3'"),
    ],
)
def test_mistakes_are_told(home: Path, options: dict[str, object], message: str) -> None:
    model = Model(FakeRuntime(fake_config(max_context=10**6)), ByteTokenizer())  # type: ignore[arg-type]
    with pytest.raises((InvalidArgumentError, UnknownNameError), match=message):
        evaluate(model, Plan(**{"settings": (HALF,), "measures": ("text",)} | options), progress=silent)  # type: ignore[arg-type]


ADD = Problem(
    "x/1",
    'def helper():\n    return 1\n\n\ndef add(a, b):\n    """Sum."""\n',
    "add",
    "def check(f):\n    assert f(1, 2) == 3\n",
)


@pytest.mark.parametrize(
    "answer",
    [
        "Here it is:\n\n```python\ndef add(a, b):\n    return a + b * helper()\n```\nDone.",
        "```python\ndef add(a, b):\n    return a + b",
        "    return a + b\n\n\nprint(add(1, 2)",
        "return a + b\n",
        "```\ndef add(a, b):\n    return a + b\n```",
    ],
)
def test_code_is_found_in_answers_of_all_kinds(answer: str) -> None:
    assert run_program(to_program(ADD, answer)).passed


def test_a_wrong_answer_fails() -> None:
    assert not run_program(to_program(ADD, "```python\ndef add(a, b):\n    return a - b\n```")).passed


def test_problems_are_spread_evenly() -> None:
    every = load_problems()
    assert len(every) == 82
    assert [one.name for one in load_problems(2)] == [every[0].name, every[41].name]
    assert load_problems(500) == every


def test_drafting_does_not_change_an_answer() -> None:
    model = Model(FakeRuntime(fake_config(max_context=1024)), ByteTokenizer(has_chat_template=True))  # type: ignore[arg-type]
    model.runtime.draft_noise["exact"] = 0.0  # type: ignore[attr-defined]
    speculated = write_answer(model, ADD, view="exact", effort=1.0, max_tokens=24)
    one_by_one = write_answer(model, ADD, view="bucket", effort=1.0, max_tokens=24)
    assert speculated == one_by_one  # the fake's views are exact at effort 1
    assert len(speculated.encode()) > 4


def test_from_the_command_line(
    home: Path, tmp_path: Path, text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    text = text_file(tmp_path, "Some text. " * 40)
    command = ["eval", str(text_model), "--effort", "0.3", "1", "--measure", "text", "--text", str(text)]
    command += ["--passages", "2", "--passage-tokens", "40", "--json", str(tmp_path / "found.json")]
    assert main([*command, "--report", str(tmp_path / "report")]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["results"]["rows"]
    assert [row["effort"] for row in rows] == [1, 0.3]
    assert rows[0]["text"]["kl"] == 0 < rows[1]["text"]["kl"]
    assert len(rows[1]["text"]["cosine"]) == 2
    assert 0 < rows[1]["text"]["cosine"][0] < 1
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"perplexity.png", "kl.png", "agreement.png", "layers-exact.png", "table.txt"}
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["exact", "1"]
    assert main([*command, "--report", str(text)]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_setting(home: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path, "Some text that is long enough.")
    plan = Plan(
        settings=make_settings(["exact"], [0.5, 0.2]), measures=("text",), text=text, passages=1, passage_tokens=20
    )
    lines = table(evaluate(fake(home), plan, progress=silent))
    assert [line.split()[:2] for line in lines] == [
        ["view", "effort"],
        ["exact", "1"],
        ["exact", "0.5"],
        ["exact", "0.2"],
    ]
