"""Messages between rank 0 and another rank, over a socket of their own: JSON after its length. A frame of length 0 is a
sign of life and never reaches the receiver.

MLX's collectives cannot be interrupted, and a rank that waits in one keeps a core busy. So what ranks tell each other
between passes goes here, and so does the news that one of them has died.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from specdec.interrupts import unless_signalled

_LENGTH = struct.Struct("!I")
_BEAT = _LENGTH.pack(0)
_MOST_BYTES = 1 << 28
_FAIL = "fail"
CLOSED: Any = object()
"""What `receive` returns once the other side has gone."""


class Link:
    """One end of a connection. A thread reads it, so that signs of life are noticed while a pass runs.

    Args:
        connection: an open socket; the link owns it.
        rank: of the other side.
        host: of the other side.

    Attributes:
        heard_s: when something last came (time.monotonic).
        closed: set once the other side has gone.
        failure: what the other side said before it ended for a failure; "" where others have said it.
        on_end: called once it is closed or has failed.
    """

    def __init__(self, connection: socket.socket, rank: int, host: str) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rank, self.host = rank, host
        self.heard_s = time.monotonic()
        self.closed = threading.Event()
        self.failure: str | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._connection = connection
        self._sending = threading.Lock()
        self._received: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._read, name=f"specdec rank {rank}", daemon=True).start()

    def send(self, message: Any) -> None:
        """Send anything that JSON can hold. Does nothing once the other side has gone."""
        data = json.dumps(message, separators=(",", ":")).encode()
        self._send(_LENGTH.pack(len(data)) + data)

    def fail(self, sentence: str) -> None:
        """Send that this side ends for a failure, whatever the other side waits for."""
        self.send([_FAIL, sentence])

    def beat(self) -> None:
        """Send a sign of life."""
        self._send(_BEAT)

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message; `CLOSED` once the other side has gone.

        Raises:
            queue.Empty: nothing came in time.
        """
        found = self._received.get(timeout=timeout_s)
        if found is CLOSED:
            self._received.put(CLOSED)
        return found

    def close(self) -> None:
        """End the connection; messages that were sent still arrive."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _send(self, data: bytes) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(data)

    def _read(self) -> None:
        try:
            with self._connection.makefile("rb") as stream:
                while head := stream.read(_LENGTH.size):
                    (count,) = _LENGTH.unpack(head)
                    if count > _MOST_BYTES:
                        break
                    data = stream.read(count)
                    self.heard_s = time.monotonic()
                    if count:
                        self._take(json.loads(data))
        except unless_signalled(OSError, ValueError, struct.error):
            pass
        self.closed.set()
        self._received.put(CLOSED)
        self.on_end()

    def _take(self, message: Any) -> None:
        if isinstance(message, list) and message[:1] == [_FAIL]:
            self.failure = str(message[1])
            self.on_end()
        else:
            self._received.put(message)
