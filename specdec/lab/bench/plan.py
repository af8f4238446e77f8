"""What a run measures, and in which order: `Plan`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdec.errors import InvalidArgumentError
from specdec.lab.bench.grid import Grid
from specdec.lab.bench.prompts import TaskPrompt, fingerprint
from specdec.lab.bench.sample import Place
from specdec.record import machine
from specdec.version import version

if TYPE_CHECKING:
    from specdec.model.loaded import Model

MOST_REPEAT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        grid: contenders and conditions.
        prompts: to answer.
        max_tokens: most tokens of an answer.
        repeat: times that each contender answers each prompt.
        chat: put text into the chat template.

    Raises:
        InvalidArgumentError: a number is out of range, or there are no prompts.
    """

    grid: Grid
    prompts: tuple[TaskPrompt, ...]
    max_tokens: int = 128
    repeat: int = 3
    chat: bool = True

    def __post_init__(self) -> None:
        for name in ("max_tokens", "repeat"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} must be a whole number of at least 1, not {getattr(self, name)!r}")
        if self.repeat > MOST_REPEAT:  # a run keeps all its answers in memory
            raise InvalidArgumentError(f"repeat must be at most {MOST_REPEAT}, not {self.repeat}")
        if not self.prompts:
            raise InvalidArgumentError("there are no prompts to measure with")

    def header(self, model: Model) -> dict[str, Any]:
        """What makes the answers of two runs belong together, as plain JSON values. More repetitions may join."""
        here = machine()
        return {
            "version": version(),
            "model": None if model.store is None else model.store.checksum,
            "runtime": model.runtime.info.name,
            "build": model.runtime.info.build,
            "threads": model.runtime.info.threads,
            "context": model.config.max_context,
            "device": here["device"],
            "cores": here["cores"],
            "prompts": fingerprint(self.prompts),
            "chat": self.chat,
            "max_tokens": self.max_tokens,
            "contenders": {one.name: dict(one.options) for one in self.grid.contenders},
            "conditions": [one.options for one in self.grid.conditions],
        }

    def file_name(self, model: Model) -> str:
        """The same for runs whose answers belong together, and for no others."""
        text = json.dumps(self.header(model), sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.jsonl"

    def places(self) -> Iterator[Place]:
        """Every answer, in the order in which they are asked for.

        Repetitions of a prompt follow each other, so that what a machine does to all of them drops out of ratios; the
        order of contenders moves on by one with each turn, so that no place in the row favours anybody.
        """
        names, turn = [one.name for one in self.grid.contenders], 0
        for condition in range(len(self.grid.conditions)):
            for prompt in range(len(self.prompts)):
                for repetition in range(self.repeat):
                    first = turn % len(names)
                    turn += 1
                    for name in names[first:] + names[:first]:
                        yield Place(condition, prompt, name, repetition)
