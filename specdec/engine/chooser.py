"""Choosing the token at any place of a sequence, under what the caller asked for: `Chooser`, `TokenChooser`.

Biases, penalties, processors and masks are pure functions of the tokens before a place, as the draw is of the place. So
drafter and verifier choose alike, and speculation changes no token. The draw itself is in `sampler`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from specdec.drafters.base import GRAMMAR, Draft
from specdec.engine.penalties import History, Penalties
from specdec.errors import InvalidArgumentError, PluginError, SpecdecError
from specdec.interrupts import unless_signalled

if TYPE_CHECKING:
    from specdec.engine.constraint import GrammarConstraint
    from specdec.engine.sampler import Sampler

BAN = -100.0  # the bias that rules a token out
_MOST_FORCED = 32  # tokens of a draft that the grammar leaves no choice about
LogitsProcessor: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Chooser(Protocol):
    """Chooses the token at any place: a pure function of the logits, the seed, and the tokens before the place.

    A place is named by `drafted`, the tokens between the sequence's own and the place. There are two steps, so that
    others see what the token was drawn from: `shape` applies what the caller asked for, `draw` takes a token.
    """

    def __call__(self, logits: np.ndarray, position: int, drafted: Sequence[int] = ()) -> int:
        """Both steps: the token at the absolute position `position`, which follows `drafted`."""
        ...

    def shape(self, logits: np.ndarray, drafted: Sequence[int]) -> np.ndarray:
        """What a token is drawn from: float32 (V,), -inf for a token that cannot be. `logits` stay as they are."""
        ...

    def draw(self, logits: np.ndarray, position: int) -> int:
        """A token from what `shape` returned."""
        ...

    def allows(self, logits: np.ndarray, token: int, drafted: Sequence[int]) -> bool:
        """Whether `token` can follow `drafted`."""
        ...


class NoTokenError(InvalidArgumentError):
    """Masks, biases and processors together leave no token that could follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a caller asked of the tokens of one answer, beside how they are drawn. Applied in this order.

    Attributes:
        bias: added to logits, by token id; `BAN` rules a token out.
        penalties: for tokens that the text has already.
        processors: called as `(tokens, logits)`, with every id before the place, int64 (T,), and logits float32 (V,);
            each returns the logits to continue with. They must be pure functions.
        constraint: masks the tokens that a grammar does not allow; belongs to this answer alone.
    """

    bias: Mapping[int, float] = field(default_factory=dict)
    penalties: Penalties = field(default_factory=Penalties)
    processors: Sequence[LogitsProcessor] = ()
    constraint: GrammarConstraint | None = None

    def __bool__(self) -> bool:
        """Whether they change anything."""
        return bool(self.bias or self.penalties or self.processors or self.constraint is not None)


class TokenChooser:
    """Chooses the tokens of one answer under its rules. A `Chooser`.

    Args:
        sampler: draws.
        rules: what was asked for.
        tokens: prompt and answer so far; the answer's own list, which grows.
        vocab_size: V.
    """

    def __init__(self, sampler: Sampler, rules: Rules, tokens: Sequence[int], vocab_size: int) -> None:
        self._sampler, self._rules, self._tokens, self._vocab_size = sampler, rules, tokens, vocab_size
        self._prompt_length = len(tokens)
        if rules.constraint is not None:
            rules.constraint.begin(tokens)
        self._bias_ids = np.fromiter(rules.bias, np.intp, len(rules.bias))
        values = [-np.inf if bias <= BAN else bias for bias in rules.bias.values()]
        self._bias = np.array(values, np.float32)
        self._banned = frozenset(token for token, bias in rules.bias.items() if bias <= BAN)
        self._history = History(tokens, len(tokens), vocab_size)

    def __call__(self, logits: np.ndarray, position: int, drafted: Sequence[int] = ()) -> int:
        """The token at the absolute position `position`, which follows `drafted`."""
        return self.draw(self.shape(logits, drafted), position)

    def draw(self, logits: np.ndarray, position: int) -> int:
        """A token from what `shape` returned."""
        return self._sampler.draw(logits, position)

    def allows(self, logits: np.ndarray, token: int, drafted: Sequence[int]) -> bool:
        """Whether `token` can follow `drafted`."""
        return bool(self.shape(logits, drafted)[token] > -np.inf)

    def shape(self, logits: np.ndarray, drafted: Sequence[int]) -> np.ndarray:
        """What the token after `drafted` is drawn from.

        Args:
            logits: float32, (V,) or fewer: a draft model may know fewer tokens.
            drafted: tokens between the answer so far and the place.

        Returns:
            float32 (V,), -inf for tokens that cannot follow.

        Raises:
            NoTokenError: that is every token.
            PluginError: a processor raises, or returns something else than logits.
            GrammarError: the grammar became too complex.
        """
        rules, size = self._rules, self._vocab_size
        if len(logits) == size:
            shaped = logits.copy()
        else:
            shaped = np.full(size, -np.inf, np.float32)
            shaped[: len(logits)] = logits
        if rules.bias:
            shaped[self._bias_ids] += self._bias
        if rules.penalties:
            self._history.penalise(shaped, rules.penalties, drafted)
        for processor in rules.processors:
            shaped = _processed(processor, self._history.ids(drafted), shaped)
        if rules.constraint is not None:
            rules.constraint.mask(shaped, drafted)
        if shaped.max() == -np.inf:
            place = len(self._tokens) - self._prompt_length + len(drafted)
            raise NoTokenError(
                f"no token can follow the first {place} of the answer: the {self._rulers()} together rule out every one"
            )
        return shaped

    def allowed(self, drafted: Sequence[int], after: Sequence[int] = ()) -> int:
        """How many tokens of `drafted`, from the first on, masks and bans let follow the place after `after`."""
        count = next((n for n, token in enumerate(drafted) if token in self._banned), len(drafted))
        if self._rules.constraint is None:
            return count
        return self._rules.constraint.allowed(drafted[:count], after)

    def forced(self, drafted: Sequence[int], most: int) -> list[int]:
        """Tokens, at most `most`, that must follow `drafted`, or spell what must; the verifier decides."""
        if self._rules.constraint is None:
            return []
        found = self._rules.constraint.forced(drafted, min(most, _MOST_FORCED))
        return found[: next((n for n, token in enumerate(found) if token in self._banned), len(found))]

    def is_complete(self, drafted: Sequence[int]) -> bool:
        """Whether nothing can be added to the answer and `drafted`."""
        return self._rules.constraint is not None and self._rules.constraint.is_complete(drafted)

    def complete_at(self, tokens: Sequence[int]) -> int | None:
        """Number of a round's tokens after which nothing can be added to the answer; None if something always can."""
        return next((count for count in range(1, len(tokens) + 1) if self.is_complete(tokens[:count])), None)

    def _rulers(self) -> str:
        rules = self._rules
        named = {
            "banned tokens": self._banned, "logits processors": rules.processors, "grammar": rules.constraint,
        }  # fmt: skip
        return " and the ".join(name for name, asked in named.items() if asked) or "biases"


