"""Peers that are Python packages: an environment of their own for each, and a process in it that answers prompts."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_llama import PeerMissingError

HERE = Path(__file__).resolve().parent


def environment(name: str, requirements: Sequence[str], work: Path) -> Path:
    """The Python of an environment below `work` that has `requirements`, made once.

    Raises:
        PeerMissingError: they cannot be installed.
    """
    folder = work / f"venv-{name}"
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text()) == list(requirements):
        return python
    print(f"installing {', '.join(requirements)} into {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerMissingError(f"pip cannot install {name}: {done.stderr.strip()[-200:]}")
    stamp.write_text(json.dumps(list(requirements)))
    return python


class Worker:
    """A program of this folder that runs in another environment: a JSON line for each question and answer.

    Args:
        python: of the environment.
        program: file in this folder.
        arguments: for it.

    Attributes:
        version: what it says of itself, once it has loaded its model.

    Raises:
        PeerMissingError: it does not start.
    """

    def __init__(self, python: Path, program: str, arguments: Sequence[str | Path]) -> None:
        self._log = (python.parent.parent / "last.log").open("w+")
        self._process = subprocess.Popen(
            [str(python), str(HERE / program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.version = str(self._read().get("version"))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question.

        Raises:
            PeerMissingError: the process has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # libraries like to print
                found: dict[str, Any] = json.loads(line)
                return found
        self._process.wait()
        self._log.seek(0)
        raise PeerMissingError(f"it ended: {self._log.read().strip()[-300:]}")
