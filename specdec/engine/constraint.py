"""What a grammar lets follow at any place of one answer: `GrammarConstraint`.

How a grammar is asked for, and the tables that matchers of one model share, are in `grammar`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specdec.engine.grammar import reason_of
from specdec.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarConstraint:
    """The grammar of one answer.

    A place is named by `drafted`, the tokens between the answer so far and the place. The matcher stands at one place;
    asked about another one it takes tokens back and consumes others, so that drafts, the paths of a tree and rounds
    that were taken back need no care elsewhere. What may follow depends on the tokens before a place alone.

    Args:
        matcher: at the beginning of its grammar; this object's own.
        option: what asked for the grammar, for messages.
        vocab_size: V, tokens of the model.
        not_first: ids that the first token should not be where there is another one; None where any may be.
        has_end: the vocabulary has a token that ends an answer.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        *,
        option: str,
        vocab_size: int,
        not_first: NDArray[np.intp] | None = None,
        has_end: bool = True,
    ) -> None:
        self._fresh, self._matcher = matcher, matcher.deep_copy()
        self._option, self._vocab_size, self._not_first, self._has_end = option, vocab_size, not_first, has_end
        self._tokens: Sequence[int] = ()
        self._start = 0
        self._held: list[int] = []  # tokens that the matcher has consumed
        self._said = 0  # tokens of the answer at the last call; the matcher had consumed them
        self._masks: dict[tuple[int, ...], NDArray[np.uint8]] = {}  # by what was drafted, while the answer stays

    def begin(self, tokens: Sequence[int]) -> None:
        """Constrain what follows `tokens`, a list that grows by the answer's tokens and may lose them again."""
        self._tokens, self._start = tokens, len(tokens)

    def mask(self, logits: NDArray[np.float32], drafted: Sequence[int]) -> None:
        """Set the logits float32 (V,) of tokens that cannot follow `drafted` to -inf, in place.

        After the end of a complete answer nothing is masked: no token there is ever part of it.

        Raises:
            GrammarError: `drafted` breaks the grammar, or the grammar has become too complex to follow.
        """
        is_there = self._go(drafted)
        if self._matcher.is_stopped() and not (is_there and self._has_end):
            return
        if not is_there:
            raise self._error(f"does not allow what came before token {len(self._tokens) + len(drafted)}")
        key = tuple(drafted)
        refused = self._masks.get(key)
        if refused is None:
            refused = self._masks[key] = self._refused(is_first=not self._said and not drafted)
        is_refused = np.unpackbits(refused, count=self._vocab_size, bitorder="little").view(np.bool_)
        np.copyto(logits, np.float32(-np.inf), where=is_refused)

    def allowed(self, drafted: Sequence[int], after: Sequence[int] = ()) -> int:
        """How many tokens of `drafted`, from the first on, can follow the place after `after`."""
        return self._matcher.validate_tokens(list(drafted)) if drafted and self._go(after) else 0

    def forced(self, drafted: Sequence[int], most: int) -> list[int]:
        """Tokens, at most `most`, that spell what must follow `drafted`; none where there is a choice."""
        if most < 1 or not self._go(drafted):
            return []
        found = self._matcher.compute_ff_tokens()[:most]
        return found[: self._matcher.validate_tokens(found)] if found else []

    def is_complete(self, drafted: Sequence[int]) -> bool:
        """Whether the answer and `drafted` are a whole text of the grammar that nothing can be added to."""
        return self._go(drafted) and self._matcher.is_stopped()

    def _go(self, drafted: Sequence[int]) -> bool:
        """Bring the matcher to the place after `drafted`; False when the tokens before the place break the grammar, or
        go on after its end.

        Raises:
            GrammarError: the grammar has become too complex to follow.
        """
        said = len(self._tokens) - self._start
        if said != self._said:
            self._masks.clear()
        known = min(said, self._said)  # what a text that was taken back had beyond is compared again
        wanted = [*self._tokens[self._start + known :], *drafted]
        held = self._held[known:]
        common = 0
        for own, other in zip(held, wanted, strict=False):
            if own != other:
                break
            common += 1
        if common < len(held):
            self._matcher.rollback(len(held) - common)
            del self._held[known + common :]
        missing = wanted[common:]
        consumed = self._matcher.try_consume_tokens(missing) if missing else 0
        self._held += missing[:consumed]
        self._said = min(said, len(self._held))
        self._check()
        return consumed == len(missing)

    def _refused(self, *, is_first: bool) -> NDArray[np.uint8]:
        """A bit for each token, 1 where it cannot follow the matcher's place; the lowest bit of a byte comes first."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        bits = allocate_token_bitmask(1, self._vocab_size + 1)
        fill_next_token_bitmask(self._matcher, bits)
        self._check()
        refused = ~bits.view(np.uint8)[0]
        if is_first and self._not_first is not None:
            stricter = np.unpackbits(refused, bitorder="little")
            stricter[self._not_first] = 1
            if not stricter[: self._vocab_size].all():
                refused = np.packbits(stricter, bitorder="little")
        found: NDArray[np.uint8] = refused
        return found

    def _check(self) -> None:
        """Raise what has put the matcher into its error state, which it never leaves: begin again with a fresh one."""
        if self._matcher.is_error():
            said = self._matcher.get_error()
            self._matcher, self._held, self._said = self._fresh.deep_copy(), [], 0
            raise self._error(f"is too complex to continue with: {reason_of(said)}")

    def _error(self, problem: str) -> GrammarError:
        return GrammarError(self._option, problem)
