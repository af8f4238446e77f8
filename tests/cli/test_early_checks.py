"""Options that need no model to be refused are refused before one is looked for, fetched or converted."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run, says

import specdec
from specdec.errors import InvalidArgumentError, UnknownNameError

MISSING = "no-such-model"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--queue", "-1"), "--queue must be a whole number of requests of at least 0, not -1"),
        (("--max-sequences", "0"), "--max-sequences must be a whole number from 1 to 64, not 0"),
        (("--max-rows", "-3"), "--max-rows must be a whole number from 1 to 512, not -3"),
        (("--cache-bytes", "0"), "--cache-bytes must be a whole number of bytes of at least 1, not 0"),
        (("--efforts", "nan"), "--efforts must be numbers above 0 and at most 1, not nan"),
        (("--timeout-s", "inf"), "--timeout-s must be a number of seconds above 0, not inf"),
        (("--max-body-bytes", "2G"), "--max-body-bytes must be a whole number from 1 to 1073741824, not 2000000000"),
        (("--port", "70000"), "--port must be a whole number from 0 to 65535, not 70000"),
        (("--host", ""), "--host must be an address of this machine"),
    ],
)
def test_options_of_serve(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str) -> None:
    says(run(capsys, "serve", MISSING, *arguments), told)


def test_keys_of_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_API_KEY", ",")
    says(run(capsys, "serve", MISSING), "SPECDEC_API_KEY is ',' and holds no key: set keys with commas between")


@pytest.mark.parametrize("command", [("serve", MISSING), ("generate", "--model", MISSING, "--prompt", "x")])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--runtime", "fast"), "unknown runtime 'fast': choose from auto"),
        (("--threads", "0"), "--threads must be a whole number of at least 1, not 0"),
        (("--context", "-4"), "--context must be a whole number of at least 1, not -4"),
        (("--split", "layers"), "--split divides a model among --ranks: give both"),
    ],
)
def test_options_of_loading(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], arguments: tuple[str, ...], told: str
) -> None:
    options = ("--port", "0") * (command[0] == "serve")
    says(run(capsys, *command, *options, *arguments), told)


@pytest.mark.parametrize("command", [("chat", MISSING), ("generate", "--model", MISSING, "--prompt", "x")])
@pytest.mark.parametrize("option", ["policy", "drafter", "draft-view"])
def test_plugins(capsys: pytest.CaptureFixture[str], command: tuple[str, ...], option: str) -> None:
    says(run(capsys, *command, f"--{option}", "nosuch"), "unknown .* 'nosuch': choose from")


def test_arguments_of_load(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"  # is not read at all
    with pytest.raises(UnknownNameError, match="unknown runtime 'fast'"):
        specdec.load(model, runtime="fast")
    with pytest.raises(InvalidArgumentError, match="context must be a whole number of at least 1, not True"):
        specdec.load(model, context=True)
    with pytest.raises(InvalidArgumentError, match=r"threads must be a whole number of at least 1, not 1\.0"):
        specdec.load(model, threads=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("generate", "--model", MISSING, "--prompt-file"), "--json"),
        (("generate", "--prompt", "x", "--model"), "--trace"),
        (("bench", MISSING, "--prompts", "humaneval"), "--csv"),
        (("eval", MISSING, "--text"), "--json"),
        (("search", "build"), "--out"),
        (("search", "query", "missing.idx"), "--out"),
        (("fff", "train"), "--out"),
    ],
)
def test_outputs_replace_no_inputs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    option: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.npy").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("input.npy")
    for path in ("input.npy", "./input.npy", "link"):
        told = f"{option} {path} would replace a file that this command reads: name another"
        says(run(capsys, *command, "input.npy", option, path), told)
    assert (tmp_path / "input.npy").read_bytes() == b"precious"
