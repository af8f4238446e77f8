"""Programs under limits: each limit holds, and nothing is left behind."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

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
