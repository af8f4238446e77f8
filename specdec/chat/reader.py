"""Reading what the user says: lines of a pipe, or a terminal with history and completion."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from specdec import paths
from specdec.errors import InvalidArgumentError

MOST_LINE_BYTES = 16 << 20
_MOST_HISTORY_BYTES = 1 << 20


def has_prompt_toolkit() -> bool:
    """Whether lines can be edited."""
    return importlib.util.find_spec("prompt_toolkit") is not None


def plain_lines(stream: BinaryIO) -> Iterator[str]:
    """Lines of a pipe or a file, without their ends; a question each.

    Raises:
        InvalidArgumentError: a line is not UTF-8, or longer than 16 MiB.
    """
    while data := stream.readline(MOST_LINE_BYTES):
        if len(data) == MOST_LINE_BYTES and not data.endswith(b"\n"):
            raise InvalidArgumentError("a line of the input is longer than 16 MiB")
        try:
            yield data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InvalidArgumentError("the input is not valid UTF-8") from None


def history_file() -> Path | None:
    """File of remembered lines, private to the user and kept small; None if it cannot be written."""
    path = paths.home() / "chat-history"
    try:
        paths.private_folder(path.parent)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size > _MOST_HISTORY_BYTES:
                file.seek(size - _MOST_HISTORY_BYTES // 2)
                kept = file.read().partition(b"\n\n")[2]  # entries begin after an empty line
                file.truncate(0)
                file.write(kept)
    except OSError:
        return None
    return path


class TerminalReader:
    """Asks at a terminal. Enter sends; Alt-Enter, or a backslash at the end of a line, begins another line.

    Args:
        commands: for completion with Tab.
    """

    def __init__(self, commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        file = history_file()
        self._session: Any = PromptSession(
            history=InMemoryHistory() if file is None else FileHistory(str(file)),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_keys(),
            enable_open_in_editor=True,
        )

    def ask(self) -> str:
        """What the user says.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        wakeup = signal.set_wakeup_fd(-1)  # the session takes it, and does not give it back
        signal.set_wakeup_fd(wakeup)
        try:
            text: str = self._session.prompt("> ")
        finally:
            signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        return text


def _keys() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor(1)
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class InputReader:
    """Asks at a terminal where lines cannot be edited; a backslash at the end of a line continues it."""

    def ask(self) -> str:
        """See `TerminalReader.ask`."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (the arrow keys then work in `input`)
        lines = [input("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("  "))
        return "\n".join(lines)
