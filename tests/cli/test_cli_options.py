"""The command line: where `--json` writes, values that begin with a dash, and options that would do nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, says
from fake_runtime import fake_model

import specdec
from specdec.cli.main import build_parser
from specdec.errors import OptionError

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
        (("--raw", "--template-arg", "a=1"), "--template-arg has no effect without the chat template"),
        (("--raw", "--markup"), "--markup has no effect without the chat template"),
        (("--logprobs", "2"), "--logprobs is part of the JSON output only: give --json"),
        (("--prompt-logprobs", "2"), "--prompt-logprobs is part of the JSON output only"),
    ],
)
def test_options_that_do_nothing_are_refused(
    words: tuple[str, ...], told: str, text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(run(capsys, "generate", "--model", text_model, *ASK, *words), told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"draft_len": 3}, "draft_len is only for the policy 'fixed'"),
        ({"speculate": False, "draft_len": 3}, "draft_len has no effect on plain decoding"),
        ({"speculate": False, "policy": "auto"}, "policy has no effect on plain decoding"),
        ({"speculate": False, "trust": 0.5}, "trust has no effect on plain decoding"),
        ({"min_p": 0.5}, "min_p has no effect at temperature 0"),
        ({"chat": False, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs has no effect without"),
        ({"chat": False, "literal": False}, "literal has no effect without"),
    ],
)
def test_the_library_refuses_them_alike(options: dict[str, Any], told: str) -> None:
    model = fake_model()
    with specdec.Batch(model) as batch:
        for verb in (partial(specdec.generate, model), partial(specdec.stream, model), batch.submit):
            with pytest.raises(OptionError, match=told):
                verb([1], **options)


def test_what_is_left_open_or_changes_nothing_is_no_mistake() -> None:
    specdec.generate(fake_model(), [1], max_tokens=2, speculate=False, trust=None, draft_effort=None)
    specdec.generate(fake_model(), [1], max_tokens=2, top_p=1.0, top_k=0, min_p=0.0)
    specdec.generate(fake_model(), [1], max_tokens=2, policy="fixed:effort=0.5", draft_len=2)
    specdec.generate(fake_model(), [1], max_tokens=2, policy="fixed:length=2", draft_effort=0.5)
    specdec.generate(fake_model(), [1], max_tokens=2, drafter="ngram;effort", draft_effort=0.5)


def test_penalties_biases_and_processors(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "12", "--json")
    free = json.loads(run(capsys, *words).out)["tokens"]
    asked = (
        "--presence-penalty", "1", "--frequency-penalty", "-0.5", "--repetition-penalty", "1.2",
        "--logit-bias", f"{free[0]}=-100", "--logit-bias", f"{free[1]}=3.5",
        "--logits-processor", f"{__name__}:odd",
    )  # fmt: skip
    said = json.loads(run(capsys, *words, *asked, "--check").out)
    assert said["check"]["identical"]
    assert said["tokens"] != free
    assert all(token % 2 for token in said["tokens"])
    wanted = specdec.generate(
        specdec.load(text_model),
        "hello",
        max_tokens=12,
        presence_penalty=1,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias={free[0]: -100, free[1]: 3.5},
        logits_processors=[odd],
    )
    assert said["tokens"] == wanted.tokens


def odd(_tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Odd ids only."""
    logits[::2] = -np.inf
    return logits


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--logit-bias", "x=1"), "--logit-bias: must be ID=BIAS"),
        (("--logit-bias", "7"), "--logit-bias: must be ID=BIAS"),
        (("--logit-bias", "7=200"), "--logit-bias must be a number from -100 to 100 for token 7"),
        (("--logit-bias", "99999=1"), "--logit-bias must have token ids from 0 to 259 for this model"),
        (("--logits-processor", "nosuchmodule:f"), "--logits-processor: 'nosuchmodule:f' cannot be imported"),
        (("--logits-processor", "json"), "--logits-processor: must be MODULE:FUNCTION"),
        (("--logits-processor", "math:pi"), "--logits-processor: 'math:pi' must be a function"),
        (("--presence-penalty", "3"), "--presence-penalty must be a number from -2 to 2"),
        (("--max-tokens", "0"), "--max-tokens must be a whole number of at least 1"),
        (("--logprobs", "30", "--json"), "--logprobs must be a whole number from 0 to 20"),
    ],
)
def test_wrong_penalties_and_biases(
    words: tuple[str, ...], told: str, text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(run(capsys, "generate", "--model", text_model, "--prompt", "hello", *words), told)


def test_logprobs_are_in_the_json(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "--model", text_model, *ASK, "--logprobs", "2", "--prompt-logprobs", "0", "--json")
    said = json.loads(run(capsys, *words).out)
    assert [one["token"] for one in said["logprobs"]] == said["tokens"]
    assert all(len(one["top"]) == 2 for one in said["logprobs"])
    assert len(said["prompt_logprobs"]) == said["stats"]["prompt_tokens"]
    alone = json.loads(run(capsys, *words, "--max-tokens", "0").out)
    assert (alone["tokens"], alone["prompt_logprobs"]) == ([], said["prompt_logprobs"])


def test_a_random_seed_is_printed_and_the_check_uses_it(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "20", "--temperature", "1")
    ran = run(capsys, *words, "--check")
    assert ran.code == 0, ran.err
    seed = re.search(r"; seed (\d+);", ran.err)
    assert seed is not None
    assert run(capsys, *words, "--seed", seed[1]).out == ran.out
    assert json.loads(run(capsys, *words, "--json").out)["seed"] != int(seed[1])


SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("--regex", "[0-9]{3}-[ab]"), "[0-9]{3}-[ab]"),
        (("--grammar", 'start: "x" /[0-9]/ "y"'), "x[0-9]y"),
        (("--grammar", 'root ::= "x" [0-9] "y"'), "x[0-9]y"),
        (("--grammar-file", "FILE"), "x[0-9]y"),
        (("--json-schema", "SCHEMA"), r'\{\s*"a"\s*:\s*(1|22)\s*\}'),
        (("--response-format", json.dumps({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}})),
         r'\{\s*"a"\s*:\s*(1|22)\s*\}'),
        (("--response-format", "json_object", "--logit-bias", "125=100"), r"\{\s*\}"),
        (("--response-format", "text"), "(?s:.*)"),
    ],
)  # fmt: skip
def test_answers_follow_grammars(
    words: tuple[str, ...], pattern: str, text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bias = _bytes_of(text_model)
    (tmp_path / "grammar.lark").write_text('start: "x" /[0-9]/ "y"\n')
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    names = {"FILE": tmp_path / "grammar.lark", "SCHEMA": tmp_path / "schema.json", "125=100": f"{bias['}']}=100"}
    asked = [str(names.get(word, word)) for word in words]
    ran = run(
        capsys, "generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "60", "--check", *asked,
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert re.fullmatch(pattern, said["text"]), said["text"]
    assert said["check"]["identical"]


def _bytes_of(path: Path) -> dict[str, int]:
    """The id of every character that is a token."""
    pieces = specdec.load(path).tokenizer.pieces
    return {piece.decode(): token for token, piece in enumerate(pieces) if len(piece) == 1 and piece < b"\x80"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--regex", "(a"), "--regex cannot be used: .*unclosed group"),
        (("--grammar", "start: foo"), "--grammar cannot be used: .*unknown name"),
        (("--response-format", "xml"), "--response-format: must be text, json_object, or a JSON object"),
        (("--response-format", '{"type": "xml"}'), "--response-format must have the"),
        (("--json-schema", "nosuch.json"), "--json-schema: cannot read nosuch.json: No such file"),
        (("--json-schema", __file__), r"--json-schema \S+ is not valid JSON"),
        (("--grammar-file", "nosuch"), "--grammar-file: cannot read nosuch"),
        (("--regex", "a", "--grammar", "start: /a/"), "not allowed with argument"),
        (("--response-format", '{"type": "json_schema", "schema": {"not": {}}}'),
         '--response-format has a schema that cannot be used because of "not"'),
    ],
)  # fmt: skip
def test_wrong_grammars_are_refused_before_a_model_is_loaded(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    says(run(capsys, "generate", "--model", "nosuchmodel.gguf", "--prompt", "hello", *words), told)


def test_help_and_version_import_no_command() -> None:
    script = (
        "import sys; from specdec.cli.main import main; code = main(sys.argv[1:])\n"
        "sys.exit(code or int('numpy' in sys.modules))"
    )
    for words in (["--help"], ["--version"]):
        ran = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith(("usage: specdec", "specdec "))


def test_help_lists_every_command_whatever_is_parsed() -> None:
    whole = build_parser().format_help()
    assert build_parser([]).format_help() == build_parser(["generate", "--help"]).format_help() == whole
