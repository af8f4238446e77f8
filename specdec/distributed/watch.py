"""Watches over the ranks: one that dies or hangs ends all of them, with one sentence that names it.

Nothing can interrupt a rank that waits in a collective, so the end is the end of the process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from specdec.distributed.link import Link

EXIT_FAILED = 1
_BEAT_S = 0.5


class Watch:
    """A thread that sends heartbeats and checks the heartbeats of the other ranks.

    Args:
        rank: of this process.
        links: to the others: of rank 0 to all, of any other to rank 0.
        timeout_s: seconds without a sign of life after which a rank counts as hanging.
    """

    def __init__(self, rank: int, links: Sequence[Link], timeout_s: float) -> None:
        self._rank, self._links, self._timeout_s = rank, links, timeout_s
        self._over, self._wake = threading.Event(), threading.Event()
        for link in links:
            link.on_end = self._wake.set
        self._thread = threading.Thread(target=self._run, name="specdec watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Expect the ends of others from now on."""
        self._over.set()

    def fail(self, sentence: str, *, told: bool = False) -> NoReturn:
        """End this process and, on rank 0, all others.

        Args:
            sentence: what is wrong.
            told: another rank has said so already.
        """
        self._over.set()
        # Rank 0 speaks for all others: they tell it.
        if not told and (self._rank == 0 or self._links[0].closed.is_set()):
            print(f"specdec: error: {sentence}", file=sys.stderr, flush=True)
        for link in self._links:
            link.fail("" if self._rank == 0 or told else sentence)
            link.close()
        end_now()

    def wait_for_end(self) -> NoReturn:
        """The other side of a link has gone: let the thread say so."""
        self._thread.join()
        end_now()

    def lost(self, error: Exception) -> NoReturn:
        """A collective has failed, so some rank has ended: leave it to those who know which, and end."""
        self._wake.set()
        time.sleep(self._timeout_s)
        self.fail(f"rank {self._rank} has lost the others: {error}")

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            self._wake.wait(_BEAT_S)
            self._wake.clear()
            now = time.monotonic()
            paused = now - last > 4 * _BEAT_S + 1  # this process itself stood still: nobody else is to blame
            last = now
            for link in self._links:
                link.beat()
                if paused:
                    link.heard_s = now
                if link.failure is not None:
                    self.fail(f"{named(link)}: {link.failure}", told=not link.failure)
                if link.closed.is_set():
                    self._has_ended(link)
                if now - link.heard_s > self._timeout_s:
                    self._tell(
                        f"{named(link)} has not been heard of for {self._timeout_s:g} s: it hangs, or its machine does"
                    )

    def _has_ended(self, link: Link) -> None:
        if self._over.wait(_BEAT_S) or link.failure is not None:  # the end that was expected, a moment early
            return
        self._tell(f"{named(link)} has ended before its time: all ranks end")

    def _tell(self, sentence: str) -> None:
        # Of the ranks that lose rank 0, the first one speaks.
        self.fail(sentence, told=self._rank > 1)


def named(link: Link) -> str:
    """The other side of a link, for messages."""
    return f"rank {link.rank} ({link.host})"


def end_now() -> NoReturn:
    """End this process, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(EXIT_FAILED)
