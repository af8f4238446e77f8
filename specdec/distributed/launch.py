"""Starts one process for each rank, here or over ssh, and stays until they end.

The environment is the one that `mlx.launch` makes, and a host file is the one that it reads, so either may start the
ranks. In addition the words of the terminal go to rank 0 alone, ports are chosen, and the exit code is rank 0's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from specdec.distributed.environment import RANKS_VARIABLE
from specdec.errors import DistributedError, InvalidArgumentError
from specdec.interrupts import unless_signalled

BACKENDS = ("ring", "jaccl", "nccl")
LOOPBACK = "127.0.0.1"
REMOTE_PORT = 32323  # of the first rank, where machines of others listen
_FREE = range(20000, 32000)  # where ports are chosen
_GRACE_S = 5.0  # for ranks to end by themselves once one has
_SHORT_S = 1.0  # the same after a failure, and before a rank is killed
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Host:
    """A rank's machine.

    Attributes:
        ssh: name for ssh; the loopback address is this machine.
        ips: addresses that other ranks reach it by.
        rdma: devices that reach the other ranks, for `jaccl`.
    """

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[Any, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether its processes are started without ssh."""
        return self.ssh in (LOOPBACK, "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to start.

    Attributes:
        hosts: of every rank.
        backend: of MLX.
        port: of the first rank, the others count up; None chooses free ones.
        environment: variables for every rank.
        python: interpreter of other machines; None is this one's path.
    """

    hosts: tuple[Host, ...]
    backend: str
    port: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    python: str | None = None


def read_hosts(path: str | Path) -> tuple[tuple[Host, ...], str, dict[str, str]]:
    """Hosts, backend ("" if it names none) and variables of a host file of `mlx.launch`.

    Raises:
        InvalidArgumentError: it cannot be read.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        listed = found["hosts"] if isinstance(found, dict) else found
        hosts = tuple(Host(one["ssh"], tuple(one.get("ips", ())), tuple(one.get("rdma", ()))) for one in listed)
        backend = found.get("backend", "") if isinstance(found, dict) else ""
        given = found.get("envs", []) if isinstance(found, dict) else []
        environment = dict(one.split("=", 1) for one in given)
    except unless_signalled(OSError) as error:
        raise InvalidArgumentError(f"the host file {path} cannot be read: {error.strerror}") from None
    except unless_signalled(ValueError, TypeError, KeyError, AttributeError):
        raise InvalidArgumentError(
            f'the host file {path} must be JSON as mlx.launch reads it: [{{"ssh": "NAME", "ips": ["ADDRESS"]}}, …]'
        ) from None
    if not hosts:
        raise InvalidArgumentError(f"the host file {path} lists no host")
    return hosts, backend, environment


def launch(plan: Plan, command: Sequence[str]) -> int:
    """Start a command on every rank and wait for the end.

    Args:
        plan: where.
        command: words of the program; the same on all ranks.

    Returns:
        The exit code of rank 0, or that of the rank whose failure ended all.

    Raises:
        InvalidArgumentError: a host lacks what the backend needs, or a port is in use.
        DistributedError: a process could not be started.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="specdec-"))
        variables, files = _variables(plan)
        ranks: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, ranks)
        stack.enter_context(_signals_to(ranks))
        for rank, host in enumerate(plan.hosts):
            own = {**variables, **plan.environment, "MLX_RANK": str(rank)}
            if plan.backend == "nccl":
                own["CUDA_VISIBLE_DEVICES"] = _device(plan.hosts, rank)
            if host.is_here:
                ranks.append(_start_here(rank, command, own, files, Path(folder)))
            else:
                ranks.append(_start_there(host, plan.python, rank, command, own, files))
        return _wait(ranks, plan)


def _variables(plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
    """Variables of all ranks, and contents of files that variables name."""
    hosts, ranks = plan.hosts, str(len(plan.hosts))
    if len(hosts) == 1:
        return {RANKS_VARIABLE: "1"}, {}
    if any(not host.ips for host in hosts):
        raise InvalidArgumentError("every host needs an address that the others reach it by ('ips' in the host file)")
    ports = _ports(plan)
    variables = {RANKS_VARIABLE: ranks}
    if plan.backend == "ring":
        addresses = [[f"{ip}:{port}" for ip in host.ips] for host, port in zip(hosts, ports, strict=True)]
        return variables, {"MLX_HOSTFILE": json.dumps(addresses)}
    leader = hosts[0].ips[0]
    if plan.backend == "nccl":
        # Multicast over NVLink adds in another order, and some machines lack it.
        nccl = {"NCCL_HOST_IP": leader, "NCCL_PORT": str(ports[0]), "MLX_WORLD_SIZE": ranks, "NCCL_NVLS_ENABLE": "0"}
        return variables | nccl, {}
    if any(len(host.rdma) != len(hosts) for host in hosts):
        raise InvalidArgumentError("jaccl needs a host file with the RDMA devices of every host ('rdma')")
    devices = json.dumps([list(host.rdma) for host in hosts])
    return variables | {"MLX_JACCL_COORDINATOR": f"{leader}:{ports[0]}"}, {"MLX_IBV_DEVICES": devices}


def _ports(plan: Plan) -> list[int]:
    """A port for every rank; those here are tried first.

    Raises:
        InvalidArgumentError: one is in use.
    """
    all_here = all(host.is_here for host in plan.hosts)
    if plan.port is None and all_here:
        return _free_ports([host.ips[0] for host in plan.hosts])
    first = REMOTE_PORT if plan.port is None else plan.port
    for rank, host in enumerate(plan.hosts):
        if not host.is_here:
            continue
        try:
            socket.create_server((host.ips[0], first + rank)).close()
        except unless_signalled(OSError, OverflowError) as error:
            raise InvalidArgumentError(
                f"port {first + rank} of {host.ips[0]} cannot be used ({error}): choose another with --port"
            ) from None
    return [first + rank for rank in range(len(plan.hosts))]


def _free_ports(addresses: Sequence[str]) -> list[int]:
    """A port of each address that nothing listens on, below those that systems give to outgoing connections."""
    found: list[int] = []
    for port in random.sample(_FREE, len(_FREE)):
        try:
            socket.create_server((addresses[len(found)], port)).close()
        except OSError:
            continue
        found.append(port)
        if len(found) == len(addresses):
            return found
    raise DistributedError("there is no free port for the ranks: give one with --port")


def _device(hosts: Sequence[Host], rank: int) -> str:
    """The GPU of a rank: the next of its machine."""
    number = [host.ssh for host in hosts[:rank]].count(hosts[rank].ssh)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if hosts[rank].is_here else ""
    devices = visible.split(",") if visible else []
    return devices[number] if number < len(devices) else str(number)


def _start_here(
    rank: int, command: Sequence[str], own: dict[str, str], files: dict[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    for name, content in files.items():
        path = folder / f"{name}-{rank}.json"
        path.write_text(content, encoding="utf-8")
        own[name] = str(path)
    silent: Any = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            list(command),
            env={**os.environ, **own},
            stdin=None if rank == 0 else silent,
            stdout=None if rank == 0 else silent,
        )
    except unless_signalled(OSError) as error:
        raise DistributedError(f"rank {rank} cannot be started: {command[0]}: {error.strerror}") from None


def _start_there(
    host: Host, python: str | None, rank: int, command: Sequence[str], own: dict[str, str], files: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Over ssh, in the folder of this process if it exists there."""
    words = [python or word if word == sys.executable else word for word in command]
    script = [f"cd {shlex.quote(str(Path.cwd()))} 2>/dev/null || true"]
    script += [f"export {name}={shlex.quote(value)}" for name, value in own.items()]
    for name, content in files.items():
        script += [f"{name}=$(mktemp)", f"printf %s {shlex.quote(content)} > ${name}", f"export {name}"]
    script.append(f"exec {shlex.join(words)}")
    terminal = ["-t"] if rank == 0 and sys.stdin is not None and sys.stdin.isatty() else []
    silent: Any = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            ["ssh", *terminal, "-o", "LogLevel=QUIET", host.ssh, "; ".join(script)],
            stdin=None if rank == 0 else silent,
            stdout=None if rank == 0 else silent,
        )
    except unless_signalled(OSError) as error:
        raise DistributedError(f"rank {rank} cannot be started: ssh: {error.strerror}") from None


