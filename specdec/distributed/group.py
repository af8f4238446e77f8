"""The ranks that run models together: `join` makes this process one of them.

Rows go through `mlx.core.distributed`; everything else that ranks say to each other goes through `link`.
"""

from __future__ import annotations

import atexit
import hmac
import os
import secrets
import socket
import statistics
import threading
import time
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.distributed.environment import Place, find_place, may_share_memory, timeout_s
from specdec.distributed.link import Link
from specdec.distributed.watch import Watch, end_now
from specdec.errors import DistributedError
from specdec.interrupts import unless_signalled

_CARD_BYTES = 512  # what a rank says of itself when the group forms
_TOKEN_BYTES = 16


class Group:
    """This process and the others.

    Args:
        world: group of `mlx.core.distributed`.
        place: where this process stands.

    Attributes:
        rank, ranks: as `specdec.runtimes.share.Exchange` has them.
        backend: of MLX.
        hosts: name of every rank's machine.
        links: of rank 0 to all others in their order, of any other rank to rank 0.
        watch: over them.
    """

    def __init__(self, world: Any, place: Place) -> None:
        import mlx.core as mx

        self._mx, self._world = mx, world
        self.rank, self.ranks, self.backend = int(world.rank()), int(world.size()), place.backend
        # NCCL works on GPUs alone, all others on the processor.
        self._stream = mx.gpu if place.backend == "nccl" else mx.cpu
        self._has_met = False
        self.hosts, self.links = _meet(self, place)
        self._has_met = True
        self.watch = Watch(self.rank, self.links, timeout_s())

    @property
    def neighbours(self) -> int:
        """Ranks on this machine, this one among them."""
        return self.hosts.count(self.hosts[self.rank])

    @property
    def reaches_memory(self) -> bool:
        """Whether GPUs may write into each other's memory: all on this machine, unless the environment forbids it."""
        return self.neighbours == self.ranks and may_share_memory()

    @property
    def world(self) -> Any:
        """The group of `mlx.core.distributed`."""
        return self._world

    def collect(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """The arrays of all ranks, (ranks, *own.shape), from this one's; see `Exchange.collect`."""
        if self.ranks == 1:
            return own[None]
        mx = self._mx
        try:
            found = mx.distributed.all_gather(mx.array(own), group=self._world, stream=self._stream)
            mx.eval(found)
        except unless_signalled(RuntimeError) as error:
            if not self._has_met:
                raise
            self.watch.lost(error)
        return np.asarray(found).reshape(self.ranks, *own.shape)

    def collect_array(self, own: Any) -> Any:
        """The same of MLX arrays inside a graph on a GPU: (ranks, *own.shape)."""
        if self.ranks == 1:
            return own[None]
        return self._mx.distributed.all_gather(own[None], group=self._world, stream=self._stream)

    def hand_on(self, rows: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
        """Rows of rank `source` on rank `target`, its neighbour; on others `rows` as it is."""
        if source == target:
            return rows
        if self.backend == "nccl":  # which cannot send to one rank alone
            found = self.collect(rows)
            return found[source] if self.rank == target else rows
        if self.rank not in (source, target):
            return rows
        mx = self._mx
        try:
            if self.rank == source:
                mx.eval(mx.distributed.send(mx.array(rows), target, group=self._world, stream=self._stream))
                return rows
            found = mx.distributed.recv(rows.shape, mx.float32, source, group=self._world, stream=self._stream)
            mx.eval(found)
            return np.asarray(found)
        except unless_signalled(RuntimeError) as error:
            self.watch.lost(error)

    def gather_s(self, size: int, repeat: int) -> float:
        """Median seconds of a gather of `size` values of each rank; to be called on all ranks."""
        own, taken = np.ones(size, np.float32), []
        for _ in range(repeat + 2):
            start = time.perf_counter()
            self.collect(own)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[2:])

    def close(self) -> None:
        """Tell the others that this is the end, and expect theirs."""
        self.watch.stop()
        for link in self.links:
            if self.rank == 0:
                link.send(["end"])
            link.close()


@cache
def join() -> Group:
    """The group that a launcher has started this process in; the same one at every call.

    Raises:
        DistributedError: nothing has started it so, or the others cannot be reached.
    """
    place = find_place()
    if place is None:
        raise DistributedError("this process is not one of several: start it with specdec launch, or mlx.launch")
    import mlx.core as mx

    waiting = threading.Timer(4 * timeout_s(), _give_up, [place.rank, 4 * timeout_s()])
    waiting.daemon = True
    waiting.start()
    try:
        if place.backend == "nccl":
            mx.set_default_device(mx.gpu)
        world = mx.distributed.init(strict=_is_many(place), backend=place.backend)
        group = Group(world, place)
    except unless_signalled(RuntimeError, ValueError) as error:
        raise DistributedError(_worded(str(error), place)) from None
    finally:
        waiting.cancel()
    atexit.register(group.close)
    return group


def _is_many(place: Place) -> bool:
    return not (place.backend == "ring" and not os.environ.get("MLX_HOSTFILE"))


def _give_up(rank: int, seconds: float) -> None:
    import sys

    if rank == 0:
        print(
            f"specdec: error: not all ranks have come within {seconds:g} s: is the command the same everywhere, and "
            "can they reach each other?",
            file=sys.stderr,
            flush=True,
        )
    end_now()


def _worded(error: str, place: Place) -> str:
    """MLX's error as a sentence."""
    if "bind" in error.lower() or "98" in error or "in use" in error.lower():
        return f"rank {place.rank} cannot listen on its port, which is in use: choose another with --port ({error})"
    return f"rank {place.rank} cannot reach the others: {error}"


def _meet(group: Group, place: Place) -> tuple[list[str], list[Link]]:
    """Names of all machines, and the links: rank 0 listens, and tells where through a collective."""
    host = socket.gethostname()
    card = host
    if group.rank == 0:
        listener = socket.create_server((place.leader, 0) if place.leader else ("", 0), backlog=group.ranks)
        token = secrets.token_hex(_TOKEN_BYTES)
        card = f"{host} {place.leader} {listener.getsockname()[1]} {token}"
    cards = [_read_card(part) for part in group.collect(_write_card(card))]
    hosts = [text.split()[0] for text in cards]
    _, address, port, token = cards[0].split()
    if group.rank == 0:
        with listener:
            return hosts, _accept(listener, token, group.ranks, hosts)
    connection = socket.create_connection((address, int(port)), timeout=timeout_s())
    connection.sendall(f"{token} {group.rank:6d}".encode())
    return hosts, [Link(connection, 0, hosts[0])]


def _accept(listener: socket.socket, token: str, ranks: int, hosts: list[str]) -> list[Link]:
    """The links of rank 0. Connections that do not know the token are turned away."""
    links: dict[int, Link] = {}
    end = time.monotonic() + timeout_s()
    while len(links) < ranks - 1:
        listener.settimeout(max(0.1, end - time.monotonic()))
        try:
            connection, _ = listener.accept()
            connection.settimeout(5)
            said = _exactly(connection, len(token) + 7).decode("ascii", errors="replace")
        except unless_signalled(OSError):
            if time.monotonic() > end:
                missing = [str(rank) for rank in range(1, ranks) if rank not in links]
                raise DistributedError(f"rank {', '.join(missing)} did not connect to rank 0") from None
            continue
        rank = int(said[-6:]) if said[-6:].strip().isdigit() else 0
        if not hmac.compare_digest(said[:-7].encode(), token.encode()) or not 0 < rank < ranks:
            connection.close()
            continue
        links[rank] = Link(connection, rank, hosts[rank])
    return [links[rank] for rank in sorted(links)]


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


def _write_card(text: str) -> NDArray[np.float32]:
    """Text as numbers that every backend carries."""
    data = text.encode()[:_CARD_BYTES].ljust(_CARD_BYTES)
    return np.frombuffer(data, np.uint8).astype(np.float32)


def _read_card(numbers: NDArray[np.float32]) -> str:
    return numbers.astype(np.uint8).tobytes().decode(errors="replace").strip()
