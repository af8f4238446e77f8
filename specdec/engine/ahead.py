"""How far passes go ahead (`Ahead`, `Pace`), and the tokens whose rounds are still to come (`Ahead`).

A runtime that chooses greedy tokens itself goes on with them in the same launch. Each is a plain step's token; its
round needs no pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from specdec.checks import check_finite
from specdec.drafters.base import Draft
from specdec.engine.round import Round
from specdec.runtimes.base import Choice, Pass, Rows

_MOST_S = 0.03  # of a pass that goes ahead: a stream shows its tokens when it ends
_MOST_LOST = 0.02  # share of the time that asking policies may cost when it does not pay
_STRETCH = 512  # turns without asking, at most
_QUIET = 4, 32  # tokens without asking a policy whose last draft was in vain: at first, and at most
_ASK_S = 0.0015  # of asking one policy, until that is measured
_HOPED = 6.0  # tokens that a round of asking brings each sequence at best, until that is measured
_REMEASURED = 128  # rounds of asking, after which plain ones are measured again


class Ahead:
    """What is known of one sequence's next tokens.

    Args:
        most: tokens that the runtime goes ahead for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._choices: Sequence[Choice] = ()  # of the last pass that went ahead
        self._taken = 0  # number of them
        self._share_s, self._share = 0.0, 0  # seconds and bytes of each
        self._run = 0  # plain steps since the last draft
        self._step_s = 0.0  # of a plain step

    def __len__(self) -> int:
        return len(self._choices) - self._taken

    def clear(self) -> None:
        """Forget the tokens: the text takes another way, or ends."""
        self._choices, self._taken = (), 0

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
        self._share_s, self._share = seconds / turns, result.bytes_read // turns
        self._choices, self._taken = choices[rows:], 0
        return replace(result, bytes_read=self._share, choices=choices[:rows]), self._share_s

    def noted(self, *, drafted: bool, seconds: float) -> None:
        """A round has ended, in which a pass took `seconds` for each of its steps."""
        self._run = 0 if drafted else self._run + 1
        if not drafted:
            self._step_s = seconds

    def take_with(self, done: Round) -> Choice | None:
        """Add the tokens that a pass went ahead for to the round that it has just ended; returns the last choice. From
        the first token with logits that are not finite, tokens stay for `take` to refuse."""
        left = self._choices[self._taken :]
        count = next((number for number, choice in enumerate(left) if not isfinite(choice.highest)), len(left))
        if not count:
            return None
        self._taken, self._run = self._taken + count, self._run + count
        tokens = [choice.token for choice in left[:count]]
        done.add_further(tokens, seconds=count * self._share_s, bytes_read=count * self._share)
        return left[count - 1]

    def take(self, position: int) -> tuple[Round, Choice]:
        """The next token's round, which emits it at `position`, and its choice.

        Raises:
            ModelOutputError: the token's logits are not finite.
        """
        choice = self._choices[self._taken]
        self._taken, self._run = self._taken + 1, self._run + 1
        check_finite(choice.highest, position)
        done = Round(
            position=position, plan=None, draft=Draft(), kept=(), bonus_token=choice.token, draft_s=0.0,
            verify_s=self._share_s, round_s=self._share_s, verify_bytes_read=self._share,
        )  # fmt: skip
        return done, choice


class Asking:
    """Decides when to ask the policy of one sequence while others share its passes: seldom where it drafted in vain."""

    def __init__(self) -> None:
        self._due = self._quiet = 0  # tokens from which on the policy is asked; tokens that it lets pass

    def is_due(self, length: int) -> bool:
        """Whether to ask the policy about a text of that length."""
        return length >= self._due

    def noted(self, length: int, *, kept: bool) -> None:
        """The policy was asked, and the text has that length now; `kept`: some of its draft was kept."""
        self._quiet = 0 if kept else min(_QUIET[1], max(_QUIET[0], 2 * self._quiet))
        self._due = length + self._quiet


class Pace:
    """Decides how far sequences that share passes go ahead, and when they ask their policies instead: a draft of one
    sequence keeps all others from going ahead, and asking takes time on the host. Both are measured while they run, in
    turns: a turn is a token of every sequence.

    Args:
        most: tokens that the runtime goes ahead for; with 0 policies are always asked.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._turn_s = 0.0  # seconds of a turn in plain passes, all time between them included
        self._measured = 0  # plain passes so far, the first of which may compile kernels
        self._tried = False  # policies were asked once: they may have had long texts to look through
        self._lost: float | None = None  # turns that a round of asking has cost lately, less its gain
        self._left = 2.0 if most else 0.0  # turns until policies are asked again: plain passes are measured first
        self._asked = 0  # rounds of asking in a row
        self._waited = 0.0  # turns since policies were asked

    @property
    def asks(self) -> bool:
        """Whether policies are asked in the next round."""
        return self._most == 0 or self._left <= 0

    def asks_after(self, turns: int) -> bool:
        """Whether policies are asked after a plain pass of that many turns."""
        return self._most == 0 or self._left <= turns

    def room(self, least: int) -> int:
        """Tokens that the next pass may go ahead for.

        Args:
            least: tokens that every sequence of the pass may go ahead for.
        """
        if not self._measured:
            return 0
        return max(0, min(self._most, least, int(_MOST_S / self._turn_s) - 1 if self._turn_s else 0))

    def note(self, *, asked: bool, turns: float, seconds: float, sequences: int = 1) -> None:
        """A round has ended.

        Args:
            asked: policies were asked.
            turns: tokens of a sequence, in the mean.
            seconds: from its beginning to the beginning of the next round.
            sequences: of the round.
        """
        if not self._most or turns <= 0:
            return
        if not asked:
            self._plain(turns, seconds)
            self._expect(sequences)
        elif self._turn_s:
            self._judge(seconds / self._turn_s - turns)

    def _plain(self, turns: float, seconds: float) -> None:
        found = seconds / turns
        self._turn_s = found if found < self._turn_s or not self._measured else 0.8 * self._turn_s + 0.2 * found
        self._measured += 1
        self._left -= turns
        self._waited += turns
        self._asked = 0

    def _expect(self, sequences: int) -> None:
        """Put off asking for the first time, where it is bound to take longer than it can bring."""
        if self._lost is not None or self._measured < 2:
            return
        lost = sequences * _ASK_S / self._turn_s - _HOPED
        if lost > 0:
            self._left = max(self._left, min(_STRETCH, lost / _MOST_LOST) - self._waited)

    def _judge(self, lost: float) -> None:
        """Set when to ask again, from the loss of a round of asking."""
        if not self._tried:
            self._tried = True
            return
        self._asked += 1
        self._waited = 0.0
        self._lost = lost if self._lost is None else (self._lost + lost) / 2
        if self._lost > 0:
            self._left = min(_STRETCH, max(1 + self._most, self._lost / _MOST_LOST))
        elif self._asked >= _REMEASURED:
            self._left = 1
