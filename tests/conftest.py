"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_model import Clock
from text_model import text_store

from specdec import paths

# A shell without job control starts its background commands, and a test run among them, with SIGINT ignored. Programs
# started from here would inherit that and could not be interrupted, which some tests are about.
# `nohup` does the same to SIGHUP.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def no_costs_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for the run, with the user's own models in it: costs of tiny models are not kept among theirs."""
    own, folder = paths.home(), tmp_path_factory.mktemp("cache")
    for name in ("models", "stores"):
        if (own / name).is_dir():
            (folder / name).symlink_to(own / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.HOME_VARIABLE, str(folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread_beside_other_workers() -> Iterator[None]:
    """Where several processes run tests, each computes with one thread, unless a test names another number."""
    with pytest.MonkeyPatch.context() as patch:
        if "PYTEST_XDIST_WORKER" in os.environ:
            patch.setattr("specdec.runtimes.native.runtime.usable_cores", lambda: 1)
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    folder = tmp_path / "specdec-home"
    monkeypatch.setenv("SPECDEC_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a tiny model with a tokenizer. Not to be changed: `text_model_copy` is for that."""
    return text_store(tmp_path_factory.mktemp("stores") / "text")


@pytest.fixture
def text_model_copy(text_model: Path, tmp_path: Path) -> Path:
    """A copy of `text_model` that a test may damage."""
    return Path(shutil.copytree(text_model, tmp_path / "copy"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that only the scripted model moves."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where GPU kernels that the tests have compiled for the host are kept for the run, by all its processes."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("metal")
    folder = tmp_path_factory.getbasetemp().parent / "metal"  # beside the folders of the processes
    folder.mkdir(exist_ok=True)
    return folder
