"""Random schedules: what many sequences may ask of a runtime, pass by pass. Running and checking is in `schedule_run`.

Every choice goes through a `random.Random`, so that hypothesis can shrink a schedule and a seed names one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Literal

from hypothesis import strategies as st

from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import EXACT, MAX_PASS_ROWS, Runtime, path_to

Effort = float | EffortSchedule
EFFORTS: tuple[Effort, ...] = (1.0, 0.6, 0.25, EffortSchedule(0.4, {"head": 1.0, "layers.0.*": 0.8}))
_LONG = 100  # tokens that a sequence must have room for to begin with a long prompt
_LOGITS: tuple[Literal["all", "last", "none"], ...] = ("all", "all", "last", "none")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What schedules are drawn from.

    Attributes:
        vocab_size: tokens; few of them occur.
        max_tokens: most tokens of a sequence.
        views: draft views.
        layers: numbers of layers to leave a pass after, fewer than all.
        efforts: of verification and drafts.
        sequences: most at a time.
        passes: most passes.
        prompt: most tokens in a chunk of a prompt.
        tree: most rows of a tree; 0 draws no trees.
        keeps: paths of trees may be kept.
        forks: sequences may begin as forks.
        states: hidden states may be asked for.
    """

    vocab_size: int
    max_tokens: int = 160
    views: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    efforts: tuple[Effort, ...] = EFFORTS
    sequences: int = 6
    passes: int = 6
    prompt: int = 20
    tree: int = 12
    keeps: bool = True
    forks: bool = True
    states: bool = True

    @classmethod
    def of(cls, runtime: Runtime, *, early_exit: bool = True, **values: object) -> Limits:
        """All that a runtime's interface promises; `values` replaces some."""
        config = runtime.config
        return cls(
            vocab_size=config.vocab_size,
            **{
                "views": tuple(runtime.views()),
                "layers": tuple(range(1, config.num_layers)) if early_exit else (),
                "states": runtime.info.shows_states,
                "max_tokens": min(160, config.max_context),
                **values,
            },  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Join:
    """A sequence comes: empty, after a prompt of fixed text, or as a fork.

    Attributes:
        name: number of the sequence, never given twice.
        effort: of its verify passes.
        capacity: of its cache.
        prompt: number of a text and how many tokens of it are read before the next pass, by themselves.
        source: sequence that it is forked from, and at what length.
    """

    name: int
    effort: Effort
    capacity: int
    prompt: tuple[int, int] | None = None
    source: tuple[int, int] | None = None

    def __str__(self) -> str:
        begins = f" as the first {self.source[1]} tokens of s{self.source[0]}" if self.source else ""
        begins += f" with {self.prompt[1]} tokens of text {self.prompt[0]}" if self.prompt else ""
        return f"s{self.name} joins{begins}: effort {_short(self.effort)}, capacity {self.capacity}"


@dataclass(frozen=True)
class Share:
    """One sequence's part of a pass.

    Attributes:
        name: of the sequence.
        trim: length to trim its cache to before the pass; None leaves it.
        tokens: of its rows.
        effort: of its rows.
        parents, layers, logits: as in `Rows`.
        keep: rows kept after the pass, of a tree or a chain; None keeps all.
        by_trim: keep them by `trim` and not by `keep`; they are the first ones then.
    """

    name: int
    trim: int | None
    tokens: tuple[int, ...]
    effort: Effort
    parents: tuple[int, ...] | None = None
    layers: int | None = None
    logits: Literal["all", "last", "none"] = "all"
    keep: tuple[int, ...] | None = None
    by_trim: bool = False

    def __str__(self) -> str:
        text = "" if self.trim is None else f"trim to {self.trim}, "
        text += f"tokens {list(self.tokens)}, effort {_short(self.effort)}"
        text += "" if self.parents is None else f", parents {list(self.parents)}"
        text += "" if self.layers is None else f", {self.layers} layers"
        text += "" if self.logits == "all" else f", logits {self.logits}"
        if self.keep is not None:
            text += f", then trim to {len(self.keep)} rows" if self.by_trim else f", then keep {list(self.keep)}"
        return f"s{self.name}: {text}"


@dataclass(frozen=True)
class Step:
    """Sequences come and go, then one pass.

    Attributes:
        refused: the pass is first tried with a token outside the vocabulary in its last share.
    """

    joins: tuple[Join, ...]
    leaves: tuple[int, ...]
    view: str
    shares: tuple[Share, ...]
    states: bool = False
    refused: bool = False


@dataclass(frozen=True)
class Schedule:
    """Passes in order; the last one is an exact row of every sequence, which shows what the caches hold."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = []
        for number, step in enumerate(self.steps):
            lines += [str(join) for join in step.joins] + [f"s{name} leaves" for name in step.leaves]
            extra = " with states" * step.states + ", first with a bad token" * step.refused
            lines.append(f"pass {number}, view {step.view}{extra}:")
            lines += [f"  {share}" for share in step.shares]
        return "\n".join(lines)

    __repr__ = __str__


def _short(effort: Effort) -> str:
    return str(effort) if isinstance(effort, float) else f"{effort.default} with rules"


@dataclass
class _Sequence:
    """What the draw knows of a sequence: tokens held, of them of verify quality, and the kind of those after."""

    effort: Effort
    capacity: int
    held: int = 0
    verified: int = 0
    drafts: tuple[object, ...] = ()


@dataclass
class _Draw:
    """A schedule in the making."""

    random: Random
    limits: Limits
    live: dict[int, _Sequence] = field(default_factory=dict)
    names: int = 0

    def chance(self, one_in: int) -> bool:
        """True once in so many times; False is what shrinking goes for."""
        return self.random.randint(1, one_in) == one_in

    def schedule(self) -> Schedule:
        """Some passes and the closing one."""
        steps = [self.step() for _ in range(self.random.randint(1, self.limits.passes))]
        return Schedule((*steps, self.closing()))

    def step(self) -> Step:
        """Joins, leaves and a pass over some of the sequences."""
        most = max(2, self.limits.sequences // 2)
        wanted = self.random.randint(0 if self.live else 1, most)
        joins = tuple(self.join() for _ in range(min(wanted, self.limits.sequences - len(self.live))))
        leaves = []
        if len(self.live) > 1 and self.chance(6):
            leaves.append(self.random.choice(sorted(self.live)))
            del self.live[leaves[0]]
        view = EXACT
        if self.limits.views and self.chance(3):
            view = self.random.choice(self.limits.views)
        chosen = [name for name in self.live if not self.chance(4)] or [self.random.choice(sorted(self.live))]
        shares: list[Share] = []
        for name in chosen:
            free = MAX_PASS_ROWS - sum(len(share.tokens) for share in shares)
            shares.append(self.share(name, view, free - (len(chosen) - len(shares) - 1)))
        states = self.limits.states and self.chance(5)
        return Step(joins, tuple(leaves), view, tuple(shares), states=states, refused=self.chance(12))

    def join(self) -> Join:
        """A new sequence, registered."""
        name, limits = self.names, self.limits
        self.names += 1
        effort = self.random.choice(limits.efforts)
        capacity = self.random.randint(1, 30) if self.chance(3) else limits.max_tokens
        prompt: tuple[int, int] | None = None
        source: tuple[int, int] | None = None
        if limits.forks and self.live and self.chance(2):
            origin = self.random.choice(sorted(self.live))
            effort = self.live[origin].effort
            length = self.random.randint(0, min(capacity, self.live[origin].verified))
            source = (origin, length)
        elif capacity == limits.max_tokens >= _LONG and self.chance(8):
            prompt = (self.random.randint(0, 1), limits.max_tokens - self.random.randint(25, 45))
        held = source[1] if source else prompt[1] if prompt else 0
        self.live[name] = _Sequence(effort, capacity, held, held)
        return Join(name, effort, capacity, prompt, source)

    def share(self, name: int, view: str, most: int) -> Share:
        """At most so many rows of one sequence, and what it keeps of them."""
        sequence = self.live[name]
        effort, layers = sequence.effort, None
        is_draft = view != EXACT or self.chance(6)
        if is_draft:
            effort = self.random.choice(self.limits.efforts)
            layers = self.random.choice((None, None, *self.limits.layers))
        kind = (view, effort, layers)
        start = sequence.held if is_draft and sequence.drafts == kind else sequence.verified
        if start == sequence.capacity:  # full: go back a little, which is what a rejected answer does
            start = self.random.randint(max(0, sequence.verified - 3), max(0, sequence.verified - 1))
        count, parents = self.rows(min(most, sequence.capacity - start))
        kept, by_trim = self.kept(count, parents)
        trim = None if start == sequence.held else start
        tokens = tuple(self.token() for _ in range(count))
        logits = self.random.choice(_LOGITS)
        sequence.held = start + (count if kept is None else len(kept))
        sequence.verified = min(sequence.verified, start) if is_draft else sequence.held
        sequence.drafts = kind if is_draft else ()
        return Share(name, trim, tokens, effort, parents, layers, logits, kept, by_trim)

    def rows(self, room: int) -> tuple[int, tuple[int, ...] | None]:
        """Number of rows and parents: a single row, a chain of drafts, a piece of a prompt, or a tree."""
        kind = self.random.randint(0, 3 if self.limits.tree else 2)
        most = (1, 9, self.limits.prompt, self.limits.tree)[kind]
        count = self.random.randint(1, min(most, room))
        if kind < 3:
            return count, None
        # Half of the rows follow the one before them, so that there are deep trees.
        parents = [
            row - 1 if self.random.randint(0, 1) == 0 else self.random.randint(-1, row - 1) for row in range(count)
        ]
        return count, tuple(parents)

    def kept(self, count: int, parents: tuple[int, ...] | None) -> tuple[tuple[int, ...] | None, bool]:
        """Rows that stay and whether `trim` does it; a tree is always cut down to a path."""
        chain = tuple(range(-1, count - 1)) if parents is None else parents
        if parents is None and not self.chance(3):
            return None, False
        by_trim = not self.limits.keeps or self.chance(3)
        leading = next((row for row in range(count) if chain[row] != row - 1), count)  # rows that begin a chain
        if by_trim:
            return tuple(range(self.random.randint(0, leading))), True
        row = self.random.randint(-1, count - 1)
        return (() if row < 0 else tuple(path_to(chain, row))), False

    def token(self) -> int:
        """One of seven tokens, the last of the vocabulary among them."""
        token = self.random.randint(0, 6)
        return self.limits.vocab_size - 1 if token == 6 else token

    def closing(self) -> Step:
        """An exact row of every sequence."""
        shares = []
        for name, sequence in self.live.items():
            start = min(sequence.verified, sequence.capacity - 1)
            trim = None if start == sequence.held else start
            shares.append(Share(name, trim, (self.token(),), sequence.effort))
        return Step((), (), EXACT, tuple(shares))


def text(number: int, length: int) -> tuple[int, ...]:
    """A beginning of one of two fixed texts."""
    return tuple((place * (7 + number) + place * place) % 6 for place in range(length))


def random_schedule(random: Random, limits: Limits) -> Schedule:
    """A schedule; equal seeds give equal ones."""
    return _Draw(random, limits).schedule()


@st.composite
def schedules(draw: st.DrawFn, limits: Limits) -> Schedule:
    """Schedules that hypothesis draws and shrinks."""
    return random_schedule(draw(st.randoms(use_true_random=False)), limits)
