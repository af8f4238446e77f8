"""A finished cache on a read-only file system serves whatever only reads it; what would write says so in one sentence.

The file system is a bind mount in a mount namespace of the command's own, so that root is refused too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome, says, tree
from model_files import DATA
from text_model import CHAT_TEMPLATE, tokenizer_files

from specdec import catalogue

# For each command line of a JSON list, its exit code, output and errors, in one process.
_COMMANDS = """
import contextlib, io, json, sys
from specdec.cli.main import main
ended = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    ended.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""
_MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
ASK = ("--prompt", "hello", "--max-tokens", "4", "--seed", "1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(DATA / "tiny-llama", tmp_path / "model"))
    (folder / "tokenizer.json").write_bytes(tokenizer_files()["tokenizer.json"])
    settings = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


Commands = Callable[..., list[Outcome]]


@pytest.fixture
def commands(home: Path, model: Path) -> Commands:
    """Runs command lines where the cache folder, with the store of `model` in it and nothing else, is read-only."""
    catalogue.resolve_model(model, progress=lambda *_: None)
    shutil.rmtree(home / "locks")
    apart = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"]), "sh", "-c", _MOUNT, str(home)]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare, and namespaces in which it may mount")

    def run(*lines: list[object]) -> list[Outcome]:
        before = tree(home)
        words = json.dumps([list(map(str, line)) for line in lines])
        done = subprocess.run(
            [*apart, sys.executable, "-c", _COMMANDS, words], capture_output=True, text=True, check=True
        )
        assert tree(home) == before
        return [Outcome(*one) for one in json.loads(done.stdout)]

    return run


def test_answers_and_what_reads(commands: Commands, home: Path, model: Path) -> None:
    (store,) = (home / "stores").iterdir()
    ask = ["generate", "--model", model, *ASK]
    *answers, listed, inspected, looked = commands(
        ask,
        [*ask, "--plain"],
        [*ask, "--drafter", f"model:{model}"],
        ["list", "--json"],
        ["inspect", store],
        ["doctor"],
    )
    assert [one.code for one in (*answers, listed, inspected, looked)] == [0] * 6
    assert len({one.out for one in answers}) == 1
    assert [one["name"] for one in json.loads(listed.out)["entries"]] == [store.name]


def test_measurements_go_on_without_a_file_to_go_on_from(commands: Commands, model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    bench = ["bench", model, "--prompts", prompts, "--max-tokens", "1", "--repeat", "2", "--force"]
    text = ["eval", model, "--measure", "text", "--passages", "1", "--passage-tokens", "20", "--effort", "0.5"]
    for done in commands(bench, text):
        assert done.code == 0, done.err
        assert "results of an interrupted run are not kept" in done.err


def test_what_would_write_says_so(commands: Commands, home: Path, model: Path, tmp_path: Path) -> None:
    (store,) = (home / "stores").iterdir()
    other = shutil.copytree(model, tmp_path / "other")
    for done in commands(["rm", store.name], ["rm", "--all"], ["tune", model], ["generate", "--model", other, *ASK]):
        says(done, "read-only|not writable")
    assert store.is_dir()
