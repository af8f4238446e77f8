"""What a launcher has written into the environment of a process: which rank it is, and how ranks reach each other."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from specdec.errors import DistributedError, InvalidArgumentError
from specdec.interrupts import unless_signalled

RANKS_VARIABLE = "SPECDEC_RANKS"
SPLIT_VARIABLE = "SPECDEC_SPLIT"
TIMEOUT_VARIABLE = "SPECDEC_RANK_TIMEOUT_S"
PEERS_VARIABLE = "SPECDEC_PEER_MEMORY"
SPLITS = ("auto", "outputs", "layers")
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands.

    Attributes:
        rank: its number, from 0.
        backend: of MLX: "ring", "jaccl", "nccl" or "mpi".
        leader: address of rank 0 as the others reach it.
    """

    rank: int
    backend: str
    leader: str


def find_place() -> Place | None:
    """Where this process stands; None where no launcher has started it as one of several.

    Raises:
        DistributedError: the environment contradicts itself.
    """
    environment = os.environ
    if "OMPI_COMM_WORLD_SIZE" in environment and "MLX_RANK" not in environment:
        return Place(int(environment.get("OMPI_COMM_WORLD_RANK", "0")), "mpi", "127.0.0.1")
    if "MLX_RANK" not in environment:
        return None
    rank = _whole("MLX_RANK")
    if "MLX_JACCL_COORDINATOR" in environment:
        return Place(rank, "jaccl", environment["MLX_JACCL_COORDINATOR"].rsplit(":", 1)[0])
    if "NCCL_HOST_IP" in environment:
        return Place(rank, "nccl", environment["NCCL_HOST_IP"])
    hosts = _ring_hosts()
    if not hosts:
        return Place(rank, "ring", "127.0.0.1") if environment.get(RANKS_VARIABLE) == "1" else None
    if rank >= len(hosts):
        raise DistributedError(f"MLX_RANK is {rank}, but the host file lists {len(hosts)} ranks")
    return Place(rank, "ring", hosts[0][0].rsplit(":", 1)[0])


def is_follower() -> bool:
    """Whether this process is one of several and not the first: it does what rank 0 tells it."""
    place = find_place()
    return place is not None and place.rank > 0


def timeout_s() -> float:
    """Seconds without a sign of life after which a rank counts as dead.

    Raises:
        InvalidArgumentError: the environment holds something else than a positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    try:
        seconds = DEFAULT_TIMEOUT_S if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise InvalidArgumentError(f"{TIMEOUT_VARIABLE} must be a positive number of seconds, not {text!r}")
    return seconds


def may_share_memory() -> bool:
    """Whether GPUs may write into each other's memory: unless `SPECDEC_PEER_MEMORY` is 0.

    Raises:
        InvalidArgumentError: the variable is neither 0 nor 1.
    """
    text = os.environ.get(PEERS_VARIABLE, "1")
    if text not in ("0", "1"):
        raise InvalidArgumentError(f"{PEERS_VARIABLE} must be 0 or 1, not {text!r}")
    return text == "1"


def wanted_split() -> str:
    """How the launcher was asked to divide models.

    Raises:
        InvalidArgumentError: the environment names no such way.
    """
    split = os.environ.get(SPLIT_VARIABLE, "auto")
    if split not in SPLITS:
        raise InvalidArgumentError(f"{SPLIT_VARIABLE} must be {', '.join(SPLITS)}, not {split!r}")
    return split


def _ring_hosts() -> list[list[str]]:
    """Addresses of every rank, from the file that MLX's ring reads."""
    path = os.environ.get("MLX_HOSTFILE", "")
    if not path:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
        hosts = json.loads(text) if text else []
        return [[str(address) for address in one] for one in hosts]
    except unless_signalled(OSError, ValueError, TypeError) as error:
        raise DistributedError(f"MLX_HOSTFILE {path} cannot be read: {error}") from None


def _whole(name: str) -> int:
    text = os.environ[name]
    if not text.isdigit():
        raise DistributedError(f"{name} must be a whole number of at least 0, not {text!r}")
    return int(text)
