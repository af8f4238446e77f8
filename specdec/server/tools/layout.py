"""The text of tool calls as a model writes it: `Layout`. Readers accept more than that; grammars and prompts do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.server.tools.markers import PARAMETER, PARAMETER_END

VALUE_END = f"\n{PARAMETER_END}\n"
"""What stands after an argument in a tag of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What stands around the names and arguments of calls. Names of control tokens in it are those tokens.

    Attributes:
        name: text before a function's name.
        arguments: between name and arguments.
        end: after the arguments.
        before: before the first call.
        between: between two calls.
        after: after the last call.
        in_tags: arguments are written one by one, in tags of their own, instead of as a JSON object.
        several: an answer may hold more than one call.
    """

    name: str
    arguments: str
    end: str
    before: str = ""
    between: str = ""
    after: str = ""
    in_tags: bool = False
    several: bool = True

    def written(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """The text of calls, each a name and arguments."""
        texts = [
            f"{self.name}{name}{self.arguments}{self._arguments(arguments)}{self.end}" for name, arguments in calls
        ]
        return f"{self.before}{self.between.join(texts)}{self.after}"

    def _arguments(self, arguments: Mapping[str, Any]) -> str:
        if not self.in_tags:
            return json.dumps(arguments, ensure_ascii=False)
        return "".join(
            f"{parameter(key)}{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}{VALUE_END}"
            for key, value in arguments.items()
        )


def parameter(key: str) -> str:
    """Text before an argument in a tag of its own."""
    return f"{PARAMETER}{key}>\n"
