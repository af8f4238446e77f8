"""`specdec chat`: a conversation with a model at the terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from specdec.catalogue import DEFAULT_MODEL
from specdec.chat.commands import Commands
from specdec.chat.conversation import Conversation
from specdec.chat.reader import InputReader, TerminalReader, has_prompt_toolkit, plain_lines
from specdec.chat.session import Session
from specdec.cli.commands import COMMANDS
from specdec.cli.common import MODEL_HELP, Subparsers, add_runtime_options, examples, load_model
from specdec.cli.options import add_option, check_options
from specdec.cli.prompt import system_text
from specdec.cli.statistics import report
from specdec.engine.option_checks import check_useful
from specdec.engine.options import FLAGS
from specdec.errors import SpecdecError
from specdec.interrupts import take_interrupt
from specdec.server.events import ReasoningDelta, TextDelta

_OPTIONS = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "draft_effort", "draft_view", "verify_effort",
    "draft_len", "policy", "drafter", "speculate", "chat_template_kwargs",
)  # fmt: skip
_DIM, _RESET = "\x1b[2m", "\x1b[0m"


def add_parser(subparsers: Subparsers) -> None:
    """Add `chat` to the command line."""
    parser = subparsers.add_parser(
        "chat",
        help=COMMANDS["chat"],
        description="Talk with a model. Enter sends; Alt-Enter, or a backslash at the end of a line, begins another "
        "line; Ctrl-C ends an answer; /help lists commands. Without a terminal, each line of input is a question.",
        **examples(
            "specdec chat qwen2.5-coder-0.5b",
            "printf 'Name a river.\\nAnother.\\n' | specdec chat qwen2.5-coder-0.5b",
        ),
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: %(default)s)"
    )
    add_runtime_options(parser)
    parser.add_argument("--system", metavar="TEXT", default="", help="a system message before the conversation")
    parser.add_argument("--load", metavar="FILE", help="continue a conversation that /save wrote")
    parser.add_argument("--stats", action="store_true", help="print statistics after every answer")
    for name in _OPTIONS:
        add_option(parser, name)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the user leaves or the input ends."""
    given = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
    options: dict[str, Any] = {n: dict(v) if FLAGS[n].kind is dict else v for n, v in given.items()}
    check_options(options)
    check_useful(options)
    conversation = Conversation() if arguments.load is None else Conversation.load(Path(arguments.load))
    conversation.system = system_text(arguments) or conversation.system
    options.setdefault("max_tokens", 2048)
    session = Session(load_model(arguments), options, conversation)
    commands = Commands(
        session,
        load=lambda name: load_model(argparse.Namespace(**{**vars(arguments), "model": name})),
        report=lambda result, stream: report(result, session.options, stream),
        out=sys.stdout,
        name=arguments.model,
    )
    is_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()
    talk = _Talk(commands, has_colours=is_terminal and _may_colour(), has_stats=arguments.stats)
    if not is_terminal:
        for line in plain_lines(sys.stdin.buffer) if sys.stdin is not None else ():
            talk.hear(line)
            if commands.is_over:
                break
        return 0
    reader = TerminalReader(commands.names) if has_prompt_toolkit() else InputReader()
    print(f"{arguments.model} on {session.model.runtime.info.name}; /help lists commands", file=sys.stderr)
    _converse(talk, reader.ask)
    return 0


def _converse(talk: _Talk, ask: Callable[[], str]) -> None:
    """Ask and answer at a terminal; Ctrl-C twice at an empty prompt leaves, and so does Ctrl-D."""
    has_interrupted = False
    while not talk.commands.is_over:
        try:
            line = ask()
        except EOFError:
            return
        except KeyboardInterrupt as interrupt:
            take_interrupt(interrupt)
            if has_interrupted:
                return
            print("(Ctrl-C again, Ctrl-D or /exit leaves)", file=sys.stderr)
            has_interrupted = True
            continue
        has_interrupted = False
        with _told():
            talk.hear(line)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say what went wrong, and go on."""
    try:
        yield
    except SpecdecError as error:
        print(f"specdec: {' '.join(str(error).split())}", file=sys.stderr)
    except MemoryError:  # the conversation outlives a model that is too large
        print("specdec: not enough memory for that", file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        take_interrupt(interrupt)
        print(file=sys.stderr)


class _Talk:
    """Handles the user's lines.

    Args:
        commands: and the session that they change.
        has_colours: reasoning may be dimmed.
        has_stats: statistics follow every answer.
    """

    def __init__(self, commands: Commands, *, has_colours: bool, has_stats: bool) -> None:
        self.commands = commands
        self._has_colours, self._has_stats = has_colours, has_stats
        self._is_thinking = False
        self._last = ""

    def hear(self, line: str) -> None:
        """Carry out a command, or answer a question.

        Raises:
            SpecdecError: it cannot be done.
        """
        if line.startswith("/"):
            self.commands.run(line)
            question = self.commands.take_again()
            if question is None:
                return
        else:
            question = line.strip()
        if question:
            self._answer(question)

    def _answer(self, question: str) -> None:
        session = self.commands.session
        self._is_thinking, self._last = False, ""
        try:
            result = session.answer(question, self._show)
        finally:
            self._think(False)
        print(end="" if self._last.endswith("\n") else "\n", flush=True)
        if self._has_stats:
            self.commands.report(result, sys.stderr)

    def _show(self, event: TextDelta | ReasoningDelta) -> None:
        self._think(isinstance(event, ReasoningDelta))
        print(event.text, end="", flush=True)
        self._last = event.text or self._last

    def _think(self, is_thinking: bool) -> None:
        """Begin or end the reasoning's part of the output."""
        if is_thinking == self._is_thinking:
            return
        self._is_thinking = is_thinking
        if self._has_colours:
            print(_DIM if is_thinking else _RESET, end="")
        if not is_thinking:
            print("\n")


def _may_colour() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
