"""The command line: where `--json` writes, values that begin with a dash, and options that would do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run, says

ASK = ("--prompt", "hello", "--max-tokens", "2")


def test_json_is_one_object_on_one_line(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("generate", "--model", text_model, *ASK, "--json"),
        ("inspect", "--json", text_model),
        ("inspect", text_model, "--json"),
        ("doctor", "--json"),
        ("list", "--json"),
        ("pull", "--list", "--json"),
    ):
        ran = run(capsys, *words)
        assert ran.code == 0, ran.err
        assert ran.out.count("\n") == 1, words
        assert isinstance(json.loads(ran.out), dict)


def test_json_with_a_file_writes_it(text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("generate", "--model", text_model, *ASK),
        ("inspect", text_model),
        ("doctor",),
        ("list",),
        ("pull", "--list"),
    ):
        file = tmp_path / f"{words[0]}.json"
        ran = run(capsys, *words, "--json", file)
        assert ran.code == 0, ran.err
        assert ran.out
        assert isinstance(json.loads(file.read_bytes()), dict)
        assert file.read_bytes().count(b"\n") == 1


def test_json_swallows_no_other_argument(
    text_model: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (text_model / "store.json").read_bytes()
    assert json.loads(run(capsys, "inspect", "--json", text_model).out)
    assert (text_model / "store.json").read_bytes() == before
    says(run(capsys, "pull", "--json", "nosuch"), "unknown model 'nosuch'")
    says(run(capsys, "rm", "--json", "nosuch"), "nothing named 'nosuch'")
    assert not Path("nosuch").exists()
    ran = run(capsys, "generate", "--json", "--model", text_model, *ASK)
    assert json.loads(ran.out)["tokens"]


@pytest.mark.parametrize(
    "words",
    [
        ("--prompt", "hello", "--stop", "---"),
        ("--prompt", "-hello"),
        ("--prompt", "--hello there"),
        ("--prompt", "hello", "--stop", "-- "),
        ("--prompt=-x",),
    ],
)
def test_values_may_begin_with_a_dash(
    words: tuple[str, ...], text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--max-tokens", "2", *words)
    assert ran.code == 0, ran.err


def test_a_value_that_is_an_option_is_taken_for_one(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(run(capsys, "generate", "--model", text_model, "--prompt", "--raw"), "expected one argument; write --option=")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--draft-len", "3"), "--draft-len is only for the policy 'fixed'"),
        (("--draft-len", "3", "--policy", "goodput"), "--draft-len is only for the policy 'fixed'"),
        (("--plain", "--drafter", "ngram"), "--drafter has no effect on plain decoding"),
        (("--plain", "--draft-effort", "0.5"), "--draft-effort has no effect on plain decoding"),
        (("--plain", "--draft-schedule", "nosuch"), "--draft-effort has no effect|unknown effort schedule"),
        (("--top-k", "3"), "--top-k has no effect at temperature 0"),
        (("--top-p", "0.5", "--temperature", "0"), "--top-p has no effect at temperature 0"),
    ],
)
def test_options_that_do_nothing_are_refused(
    words: tuple[str, ...], told: str, text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(run(capsys, "generate", "--model", text_model, *ASK, *words), told)
