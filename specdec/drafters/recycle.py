"""Drafting what followed a token last time, one or two tokens at a time, where no longer run is known. No model runs.

Source: token recycling (Luo et al. 2408.08696), with the verifier's first choice alone: a chain, and no tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from specdec.drafters.base import Draft, DraftContext, DrafterSetup
from specdec.drafters.successors import Successors
from specdec.engine.policy import DraftPlan, Policy
from specdec.errors import InvalidArgumentError

_ROWS = 2  # refused tokens of a round whose rows of logits are worth a look


class RecycleDrafter:
    """Proposes what followed the last token when it occurred before: in the text, in earlier answers of the owner, or
    by the verifier's own logits after a draft token that it refused.

    Raises:
        InvalidArgumentError: an argument is given; there is none.
    """

    views: tuple[str, ...] = ()
    takes_effort = False
    most_tokens = 2  # each is right about one time in five
    wants_logits = False  # choices will do

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        if argument:
            raise InvalidArgumentError(f"drafter 'recycle' takes no argument, not {argument!r}")
        self._earlier = None if setup is None or setup.owner is None else setup.memory.answers.of(setup.owner)
        self._successors = Successors()
        self.turn_rows = 0 if setup is None else setup.runtime.info.recycles
        self._read = 0  # tokens of the text that were noted

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:
        """Propose at most two tokens; nothing when the last token never occurred before."""
        return self.extend(Draft(), plan, context, policy=policy)

    def extend(self, draft: Draft, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:  # noqa: ARG002
        """`draft` and, where its last token is known, at most two tokens after it."""
        self._read_on(context.history)
        last = draft.tokens[-1] if draft.tokens else context.history[-1]
        found: list[int] = []
        room = min(self.most_tokens, plan.num_draft_tokens - len(draft.tokens))
        if not draft.tokens or last not in context.end_tokens:
            while len(found) < room and (successor := self._after(last)) >= 0:
                found.append(successor)
                last = successor
                if last in context.end_tokens:
                    break
        if not found:
            return draft
        return Draft(
            tokens=[*draft.tokens, *found],
            bytes_read=draft.bytes_read,
            sources=[*draft.sources, *["recycle"] * len(found)],
        )

    def match_length(self, context: DraftContext) -> int:
        """1, the last token, where it is known what followed it; else 0."""
        self._read_on(context.history)
        return int(self._after(context.history[-1]) >= 0)

    def chosen(self, tokens: Sequence[int], choices: Sequence[int], kept: Sequence[int]) -> None:
        """Note what the verifier would have had follow the tokens that it refused. What followed the others is text."""
        refused = [row for row in range(1, len(tokens)) if row - 1 not in kept]
        for row in refused[:_ROWS]:
            self._successors.note(tokens[row], choices[row])

    def verified(self, tokens: Sequence[int], logits: np.ndarray, kept: Sequence[int]) -> None:
        """The same as `chosen`, by logits."""
        self.chosen(tokens, logits.argmax(axis=-1).tolist(), kept)

    def ended(self, context: DraftContext) -> None:
        """Keep what followed the answer's tokens for the owner's later answers."""
        if self._earlier is not None:
            answer = context.history[max(context.prompt_length - 1, 0) :]
            for token, successor in pairwise(answer):
                self._earlier.successors.note(token, successor)

    def _read_on(self, history: Sequence[int]) -> None:
        """Note the tokens that the text has gained."""
        for token, successor in pairwise(history[max(self._read - 1, 0) :]):
            self._successors.note(token, successor)
        self._read = len(history)

    def _after(self, token: int) -> int:
        """The successor of a token in this text, or else in earlier answers; -1 when none is known."""
        found = self._successors.of(token)
        return found if found >= 0 or self._earlier is None else self._earlier.successors.of(token)
