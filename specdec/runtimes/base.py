"""Interface between the engine and a runtime, which executes the model.

A pass is a flat list of rows of any number of sequences. Each sequence has a cache of its own; the weights are read
once for all of them. A row's result depends on its own token, history, effort and view alone (docs/arithmetic.md, rule
1), so a batch equals its parts bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from specdec.errors import UnknownNameError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import Efforts, EffortSchedule, resolve_efforts
from specdec.progress import Count
from specdec.runtimes.choices import Choice as Choice
from specdec.runtimes.choices import Recycling as Recycling
from specdec.runtimes.choices import Surveyor as Surveyor
from specdec.runtimes.choices import Turn as Turn
from specdec.runtimes.window import Window as Window
from specdec.weights.base import EXACT as EXACT

Logits = Literal["all", "last", "none", "choices"]

MAX_SEQUENCES = 64  # in a pass
MAX_PASS_ROWS = 512  # of all sequences of a pass together; rows of one sequence alone may be more
MAX_TREE_ROWS = 64  # of one tree: a row's ancestors fit one 64-bit word


class Cache(Protocol):
    """Keys and values of one sequence. Entries past `length` are garbage that the next pass overwrites.

    Only the thread that runs the passes over a cache may touch it.
    """

    @property
    def length(self) -> int:
        """Tokens held, T."""
        ...

    @property
    def capacity(self) -> int:
        """Most tokens that may be held: a bound, not an allocation. Memory grows in blocks."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes allocated now; blocks shared with forks count in each."""
        ...

    def blocks(self) -> Mapping[int, int]:
        """Bytes of each piece of memory allocated now, by a number of it. Pieces that forks share have equal numbers;
        those that hold `length` tokens are written no more, so they stay shared. Valid until the next pass."""
        ...

    def trim(self, length: int) -> None:
        """Keep the first `length` tokens.

        Raises:
            InvalidArgumentError: `length` is negative or larger than the current one.
        """
        ...

    def keep(self, base: int, rows: Sequence[int]) -> None:
        """Keep the first `base` tokens and, of those after them, `rows` in that order: one path of a tree.

        Args:
            base: tokens held before the tree's pass.
            rows: numbers of the tree's rows, ascending; row j is the entry `base + j`.

        Raises:
            InvalidArgumentError: `base` or a row is out of range, or the rows do not ascend.
        """
        ...

    def fork(self, length: int, capacity: int) -> Cache:
        """A cache of another sequence that begins with the first `length` tokens of this one.

        Raises:
            InvalidArgumentError: `length` is out of range or above `capacity`.
        """
        ...


