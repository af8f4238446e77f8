"""Runs the command line in tests: inside this process, or as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from specdec.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence that a mistake is told in; fails when the command ended in any other way."""
        lines = self.err.splitlines()
        told = [line for line in lines if not line.startswith("specdec: warning: ")]
        assert "unexpected" not in self.err, self.err
        assert self.code == 2, f"exit code {self.code}: {self.err}"
        assert len(told) == 1, self.err
        assert told[0].startswith("specdec: error: "), self.err
        assert self.out == ""
        return told[0].removeprefix("specdec: error: ")


def says(outcome: Outcome, told: str) -> None:
    """The outcome is a mistake, and its one sentence matches."""
    error = outcome.error
    assert re.search(told, error), error


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """One command line inside this process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def start(*arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    """One command line as a process, its streams in pipes; `environment` adds to this process's own."""
    return subprocess.Popen(
        [sys.executable, "-m", "specdec", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Buffered as in a shell, whatever this process's own environment says.
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder under `folder`, with size and time of change: what a command must leave as it was."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else (0, 0)
        for path in sorted(folder.rglob("*"))
    }
