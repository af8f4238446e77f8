"""The `specdec` command: its parser, and how every subcommand ends. What a subcommand does lives in its own module.

Exit codes: 0 done; 1 a check or a plug-in failed; 2 a user's mistake, reported in one sentence; 3 a measurement
that was too noisy to tell anything; 130 interrupted; 129 and 143 ended by SIGHUP and SIGTERM; 141 the reader of the
output went away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from specdec.cli.commands import COMMANDS
from specdec.cli.signals import Ended, Ending, ending, is_signals_doing
from specdec.cli.startup import EXIT_INTERRUPTED
from specdec.cli.streams import prepared
from specdec.errors import InvalidArgumentError, OptionError, PluginError, SpecdecError
from specdec.message_stream import drop
from specdec.version import version

# With this variable set, an unexpected error prints its traceback.
TRACEBACK_VARIABLE = "SPECDEC_TRACEBACK"

_FORESEEN = (SpecdecError, OSError, MemoryError)

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_CLOSED_PIPE = 141


class _MissingError(InvalidArgumentError):
    """A command line lacks an argument."""


class _Parser(argparse.ArgumentParser):
    """A parser that reports mistakes like every other command: one sentence, no usage text before it.

    An option that takes one value takes the next word for it, also one that begins with a dash, unless that word is an
    option of this command itself.
    """

    def error(self, message: str) -> NoReturn:
        kind = _MissingError if "arguments are required" in message else InvalidArgumentError
        hint = "; write --option=VALUE for a value that looks like an option" * message.endswith(
            "expected one argument"
        )
        raise kind(f"{message}{hint} (see {self.prog} --help)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if not rest:
            return found
        parser: argparse.ArgumentParser = self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parser = action.choices[getattr(found, action.dest)]
        close = get_close_matches(rest[0].split("=", 1)[0], parser._option_string_actions, n=1, cutoff=0.76)
        hint = f"; there is {close[0]}" if close else ""
        raise InvalidArgumentError(f"unrecognized arguments: {' '.join(rest)}{hint} (see {parser.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(self._joined(sys.argv[1:] if args is None else args), namespace)

    def _joined(self, words: Sequence[str]) -> list[str]:
        """`words` with values that begin with a dash joined to their options, as `--stop=---`."""
        joined, rest = list[str](), list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*joined, word, *rest]
            action = self._option_string_actions.get(word)
            takes_one = action is not None and action.nargs is None and word.startswith("--")
            if takes_one and rest and rest[0].startswith("-") and not self._is_option(rest[0]):
                word = f"{word}={rest.pop(0)}"
            joined.append(word)
        return joined

    def _is_option(self, word: str) -> bool:
        return word.split("=", 1)[0] in self._option_string_actions


def build_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        words: that it is to parse; commands that are not among them get no options, and their modules are not imported,
            so that `--help` comes at once. None for all commands with their options.
    """
    parser = _Parser(
        prog="specdec",
        description="Speculative decoding without a second model: drafts at low effort, verifies in one batched pass.",
    )
    parser.add_argument("--version", action="version", version=f"specdec {version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if words is None or name in words:
            importlib.import_module(f"specdec.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: arguments after the program name; those of the process when None.

    Returns:
        The exit code.
    """
    with prepared(), ending(for_good=argv is None) as signalled:
        try:
            signalled.begin()
            code = _told(argv, signalled)
            signalled.is_over = True
        except KeyboardInterrupt:
            signalled.is_over = True
            print("specdec: interrupted", file=sys.stderr)
            code = EXIT_INTERRUPTED
        except Ended as ended:
            signalled.is_over = True
            print(f"specdec: ended by {ended.name}", file=sys.stderr)
            code = ended.status
        return code


def _told(argv: Sequence[str] | None, signalled: Ending) -> int:
    """Run a command line; every error becomes a sentence and an exit code.

    Raises:
        KeyboardInterrupt: the command is interrupted.
        Ended: a signal asks it to end.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _run(argv)
        if sys.stdout is not None:  # it is None when the caller closed it
            sys.stdout.flush()
        return code
    except Exception as error:
        # Code on the way may have made something else of the exception; code in C does not say of what.
        if is_signals_doing(error) or (signalled.has_just_come and not isinstance(error, _FORESEEN)):
            raise signalled.exception() from None
        return _failure(error)


def _failure(error: Exception) -> int:
    """Say in a sentence what went wrong.

    Returns:
        The exit code.
    """
    if isinstance(error, OptionError):
        from specdec.engine.options import flag_of

        return _complain(error.worded(flag_of))
    if isinstance(error, PluginError):
        return _complain(str(error), code=EXIT_FAILED)
    if isinstance(error, SpecdecError):
        return _complain(str(error))
    if isinstance(error, BrokenPipeError):
        drop(sys.stdout, sys.stderr)
        return EXIT_CLOSED_PIPE
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # it is the output that cannot be written: the interpreter's last flush would say so again
            drop(sys.stdout)
        return _complain(f"{error.strerror or error}{where}")
    if isinstance(error, MemoryError):
        return _complain("not enough memory for this model")
    if os.environ.get(TRACEBACK_VARIABLE):
        raise error
    said = str(error).encode(errors="replace").decode()[:300]
    return _complain(f"unexpected {type(error).__name__}: {said} ({TRACEBACK_VARIABLE}=1 shows where)")


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = parse(list(sys.argv[1:] if argv is None else argv))
    except Ended:
        raise
    except SystemExit as stop:  # argparse's way to end after --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    arguments.words = list(sys.argv[1:] if argv is None else argv)  # for records of what was asked
    from specdec.cli.launch import follows, run_in_ranks
    from specdec.cli.output import check_apart

    check_apart(arguments)
    if (code := run_in_ranks(arguments, arguments.words)) is not None:
        return code
    if follows(arguments):
        from specdec.distributed.follower import follow

        return follow()
    return int(arguments.run(arguments))


def parse(words: list[str]) -> argparse.Namespace:
    """Parse a command line. A word after `--json` is its file, unless the command would lack an argument then.

    Raises:
        InvalidArgumentError: it has a mistake.
        SystemExit: it asks for help or the version, which is printed.
    """
    try:
        return build_parser(words).parse_args(words)
    except _MissingError:
        before = words[: words.index("--")] if "--" in words else words
        if "--json" not in before:
            raise
        found = before.index("--json")
        return build_parser(words).parse_args([*words[:found], "--json=-", *words[found + 1 :]])


def _complain(sentence: str, *, code: int = EXIT_MISTAKE) -> int:
    print(f"specdec: error: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as a sentence, without the place in the code that gave it."""
    print(f"specdec: warning: {' '.join(str(message).split())}", file=sys.stderr)
