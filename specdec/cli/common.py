"""Shared by subcommands: options, examples in help, readable numbers, checks of output files."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from specdec.cli.consent import add_licence_option, consent_of
from specdec.distributed.environment import SPLITS
from specdec.errors import InvalidArgumentError
from specdec.interrupts import take_interrupt
from specdec.progress import StreamProgress

if TYPE_CHECKING:
    import specdec

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

Outcome = TypeVar("Outcome")
MODEL_HELP = (
    "a catalogue name, ORG/NAME[:FILE] of the Hugging Face hub, a .gguf file, a Hugging Face folder, or a store"
)
_EXAMPLES = "examples:"


class HelpFormatter(argparse.HelpFormatter):
    """Wraps text, but keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


def examples(*lines: str) -> dict[str, Any]:
    """Arguments of `add_parser` that end a command's help with examples, one a line."""
    return {"epilog": "\n  ".join((_EXAMPLES, *lines)), "formatter_class": HelpFormatter}


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument MODEL."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Add --runtime, --threads, --context and --accept-licence, which `load_model` obeys."""
    parser.add_argument("--runtime", default="auto", help="auto, native, mlx or reference (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads to compute with (default: the runtime's choice)"
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="load the model for N tokens of prompt and answer (default: the model's own context)",
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="divide the model among N processes of this machine (see launch)"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="how --ranks divide it (default: auto)",
    )
    add_licence_option(parser)


def load_model(arguments: argparse.Namespace, *, load_share: float = 1.0) -> specdec.Model:
    """Load the model of MODEL or --model, with the options of `add_runtime_options`."""
    import specdec

    return specdec.load(
        arguments.model,
        accept_licence=consent_of(arguments),
        runtime=arguments.runtime,
        threads=arguments.threads,
        context=arguments.context,
        load_share=load_share,
        remeasure=getattr(arguments, "remeasure", False),  # commands without a policy have no such option
    )


def add_remeasure_option(parser: argparse.ArgumentParser) -> None:
    """Add --remeasure, for commands whose policy goes by what passes cost."""
    parser.add_argument(
        "--remeasure",
        action="store_true",
        help="measure the costs of passes again, for instance if the machine was busy the first time",
    )


def readable_bytes(count: float) -> str:
    """A byte count with a decimal unit, three figures or so."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def on_one_line(text: object) -> str:
    """A name or path as one line of a list: what no terminal shows, such as a line break, is escaped as in Python."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text))


def interruptible(work: Callable[[StreamProgress], Outcome]) -> Outcome | None:
    """What `work` returns; None if the user interrupts it, with a note that the same command continues."""
    progress = StreamProgress()
    try:
        return work(progress)
    except KeyboardInterrupt as interrupt:
        take_interrupt(interrupt)
        progress.close()
        print("specdec: interrupted; the same command continues from here", file=sys.stderr)
        return None
    finally:
        progress.close()


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse files of --csv, --resume and --report that could not be written after a long run.

    Raises:
        InvalidArgumentError: see `check_writable` and `check_report`.
    """
    for name in ("csv", "resume"):
        if (path := getattr(arguments, name, None)) is not None:
            check_writable(f"--{name}", path)
    if arguments.report is not None:
        check_report(arguments.report)


def check_writable(option: str, path: str) -> None:
    """Refuse a file that could not be written later, before the work that it is to report on.

    Raises:
        InvalidArgumentError: the path is a folder or "-", or it or its folder cannot be written.
    """
    target = Path(path)
    if path == "-":
        raise InvalidArgumentError(f"{option} needs the name of a file: /dev/stdout is standard output")
    if target.is_dir():
        raise InvalidArgumentError(f"{option} {path} is a folder: name a file")
    if target.is_symlink() and not target.exists():
        target = Path(os.path.realpath(target))  # a link to a file that is not there yet is followed
    if not target.parent.is_dir():
        raise InvalidArgumentError(f"{option} {path}: the folder {target.parent} does not exist")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InvalidArgumentError(f"{option} {path} cannot be written: permission denied")


def check_report(path: str) -> None:
    """Refuse a folder of plots that could not be made later.

    Raises:
        InvalidArgumentError: matplotlib is not installed, the path is a file, or it cannot be created.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidArgumentError("--report needs matplotlib: pip install 'specdec-mlx[report]'")
    target = Path(path)
    existing = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    if existing == target and not target.is_dir():
        raise InvalidArgumentError(f"--report {path} is a file: name a folder")
    if not existing.is_dir():
        raise InvalidArgumentError(f"--report {path}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InvalidArgumentError(f"--report {path} cannot be written: permission denied")


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from "4,4,8"; an argparse type.

    Raises:
        argparse.ArgumentTypeError: a part is not a whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers with commas between, such as 4,4,8, not {text!r}"
        ) from None