class LenientRules:
    """A chooser for drafters: where no token can follow, it says so and does not raise. A draft that goes astray is no
    error; where plain decoding would fail, the verifier does."""

    def __init__(self, chooser: TokenChooser, tokens: Sequence[int], limit: int) -> None:
        self._chooser, self._tokens, self._limit = chooser, tokens, limit

    def __call__(self, logits: np.ndarray, position: int, drafted: Sequence[int] = ()) -> int:
        """The token at `position`, as the verifier would choose it after `drafted`; from the bare logits where
        `drafted` are not the tokens up to there, or nothing can follow them."""
        shaped = self.shape(logits, drafted) if len(self._tokens) + len(drafted) == position else None
        return self._chooser.draw(logits if shaped is None else shaped, position)

    def shape(self, logits: np.ndarray, drafted: Sequence[int]) -> np.ndarray | None:
        """What the token after `drafted` is drawn from, float32 (V,); None where nothing can follow."""
        try:
            return self._chooser.shape(logits, drafted)
        except SpecdecError:
            return None

    def draw(self, logits: np.ndarray, position: int) -> int:
        """A token from what `shape` returned."""
        return self._chooser.draw(logits, position)

    def room(self, drafted: Sequence[int]) -> int:
        """Tokens that may be drafted after `drafted`: a round adds one more of its own, and nothing follows the end."""
        try:
            is_complete = self._chooser.is_complete(drafted)
        except SpecdecError:
            is_complete = True
        return 0 if is_complete else self._limit - len(self._tokens) - len(drafted) - 1

    def forced(self, drafted: Sequence[int]) -> list[int]:
        """Tokens that the grammar makes follow `drafted`; free drafts."""
        try:
            return self._chooser.forced(drafted, self.room(drafted))
        except SpecdecError:
            return []

    def completed(self, draft: Draft) -> Draft:
        """What the verifier could keep of a draft, and after a chain what a grammar leaves no choice about."""
        try:
            if draft.parents is not None:
                return _pruned(draft, self._chooser)
            count = self._chooser.allowed(draft.tokens)
        except SpecdecError:
            count = 0
        if count < len(draft.tokens):
            own = count - draft.sources[:count].count(GRAMMAR)
            draft = replace(
                draft, tokens=draft.tokens[:count], sources=draft.sources[:count], signals=draft.signals[:own]
            )
        draft.add_forced(self.forced(draft.tokens))
        return draft


