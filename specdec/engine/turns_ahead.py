"""Rounds of a pass in which the runtime drafted and verified turn after turn: `TurnsAhead` holds the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from specdec.checks import check_finite
from specdec.drafters.base import Draft
from specdec.engine.policy import DraftPlan
from specdec.engine.round import Round
from specdec.runtimes.base import Choice, Turn, is_chain


class _Kept(NamedTuple):
    """A turn, the plan that it was made under, and its share of the pass."""

    turn: Turn
    plan: DraftPlan
    seconds: float
    bytes_read: int


class TurnsAhead:
    """The turns of one sequence whose rounds are still to come."""

    def __init__(self) -> None:
        self._turns: deque[_Kept] = deque()
        self._tokens = 0

    def __len__(self) -> int:
        """Number of tokens of all turns."""
        return self._tokens

    def clear(self) -> None:
        """Forget the turns: the text continues differently, or ends."""
        self._turns.clear()
        self._tokens = 0

    def begin(self, turns: Sequence[Turn], plan: DraftPlan, *, seconds: float, bytes_read: int) -> None:
        """Keep the turns of a pass, of which none has been taken."""
        share_s, share = seconds / len(turns), bytes_read // len(turns)
        self._turns.extend(_Kept(turn, plan, share_s, share) for turn in turns)
        self._tokens += sum(len(turn.choices) for turn in turns)

    def take(self, position: int) -> tuple[Round, Choice]:
        """The next round, which emits tokens from `position` on, and the choice of its last one. After an error the
        round is still there.

        Raises:
            ModelOutputError: a token's logits are not finite.
        """
        turn, plan, seconds, bytes_read = self._turns[0]
        for number, choice in enumerate(turn.choices):
            check_finite(choice.highest, position + number)
        parents = None if is_chain(turn.parents) else list(turn.parents)
        draft = Draft(list(turn.tokens), sources=[plan.drafter or "draft"] * len(turn.tokens), parents=parents)
        done = Round(
            position=position, plan=plan, draft=draft, kept=turn.kept, bonus_token=turn.choices[-1].token, draft_s=0.0,
            verify_s=seconds, round_s=seconds, verify_bytes_read=bytes_read,
        )  # fmt: skip
        self._turns.popleft()
        self._tokens -= len(turn.choices)
        return done, turn.choices[-1]
