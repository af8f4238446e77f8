"""Drafting by looking text up: what followed the last few tokens when they occurred before? No model runs.

Sources: prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding) and LLMA (Yang et al.
2304.04487) for matches in the context, REST (He et al. 2311.08252) for text from elsewhere, and the n-gram pool of
lookahead decoding (Fu et al. 2402.02057). The index itself is in `suffix_index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from specdec.drafters.acceptance import ProposalBook
from specdec.drafters.arguments import encode, read_options, read_text, whole_number
from specdec.drafters.base import Draft, DraftContext, DrafterSetup
from specdec.drafters.suffix_index import Place, SuffixIndex, SuffixReader
from specdec.drafters.text_match import MOST, TextMatch
from specdec.engine.policy import DraftPlan, Policy
from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled

_MOST = 64  # tokens at the end of a text that are compared: a longer match would not choose another passage
_LEAST = 4  # tokens of context that speak for what followed in an earlier answer
_ELSEWHERE = 0.5  # share of their number that counts: 4 tokens there are right about as often as 2 of the same text
UNTRIED = 0.5  # acceptance that is assumed of a match length that was never tried


class NgramDrafter:
    """Proposes what followed the longest end of the text that occurred before, in the text itself or elsewhere.

    Of the continuations of one run the most frequent is taken, of equally frequent ones the latest. Every proposed
    token becomes part of the end that the next one follows, so a repeated passage is copied to its end. A match in the
    owner's earlier answers counts half its length: it is right less often than one in the text itself. The text's own
    match goes before one that counts as much there or in the table.

    Args:
        argument: `min=2,max=64,table=FILE`, each part optional: least and most tokens of the text's end to compare, and
            a UTF-8 text that serves where the text has no match as long.

    Raises:
        InvalidArgumentError: an unknown part, sizes out of range, or a table that cannot be read or is too short.
    """

    views: tuple[str, ...] = ()
    takes_effort = False

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        self._shortest, self._longest, table = _read(argument)
        self._own: SuffixIndex | None = None  # made when a match is long, or drafted from
        self._match = TextMatch()
        self._table: SuffixIndex | None = None
        self._vocab_size = 1 << 31  # of the model, where there is a table
        if table:
            self._table = _table(Path(table), self._shortest, setup)
            self._vocab_size = setup.runtime.config.vocab_size
        self._earlier = None if setup is None or setup.owner is None else setup.memory.answers.of(setup.owner)
        self._readers: list[SuffixReader] = []  # of newer and older answers and the table
        self._book = ProposalBook(UNTRIED)  # by length of the match that a proposal began with

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:
        """Propose the continuation of the longest match; nothing when there is none."""
        return self.extend(Draft(), plan, context, policy=policy)

    def extend(self, draft: Draft, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:  # noqa: ARG002
        """`draft` and, where something was found, a continuation after it."""
        history = context.history
        self._book.learn(history)
        matches = self._matches(history)
        for token in draft.tokens:
            self._advance(matches, token)
        found: list[int] = []
        began = 0  # length of the match that the first proposed token followed
        last = draft.tokens[-1] if draft.tokens else -1
        while len(draft.tokens) + len(found) < plan.num_draft_tokens and last not in context.end_tokens:
            last, length = self._continuation(matches)
            if not length:
                break
            began = began or length
            found.append(last)
            self._advance(matches, last)
        if not found:
            return draft
        if not draft.tokens:
            self._book.note(began, len(history), found)
        return Draft(
            tokens=[*draft.tokens, *found],
            bytes_read=draft.bytes_read,
            sources=[*draft.sources, *["ngram"] * len(found)],
            expected_acceptance=None if draft.tokens else self._book.rate(began),
        )

    def match_length(self, context: DraftContext) -> int:
        """Length of the longest end of the text that a continuation is known for, as far as it counts; else 0."""
        if self._own is None and self._earlier is None and self._table is None:
            length = self._match.length(context.history)
            if length < MOST:
                return min(length, self._longest) if length >= self._shortest else 0
        return self._continuation(self._matches(context.history))[1]

    def ended(self, context: DraftContext) -> None:
        """Keep the answer for the owner's later ones."""
        if self._earlier is not None:
            self._earlier.add(context.history, context.prompt_length)

    def _matches(self, history: Sequence[int]) -> list[_Match]:
        """Occurrences of the end of the text, in order of preference."""
        own = self._own
        if own is None:
            own = self._own = SuffixIndex()
            self._readers = [SuffixReader(self._longest) for _ in range(3)]
        own.follow(history)
        matches = [_Match(own, own.shorten(own.end(), self._longest), self._shortest)]
        newer, older, table = self._readers
        if self._earlier is not None:
            least = min(max(self._shortest, _LEAST), self._longest)
            for index, reader in ((self._earlier.newer, newer), (self._earlier.older, older)):
                matches.append(_Match(index, reader.at(index, history), least, counts=_ELSEWHERE))
        if self._table is not None:
            matches.append(_Match(self._table, table.at(self._table, history), self._shortest))
        return matches

    def _advance(self, matches: list[_Match], token: int) -> None:
        """Go on as if `token` followed."""
        for match in matches:
            match.place = match.index.shorten(match.index.advance(match.place, token), self._longest)

    def _continuation(self, matches: list[_Match]) -> tuple[int, int]:
        """The next token and the length that the match counts for; (-1, 0) when there is none."""
        best = -1, 0
        for match in matches:
            if int(match.place.length * match.counts) > best[1]:
                token, length = match.index.continuation(match.place, match.shortest)
                length = int(length * match.counts)
                # A tokenizer may know tokens that the model has no rows for.
                if length > best[1] and token < self._vocab_size:
                    best = token, length
        return best


@dataclass(slots=True)
class _Match:
    """Where the end of the text occurs in an index.

    Attributes:
        index: of some texts.
        place: in it.
        shortest: least tokens that speak for what followed them there.
        counts: share of a match's length that counts.
    """

    index: SuffixIndex
    place: Place
    shortest: int
    counts: float = 1.0


@lru_cache(maxsize=64)
def _read(argument: str) -> tuple[int, int, str]:
    """Least and most tokens to compare, and the table's file, or nothing: every answer asks for the same.

    Raises:
        InvalidArgumentError: an unknown part, or sizes out of range.
    """
    options = read_options("ngram", argument, {"min": "2", "max": str(_MOST), "table": ""})
    shortest = whole_number("ngram", "min", options["min"], low=1, high=_MOST)
    longest = whole_number("ngram", "max", options["max"], low=1, high=_MOST)
    if shortest > longest:
        raise InvalidArgumentError(f"drafter 'ngram' needs min <= max, not min={shortest},max={longest}")
    return shortest, longest, options["table"]


def _table(path: Path, shortest: int, setup: DrafterSetup) -> SuffixIndex:
    """The index of a file's text, read once for a model as long as the file stays the same.

    Raises:
        InvalidArgumentError: the file cannot be read as text, or holds too little of it.
    """
    try:
        stat = path.stat()
    except unless_signalled(OSError) as error:
        raise InvalidArgumentError(f"drafter 'ngram' cannot read the table {path}: {error.strerror}") from None
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
    index = setup.memory.tables.get(key)
    if index is None:
        tokens = encode("ngram", path, read_text("ngram", path), setup.tokenizer)
        if len(tokens) <= shortest:
            raise InvalidArgumentError(
                f"drafter 'ngram' needs more than {shortest} tokens of text, and {path} holds {len(tokens)}"
            )
        index = SuffixIndex()
        index.follow(tokens)
        setup.memory.tables[key] = index
    return index
