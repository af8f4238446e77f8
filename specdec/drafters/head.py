"""Tokens that a model's drafts score: frequent ones, tokens of the text, and the verifier's likely ones: `Head`.

Any other token is never drafted, and comes from the verifier. The logits layer is up to a third of what a step of a
small model reads; a head reads a few percent. Sources: FR-Spec (Zhao et al. 2502.14856) for frequent tokens, token
recycling (Luo et al. 2408.08696) for those that the verifier ranked high.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specdec.drafters.arguments import whole_number
from specdec.drafters.frequent import frequent_tokens
from specdec.errors import InvalidArgumentError

if TYPE_CHECKING:
    from specdec.drafters.base import DrafterSetup
    from specdec.runtimes.base import DraftHead, Runtime
    from specdec.tokenizers import Tokenizer

AUTO = 8192  # frequent tokens that a head begins with
_LEAST_SHARE = 2  # times as many as that a vocabulary must have for a head to be worth it
_LIKELY = 8  # tokens of a row of the verifier's logits
_IDLE_ROUNDS = 2  # without a draft, after which nothing is noted
_ROWS = 4  # of a verify pass whose likely tokens are noted, the last ones: a new token takes microseconds
_MOST = 1 << 20
ARGUMENT = {"head": "auto"}


class Head:
    """The draft head of one answer.

    Args:
        drafter: name of the drafter, for messages.
        asked: "auto", "all", or the number of frequent tokens to begin with.
        setup: of the drafter.
        runtime: that runs the drafts.
        tokenizer: of the model that drafts.

    Attributes:
        rows: what `Rows.head` takes; None where drafts score all tokens.

    Raises:
        InvalidArgumentError: `asked` is something else, or a number on a runtime that has no draft heads.
    """

    def __init__(
        self, drafter: str, asked: str, setup: DrafterSetup, runtime: Runtime, tokenizer: Tokenizer | None
    ) -> None:
        vocab_size, prunes = runtime.config.vocab_size, runtime.info.prunes_head
        self.rows: DraftHead | None = None
        self._read = 0  # tokens of the text that were added
        self._idle = 0  # rounds since the last draft
        if asked in ("auto", "all"):
            count = AUTO if asked == "auto" and prunes and vocab_size >= _LEAST_SHARE * AUTO else vocab_size
        else:
            count = whole_number(drafter, "head (or auto, or all)", asked, low=1, high=_MOST)
            if not prunes:
                raise InvalidArgumentError(
                    f"drafter {drafter!r} cannot take head={asked}: the {runtime.info.name} runtime scores all tokens "
                    "in drafts"
                )
        if count < vocab_size:
            key = (runtime.config.vocab_size, None if tokenizer is None else tokenizer.fingerprint, count)
            tokens = setup.memory.frequent.get(key)
            if tokens is None:
                pieces = () if tokenizer is None else tokenizer.pieces
                always = frozenset[int]() if tokenizer is None else tokenizer.eos_ids
                tokens = frequent_tokens(pieces, vocab_size, count, always=always)
                setup.memory.frequent[key] = tokens
            self.rows = runtime.draft_head(tokens)

    def follow(self, history: Sequence[int], vocab_size: int) -> None:
        """A draft begins: score the tokens of the text, those that the drafting model knows."""
        self._idle = 0
        if self.rows is not None and self._read < len(history):
            self.rows.add([token for token in dict.fromkeys(history[self._read :]) if token < vocab_size])
            self._read = len(history)

    @property
    def likely(self) -> int:
        """Likely tokens of a row of the verifier's logits that are worth knowing; 0 where this drafts nothing."""
        return _LIKELY if self.rows is not None and self._idle < _IDLE_ROUNDS else 0

    def ranked(self, likely: Sequence[Sequence[int]], kept: Sequence[int]) -> None:
        """Score what the verifier thought likely after the tokens that were kept.

        Args:
            likely: tokens of the pending token's row and of the draft's.
            kept: numbers of the draft tokens that were kept.
        """
        self._idle += 1
        if self.rows is not None:
            path = [0, *(index + 1 for index in kept)][-_ROWS:]
            self.rows.add([token for row in path for token in likely[row]])
