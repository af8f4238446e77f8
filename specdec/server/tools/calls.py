"""Where readers put the tool calls that they read: `Calls`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.server.parsing.cursor import CallError
from specdec.server.parsing.writer import EventWriter

_NAME = re.compile(r"[\w.:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class ToolSet:
    """The functions that may be called.

    Attributes:
        parameters: JSON schema of the arguments, by the function's name.
    """

    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]]) -> ToolSet:
        """From OpenAI's form of tools, checked."""
        functions = [tool["function"] for tool in tools]
        return cls({one["name"]: one.get("parameters") or {"type": "object", "properties": {}} for one in functions})

    @property
    def names(self) -> Collection[str]:
        """The functions' names."""
        return self.parameters.keys()


class Calls:
    """Writes calls as they are read.

    Args:
        writer: gets the calls.
        tools: the functions that there are.
        whole: write a call only when it is complete, so that one that turns out to be malformed can become text. It
            makes no difference to calls that are well-formed.

    Attributes:
        is_open: a call has begun and not ended.
        completed: calls that have ended.
        settled: grows whenever everything that was read belongs to calls for good.
    """

    def __init__(self, writer: EventWriter, tools: ToolSet, *, whole: bool) -> None:
        self.tools = tools
        self.is_open = False
        self.completed = self.settled = 0
        self._writer, self._whole = writer, whole
        self._name = ""
        self._held: list[str] = []  # arguments of a call that is not written yet

    @property
    def is_written(self) -> bool:
        """The open call's beginning has been written."""
        return self.is_open and not self._whole

    def start(self, name: str, *, known: bool = False) -> None:
        """A call begins.

        Args:
            name: of the function.
            known: only a function that there is counts, since nothing else shows that this is a call.

        Raises:
            CallError: the name cannot name a function.
        """
        if not (name in self.tools.names if known else _NAME.fullmatch(name) or name in self.tools.names):
            raise CallError
        self.is_open, self._name, self._held = True, name, []
        if not self._whole:
            self._writer.start_call(name)

    def arguments(self, text: str) -> None:
        """More of the arguments."""
        if self._whole:
            self._held.append(text)
        else:
            self._writer.arguments(text)

    def end(self) -> None:
        """The call is complete."""
        self.flush()
        self.is_open = False
        self.completed += 1
        self.settle()

    def settle(self) -> None:
        """What has been read belongs to calls, whatever comes next."""
        self.settled += 1

    def flush(self) -> None:
        """Write what there is of a call, complete or not."""
        if self._whole:
            self._writer.start_call(self._name)
            self._writer.arguments("".join(self._held))

    def drop(self) -> None:
        """Forget the open call."""
        self.is_open = False
