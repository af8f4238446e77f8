"""One step of the kernels from the shares of a pass to what it shows of each: `Steps`. Passes are in `runtime`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specdec.model.architecture import ModelConfig
from specdec.model.effort import Efforts
from specdec.runtimes.base import EXACT, Choice, Pass, Rows
from specdec.runtimes.mlx.batch import Share
from specdec.runtimes.mlx.cache import SPAN, GpuCache
from specdec.runtimes.mlx.chosen import choices_of, words_of
from specdec.runtimes.mlx.model import Kind, Transformer
from specdec.runtimes.mlx.ops import row_step
from specdec.runtimes.mlx.state import LOGITS_FROM, WANTED, Piece, show_choices, state_of
from specdec.runtimes.mlx.takes import Takes

Part = tuple[Share, int, int]  # of a step: a share, its first row and the one past the last


@dataclass(slots=True)
class Shown:
    """What the steps of a pass show of one sequence.

    Attributes:
        rows: that were asked for.
        logits: float32 (rows, V) of each step.
        choices: of all steps, where `rows` asks for them.
        bytes_read: by all steps.
        ahead: tokens that the last step went on for.
        begun: tokens after those that are under way.
    """

    rows: Rows
    logits: list[np.ndarray] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    bytes_read: int = 0
    ahead: int = 0
    begun: int = 0

    @property
    def chooses(self) -> bool:
        """Choices take the place of logits."""
        return self.rows.logits == "choices"

    def result(self, vocab_size: int, *, alone: bool) -> Pass:
        """Of the pass; each sequence owns its logits, so that a part of a step's is copied."""
        if self.chooses:
            logits = np.empty((0, vocab_size), np.float32)
            return Pass(logits, self.bytes_read, None, self.choices, begun=self.begun)
        joined = self.logits[0] if len(self.logits) == 1 and alone else np.concatenate(self.logits)
        return Pass(joined, self.bytes_read)


@dataclass(slots=True)
class _Plan:
    """A step that is about to run.

    Attributes:
        kind: of the step.
        state: int32 (STATE_SIZE,).
        pieces: of its parts.
        counts: rows of each.
        wanted: rows whose logits or choices are wanted.
        efforts: of the parts, each once.
        ahead: tokens that it may go on for.
        with_logits: logits are wanted of some.
        chooses: choices are wanted of some.
    """

    kind: Kind
    state: np.ndarray
    pieces: list[Piece]
    counts: list[int]
    wanted: int
    efforts: list[Efforts]
    ahead: int
    with_logits: bool
    chooses: bool

    @property
    def places(self) -> np.ndarray:
        """The wanted rows, counted from the first of them."""
        return self.state[WANTED : WANTED + self.wanted] - self.first

    @property
    def first(self) -> int:
        """The first wanted row: one kernel computes the logits of all rows from there on."""
        return int(self.state[LOGITS_FROM])

    @property
    def shown(self) -> int:
        """Rows from the first wanted one on."""
        return sum(self.counts) - self.first


