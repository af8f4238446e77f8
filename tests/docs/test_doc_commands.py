"""Every command in the README and the documentation runs, with a tiny model in the place of every real one.

What needs a download or a GPU is parsed only. Long measurements run on less: `LIMITS` are options added to a command.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from doc_pages import PAGES, ROOT, command_lines, name_of, named_files
from fff_weights import random_weights
from safetensors.numpy import save_file
from text_model import text_gguf

from specdec import catalogue
from specdec.cli.commands import COMMANDS
from specdec.cli.main import build_parser
from specdec.errors import RuntimeUnavailableError
from specdec.fff import to_fastfeedforward
from specdec.lab.eval.sandbox import run_program

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the source tree")


def help_lines(command: str) -> list[str]:
    """The examples that end the help of a command."""
    parsers = next(action for action in build_parser()._actions if action.choices and command in action.choices)
    epilog = parsers.choices[command].epilog or ""
    return [line.strip() for line in epilog.splitlines()[1:]]


LINES = command_lines() if PAGES else {}
HELPED = [line for name in COMMANDS for line in help_lines(name)] if PAGES else []
MODEL = "model.gguf"
PLACEHOLDERS = {"MODEL": MODEL, "MODEL.gguf": MODEL, "STORE": "store"}
# Commands of plug-ins that a page writes out: `test_docs` runs them with the plug-in installed.
PLUGINS = re.compile(r"\b(alternate|repeat|eight)\b")
LIMITS = {
    "bench": ["--tasks", "qa", "--per-task", "1", "--repeat", "1", "--max-tokens", "4"],
    "eval": ["--passages", "1", "--passage-tokens", "16", "--max-tokens", "4"],
    "generate": ["--max-tokens", "6"],
    "chat": ["--max-tokens", "6"],
    "tune": ["--quick", "--text", "notes.txt"],
    "serve": ["--port", "0", "--host", "127.0.0.1"],
}
# Programs of other projects, whose arguments are not ours to check.
OTHERS = {"python3", "source", "git", "pre-commit", "clang-format", "auditwheel", "cibuildwheel", "sha256sum", "cd"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that commands of the pages read."""
    folder = tmp_path_factory.mktemp("commands")
    text_gguf(folder / MODEL)
    for name, text in named_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "prompt.txt").write_text("Name a river.\n", encoding="utf-8")
    (folder / "notes.txt").write_text("All work and no play makes Jack a dull boy. " * 8, encoding="utf-8")
    (folder / "mine.jsonl").write_text(json.dumps({"prompt": "Hello", "task": "qa"}) + "\n", encoding="utf-8")
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", vectors[:3])
    (folder / "schema.json").write_text('{"enum": ["yes", "no"]}', encoding="utf-8")
    return folder


