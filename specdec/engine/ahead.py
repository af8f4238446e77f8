"""Tokens that a pass went ahead for: `Ahead` keeps them until their rounds come, and says how far the next pass may go.

A runtime that chooses greedy tokens itself goes on with them in the same launch, step by step, or in turns that it
drafts and verifies itself. A step or turn becomes a round, which needs no pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from specdec.checks import check_finite
from specdec.drafters.base import Draft
from specdec.engine.policy import DraftPlan
from specdec.engine.round import Round
from specdec.runtimes.base import Choice, Pass, Rows, Turn, is_chain

_MOST_S = 0.03  # of a pass that goes ahead: a stream shows its tokens when it ends


class _Step(NamedTuple):
    """What a pass went ahead for, a plain step or a turn, and its share of the pass."""

    turn: Turn
    plan: DraftPlan | None
    seconds: float
    bytes_read: int

    def round(self, position: int) -> Round:
        """Its round, which emits tokens from `position` on.

        Raises:
            ModelOutputError: the model's output for one means nothing.
        """
        turn, plan = self.turn, self.plan
        for number, choice in enumerate(turn.choices):
            check_finite(choice.highest, position + number)
        parents = None if is_chain(turn.parents) else list(turn.parents)
        sources = [] if plan is None else [plan.drafter or "draft"] * len(turn.tokens)
        return Round(
            position=position, plan=plan, draft=Draft(list(turn.tokens), sources=sources, parents=parents),
            kept=turn.kept, bonus_token=turn.choices[-1].token, draft_s=0.0, verify_s=self.seconds,
            round_s=self.seconds, verify_bytes_read=self.bytes_read,
        )  # fmt: skip


class Ahead:
    """What is known of one sequence's next tokens.

    Args:
        most: tokens that the runtime goes ahead for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._steps: deque[_Step] = deque()
        self._run = 0  # plain steps since the last draft
        self._step_s = 0.0  # of a plain step

    def __len__(self) -> int:
        return sum(len(step.turn.choices) for step in self._steps)

    def clear(self) -> None:
        """Forget the tokens: the text takes another way, or ends."""
        self._steps.clear()

    def room(self, rows: Rows, *, left: int) -> int:
        """Tokens that the pass over `rows` may go ahead for: as many as the text has gone without drafts.

        Args:
            rows: of a verify pass.
            left: tokens that may follow the next one.
        """
        if rows.logits != "choices" or rows.recycling is not None or len(rows.tokens) > 1 or not self._step_s:
            return 0
        return max(0, min(self._most, self._run, left, int(_MOST_S / self._step_s)))

    def split(self, result: Pass, rows: int, seconds: float) -> tuple[Pass, float]:
        """Keep what a pass went ahead for; returns the part of it that is the round's, and its seconds.

        Args:
            result: of the pass.
            rows: that were asked for.
            seconds: that it took.
        """
        choices = result.choices
        turns = 1 if choices is None else 1 + len(choices) - rows
        if choices is None or turns == 1:
            return result, seconds
        share_s, share = seconds / turns, result.bytes_read // turns
        self._steps.extend(_Step(Turn((), (), (), [choice]), None, share_s, share) for choice in choices[rows:])
        return Pass(result.logits, share, None, choices[:rows]), share_s

    def noted(self, *, drafted: bool, seconds: float) -> None:
        """A round has ended, in which a pass took `seconds` for each of its steps."""
        self._run = 0 if drafted else self._run + 1
        if not drafted:
            self._step_s = seconds

    def take(self, position: int) -> tuple[Round, Choice]:
        """The next round, which emits tokens from `position` on, and the choice of its last one.

        Raises:
            ModelOutputError: the model's output for one means nothing.
        """
        step = self._steps[0]
        done = step.round(position)
        self._steps.popleft()
        self._run += step.plan is None
        return done, step.turn.choices[-1]

    def begin(self, turns: Sequence[Turn], plan: DraftPlan, *, seconds: float, bytes_read: int) -> None:
        """Keep the turns of a pass that drafted by itself under a plan: all rounds are still to be taken."""
        share_s, share = seconds / len(turns), bytes_read // len(turns)
        self._steps.extend(_Step(turn, plan, share_s, share) for turn in turns)
