"""The drafters of an answer that learn from verify passes, whichever drafter proposed the tokens: `Observers`."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING, overload

from specdec.conforms import conforms
from specdec.drafters.base import ChoiceObserver, Drafter, LikelyObserver, Observer, wants_logits
from specdec.engine.drafter_guard import faults_of

if TYPE_CHECKING:
    import numpy as np

    from specdec.runtimes.base import Pass


class Observers:
    """Shows drafters what they learn from.

    Args:
        drafters: all drafters of the answer, by name.

    Attributes:
        want_logits: one of them learns from logits, so that choices will not do.
    """

    def __init__(self, drafters: Mapping[str, Drafter]) -> None:
        self._of_logits: dict[str, Observer] = {}
        self._of_choices: dict[str, ChoiceObserver] = {}
        self._of_likely: dict[str, LikelyObserver] = {}
        for name, drafter in drafters.items():
            if wants_logits(drafter) and conforms(drafter, Observer):
                self._of_logits[name] = drafter
            if conforms(drafter, ChoiceObserver):
                self._of_choices[name] = drafter
            if conforms(drafter, LikelyObserver):
                self._of_likely[name] = drafter
        self.want_logits = bool(self._of_logits)

    @property
    def likely(self) -> int:
        """Likely tokens of a row of the next verify pass that one of them wants to see, at most.

        Raises:
            PluginError: one of them fails.
        """
        most = 0
        for name, drafter in self._of_likely.items():
            with faults_of(name, "likely"):
                most = max(most, drafter.likely)
        return most

    def judged(self, tokens: Tokens[int], result: Pass, kept: Tokens[int]) -> None:
        """Show them a verify pass that has been judged.

        Args:
            tokens: of its rows: the pending token, then the draft.
            result: of the pass.
            kept: numbers of the draft tokens that were kept.

        Raises:
            PluginError: one of them fails.
        """
        choices: Tokens[int]
        if result.choices is None:
            choices = _Likeliest(result.logits)
            for name, observer in self._of_logits.items():
                with faults_of(name, "verified"):
                    observer.verified(tokens, result.logits, kept)
        else:
            choices = [choice.token for choice in result.choices]
        for name, chooser in self._of_choices.items():
            with faults_of(name, "chosen"):
                chooser.chosen(tokens, choices, kept)
        if not result.likely:
            return
        for name, ranker in self._of_likely.items():
            with faults_of(name, "ranked"):
                if ranker.likely:
                    ranker.ranked(result.likely, kept)


class _Likeliest(Tokens[int]):
    """The likeliest token of every row of logits, float32 (M, V), found when it is looked at."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    @overload
    def __getitem__(self, row: int) -> int: ...
    @overload
    def __getitem__(self, row: slice) -> list[int]: ...
    def __getitem__(self, row: int | slice) -> int | list[int]:
        found = self._logits[row].argmax(axis=-1)
        return found.tolist() if isinstance(row, slice) else int(found)

    def __len__(self) -> int:
        return len(self._logits)
