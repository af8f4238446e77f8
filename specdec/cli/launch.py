"""`specdec launch`: run a command in several processes that share its model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from specdec.cli.commands import COMMANDS
from specdec.cli.common import Subparsers, examples
from specdec.distributed.environment import (
    DEFAULT_TIMEOUT_S,
    SPLIT_VARIABLE,
    SPLITS,
    TIMEOUT_VARIABLE,
    find_place,
    is_follower,
)
from specdec.distributed.launch import BACKENDS, LOOPBACK, Host, Plan, launch, read_hosts
from specdec.errors import InvalidArgumentError

# Commands that load models: what ranks other than 0 follow.
FOLLOWED = ("generate", "chat", "serve", "bench", "eval", "tune")
_MOST_RANKS = 256


def add_parser(subparsers: Subparsers) -> None:
    """Add `launch` to the command line."""
    parser = subparsers.add_parser(
        "launch",
        help=COMMANDS["launch"],
        description="Run a command in several processes, on this machine or several, each of which holds a part of the "
        "model. Tokens equal those of one process. Rank 0 has the terminal; its exit code is that of the command.",
        **examples(
            "specdec launch -n 2 -- generate --model qwen2.5-coder-0.5b --prompt 'Why is the sky blue?'",
            "specdec launch --hostfile hosts.json -- serve ./model.gguf --port 8080",
            "specdec launch -n 2 -- python my_script.py",
        ),
    )
    parser.add_argument("-n", "--ranks", type=int, metavar="N", help="processes (default: those of the host file)")
    parser.add_argument("--hostfile", metavar="F", help="hosts of the ranks: JSON, as mlx.launch reads it")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="of MLX (default: the host file's; nccl with CUDA, else ring)"
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="P",
        help="port of rank 0, others count up (default: free ones, 32323 on several hosts)",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="auto", help="how matrices are divided (default: auto, by measured latency)"
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="seconds without a sign of life after which a rank counts as dead (default: %(default)g)",
    )
    parser.add_argument("--python", metavar="PATH", help="interpreter on other hosts (default: the path of this one)")
    parser.add_argument(
        "program", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="a command of specdec, or a program"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start the ranks, and wait for them."""
    words = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not words:
        raise InvalidArgumentError(
            "launch needs a command after --, such as: specdec launch -n 2 -- generate --prompt Hi"
        )
    if find_place() is not None:
        raise InvalidArgumentError("this process is one of several already: launch starts them, and is not one of them")
    plan = _plan(arguments)
    _check_command(words)
    return launch(plan, program(words))


def _check_command(words: Sequence[str]) -> None:
    """Refuse a command of specdec that cannot be parsed, here and once, instead of in every rank.

    Raises:
        InvalidArgumentError: it cannot.
    """
    from specdec.cli.main import parse

    if words[0] == "specdec":
        parse(list(words[1:]))
    elif words[0] in COMMANDS:
        parse(list(words))


def run_in_ranks(arguments: argparse.Namespace, words: Sequence[str]) -> int | None:
    """Run a command of this process in `--ranks` processes, where it asks for them.

    Args:
        arguments: parsed from `words`.
        words: of the command line.

    Returns:
        The exit code; None where this process shall run the command itself.

    Raises:
        InvalidArgumentError: `--split` without `--ranks`, or a number of processes out of range.
    """
    ranks = getattr(arguments, "ranks", None)
    if ranks is None and arguments.command != "launch" and getattr(arguments, "split", None) is not None:
        raise InvalidArgumentError("--split divides a model among --ranks: give both, or --split to specdec launch")
    if ranks is None or arguments.command == "launch" or find_place() is not None:
        return None
    namespace = argparse.Namespace(
        ranks=ranks,
        hostfile=None,
        backend=None,
        port=None,
        split=arguments.split or "auto",
        timeout_s=DEFAULT_TIMEOUT_S,
        python=None,
    )
    return launch(_plan(namespace, option="--ranks"), program(words))


def follows(arguments: argparse.Namespace) -> bool:
    """Whether this process is to follow rank 0 in place of running the command."""
    return arguments.command in FOLLOWED and is_follower()


def program(words: Sequence[str]) -> list[str]:
    """The program that words after `--` stand for: a command of specdec, a Python script, or any other."""
    if words[0] in COMMANDS:
        return [sys.executable, "-m", "specdec", *words]
    if words[0] == "specdec":
        return [sys.executable, "-m", "specdec", *words[1:]]
    if words[0] in ("python", "python3"):
        return [sys.executable, *words[1:]]
    return [sys.executable, *words] if words[0].endswith(".py") else list(words)


def _plan(arguments: argparse.Namespace, *, option: str = "-n") -> Plan:
    """What the options ask for.

    Args:
        arguments: of `launch`.
        option: that the number of processes was given with.

    Raises:
        InvalidArgumentError: one is out of range, or they contradict each other.
    """
    if arguments.ranks is not None and not 1 <= arguments.ranks <= _MOST_RANKS:
        raise InvalidArgumentError(f"{option} must be 1 to {_MOST_RANKS} processes, not {arguments.ranks}")
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise InvalidArgumentError(f"--port must be 1 to 65535, not {arguments.port}")
    if not arguments.timeout_s > 0:
        raise InvalidArgumentError(f"--timeout-s must be a positive number of seconds, not {arguments.timeout_s:g}")
    backend, environment = "", dict[str, str]()
    if arguments.hostfile is not None:
        hosts, backend, environment = read_hosts(arguments.hostfile)
        if arguments.ranks not in (None, len(hosts)):
            raise InvalidArgumentError(
                f"-n is {arguments.ranks}, but the host file {arguments.hostfile} lists {len(hosts)} hosts"
            )
    elif arguments.ranks is None:
        raise InvalidArgumentError("launch needs -n N, the number of processes, or --hostfile F")
    else:
        hosts = (Host(LOOPBACK, (LOOPBACK,)),) * arguments.ranks
    environment |= {SPLIT_VARIABLE: arguments.split, TIMEOUT_VARIABLE: f"{arguments.timeout_s:g}"}
    return Plan(
        hosts=hosts,
        backend=arguments.backend or backend or _backend(),
        port=arguments.port,
        environment=environment,
        python=arguments.python,
    )


def _backend() -> str:
    try:
        import mlx.core as mx

        return "nccl" if mx.cuda.is_available() and mx.distributed.is_available("nccl") else "ring"
    except (ImportError, AttributeError):
        return "ring"