class DraftHead(Protocol):
    """Tokens that the drafts of one sequence score, in place of the whole vocabulary: those that `Runtime.draft_head`
    was given, and what is added. It has room for some thousands of the latter; the oldest go."""

    def add(self, tokens: Sequence[int]) -> None:
        """Score these tokens, too.

        Raises:
            InvalidArgumentError: one is outside the vocabulary.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """One sequence's share of a pass: M rows that are appended to its cache.

    Attributes:
        cache: from the runtime's `new_cache`; grows by M.
        tokens: M >= 1 token ids.
        efforts: share of each matrix's multiplications to perform.
        parents: None for a chain, in which every row follows the one before it. Else a tree of at most
            `MAX_TREE_ROWS` rows: for each row the number of an earlier one that it follows, or -1 for the last token
            that the cache held before. A row sees that history and its own path; its position is the cache's length
            and its depth in the tree.
        layers: run this number of first layers, then the final norm and the logits layer; None runs all. What the cache
            holds in the other layers for these positions is garbage then.
        logits: rows whose logits are computed: all, the last one, or none (a piece of a prompt). "choices" returns the
            choice of every row in their place, on runtimes that choose.
        head: tokens whose logits are computed, at an effort of 1 and by rounded weights whatever the view is; those of
            others are -inf. None computes all tokens'. For drafts, on runtimes that have such heads.
        ahead: with "choices", and one row: most tokens to go on for, each row with the token that the one before it
            chose. The runtime may do fewer; the cache grows by M and by as many as it did.
        ends: tokens after which it does not go on.
        least_margin: nor does it after a choice with a smaller margin, in a draft view.
        further: with `ahead`, most tokens after those that the next pass over these answers will ask for, unless they
            end before. The runtime may begin with them, so that it works while the caller does.
        window: part of the context that the rows attend to; None for all of it. For drafts, on runtimes that narrow.
        recycling: with "choices", and one row: the pass drafts by itself, in a first turn and at most `ahead` others.
            Other runtimes, and passes of several sequences, take it for a plain row. The cache grows by the rows kept.
        likely: tokens of largest logits to return for every row that has logits or a choice, on runtimes that make
            draft heads.
    """

    cache: Cache
    tokens: Sequence[int]
    efforts: Efforts
    parents: Sequence[int] | None = None
    layers: int | None = None
    logits: Logits = "all"
    head: DraftHead | None = None
    ahead: int = 0
    ends: frozenset[int] = frozenset()
    recycling: Recycling | None = None
    window: Window | None = None
    further: int = 0
    likely: int = 0
    least_margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass returns for one sequence.

    Attributes:
        logits: float32 (M, V), (1, V) or (0, V), as `Rows.logits` asked; owned by the caller.
        bytes_read: bytes that the pass had to read for it, in the layout of the view: its own keys and values, and of
            the weights a share by its number of rows. The shares of a pass add up to what the pass read.
        states: float32 (layers, M, hidden), the residual stream after each layer, if asked for.
        choices: of the M rows, then of those that the runtime went on for, where `Rows.logits` asked for them; `logits`
            are (0, V) then.
        turns: at least one if the pass drafted by itself, and then `choices` is empty.
        begun: tokens that the runtime works on already; see `Rows.further`. They are lost to a pass over anything else.
        likely: for every row, the tokens of its largest logits in no order, as many as `Rows.likely` asked for; fewer
            where there are no more, none where a logit is NaN.
    """

    logits: NDArray[np.float32]
    bytes_read: int
    states: NDArray[np.float32] | None = None
    choices: Sequence[Choice] | None = None
    turns: Sequence[Turn] | None = None
    begun: int = 0
    likely: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Late:
    """A view that is made when a pass first needs it; what its steps cost is bounded until then.

    Attributes:
        exact_s: seconds in which the memory gives what a step of one row reads in the exact view at effort 1.
        view_s: the same for this view.
    """

    exact_s: float
    view_s: float

    def least_s(self, step_s: float, effort: float) -> float:
        """Seconds that a step at an effort takes at least, when an exact one takes `step_s`: a view that reads less
        saves no more than the time of the bytes."""
        return max(step_s - max(0.0, self.exact_s - effort * self.view_s), effort * self.view_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewInfo:
    """A form of the weights that a runtime can read.

    Attributes:
        name: of the view.
        own_bytes: bytes of memory that it takes in addition to the exact weights, about; 0 if it reads those.
        is_exact: it keeps every bit of the weights, which makes it the one that verifies.
        reads_exact: its passes read the exact weights, so it has no matrices of its own.
        late: it has yet to be made, and is when a pass first needs it; None for one that is ready or that `prepare`
            makes beforehand.
    """

    name: str
    own_bytes: int = 0
    is_exact: bool = False
    reads_exact: bool = False
    late: Late | None = None


EXACT_VIEW = ViewInfo(name=EXACT, is_exact=True, reads_exact=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """What a runtime says of itself.

    Attributes:
        name: of the runtime.
        auto_draft: draft view and effort that have measured fastest on it: what "auto" stands for.
        build: equal for equal kernels on an equal device: costs measured with one build hold for no other.
        threads: threads that it computes with; None where it does not choose them.
        device: name of the GPU; None on a CPU.
        shows_states: `forward` can return hidden states.
        prunes_head: `draft_head` makes heads, and passes return `Pass.likely`; where it does not, drafts score all
            tokens.
        compiles: a kind of pass is compiled when it is first needed, which takes seconds.
        narrows: passes may attend to a part of the context, `Rows.window`.
        chooses: `forward` returns choices where `Rows.logits` asks for them.
        most_ahead: most tokens that it goes on for; see `Rows.ahead`.
        drafts_ahead: the same in draft views, for one sequence alone.
        recycles: most rows of a turn that `forward` drafts itself; 0 where it does not. See `Rows.recycling`.
        agreeing: up to an effort, the draft view that agrees most with the target there, where it is not that of
            `auto_draft`; ascending.
    """

    name: str
    auto_draft: tuple[str, float]
    build: str = ""
    threads: int | None = None
    device: str | None = None
    compiles: bool = False
    shows_states: bool = True
    prunes_head: bool = False
    narrows: bool = False
    chooses: bool = False
    most_ahead: int = 0
    drafts_ahead: int = 0
    recycles: int = 0
    agreeing: tuple[tuple[float, str], ...] = ()

    def view_at(self, effort: float) -> str:
        """The draft view that agrees most with the target at an effort that the caller named."""
        return next((view for most, view in self.agreeing if effort <= most), self.auto_draft[0])


class Planned(NamedTuple):
    """A kind of pass over one sequence that is about to be run.

    Attributes:
        rows: of the pass.
        efforts: of the rows.
        view: form of the weights.
        recycles: the pass drafts by itself.
    """

    rows: int
    efforts: Efforts
    view: str = EXACT
    recycles: bool = False


@runtime_checkable
class Compiler(Protocol):
    """A runtime that compiles kinds of passes when they are first needed, and can compile several at the same time."""

    def compile(self, passes: Sequence[Planned]) -> None:
        """Compile what passes need that was not compiled before. Views of theirs are not made.

        Raises:
            RuntimeUnavailableError: something does not compile.
            UnknownNameError: unknown view.
        """
        ...


class Runtime(Protocol):
    """Executes one model. One pass runs at a time: `forward` may be called from any thread and waits for its turn."""

    config: ModelConfig
    info: RuntimeInfo

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:
        """Features of the model that this runtime does not execute, by name; empty when it runs it."""
        ...

    def views(self) -> Mapping[str, ViewInfo]:
        """Draft views that `forward` accepts in addition to "exact", by name."""
        ...

    def prepare(self, view: str, *, progress: Count | None = None) -> None:
        """Make `view` ready ahead of the first pass that uses it, so that its cost is not counted as drafting.

        Args:
            view: a draft view, or "exact".
            progress: called with (parts done, parts in all) while the view is built, first with nothing done;
                not at all where it is ready.

        Raises:
            UnknownNameError: this runtime has no such view.
            MemoryShortError: there is no memory for it.
        """
        ...

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache of at most `capacity` tokens.

        Raises:
            InvalidArgumentError: `capacity` is not a positive whole number.
        """
        ...

    def cache_bytes(self, capacity: int) -> int:
        """Most bytes that a cache of that capacity takes when it is full."""
        ...

    def draft_head(self, tokens: tuple[int, ...]) -> DraftHead:
        """A draft head of one sequence that scores these tokens to begin with.

        Raises:
            InvalidArgumentError: a token is outside the vocabulary, there is none, or the runtime has no such heads.
            MemoryShortError: there is no memory for it.
        """
        ...

    def forward(self, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
        """Append every sequence's rows to its cache and return their logits, in the order of the batch.

        A batch equals its parts, bit for bit. When anything is raised, every cache is as it was.

        Args:
            batch: 1 to `MAX_SEQUENCES` sequences, each cache once, with `MAX_PASS_ROWS` rows together at most; a single
                sequence may have more.
            view: "exact", or a draft view from `views`.
            states: also return the hidden states after each layer.

        Raises:
            InvalidArgumentError: the batch is empty or too large, a token id is outside the vocabulary, a cache has no
                room or occurs twice, parents are not a tree, or `layers` is out of range.
            UnknownNameError: unknown view.
        """
        ...


def forward_one(
    runtime: Runtime,
    tokens: Sequence[int],
    cache: Cache,
    *,
    effort: float | EffortSchedule | Efforts = 1.0,
    view: str = EXACT,
    logits: Logits = "all",
    layers: int | None = None,
    states: bool = False,
    head: DraftHead | None = None,
) -> Pass:
    """A pass over one sequence's chain of tokens; arguments and errors are those of `Runtime.forward` and `Rows`."""
    efforts = resolve_efforts(effort, runtime.config)
    return runtime.forward([Rows(cache, tokens, efforts, None, layers, logits, head)], view=view, states=states)[0]


def find_view(runtime: Runtime, name: str) -> ViewInfo:
    """The view of that name, the exact one among them.

    Raises:
        UnknownNameError: the runtime has no such view.
    """
    known = {EXACT: EXACT_VIEW, **runtime.views()}
    if name not in known:
        raise missing_view(name, known)
    return known[name]


def check_view(view: str, known: Mapping[str, ViewInfo]) -> None:
    """Refuse a view that a runtime does not have.

    Raises:
        UnknownNameError: it is neither "exact" nor among `known`.
    """
    if view != EXACT and view not in known:
        raise missing_view(view, [EXACT, *known])


def missing_view(view: str, known: Iterable[str], *, kind: str = "view") -> UnknownNameError:
    """The error for a view that a runtime does not have for a model, which says why where the view exists.

    Args:
        view: that was asked for.
        known: what there is.
        kind: what the message calls it.
    """
    from specdec.weights.registry import get_view, known_views

    registered, reason = known_views(), None
    if view in registered:
        # Some views are for quantised weights alone: a model that has one is quantised.
        quantised = any(not get_view(one).suits(quantised=False) for one in known if one in registered)
        wanted = get_view(view)
        if wanted.suits(quantised=quantised):
            reason = "is not one that this runtime has for this model"
        else:
            reason = f"needs {'16-bit' if quantised else 'quantised'} weights"
    return UnknownNameError(kind, view, list(known), reason=reason)


def depths(parents: Sequence[int]) -> list[int]:
    """Depth of every row of a tree, 0 for one that follows the cache: its position is the cache's length plus this."""
    found: list[int] = []
    for parent in parents:
        found.append(0 if parent < 0 else found[parent] + 1)
    return found


def is_chain(parents: Sequence[int] | None) -> bool:
    """Whether every row follows the one before it."""
    return parents is None or all(parent == row - 1 for row, parent in enumerate(parents))


def path_to(parents: Sequence[int], row: int) -> list[int]:
    """The rows from the tree's root to `row`, both included."""
    path = [row]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]
