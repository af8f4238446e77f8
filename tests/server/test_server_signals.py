"""Signals that end a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from threading import Timer

import pytest

import specdec
from specdec.server.run import open_socket, serve
from specdec.server.settings import ServerSettings


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_as_soon_as_the_address_is_known(text_model: Path, number: signal.Signals) -> None:
    """One that came before the event loop took signals used to be lost."""
    settings, model = ServerSettings(name="tiny", port=0), specdec.load(text_model, runtime="reference")
    guard = Timer(20, os.kill, (os.getpid(), signal.SIGTERM))  # a server that misses the first one ends late
    guard.start()
    began = time.monotonic()
    try:
        with open_socket(settings) as listener, specdec.Batch(model) as batch:
            ended = serve(
                model, batch, settings, listener, log_level="error", started=lambda _: os.kill(os.getpid(), number)
            )
    finally:
        guard.cancel()
    assert ended
    assert time.monotonic() - began < 20


def test_ignored_signals_stay_ignored(text_model: Path) -> None:
    settings, model = ServerSettings(name="tiny", port=0), specdec.load(text_model, runtime="reference")
    found: list[object] = []

    def started(_: str) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        found.append(signal.getsignal(signal.SIGHUP))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with open_socket(settings) as listener, specdec.Batch(model) as batch:
            assert serve(model, batch, settings, listener, log_level="error", started=started)
        assert (found, signal.getsignal(signal.SIGHUP)) == ([signal.SIG_IGN], signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_log_that_cannot_be_written_does_no_harm(text_model: Path) -> None:
    words = [sys.executable, "-m", "specdec", "serve", str(text_model), "--port", "0", "--runtime", "reference"]
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = process.stderr.readline().split(" at ")[1].strip()
        for _ in range(2):
            with urllib.request.urlopen(f"{url}/health", timeout=20) as response:
                assert response.status == 200
    finally:
        process.terminate()
        told = process.stderr.read()
        process.stderr.close()
    assert process.wait(timeout=20) == 0
    assert all(line.startswith("INFO:") for line in told.splitlines()), told
