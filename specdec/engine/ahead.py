"""Tokens that a pass went ahead for: `Ahead` keeps them until their rounds come, and says how far the next pass may go.

A runtime that chooses greedy tokens itself goes on with them in the same launch. Each is a plain step's token; its
round needs no pass.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from specdec.checks import check_finite
from specdec.drafters.base import Draft
from specdec.engine.round import Round
from specdec.runtimes.base import Choice, Pass, Rows

_MOST_S = 0.03  # of a pass that goes ahead: a stream shows its tokens when it ends


class _Token(NamedTuple):
    """A choice, and its share of the pass."""

    choice: Choice
    seconds: float
    bytes_read: int


class Ahead:
    """What is known of one sequence's next tokens.

    Args:
        most: tokens that the runtime goes ahead for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokens: deque[_Token] = deque()
        self._run = 0  # plain steps since the last draft
        self._step_s = 0.0  # of a plain step

    def __len__(self) -> int:
        return len(self._tokens)

    def clear(self) -> None:
        """Forget the tokens: the text takes another way, or ends."""
        self._tokens.clear()

    def room(self, rows: Rows, *, left: int, asks: bool) -> int:
        """Tokens that the pass over `rows` may go ahead for: as many as the text has gone without drafts.

        Args:
            rows: of a verify pass.
            left: tokens that may follow the next one.
            asks: a policy would be asked in between, so that less is taken for granted.
        """
        if rows.logits != "choices" or len(rows.tokens) > 1 or not self._step_s:
            return 0
        return max(0, min(self._most, self._run // (2 if asks else 1), left, int(_MOST_S / self._step_s)))

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
        self._tokens.extend(_Token(choice, share_s, share) for choice in choices[rows:])
        return Pass(result.logits, share, None, choices[:rows]), share_s

    def noted(self, *, drafted: bool, seconds: float) -> None:
        """A round has ended, in which a pass took `seconds` for each of its steps."""
        self._run = 0 if drafted else self._run + 1
        if not drafted:
            self._step_s = seconds

    def take(self, position: int) -> tuple[Round, Choice]:
        """The next token's round, which emits it at `position`, and its choice.

        Raises:
            ModelOutputError: the model's output for it means nothing.
        """
        token = self._tokens.popleft()
        check_finite(token.choice.highest, position)
        self._run += 1
        done = Round(
            position=position, plan=None, draft=Draft(), kept=(), bonus_token=token.choice.token, draft_s=0.0,
            verify_s=token.seconds, round_s=token.seconds, verify_bytes_read=token.bytes_read,
        )  # fmt: skip
        return done, token.choice
