"""Running a program of a model and its tests, with limits: `run_program`.

The program and its tests run in two processes. The program's process (`sandbox_program`) has no test, no expected value
and nothing to write a result on. The tests' process (`sandbox_checker`) calls the program's functions over a socket, on
which only plain data passes (`sandbox_values`), and it alone reports the result. So a program that changes everything
in its own interpreter can still do nothing but answer calls.

A program runs in namespaces of Linux (`sandbox_jail`): it has no network, sees no other process, starts none, and finds
a file system with an empty folder of its own and Python's library, and nothing else. It has no environment, limits on
processor time, memory, file sizes and open files, and is ended when its time is up. Where the system has no such
namespaces, or does not allow them, a program is refused, unless the caller asks for it `unconfined`: then the limits
hold, but it can read and write what its user may (nobody, where the caller is root) and use the network.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from specdec.errors import RuntimeUnavailableError
from specdec.lab.eval.sandbox_jail import NOBODY

# A process imports its module by name, but nothing of what `import specdec` brings.
_START = (
    "import sys, types; sys.modules['specdec'] = types.ModuleType('specdec'); sys.modules['specdec'].__path__ = "
    "[sys.argv[1]]; from specdec.lab.eval.{module} import main; main(*sys.argv[2:])"
)
_SIGNALLED = 128  # the exit code of a confined program that a signal ended is this and its number
_MOST_WORD_BYTES = 4096
_END_S = 5.0  # for a program that is said to have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use; its tests have the same limits.

    Attributes:
        wall_s: time by the clock, start of the interpreters included.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that is not trusted, and tests that are: Python sources.

    Attributes:
        source: the program.
        tests: run in another process. Names that they do not define are the program's functions: a call sends plain
            data and returns plain data.
        helpers: what the tests may use of the problem; run before them, in their process.
        functions: names that are the program's, whatever tests, helpers and Python have of that name.
    """

    source: str
    tests: str = ""
    helpers: str = ""
    functions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: it ran to its end, and then its tests did.
        reason: "passed", "timeout", "memory", "ended itself" (left without an answer), "killed by SIGXCPU" (or another
            signal), or "failed" with the last line of the error.
        files: names of what it left in its folder.
    """

    passed: bool
    reason: str
    files: tuple[str, ...] = ()


def run_program(program: Program | str, *, limits: Limits | None = None, unconfined: bool = False) -> Outcome:
    """Run a program and its tests, and clear away what they leave.

    Args:
        program: with its tests; a source alone has none, and passes where it says that it ran to its end.
        limits: what it may use.
        unconfined: run it without namespaces, where the network and files are open to it.

    Raises:
        RuntimeUnavailableError: this system does not let the process be confined or limited.
    """
    program = Program(source=program) if isinstance(program, str) else program
    folder = Path(tempfile.mkdtemp(prefix="specdec-"))
    try:
        for name in ("root", "work"):
            (folder / name).mkdir(mode=0o700)
        if os.getuid() == 0:
            os.chown(folder / "work", NOBODY, NOBODY)
            if unconfined:
                folder.chmod(0o711)
        reason = _run(program, folder, limits or Limits(), unconfined=unconfined)
        files = tuple(sorted(path.name for path in (folder / "work").iterdir()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(reason == "passed", reason, files)


def _run(program: Program, folder: Path, limits: Limits, *, unconfined: bool) -> str:
    """How it ended."""
    with ExitStack() as stack:
        status, results = (_Pipe(stack) for _ in range(2))
        ours, theirs = (stack.enter_context(one) for one in socket.socketpair())
        words = json.dumps(asdict(limits))
        running = _start(
            "sandbox_program",
            [words, str(theirs.fileno()), str(status.write_end), "" if unconfined else str(folder)],
            (theirs.fileno(), status.write_end),
            folder / "work",
        )
        stack.callback(_end, running)
        checking = _start(
            "sandbox_checker",
            [words, str(ours.fileno()), str(results.write_end)],
            (ours.fileno(), results.write_end),
            folder / "work",
        )
        stack.callback(_end, checking)
        for one in (ours, theirs, status, results):
            one.close()
        until_s = time.monotonic() + limits.wall_s
        _give(running, program.source)
        sources = {"helpers": program.helpers, "tests": program.tests, "functions": list(program.functions)}
        _give(checking, json.dumps(sources))
        checked = _wait(checking, until_s)
        word = results.read()
        # A program that the tests have lost ends with its process; one that only closed its socket is ended.
        code = _wait(running, min(until_s, time.monotonic() + _END_S)) if word == "gone" else running.poll()
        _end(running)
        if not status.read():
            _refuse_unlimited(code, unconfined=unconfined)
            return "timeout"
    if word == "gone":
        return _exit_reason(code) if code is not None else "ended itself"
    return word or _exit_reason(checked)


def _refuse_unlimited(code: int | None, *, unconfined: bool) -> None:
    """Return where a program's time was up before its limits stood.

    Raises:
        RuntimeUnavailableError: they cannot stand.
    """
    if code in (None, -signal.SIGXCPU, _SIGNALLED + signal.SIGXCPU):
        return
    raise RuntimeUnavailableError(
        "programs cannot be limited on this system: leave HumanEval out"
        if unconfined
        else "programs cannot be confined on this system (it needs Linux with user namespaces): leave HumanEval "
        "out, or run them without a jail with --unconfined"
    )


def _exit_reason(code: int | None) -> str:
    if code is None:
        return "timeout"
    if code < 0 or code > _SIGNALLED:
        number = -code if code < 0 else code - _SIGNALLED
        with suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
    return "ended itself"


class _Pipe:
    """A pipe on which a child writes one word. Its parent does not wait for it."""

    def __init__(self, stack: ExitStack) -> None:
        self._read_end, self.write_end = os.pipe()
        stack.callback(os.close, self._read_end)
        stack.callback(self.close)
        os.set_blocking(self._read_end, False)

    def close(self) -> None:
        """Close this process's copy of the writing end."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def read(self) -> str:
        """What was written."""
        try:
            return os.read(self._read_end, _MOST_WORD_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""


def _start(module: str, words: list[str], descriptors: tuple[int, int], folder: Path) -> subprocess.Popen[bytes]:
    """A process that runs the `main` of a module of this folder, with the package but without what it imports."""
    package = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", _START.format(module=module), package, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        pass_fds=descriptors,
        start_new_session=True,  # a group of its own, so that nothing it started outlives it
    )


def _give(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(text.encode(errors="surrogatepass"))


def _wait(process: subprocess.Popen[bytes], until_s: float) -> int | None:
    """Its exit code; None where it runs on."""
    try:
        return process.wait(max(0.0, until_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        process.kill()
    process.wait()