@pytest.fixture
def inside(workspace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder, with a cache folder beside it."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("SPECDEC_HOME", str(workspace / "home"))
    monkeypatch.delenv("SPECDEC_API_KEY", raising=False)
    return workspace


def with_tiny_model(words: list[str]) -> list[str]:
    """Words of a command with the tiny model in the place of real ones."""
    real = set(catalogue.list_names())
    model = "store" if "inspect" in words else MODEL  # that one reads stores alone
    return [model if word in real else PLACEHOLDERS.get(word, word) for word in words]


def needs_download(words: list[str]) -> bool:
    """Whether a command fetches something from a hub or a package index."""
    is_pull = words[0] == "pull" and "--list" not in words
    return is_pull or any(re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", word) for word in words if "." not in word[:1])


def ours(program: str) -> list[str]:
    """Lines that start with a program, or hold it behind a pipe."""
    return [line for line in LINES if re.search(rf"(^|\| ){program}\b", line)]


@pytest.mark.parametrize("line", dict.fromkeys([*ours("specdec"), *HELPED]))
def test_commands_of_specdec_run(line: str, inside: Path, capsys: pytest.CaptureFixture[str], request: Any) -> None:
    command, _, source = line.rpartition("| ")[2].partition(" < ")
    words = shlex.split(command)[1:]
    arguments = build_parser().parse_args(words)
    if needs_download(words) or PLUGINS.search(command):
        return
    if getattr(arguments, "runtime", None) == "mlx":
        return  # a GPU
    skip_without(arguments)
    if arguments.command == "launch":
        words = launched(words)
        if not words:
            return
    else:
        words = limited(with_tiny_model(words))
        prepare(words, inside, capsys)
    if "serve" in words:
        serve(words)
        return
    stdin = (inside / source.strip()).read_text() if source else "Name a river.\nAnother.\n"
    request.getfixturevalue("monkeypatch").setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    done = run(capsys, *words)
    assert done.code == 0, done.err


def launched(words: list[str]) -> list[str]:
    """A command that starts processes of this machine, for some seconds; nothing for other hosts and programs."""
    at = words.index("--")
    if "--hostfile" in words or words[at + 1] not in COMMANDS:
        return []
    pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")
    return [*words[: at + 1], *limited(with_tiny_model(words[at + 1 :]))]


def skip_without(arguments: Any) -> None:
    """Skip what this machine lacks, by name."""
    if getattr(arguments, "report", None) and importlib.util.find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    shaped = any(getattr(arguments, name, None) for name in ("json_schema", "grammar", "grammar_file", "regex"))
    if shaped and importlib.util.find_spec("llguidance") is None:
        pytest.skip("needs llguidance")
    if arguments.command in ("search", "fff"):
        pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")
    if arguments.command == "serve":
        pytest.importorskip("starlette", reason="needs the extra `serve`")
    if "humaneval" in (getattr(arguments, "measure", None) or ()):
        try:
            run_program("1")
        except RuntimeUnavailableError:
            pytest.skip("needs Linux user namespaces")


def limited(words: list[str]) -> list[str]:
    """A command that takes seconds at most: the last of equal options counts."""
    extra = list(LIMITS.get(words[0], []))
    if words[0] == "generate" and "--model" not in words:
        extra += ["--model", MODEL]
    if words[0] == "eval":
        extra += ["--problems", "1"] if {"humaneval", "--humaneval"} & {*words} else []
        extra += [] if "--measure" in words else ["--measure", "text"]
        extra += [] if "--effort" in words else ["--effort", "0.5", "1"]
    if words[:2] == ["fff", "train"]:
        extra = ["--epochs", "1"]
    if words[0] == "bench" and "--prompts" in words:
        extra = extra[2:]
    return words + extra


def prepare(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Make what a command reads, and remove what it writes."""
    if "-o" in words:
        shutil.rmtree(folder / words[words.index("-o") + 1], ignore_errors=True)
    for word in words[1:]:
        if word.removesuffix(".store") in ("store", "model") and word != MODEL and "-o" not in words:
            shutil.rmtree(folder / word, ignore_errors=True)
            assert run(capsys, "convert", MODEL, "-o", word).code == 0
    if words[:2] == ["search", "query"]:
        assert run(capsys, "search", "build", "vectors.npy", "--out", words[2]).code == 0
    if words[:2] in (["fff", "eval"], ["fff", "info"]):
        assert run(capsys, "fff", "train", "digits", "--out", words[2], "--epochs", "1").code == 0
    if words[:2] == ["fff", "convert"]:
        layer = random_weights(6, 4, depth=2, leaf_width=3)
        save_file(to_fastfeedforward(layer), folder / words[2])
    if words[:2] == ["rm", MODEL]:  # it has to be there
        assert run(capsys, "generate", "--model", MODEL, "--prompt", "x", "--max-tokens", "1").code == 0


def serve(words: list[str]) -> None:
    """Start a server, and end it when it says that it answers."""
    process = subprocess.Popen([sys.executable, "-m", "specdec", *words], stderr=subprocess.PIPE, text=True)
    told = ""
    with process:
        assert process.stderr is not None
        for told in process.stderr:
            if " at http://" in told:
                break
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert " at http://" in told
    assert process.returncode in (0, 143)


def test_every_line_is_of_a_known_kind() -> None:
    """A line of a shell block that is checked nowhere would say anything."""
    known = OTHERS | {"specdec", "pip", "make", "python", "printf", "SPECDEC_NO_NATIVE=1", ".venv/bin/python"}
    known |= {".venv/bin/ruff", ".venv/bin/mypy", "curl", "clean/bin/pip", "clean/bin/specdec"}
    for line, page in LINES.items():
        assert line.split(" ")[0] in known, f"{name_of(page)}: {line}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples(name: str) -> None:
    examples = [line for line in HELPED if f"specdec {name}" in line]
    assert len(examples) >= 2
    assert max(map(len, examples)) <= 100


def test_every_command_is_in_the_documentation() -> None:
    shown = {shlex.split(line.rpartition("| ")[2])[1] for line in ours("specdec") if len(line.split(" ")) > 1}
    assert set(COMMANDS) <= shown


@pytest.mark.parametrize("line", ours("pip install"))
def test_extras_that_are_installed_exist(line: str) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extras in re.findall(r"\[([\w,]+)\]", line):
        assert set(extras.split(",")) <= set(known), extras


@pytest.mark.parametrize("line", ours("make"))
def test_targets_of_make_exist(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in line.split(" ")[1:]:
        assert "=" in word or re.search(rf"^{word}:", makefile, re.M), word


@pytest.mark.parametrize("line", [line for line in ours(r"(\.venv/bin/)?python") if ".py" in line])
def test_scripts_and_their_options_exist(line: str) -> None:
    words = shlex.split(line)
    path = next(ROOT / word for word in words if word.endswith(".py"))
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"^(?:from|import) (\w+)", text, re.M):  # of scripts that it shares its options with
        if (other := path.parent / f"{name}.py").exists():
            text += other.read_text(encoding="utf-8")
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in text, f"{path.name} has no option {word}"
