"""What an evaluation is asked for, checked: `Plan`, and the `Setting`s that it compares with the dense model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.checks import check_effort
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.runtimes.base import EXACT, find_view

if TYPE_CHECKING:
    from specdec.model.loaded import Model

MEASURES = ("text", "basicq", "quiz", "humaneval")
EFFORTS = tuple(number / 10 for number in range(1, 11))


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to run the model: every pass in one view at one effort, with this share of the weights loaded."""

    view: str
    effort: float
    load_share: float = 1.0

    @property
    def name(self) -> str:
        """Such as "int4 0.5", or "load 0.8 exact 1"."""
        loaded = "" if self.load_share == 1 else f"load {self.load_share:g} "
        return f"{loaded}{self.view} {self.effort:g}"


DENSE = Setting(EXACT, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        settings: what is compared with the dense model, which is always measured too.
        measures: of `MEASURES`.
        text: a file; None takes the bundled text.
        passages: pieces of the text, spread evenly over it.
        passage_tokens: tokens of each.
        problems: HumanEval problems; None takes all bundled ones.
        max_tokens: most tokens of an answer to one.
        seed: of the order of choices.
        unconfined: run the programs of HumanEval without a jail, where the system has none.

    Raises:
        InvalidArgumentError: a value is out of range.
        UnknownNameError: no such measure.
    """

    settings: tuple[Setting, ...]
    measures: tuple[str, ...] = ("text", "basicq", "quiz")
    text: str | Path | None = None
    passages: int = 8
    passage_tokens: int = 256
    problems: int | None = None
    max_tokens: int = 384
    unconfined: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.measures or not self.settings:
            raise InvalidArgumentError("an evaluation needs at least one measure and one effort")
        for measure in self.measures:
            if measure not in MEASURES:
                raise UnknownNameError("measure", measure, list(MEASURES))
        for setting in self.settings:
            check_effort(setting.effort, "effort")
        least = {"passages": 1, "passage_tokens": 2, "max_tokens": 1, "seed": 0}
        if self.problems is not None:
            least["problems"] = 1
        for name, bound in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < bound:
                raise InvalidArgumentError(f"{name} must be a whole number of at least {bound}, not {value!r}")

    @property
    def all_settings(self) -> tuple[Setting, ...]:
        """The dense model and then the others, each once."""
        return tuple(dict.fromkeys([DENSE, *self.settings]))

    def check_model(self, model: Model) -> None:
        """Refuse a model that cannot be evaluated this way.

        Raises:
            InvalidArgumentError: it has no tokenizer, or cannot be loaded in part in this way.
            UnknownNameError: its runtime has no such view.
        """
        if model.tokenizer is None:
            raise InvalidArgumentError("this model has no tokenizer: an evaluation needs one")
        for share in sorted({setting.load_share for setting in self.settings} - {1.0}):
            if model.store is None:
                raise InvalidArgumentError("load_share needs a model that was loaded from a store")
            type(model.store).open(model.store.path, verify=False, load_share=share)
        for setting in self.settings:
            find_view(model.runtime, setting.view)

    def describe(self, model: Model, content: str | None) -> dict[str, Any]:
        """Everything that a result depends on, but for the settings, as plain JSON values."""
        return {
            "store": "" if model.store is None else model.store.checksum,
            "runtime": model.runtime.info.name,
            "context": model.config.max_context,
            "text": "Spec-Bench prompts" if self.text is None else Path(self.text).name,
            "text_sha256": None if content is None else hashlib.sha256(content.encode()).hexdigest(),
            "passages": self.passages,
            "passage_tokens": self.passage_tokens,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }


def make_settings(views: Sequence[str], efforts: Sequence[float]) -> tuple[Setting, ...]:
    """All combinations, views first."""
    return tuple(Setting(view, float(check_effort(effort, "effort"))) for view in views for effort in efforts)


def journal_name(description: dict[str, Any]) -> str:
    """A file name for what is described; any settings and measures of it share the file."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    return f"{digest[:16]}.jsonl"
