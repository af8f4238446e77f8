"""Signals: a command that is asked to end clears up, and its code says so."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import tomllib
import weakref
from pathlib import Path
from typing import Any

import pytest
from command_line import start
from places import HELPERS, ROOT, all_files

from specdec.cli import main as main_module
from specdec.cli.signals import Ended, ending
from specdec.errors import StoreError
from specdec.interrupts import take_interrupt

ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

# The command line, where reading the matrix `head` of any model stops for good, after saying so.
STUCK = """
import sys, time
import specdec.formats
from synthetic import SyntheticSource, tiny_config
from specdec.cli.main import main

class Stuck(SyntheticSource):
    def matrix(self, name):
        if name == "head":
            print("stuck", flush=True)
            time.sleep(600)
        return super().matrix(name)

    def close(self):
        pass

specdec.formats.open_source = lambda *_, **__: Stuck(tiny_config())
sys.exit(main())
"""


def stuck(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A command that is in the middle of a conversion."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(HELPERS), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    return process


@pytest.mark.parametrize("number", ENDINGS)
def test_a_conversion_that_is_asked_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    process = stuck("convert", tmp_path / "model.gguf", "-o", tmp_path / "store")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == ENDINGS[number], err
    assert out == ""
    assert err.splitlines()[-1] == f"specdec: {'interrupted' if number == signal.SIGINT else f'ended by {number.name}'}"
    assert "Traceback" not in err
    assert all_files(tmp_path) == ["model.gguf"]


def test_a_model_that_is_converted_on_first_use_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    process = stuck(
        "generate", "--model", tmp_path / "model.gguf", "--prompt", "x", SPECDEC_HOME=str(tmp_path / "home")
    )
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # while it clears up
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert [name for name in all_files(tmp_path / "home") if not name.startswith("locks/")] == []


def catches(process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3, 1.0])
def test_a_command_ends_at_once_wherever_it_is(text_model: Path, number: signal.Signals, delay_s: float) -> None:
    process = start("generate", "--model", text_model, "--prompt", "x", "--max-tokens", "40")
    while not (catches(process, signal.SIGTERM) or process.poll() is not None):
        time.sleep(0.001)
    time.sleep(delay_s)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    # It may have come to its end, or be so far that the signal changes nothing. Where the interrupt came while a
    # library ran code out of a text, which many do when they are imported, Python ends by the signal itself.
    assert process.returncode in (0, ENDINGS[number], -number), err.decode()
    assert b"Traceback" not in err
    assert b"Exception" not in err


def test_ignored_signals_stay_ignored(text_model: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "import specdec\n"
        "from specdec.cli.main import main\n"
        "load = specdec.load\n"
        "specdec.load = lambda *a, **o: (os.kill(os.getpid(), signal.SIGHUP), load(*a, **o))[1]\n"
        "sys.exit(main())\n"
    )
    ask = ["generate", "--model", str(text_model), "--prompt", "x", "--max-tokens", "3"]
    done = subprocess.run([sys.executable, "-c", script, *ask], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 tokens" in done.stderr


def test_handlers_are_put_back_and_the_first_signal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (*ENDINGS, signal.SIGURG)
    before = [signal.getsignal(number) for number in numbers], sys.unraisablehook, threading.active_count()

    def told(argv: Any, signalled: Any) -> int:
        for _ in range(2):  # each interrupt is one
            with pytest.raises(KeyboardInterrupt) as interrupt:
                signal.raise_signal(signal.SIGINT)
            take_interrupt(interrupt.value)
        with pytest.raises(Ended) as first:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)  # while it clears up: nothing happens
        signalled._came_s -= 10
        with pytest.raises(Ended) as ended:  # clearing up takes long
            signal.raise_signal(signal.SIGHUP)
        assert first.value.name == "SIGTERM"
        raise ended.value

    monkeypatch.setattr(main_module, "_told", told)
    assert main_module.main(["doctor"]) == 143
    assert ([signal.getsignal(number) for number in numbers], sys.unraisablehook, threading.active_count()) == before
    assert signal.set_wakeup_fd(-1) == -1


def in_callback(number: signal.Signals) -> None:
    class Dying:
        pass

    dying = Dying()
    _ = weakref.ref(dying, lambda _: signal.raise_signal(number))
    del dying


def in_finaliser(number: signal.Signals) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(number)

    Dying()


def in_library(number: signal.Signals) -> None:
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)


def in_library_again(number: signal.Signals) -> None:
    deadline_s = time.monotonic() + 0.2  # longer than until it is raised again
    while time.monotonic() < deadline_s:
        in_library(number)
        with contextlib.suppress(BaseException):
            time.sleep(0.1)


@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize("lose", [in_callback, in_finaliser, in_library, in_library_again])
def test_a_signal_ends_the_command_though_its_exception_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lose: Any, number: signal.Signals
) -> None:
    def run(argv: Any) -> int:
        lose(number)
        time.sleep(20)
        return 0

    monkeypatch.setattr(main_module, "_run", run)
    assert main_module.main(["doctor"]) == ENDINGS[number]
    told = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert capsys.readouterr().err == f"specdec: {told}\n"


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_ends_a_wait_that_it_did_not_interrupt(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The system may give it to another thread; one just before the wait begins has the same effect."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    rescue = threading.Timer(20, waiting.put, ["rescued"])

    def run(argv: Any) -> int:
        threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), number)).start()
        waiting.get()
        return 0

    monkeypatch.setattr(main_module, "_run", run)
    rescue.start()
    code = main_module.main(["doctor"])
    assert rescue.is_alive(), "the wait went on"
    rescue.cancel()
    assert code == ENDINGS[number]


def test_interrupts_that_are_taken_do_not_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: Any) -> int:
        for _ in range(2):
            try:
                try:
                    signal.raise_signal(signal.SIGINT)
                finally:
                    signal.raise_signal(signal.SIGINT)  # impatience
            except KeyboardInterrupt as interrupt:
                take_interrupt(interrupt)
            time.sleep(0.3)  # longer than until it would be raised again
        return 7

    monkeypatch.setattr(main_module, "_run", run)
    assert main_module.main(["doctor"]) == 7


def test_an_error_that_a_signal_caused_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: Any) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise StoreError("cannot go on") from error
        return 0

    monkeypatch.setattr(main_module, "_run", run)
    assert main_module.main(["doctor"]) == 143
    assert capsys.readouterr().err == "specdec: ended by SIGTERM\n"


# The command line as `specdec` and `python -m specdec` run it; an interrupt comes when a module is imported.
STARTING = """
import importlib, signal, sys

