"""Signals that end a server."""

from __future__ import annotations

import os
import signal
import time
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