def _pruned(draft: Draft, chooser: TokenChooser) -> Draft:
    """A tree without what cannot follow, and what comes after that."""
    assert draft.parents is not None
    paths: list[list[int] | None] = []  # tokens from the root, None for what goes
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        before = [] if parent < 0 else paths[parent]
        is_allowed = before is not None and chooser.allowed([token], before) == 1
        paths.append([*before, token] if before is not None and is_allowed else None)
    kept = [index for index, path in enumerate(paths) if path is not None]
    if len(kept) == len(paths):
        return draft
    places = {index: place for place, index in enumerate(kept)} | {-1: -1}
    aligned = draft.aligned
    return replace(
        draft,
        tokens=[draft.tokens[index] for index in kept],
        sources=[draft.sources[index] for index in kept],
        signals=[one for index in kept if (one := aligned[index]) is not None],
        parents=[places[draft.parents[index]] for index in kept],
    )


def _processed(processor: LogitsProcessor, tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """What a processor makes of logits, float32 (V,).

    Raises:
        PluginError: see `TokenChooser.shape`.
    """
    name = getattr(processor, "__qualname__", None) or type(processor).__name__
    try:
        answer = processor(tokens, logits)
    except unless_signalled(Exception) as error:
        raise PluginError.raised("logits processor", name, error, doing="its call") from error
    try:
        found = np.asarray(answer)
    except unless_signalled(Exception):
        found = np.empty(0, np.object_)
    if found.shape != logits.shape or found.dtype.kind not in "fiu":
        what = f"{found.dtype} {found.shape}" if found.dtype.kind != "O" else repr(answer)[:80]
        raise PluginError(
            "logits processor", name, f"gave a wrong answer: it must return logits of shape {logits.shape}, not {what}"
        )
    if found is not logits:
        with np.errstate(over="ignore"):  # infinite logits are refused below
            found = found.astype(np.float32)  # a copy: a processor may keep its array, which must not be masked
    if not found.max() < np.inf:
        raise PluginError("logits processor", name, "gave a wrong answer: logits must be below infinity, and not NaN")
    return found