def _wait(ranks: list[subprocess.Popen[bytes]], plan: Plan) -> int:
    """Wait until rank 0 has ended, or another one has failed."""
    while True:
        codes = [process.poll() for process in ranks]
        if codes[0] is not None:
            _wait_for(ranks, _SHORT_S if codes[0] else _GRACE_S)
            failed = next((rank for rank, code in enumerate(codes) if code is not None and code < 0), None)
            if failed is not None:
                _report(failed, codes[failed], plan, others=[process.poll() for process in ranks])
            return codes[0] if codes[0] >= 0 else 128 - codes[0]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            _wait_for(ranks[:1], _GRACE_S)  # rank 0 notices, and says so
            if (code := ranks[0].poll()) is not None and code > 0:
                return code
            _report(failed, codes[failed], plan, others=[])
            _end(ranks)
            code = codes[failed] or 1
            return code if code > 0 else 128 - code
        time.sleep(_POLL_S)


def _report(rank: int, code: int | None, plan: Plan, *, others: Sequence[int | None]) -> None:
    """Name a rank that failed, unless another one has said so before it ended."""
    if 1 in others:
        return
    how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    print(f"specdec: error: rank {rank} ({plan.hosts[rank].ssh}) {how}: all ranks end", file=sys.stderr, flush=True)


def _wait_for(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in ranks):
        time.sleep(_POLL_S)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: first asked, then made."""
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    _wait_for(ranks, _SHORT_S)
    for process in ranks:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextlib.contextmanager
def _signals_to(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Meanwhile rank 0 gets the signals that ask this process to end. The terminal sends it an interrupt itself."""

    def hand_on(number: int, _frame: FrameType | None) -> None:
        if ranks and ranks[0].poll() is None:
            ranks[0].send_signal(number)

    former = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None:
            interrupt = name == "SIGINT" and sys.stdin is not None and sys.stdin.isatty()
            former[number] = signal.signal(number, (lambda *_: None) if interrupt else hand_on)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
