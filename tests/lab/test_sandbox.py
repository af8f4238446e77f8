"""Programs under limits: each limit holds, and nothing is left behind."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from specdec.errors import RuntimeUnavailableError
from specdec.lab.eval import sandbox
from specdec.lab.eval.sandbox import Limits, run_program

# A busy machine may take long to give a second of processor time.
QUICK = Limits(wall_s=300, cpu_s=1)


def test_a_program_that_runs_to_its_end_passes() -> None:
    outcome = run_program("import math\nassert math.sqrt(4) == 2\n")
    assert outcome.passed
    assert outcome.reason == "passed"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "failed AssertionError: no"),
        ("def f(:", "failed SyntaxError"),
        ("import os; os._exit(0)", "ended itself"),
        ("raise SystemExit(0)", "failed SystemExit"),
        ("def f(): return f()\nf()", "failed RecursionError"),
    ],
)
def test_a_program_that_does_not_get_to_its_end_fails(program: str, reason: str) -> None:
    outcome = run_program(program)
    assert not outcome.passed
    assert outcome.reason.startswith(reason)


def test_an_endless_loop_is_ended_by_processor_time() -> None:
    outcome = run_program("while True: pass", limits=QUICK)
    assert not outcome.passed
    assert outcome.reason == "killed by SIGXCPU"


def test_a_program_that_sleeps_is_ended_by_the_clock() -> None:
    began_s = time.monotonic()
    outcome = run_program("import time; time.sleep(60)", limits=Limits(wall_s=2))
    assert outcome.reason == "timeout"
    assert time.monotonic() - began_s < 55  # it was not waited for


def test_a_fork_bomb_starts_nothing() -> None:
    outcome = run_program("import os\nwhile True:\n    os.fork()", limits=QUICK)
    assert outcome.reason.startswith("failed BlockingIOError")


def test_a_thread_cannot_be_started_either() -> None:
    outcome = run_program("import _thread\n_thread.start_new_thread(print, ())", limits=QUICK)
    assert not outcome.passed


def test_memory_is_limited() -> None:
    hog = "held = []\nwhile True:\n    held.append(bytearray(1 << 20))"
    outcome = run_program(hog, limits=Limits(wall_s=300, memory_bytes=256 << 20))
    assert outcome.reason == "memory"


def test_files_land_in_a_folder_of_its_own_which_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcome = run_program("import os\nassert not os.listdir()\nopen('left.txt', 'w').write('x')")
    assert outcome.passed, outcome.reason
    assert outcome.files == ("left.txt",)
    assert not list(tmp_path.iterdir())


def test_a_file_cannot_grow_without_end() -> None:
    outcome = run_program("open('big', 'wb').write(bytes(1 << 21))", limits=Limits(file_bytes=1 << 20))
    assert outcome.reason.startswith("failed OSError")


def test_the_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_SECRET", "word")
    program = "import os\nassert not {'SPECDEC_SECRET', 'PATH', 'HOME'} & set(os.environ), list(os.environ)"
    outcome = run_program(program)
    assert outcome.passed, outcome.reason


def test_it_runs_in_a_group_of_its_own_and_not_as_root() -> None:
    group = os.getpgrp()
    outcome = run_program(f"import os\nassert os.getpgrp() == os.getpid() != {group}\nassert os.getuid() != 0")
    assert outcome.passed, outcome.reason


# --- confinement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "failed OSError"),
        ("import socket\nsocket.socket().connect(('192.0.2.1', 80))", "failed OSError: [Errno 101]"),
        ("open('/etc/passwd')", "failed FileNotFoundError"),
        ("open('/proc/self/status')", "failed FileNotFoundError"),
        ("open('/tmp/x', 'w')", "failed FileNotFoundError"),
        ("open('/x', 'w')", "failed OSError: [Errno 30]"),
        ("import os\nopen(os.__file__, 'a')", "failed "),
        ("import os\nos.chroot('.')", "failed PermissionError"),
        ("import os\nos.execv('/bin/sh', ['sh'])", "failed FileNotFoundError"),
    ],
)
def test_nothing_outside_its_folder_is_open_to_a_program(program: str, reason: str) -> None:
    outcome = run_program(program)
    assert not outcome.passed
    assert outcome.reason.startswith(reason), outcome.reason


def test_a_file_of_the_caller_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("word")
    tmp_path.chmod(0o777)
    outcome = run_program(f"import os\nassert not os.path.exists({str(tmp_path)!r})\nassert len(os.listdir('/')) < 5")
    assert outcome.passed, outcome.reason


def test_no_other_process_is_in_sight() -> None:
    outcome = run_program(f"import os\nassert os.getppid() == 1\nos.kill({os.getpid()}, 9)")
    assert outcome.reason.startswith("failed ProcessLookupError"), outcome.reason


def test_how_a_process_ended_is_told() -> None:
    assert run_program("import os\nos._exit(0)").reason == "ended itself"
    assert run_program("import os\nos._exit(139)").reason == "killed by SIGSEGV"
    assert not run_program("import os\nos.kill(os.getpid(), 11)").passed


def test_where_nothing_can_be_confined_a_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "import specdec.lab.eval.sandbox_jail as jail; jail.confine = lambda _: 1 / 0; "
    monkeypatch.setattr(sandbox, "_START", sandbox._START.replace("from specdec", refusal + "from specdec"))
    with pytest.raises(RuntimeUnavailableError, match="--unconfined"):
        run_program("1")
    assert run_program("1", unconfined=True).passed
