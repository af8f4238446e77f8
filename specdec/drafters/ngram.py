"""Drafting by looking text up: what followed the last few tokens when they occurred before? No model runs.

Sources: prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding) and LLMA (Yang et al.
2304.04487) for matches in the context, REST (He et al. 2311.08252) for text from elsewhere, and the n-gram pool of
lookahead decoding (Fu et al. 2402.02057). The index itself is in `ngram_index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specdec.drafters.acceptance import ProposalBook
from specdec.drafters.arguments import encode, read_options, read_text, whole_number
from specdec.drafters.base import Draft, DraftContext, DrafterSetup
from specdec.drafters.ngram_index import NgramIndex
from specdec.engine.policy import DraftPlan, Policy
from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled

UNTRIED = 0.5  # acceptance that is assumed of a match length that was never tried


class NgramDrafter:
    """Proposes what followed the longest suffix of the text that occurred before, in the text itself or in a table.

    Of the continuations of one suffix the most frequent is taken, of equally frequent ones the latest. Every proposed
    token becomes part of the suffix of the next one, so a repeated passage is copied to its end. The text's own match
    goes before one of equal length in the table.

    Args:
        argument: `min=2,max=5,table=FILE`, each part optional: shortest and longest suffix to look for, and a UTF-8
            text whose n-grams serve where the text has no match as long.

    Raises:
        InvalidArgumentError: an unknown part, sizes out of range, or a table that cannot be read or is too short.
    """

    views: tuple[str, ...] = ()
    takes_effort = False

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        options = read_options("ngram", argument, {"min": "2", "max": "5", "table": ""})
        shortest = whole_number("ngram", "min", options["min"], low=1, high=16)
        self._longest = whole_number("ngram", "max", options["max"], low=1, high=16)
        if shortest > self._longest:
            raise InvalidArgumentError(f"drafter 'ngram' needs min <= max, not min={shortest},max={self._longest}")
        self._index = NgramIndex(shortest, self._longest)
        self._table: NgramIndex | None = None
        self._vocab_size = 0  # of the model, where there is a table
        if options["table"]:
            self._table = _table(Path(options["table"]), self._index, setup)
            self._vocab_size = setup.runtime.config.vocab_size
        self._earlier = (
            None if setup is None or setup.owner is None else setup.memory.answers.of(setup.owner, self._longest)
        )
        self._book = ProposalBook(UNTRIED)  # by length of the match that a proposal began with

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:
        """Propose the continuation of the longest match; nothing when there is none."""
        return self.extend(Draft(), plan, context, policy=policy)

    def extend(self, draft: Draft, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:  # noqa: ARG002
        """`draft` and, where something was found, a continuation after it."""
        history = context.history
        self._book.learn(history)
        self._index.follow(history)
        suffix = [*history[-self._longest :], *draft.tokens][-self._longest :]
        found: list[int] = []
        lengths: list[int] = []
        last = draft.tokens[-1] if draft.tokens else -1
        while len(draft.tokens) + len(found) < plan.num_draft_tokens and last not in context.end_tokens:
            last, length = self._continuation(suffix)
            if not length:
                break
            found.append(last)
            lengths.append(length)
            suffix = [*suffix[-self._longest + 1 :], last] if self._longest > 1 else [last]
        if not found:
            return draft
        if not draft.tokens:
            self._book.note(lengths[0], len(history), found)
        return Draft(
            tokens=[*draft.tokens, *found],
            bytes_read=draft.bytes_read,
            sources=[*draft.sources, *["ngram"] * len(found)],
            expected_acceptance=None if draft.tokens else self._book.rate(lengths[0]),
        )

    def match_length(self, context: DraftContext) -> int:
        """Length of the longest suffix of the text that a continuation is known for; 0 when there is none."""
        self._index.follow(context.history)
        return self._continuation(context.history[-self._longest :])[1]

    def ended(self, context: DraftContext) -> None:
        """Keep the answer for the owner's later ones."""
        if self._earlier is not None:
            self._earlier.add(context.history, context.prompt_length)

    def _continuation(self, suffix: Sequence[int]) -> tuple[int, int]:
        """The next token and the length of the match; (-1, 0) when there is none."""
        own = self._index.continuation(suffix)
        if self._earlier is not None and own[1] < self._longest:
            other = self._earlier.continuation(suffix)
            own = other if other[1] > own[1] else own
        if self._table is None or own[1] == self._longest:
            return own
        other = self._table.continuation(suffix)
        # A tokenizer may know tokens that the model has no rows for.
        return other if other[1] > own[1] and other[0] < self._vocab_size else own


def _table(path: Path, sizes: NgramIndex, setup: DrafterSetup) -> NgramIndex:
    """The index of a file's text, read once for a model as long as the file stays the same.

    Raises:
        InvalidArgumentError: the file cannot be read as text, or holds too little of it.
    """
    try:
        stat = path.stat()
    except unless_signalled(OSError) as error:
        raise InvalidArgumentError(f"drafter 'ngram' cannot read the table {path}: {error.strerror}") from None
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, sizes.shortest, sizes.longest)
    index = setup.memory.tables.get(key)
    if index is None:
        tokens = encode("ngram", path, read_text("ngram", path), setup.tokenizer)
        if len(tokens) <= sizes.shortest:
            raise InvalidArgumentError(
                f"drafter 'ngram' needs more than {sizes.shortest} tokens of text, and {path} holds {len(tokens)}"
            )
        index = NgramIndex(sizes.shortest, sizes.longest)
        index.follow(tokens)
        setup.memory.tables[key] = index
    return index
