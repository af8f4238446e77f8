"""What a line that begins with a slash does: `Commands`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import specdec
from specdec import paths
from specdec.chat.conversation import Conversation
from specdec.chat.session import Session
from specdec.engine.options import Options, option_value
from specdec.engine.plugin_names import check_plugins
from specdec.errors import InvalidArgumentError, OptionError

# Options of the library that make sense in a chat, under the names that /set takes.
SETTABLE = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "verify_effort", "draft_effort", "draft_view", "draft_len", "policy", "drafter",
)  # fmt: skip
SHORT = {"effort": "verify_effort"}

HELP = """\
/help               this list
/system [TEXT]      show or set the system message; "-" removes it
/retry              answer the last question again
/undo               take back the last question and its answer
/clear              begin a new conversation
/save FILE          save the conversation as JSON
/load FILE          continue with a saved one
/model [NAME]       show the model, or load another one and continue with it
/set [NAME VALUE]   show or change an option; "default" as the value resets it
/stats              statistics of the last answer
/exit               leave (also Ctrl-D)
Options of /set: effort, """ + ", ".join(SETTABLE)


@dataclass(slots=True)
class Commands:
    """Carries out commands on a session.

    Attributes:
        session: that they change.
        load: loads a model by name.
        report: prints an answer's statistics.
        out: where they answer.
        name: of the model.
        again: question that /retry wants answered, until it is taken.
        is_over: /exit was asked for.
    """

    session: Session
    load: Callable[[str], specdec.Model]
    report: Callable[[Any, TextIO], None]
    out: TextIO
    name: str
    again: str | None = None
    is_over: bool = False
    _by_name: dict[str, Callable[[str], None]] = field(init=False)

    def __post_init__(self) -> None:
        self._by_name = {
            "help": self._help,
            "system": self._system,
            "retry": self._retry,
            "undo": self._undo,
            "clear": self._clear,
            "save": self._save,
            "load": self._load,
            "model": self._model,
            "set": self._set,
            "stats": self._stats,
            "exit": self._exit,
            "quit": self._exit,
        }

    @property
    def names(self) -> list[str]:
        """All commands, with their slash."""
        return [f"/{name}" for name in self._by_name]

    def run(self, line: str) -> None:
        """Carry out a line that begins with a slash.

        Raises:
            SpecdecError: it cannot be done.
        """
        name, _, rest = line[1:].partition(" ")
        found = self._by_name.get(name.lower())
        if found is None:
            raise InvalidArgumentError(f"there is no command /{name}: /help lists them (a space first makes it text)")
        found(rest.strip())

    def take_again(self) -> str | None:
        """The question to answer again, once."""
        question, self.again = self.again, None
        return question

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def _help(self, _: str) -> None:
        self._say(HELP)

    def _system(self, text: str) -> None:
        conversation = self.session.conversation
        if text:
            conversation.system = "" if text == "-" else text
        self._say(conversation.system or "no system message")

    def _retry(self, _: str) -> None:
        turn = self.session.conversation.undo()
        if turn is None:
            raise InvalidArgumentError("there is no question to answer again yet")
        self.again, self.session.retried = turn.question, turn

    def _undo(self, _: str) -> None:
        turn = self.session.conversation.undo()
        self._say("nothing to take back" if turn is None else f"taken back: {turn.question.splitlines()[0][:60]}")

    def _clear(self, _: str) -> None:
        self.session.conversation.turns.clear()
        self._say("a new conversation")

    def _save(self, path: str) -> None:
        self.session.conversation.save(_file(path, "save"))
        count = len(self.session.conversation.turns)
        self._say(f"saved {count} turn{'s' * (count != 1)}")

    def _load(self, path: str) -> None:
        self.session.conversation = Conversation.load(_file(path, "load"))
        for turn in self.session.conversation.turns:
            self._say(f"> {turn.question}\n{turn.answer}")

    def _model(self, name: str) -> None:
        if name:
            model = self.load(name)
            conversation = self.session.conversation
            self.session = Session(model, self.session.options, conversation)
            for turn in conversation.turns:
                turn.prompt_ids, turn.template_ids, turn.answer_ids = [], [], []  # of the other model's vocabulary
            self.name = name
        self._say(f"{self.name} ({self.session.model.runtime.info.name})")

    def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        name = SHORT.get(name, name).replace("-", "_")
        if not name:
            changed = [f"{key} {value}" for key, value in self.session.options.items() if key in SETTABLE]
            self._say("\n".join(changed) or "all options have their defaults")
            return
        if name not in SETTABLE:
            raise InvalidArgumentError(f"/set takes {', '.join(SETTABLE)}, not {name!r}")
        if not text.strip():
            self._say(f"{name} {self.session.options.get(name, 'default')}")
            return
        self._change(name, text.strip())

    def _change(self, name: str, text: str) -> None:
        options = dict(self.session.options)
        options.pop(name, None)
        if text != "default":
            try:
                options[name] = option_value(name, text)
                check_plugins(Options(**options))
            except OptionError as error:
                raise InvalidArgumentError(error.worded(str)) from None
        self.session.options = options
        self._say(f"{name} {options.get(name, 'default')}")

    def _stats(self, _: str) -> None:
        if self.session.last is None:
            raise InvalidArgumentError("there is no answer yet")
        self.report(self.session.last, self.out)

    def _exit(self, _: str) -> None:
        self.is_over = True


def _file(path: str, command: str) -> Path:
    if not path:
        raise InvalidArgumentError(f"/{command} needs a file: /{command} FILE")
    if "\0" in path:
        raise InvalidArgumentError(f"/{command} needs a file whose name has no zero byte, not {path!r}")
    return paths.named(path)
