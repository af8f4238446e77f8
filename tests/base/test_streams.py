"""Standard streams that are closed, full or gone: what was asked for is done, and the exit code says how it ended."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_files import DATA

from specdec.cli import main as main_module
from specdec.message_stream import MessageStream

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def shell(line: str, *words: object) -> subprocess.CompletedProcess[str]:
    """`specdec WORDS` with redirections, by a shell."""
    command = " ".join([sys.executable, "-m", "specdec", *map(str, words), line])
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )


@needs_full
def test_standard_error_that_is_closed_or_full_changes_nothing(text_model: Path) -> None:
    ask = ("generate", "--model", text_model, "--prompt", "x", "--max-tokens", "3", "--check", "--stats")
    ask += ("--draft-effort", "0.9", "--verify-effort", "0.5")  # warns, too
    wanted = shell("", *ask)
    assert wanted.returncode == 0, wanted.stderr
    assert "identical to plain decoding (3 tokens" in wanted.stderr
    for line in ("2>&-", "2>/dev/full"):
        ran = shell(line, *ask)
        assert (ran.returncode, ran.stderr) == (0, ""), (line, ran)
        assert ran.stdout == wanted.stdout  # nothing of the statistics is among it


@needs_full
@pytest.mark.parametrize("line", ["2>&-", "2>/dev/full"])
def test_a_mistake_that_nobody_can_be_told_is_one(line: str) -> None:
    ran = shell(line, "generate", "--prompt", "x", "--model", "/nosuch.gguf")
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "")


@needs_full
def test_standard_output_that_is_full(text_model: Path) -> None:
    ask = ("generate", "--model", text_model, "--prompt", "x", "--max-tokens", "3")
    for words in (ask, ("list", "--json"), ("--version",)):
        ran = shell(">/dev/full", *words)
        assert (ran.returncode, ran.stdout) == (2, ""), (words, ran)
        assert ran.stderr == "specdec: error: No space left on device\n", words
    ran = shell(">/dev/full 2>/dev/full", "list")
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "")


def test_all_streams_closed(text_model: Path, tmp_path: Path) -> None:
    """No file gets the number of a closed stream, and with it what was meant for the stream."""
    trace, answer = tmp_path / "trace.jsonl", tmp_path / "answer.json"
    ask = ("generate", "--model", text_model, "--prompt", "x", "--max-tokens", "3", "--draft-effort", "0.9")
    ran = shell("<&- >&- 2>&-", *ask, "--verify-effort", "0.5", "--trace", trace, "--json", answer)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert answer.read_text().count("\n") == 1
    assert all(line.startswith("{") for line in trace.read_text().splitlines())


def test_help_for_a_reader_that_went_away() -> None:
    ran = shell("| true", "--help")
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


class Failing(io.StringIO):
    """A stream that takes so many writes and then none."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def write(self, text: str) -> int:
        self.good -= 1
        if self.good < 0:
            raise BrokenPipeError
        return super().write(text)


def test_messages_are_lost_quietly_and_for_good() -> None:
    stream = Failing(good=2)
    messages = MessageStream(stream)
    for word in ("one", "two", "three", "four"):
        assert messages.write(word) == len(word)
        messages.flush()
    assert stream.getvalue() == "onetwo"
    assert not messages.isatty()
    nothing = MessageStream(MessageStream(None))  # type: ignore[arg-type]  # as in a command that reports progress
    assert nothing.write("x") == 1
    assert not nothing.isatty()
    with pytest.raises(OSError, match="the stream is closed"):
        nothing.fileno()


def test_the_callers_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    before = sys.stderr
    monkeypatch.setattr(main_module, "_told", lambda *_: seen.append(sys.stderr) or 0)
    assert main_module.main(["doctor"]) == 0
    assert isinstance(seen[0], MessageStream)
    assert sys.stderr is before


@needs_full
@pytest.mark.parametrize("line", ["2>&-", "2>/dev/full"])
def test_the_library_loads_where_nobody_can_be_told_how_it_goes_on(tmp_path: Path, line: str) -> None:
    """A model that is converted first, which standard error is told of, and a tokenizer whose library may panic."""
    shutil.copytree(DATA / "tiny-llama", tmp_path / "model")
    script = f"import specdec; print(specdec.load({str(tmp_path / 'model')!r}).config.family)"
    environment = {**os.environ, "SPECDEC_HOME": str(tmp_path / "home")}
    command = ["sh", "-c", f'exec "$0" -c "$1" {line}', sys.executable, script]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (ran.returncode, ran.stdout, ran.stderr) in [(0, "llama\n", ""), (120, "llama\n", "")]