class Interrupting:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting)
{start}
"""
RUN_MODULE = "import runpy; runpy.run_module('specdec', run_name='__main__', alter_sys=True)"


def run_script() -> str:
    """What the installed script does."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        module, name = tomllib.load(file)["project"]["scripts"]["specdec"].split(":")
    return f"from {module} import {name}; sys.exit({name}())"


@pytest.mark.parametrize("start", [RUN_MODULE, run_script()])
@pytest.mark.parametrize("module", ["specdec.cli.main", "argparse", "specdec.cli.chat", "yaml", "numpy"])
def test_an_interrupt_while_a_command_starts_is_quiet(start: str, module: str) -> None:
    script = STARTING.format(module=module, start=start)
    done = subprocess.run(
        [sys.executable, "-c", script, "chat", "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (130, -signal.SIGINT), done.stderr  # see above for the second one
    assert done.stderr == "specdec: interrupted\n"
    assert done.stdout == ""


@pytest.mark.parametrize("number", ENDINGS)
def test_an_interrupt_that_a_library_swallows_is_one_all_the_same(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def run(argv: Any) -> int:
        try:
            signal.raise_signal(number)
        except (KeyboardInterrupt, SystemExit):
            raise ImportError("numpy could not be initialised") from None
        raise AssertionError

    monkeypatch.setattr(main_module, "_run", run)
    assert main_module.main(["doctor"]) == ENDINGS[number]


def test_a_programs_own_handlers_are_left_alone() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with ending():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
