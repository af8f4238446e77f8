"""A finished round: what was proposed, what was kept, and what it cost. `Round`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec.drafters.base import Draft
from specdec.engine.logprobs import TokenLogprob
from specdec.engine.origin import BONUS, Origin
from specdec.engine.policy import DraftPlan


@dataclass(slots=True, kw_only=True)
class Round:
    """A finished round.

    Attributes:
        position: absolute position of the first token that it emitted.
        plan: what the policy decided; None after a plain step.
        draft: what was proposed.
        kept: numbers of the proposed tokens that the verifier kept, from the first on; of a tree, one path.
        bonus_token: the verifier's own token after them.
        further: tokens of the plain steps that the same pass went ahead for, which count as rounds of their own.
        logprobs: of `tokens`, where they were asked for.
        complete_at: number of `tokens` after which nothing can be added, by the answer's grammar; None while something
            can.
        trusted: one per drafted token, whether it was to be kept without a check; empty when all were checked.
        draft_s: seconds spent drafting.
        verify_s: seconds of the verify pass, of a pass shared with other sequences the share of its rows.
        round_s: seconds of the whole round: planning, drafting, verifying and drawing tokens.
        verify_bytes_read: bytes that the verify pass had to read, or its share.
    """

    position: int
    plan: DraftPlan | None
    draft: Draft
    kept: Sequence[int]
    bonus_token: int
    draft_s: float
    verify_s: float
    round_s: float
    verify_bytes_read: int
    trusted: list[bool] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    complete_at: int | None = None
    further: Sequence[int] = ()

    @property
    def accepted(self) -> int:
        """Proposed tokens that the verifier kept."""
        return len(self.kept)

    @property
    def tokens(self) -> list[int]:
        """The accepted tokens, the bonus token, and the tokens of further steps."""
        drafted = self.draft.tokens
        return [*[drafted[index] for index in self.kept], self.bonus_token, *self.further]

    @property
    def origins(self) -> list[Origin]:
        """The producer of each of `tokens`."""
        if not self.kept:
            return [BONUS] * (1 + len(self.further))
        draft, origins, aligned = self.draft, [], self.draft.aligned
        for index in self.kept:
            signals = aligned[index]
            effort = None if signals is None else signals.effort
            source = draft.sources[index] if index < len(draft.sources) else "draft"
            origins.append(Origin(source, effort, is_trusted=bool(self.trusted) and self.trusted[index]))
        return [*origins, BONUS, *[BONUS] * len(self.further)]

    def add_further(self, tokens: Sequence[int], *, seconds: float, bytes_read: int) -> None:
        """Add the plain steps that the round's pass went ahead for, with the cost of these steps."""
        self.further = tokens
        self.verify_s += seconds
        self.round_s += seconds
        self.verify_bytes_read += bytes_read
