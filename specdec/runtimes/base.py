"""The one interface between the engine and whatever multiplies the matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import EffortSchedule

_FEW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """What one pass returns.

    Attributes:
        logits: float32 array of shape (M, V), or (1, V) when only the last row was asked for; owned by the caller.
        bytes_read: bytes of weights and cache that the pass had to read, in the layout of the view it used.
    """

    logits: np.ndarray
    bytes_read: int


class Cache(Protocol):
    """Keys and values of one sequence. Entries past `length` are garbage that the next pass overwrites."""

    @property
    def length(self) -> int:
        """Tokens held, T."""
        ...

    @property
    def capacity(self) -> int:
        """Most tokens that fit."""
        ...

    def trim(self, length: int) -> None:
        """Keep the first `length` tokens.

        Raises:
            InvalidArgumentError: `length` is negative or larger than the current one.
        """
        ...


class Runtime(Protocol):
    """Runs one model. Equal inputs give equal bits, whatever the number of rows M that share a pass."""

    name: str
    config: ModelConfig
    # Draft view and effort that have measured fastest on this runtime: what "auto" stands for.
    auto_draft: tuple[str, float]
    # Draft views in which a pass over several rows costs about as much as over one.
    batched_views: tuple[str, ...]

    @property
    def views(self) -> tuple[str, ...]:
        """Draft views that `forward` accepts beside "exact"."""
        ...

    def prepare_view(self, view: str) -> None:
        """Make `view` ready ahead of the first pass that uses it, so that its cost is not counted as drafting.

        Raises:
            UnknownNameError: this runtime has no such view.
        """
        ...

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens."""
        ...

    def forward(
        self,
        tokens: Sequence[int],
        cache: Cache,
        *,
        effort: EffortSchedule,
        view: str = "exact",
        last_only: bool = False,
        layers: int | None = None,
    ) -> ForwardResult:
        """Append M tokens to `cache` (positions `cache.length` onwards) and return their logits.

        Each row's arithmetic depends on its own token and history alone, never on M.

        Args:
            tokens: M >= 1 token ids.
            cache: made by this runtime's `new_cache`; grows by M.
            effort: share of each matrix's multiplications to perform.
            view: "exact", or a draft view from `views`.
            last_only: compute the logits layer for the last row only.
            layers: run the first so many layers, then the final norm and the logits layer; None runs all. What the
                cache holds in the other layers for these positions is garbage then.

        Raises:
            InvalidArgumentError: a token id is outside the vocabulary, the cache has no room, or `layers` is out of
                range.
            UnknownNameError: unknown view.
        """
        ...


@runtime_checkable
class ShowsStates(Protocol):
    """A runtime that can also say what is between its layers."""

    def forward_states(
        self, tokens: Sequence[int], cache: Cache, *, effort: EffortSchedule, view: str = "exact"
    ) -> tuple[ForwardResult, NDArray[np.float32]]:
        """`Runtime.forward`, and with its result the hidden states (num_layers, M, hidden): the residual stream behind
        every layer, before the final norm."""
        ...


def checked_layers(layers: int | None, config: ModelConfig) -> int:
    """The number of layers to run.

    Raises:
        InvalidArgumentError: it is no whole number from 1 to what the model has.
    """
    if layers is None:
        return config.num_layers
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= config.num_layers:
        raise InvalidArgumentError(f"layers must be a whole number from 1 to {config.num_layers}, not {layers!r}")
    return layers


def _within(ids: NDArray[np.int64], vocab_size: int) -> bool:
    """Whether all ids are in the vocabulary.

    The few tokens of a round go through a list: between passes, which drive code out of the processor's caches, numpy's
    reductions take longer.
    """
    if len(ids) > _FEW_TOKENS:
        return bool(ids.min() >= 0 and ids.max() < vocab_size)
    few: list[int] = ids.tolist()
    return min(few) >= 0 and max(few) < vocab_size


def checked_tokens(tokens: Sequence[int], cache: Cache, vocab_size: int) -> NDArray[np.int64]:
    """The token ids of a pass over `cache`, (M,).

    Raises:
        InvalidArgumentError: there is none, one is outside the vocabulary, or the cache has no room for all.
    """
    try:
        ids = np.asarray(tokens, dtype=np.int64)
    except OverflowError:  # an id so large is outside any vocabulary
        ids = None
    if ids is not None and (ids.ndim != 1 or not len(ids)):
        raise InvalidArgumentError("a pass needs at least one token")
    if ids is None or not _within(ids, vocab_size):
        wrong = next(int(token) for token in tokens if not 0 <= token < vocab_size)
        raise InvalidArgumentError(f"token id {wrong} is outside the vocabulary of {vocab_size}")
    if cache.length + len(ids) > cache.capacity:
        raise InvalidArgumentError(
            f"the cache holds {cache.length} of at most {cache.capacity} tokens: no room for {len(ids)} more"
        )
    return ids
