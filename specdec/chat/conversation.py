"""What was said in a chat: `Conversation`, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.parse import ParseError, parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.whole_file import is_replaceable, whole_file

FORMAT = "specdec chat"
VERSION = 1


@dataclass(slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: what the user said.
        answer: what the model said, as far as it came.
        reasoning: what it thought before.
        prompt_ids: tokens that the model had read before it answered; empty where they are not known.
        template_ids: the same as the chat template and the tokenizer alone would have them.
        answer_ids: tokens of the answer, reasoning and end token included.
    """

    question: str
    answer: str = ""
    reasoning: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    template_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """In the form of chat APIs."""
        answer = {"role": "assistant", "content": self.answer}
        if self.reasoning:
            answer["reasoning_content"] = self.reasoning
        return [{"role": "user", "content": self.question}, answer]


@dataclass(slots=True)
class Conversation:
    """All that was said.

    Attributes:
        system: message before all others; "" for none.
        turns: questions and answers, oldest first.
    """

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """All messages and a further question, in the form of chat APIs."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages += turn.messages()
        return [*messages, {"role": "user", "content": question}]

    def undo(self) -> Turn | None:
        """Take the last turn back and return it; None where there is none."""
        return self.turns.pop() if self.turns else None

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, all or nothing.

        Raises:
            InvalidArgumentError: the file cannot be written, or holds something other than a saved chat.
        """
        if path.exists() and (not is_replaceable(path) or not _is_chat(path)):
            raise InvalidArgumentError(f"{path} is there already and holds no saved chat: choose another name")
        turns = [{"question": turn.question, "answer": turn.answer, "reasoning": turn.reasoning} for turn in self.turns]
        text = json.dumps(
            {"format": FORMAT, "version": VERSION, "system": self.system, "turns": turns}, ensure_ascii=False, indent=1
        )
        try:
            with whole_file(path) as unfinished:
                unfinished.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidArgumentError(f"cannot write {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """The conversation that `save` wrote.

        Raises:
            InvalidArgumentError: the file cannot be read or holds no saved chat.
        """
        try:
            values = _read(path)
        except OSError as error:
            raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from None
        except (ParseError, UnicodeDecodeError):
            values = None
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise InvalidArgumentError(f"{path} holds no saved chat")
        if values.get("version") != VERSION:
            raise InvalidArgumentError(f"{path} was saved by another version of specdec: this one reads {VERSION}")
        system, turns = values.get("system"), values.get("turns")
        if not isinstance(system, str) or not isinstance(turns, list) or not all(map(_is_turn, turns)):
            raise InvalidArgumentError(f"{path} is damaged: it holds no whole chat")
        return cls(system, [Turn(one["question"], one["answer"], one["reasoning"]) for one in turns])


def _is_turn(value: Any) -> bool:
    names = ("question", "answer", "reasoning")
    is_text = isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in names)
    return is_text and bool(value["question"].strip())


def _is_chat(path: Path) -> bool:
    try:
        values = _read(path)
    except (OSError, ParseError, UnicodeDecodeError):
        return False
    return isinstance(values, Mapping) and values.get("format") == FORMAT


def _read(path: Path) -> Any:
    return parse_json(read_regular(path, most_bytes=MOST_TEXT_BYTES))