class Steps:
    """Runs steps, one after the other.

    Args:
        mx: MLX.
        transformer: of the model.
        takes: how many weights each row takes.
        weight_bytes: `(mode, efforts)` to the bytes of a step's weights.
        wait: waits for a step that was launched and shows nothing.
    """

    def __init__(
        self,
        mx: Any,
        transformer: Transformer,
        takes: Takes,
        *,
        weight_bytes: Callable[[str, Efforts], int],
        wait: Callable[[], None],
    ) -> None:
        self._mx, self._transformer, self._takes = mx, transformer, takes
        self._weight_bytes, self._wait = weight_bytes, wait
        config: ModelConfig = transformer.config
        self._history_bytes = 4 * sum(layer.attention.kv_width for layer in config.layers)
        self._no_logits = np.empty((0, config.vocab_size), np.float32)

    def run(self, step: list[Part], view: str, shown: Sequence[Shown], ahead: int) -> None:
        """Run one step and wait for it; what it shows of each of its parts goes to `shown`.

        Args:
            step: parts of equal mode.
            view: form of the weights.
            shown: of all sequences of the pass, by number.
            ahead: tokens that all parts go on for.
        """
        step = self._ordered(step)
        caches = [part.cache for part, _, _ in step]
        plan = self._plan(step, caches, shown, ahead, drafts=view != EXACT)
        takes = self._takes.lines(plan.efforts, view) if plan.kind.selects else []
        out = None
        if not self._transformer.launch(plan.kind, plan.state, caches, takes):
            out = self._transformer.run(plan.kind, plan.state, [one.arrays for one in caches], takes, plan.wanted)
            self._mx.eval(out)
        elif not plan.wanted:
            self._wait()
        self._hand_out(step, plan, shown, self._logits(plan, out), self._choices(plan, out))

    def _ordered(self, step: list[Part]) -> list[Part]:
        """The parts in an order that few graphs are enough for: they are made for the sizes of caches and lists of
        efforts. Where a step is one kernel, those that want logits come last."""
        if len(step) == 1:
            return step
        whole = self._transformer.whole is not None
        wants = [whole and last > len(part.ids) - part.wanted for part, _, last in step]
        order = sorted(range(len(step)), key=lambda n: (wants[n], step[n][0].cache.positions))
        return [step[n] for n in order]

    def _plan(
        self, step: list[Part], caches: list[GpuCache], shown: Sequence[Shown], ahead: int, *, drafts: bool
    ) -> _Plan:
        mode, selects, whole = step[0][0].mode, step[0][0].selects, self._transformer.whole
        efforts = [step[0][0].efforts]
        if len(step) > 1:
            efforts = sorted({part.efforts for part, _, _ in step}, key=lambda each: each.values.tobytes())
        pieces = [part.piece(first, last, efforts.index(part.efforts)) for part, first, last in step]
        counts, wanted = [len(piece.tokens) for piece in pieces], sum(piece.wanted for piece in pieces)
        rows, tree = sum(counts), any(piece.paths is not None for piece in pieces)
        built, addresses = self._transformer.row_step(rows), list[int]()
        if whole is not None:
            kind = Kind(mode, selects, built, 0, built, tree, shared=len(step) > 1)
            addresses = [whole.address(cache) for cache in caches] if kind.shared else []
        else:
            spans = max(-(-(piece.slot + count) // SPAN) for piece, count in zip(pieces, counts, strict=True))
            head = row_step(wanted) if wanted else 0
            kind = Kind(mode, selects, built, 1 << (spans - 1).bit_length(), head, tree, 0 < wanted < rows)
        state = state_of(pieces, [cache.positions for cache in caches], addresses)
        choosing = [one.rows for one in (shown[part.number] for part, _, _ in step) if one.chooses]
        with_logits = len(choosing) < len(step)
        if choosing:
            ends = frozenset[int]().union(*(one.ends for one in choosing))
            margin = max(one.least_margin for one in choosing) if drafts else 0.0
            show_choices(state, logits=with_logits, ahead=ahead, ends=ends, least_margin=margin)
        return _Plan(kind, state, pieces, counts, wanted, efforts, ahead, with_logits, bool(choosing))

    def _logits(self, plan: _Plan, out: Any) -> np.ndarray:
        """Logits of the wanted rows, float32 (wanted, V), or (0, V) where choices take their place."""
        if not plan.wanted or not plan.with_logits:
            return self._no_logits
        if self._transformer.whole is None:
            return self._transformer.logits(out, plan.wanted)
        logits = self._transformer.logits(out, plan.shown)
        return logits if plan.wanted == plan.shown else logits[plan.places]

    def _choices(self, plan: _Plan, out: Any) -> np.ndarray | None:
        """Choices of the wanted rows, float32 (turns, wanted, CHOICE_WORDS)."""
        if not plan.chooses or not plan.wanted:
            return None
        if out is not None and self._transformer.whole is None:  # kernels for each phase choose nothing
            return words_of(self._transformer.logits(out, plan.wanted))[None]
        found = self._transformer.choices(plan.shown, plan.ahead)
        return found if plan.wanted == plan.shown else found[:, plan.places]

    def _hand_out(
        self, step: list[Part], plan: _Plan, shown: Sequence[Shown], logits: np.ndarray, choices: np.ndarray | None
    ) -> None:
        """Give each sequence its part of what was shown and read."""
        weights = max(self._weight_bytes(plan.kind.mode, effort) for effort in plan.efforts)
        turns, rows, at, row = 1 if choices is None else len(choices), sum(plan.counts), 0, 0
        for (part, _, last), piece, count in zip(step, plan.pieces, plan.counts, strict=True):
            shared, to = weights * (row + count) // rows - weights * row // rows, shown[part.number]
            to.bytes_read += turns * (shared + self._history_bytes * (part.cache.length + last))
            if to.chooses and choices is not None:
                to.choices += choices_of(choices[:, at : at + piece.wanted].reshape(-1, choices.shape[2]))
                to.ahead = turns - 1
            elif not to.chooses:
                to.logits.append(logits[at : at + piece.wanted])
            at, row = at + piece.wanted, row + count
