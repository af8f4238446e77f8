"""Running a foreign program with limits: `run_program`. What happens inside the process is in `sandbox_child`.

A program runs in namespaces of Linux: it has no network, sees no other process, starts none, and finds a file system
with an empty folder of its own and Python's library, and nothing else. It has no environment, limits on processor time,
memory, file sizes and open files, and is ended when its time is up. Where the system has no such namespaces, or does
not allow them, a program is refused, unless the caller asks for it `unconfined`: then the limits hold, but it can read
and write what its user may (nobody, where the caller is root) and use the network.

A result counts only with a key that nobody else has, on a descriptor that is open in this one process. A program that
goes through its own interpreter's frames could still find the key: it is code in the same process as the tests.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from specdec.errors import RuntimeUnavailableError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_NOBODY = 65534
_SIGNALLED = 128  # the exit code of a confined program that a signal ended is this and its number
_MOST_WORDS = 4096  # bytes that are read of what the child says


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        wall_s: time by the clock, start of the interpreter included.
        cpu_s: processor time, whole seconds.
        memory_bytes: address space (not enforced by macOS).
        file_bytes: size of any file it writes.
        open_files: file descriptors.
        processes: processes and threads of the user; 0 lets the program start none.
    """

    wall_s: float = 30.0
    cpu_s: int = 5
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    open_files: int = 32
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: it ran to its end.
        reason: "passed", "timeout", "memory", "ended itself" (left without running to its end), "killed by SIGXCPU"
            (or another signal), or "failed" with the last line of the error.
        files: names of what it left in its folder.
    """

    passed: bool
    reason: str
    files: tuple[str, ...] = ()


def run_program(program: str, *, limits: Limits | None = None, unconfined: bool = False) -> Outcome:
    """Run Python source in a process of its own, and clear away what it leaves.

    Args:
        program: the source.
        limits: what it may use.
        unconfined: run it without namespaces, where the network and files are open to it.

    Raises:
        RuntimeUnavailableError: this system does not let the process be confined or limited.
    """
    limits = limits or Limits()
    folder = Path(tempfile.mkdtemp(prefix="specdec-"))
    try:
        for name in ("root", "work"):
            (folder / name).mkdir(mode=0o700)
        if os.getuid() == 0:
            os.chown(folder / "work", _NOBODY, _NOBODY)
            if unconfined:
                folder.chmod(0o711)
        words, code = _run(program, folder, limits, unconfined=unconfined)
        files = tuple(sorted(path.name for path in (folder / "work").iterdir()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not words:
        if code in (None, -signal.SIGXCPU, _SIGNALLED + signal.SIGXCPU):  # the time was up before the limits stood
            return Outcome(False, "timeout", files)
        raise RuntimeUnavailableError(
            "programs cannot be limited on this system: leave HumanEval out"
            if unconfined
            else "programs cannot be confined on this system (it needs Linux with user namespaces): leave HumanEval "
            "out, or run them without a jail with --unconfined"
        )
    reason = _reason(words[1:], code)
    return Outcome(reason == "passed", reason, files)


def _reason(words: list[str], code: int | None) -> str:
    if words:
        return words[0]
    if code is None:
        return "timeout"
    if code < 0 or code > _SIGNALLED:
        return f"killed by {signal.Signals(-code if code < 0 else code - _SIGNALLED).name}"
    return "ended itself"


def _run(program: str, folder: Path, limits: Limits, *, unconfined: bool) -> tuple[list[str], int | None]:
    """Lines that the child wrote on its results, and its exit code; None when its time was up."""
    key = secrets.token_hex(16)
    read_end, write_end = os.pipe()
    try:
        command = [sys.executable, "-I", "-S", "-B", str(_CHILD), json.dumps(asdict(limits)), str(write_end)]
        command.append("" if unconfined else str(folder))
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder / "work",
            env={},
            pass_fds=(write_end,),
            start_new_session=True,  # a group of its own, so that nothing it started outlives it
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(key.encode() + b"\n" + program.encode())
        try:
            code: int | None = process.wait(limits.wall_s)
        except subprocess.TimeoutExpired:
            code = None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.set_blocking(read_end, False)
        said = _read(read_end)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
        os.close(read_end)
    lines = said.decode(errors="replace").splitlines()
    return [line.removeprefix(f"{key} ") for line in lines if line.startswith(f"{key} ")], code


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _MOST_WORDS)
    except BlockingIOError:
        return b""
