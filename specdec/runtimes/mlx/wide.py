"""Passes of many rows, which run as ordinary kernels, one after the other, instead of steps: `WidePasses`.

They read prompts (`prompt`) and decode many answers at once (`decode`). They give the same bits as steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from specdec.runtimes.mlx.batch import Share, decoded, wide_passes
from specdec.runtimes.mlx.chosen import choices_of
from specdec.runtimes.mlx.decode import MOST_ROWS, Decoder
from specdec.runtimes.mlx.prompt_quant import QuantPrompts, prompts_of
from specdec.runtimes.mlx.prompt_work import Part
from specdec.runtimes.mlx.state import MOST_AHEAD
from specdec.runtimes.mlx.turn_graphs import TurnGraphs

if TYPE_CHECKING:
    from threading import RLock

    from specdec.model.effort import Efforts
    from specdec.runtimes.mlx.model import Transformer
    from specdec.runtimes.mlx.steps import Shown

# Most rows of a pass of choices that are left to steps: of one sequence, and of several. With quantised weights a graph
# takes less time from two rows on; passes of one sequence would have to wait for its kernels to be compiled.
_STEP_ROWS, _QUANTISED_STEP_ROWS = (16, 16), (8, 1)


class WidePasses:
    """Wide passes of a model; models whose steps are not one kernel have none.

    Args:
        mx: MLX.
        transformer: the model.
        lock: lock of the runtime's caches.
        weight_bytes: bytes of weights that a row reads, by the mode of its step and its efforts.

    Attributes:
        turns: turns as graphs; None where one kernel for a turn takes less time, or there are no wide passes.
    """

    def __init__(
        self,
        mx: Any,
        transformer: Transformer,
        lock: RLock,
        *,
        weight_bytes: Callable[[str, Efforts], int],
    ) -> None:
        self._transformer, self._weight_bytes = transformer, weight_bytes
        self._prompts = prompts_of(mx, transformer)
        self._decoder: Decoder | None = None
        self.turns: TurnGraphs | None = None
        self._most_step = _STEP_ROWS
        if self._prompts is not None:
            spare = transformer.new_cache(1 + MOST_AHEAD, lock)
            self._decoder = Decoder(mx, self._prompts, spare)
            if isinstance(self._prompts, QuantPrompts):
                self.turns = TurnGraphs(mx, self._prompts, spare)
                self._most_step = _QUANTISED_STEP_ROWS
        layers = transformer.config.layers
        self._history_bytes = 4 * sum(layer.attention.kv_width for layer in layers)  # bytes of a position

    def compile(self, *, decodes: bool) -> None:
        """Compile what wide passes over prompts need, and those that choose tokens, before any pass is wide."""
        if self._prompts is not None:
            self._prompts.compile(decodes=decodes)

    def decodes(self, shares: list[Share]) -> bool:
        """Whether a pass is one of `Decoder`, which goes ahead by itself."""
        return self._decoder is not None and decoded(shares, self._most_step[len(shares) > 1], MOST_ROWS)

    def finish(self, shares: list[Share]) -> None:
        """Wait for what was begun ahead of this pass, and forget it where the pass cannot use it."""
        if self._decoder is not None:
            self._decoder.finish()
            if not self.decodes(shares):
                self._decoder.forget()

    def run(self, shares: list[Share], shown: list[Shown], ahead: int, further: int) -> None:
        """Run the rows of a pass that suit wide passes, and put their results into `shown`; steps run the rest.

        Args:
            shares: shares of the sequences.
            shown: results of each share.
            ahead: tokens to go ahead for.
            further: tokens of the next pass to begin with.
        """
        choosing = [share for share in shares if share.chooses]
        if self.decodes(choosing):
            self._decode(choosing, shown, ahead, further)
        if self._prompts is not None and len(choosing) < len(shares):
            self._read(shares, shown)

    def _decode(self, shares: list[Share], shown: list[Shown], ahead: int, further: int) -> None:
        """Run a pass and the tokens ahead of it as graphs; `steps_of` finds nothing left."""
        assert self._decoder is not None  # `decodes`
        parts = [Part(share.cache, share.ids, share.cache.length, len(share.ids)) for share in shares]
        angles, _ = self._transformer.angles(max(share.cache.positions for share in shares))
        found = self._decoder.run(parts, angles[0], ahead, further)
        turns, rows, row = *found.shape[:2], 0
        for share in shares:
            weights, last = self._weight_bytes(share.mode, share.efforts), row + len(share.ids)
            to, share.begun = shown[share.number], len(share.ids)
            to.choices += choices_of(found[:, row:last].reshape(-1, found.shape[2]))
            to.ahead, to.begun = turns - 1, further
            shared = weights * last // rows - weights * row // rows
            to.bytes_read += turns * (shared + self._history_bytes * (share.cache.length + len(share.ids)))
            row = last

    def _read(self, shares: list[Share], shown: list[Shown]) -> None:
        """Run many rows in wide passes."""
        assert self._prompts is not None  # `run`
        for wide in wide_passes(shares, self._prompts.most_rows):
            pieces = [part.piece(first, last, 0) for part, first, last in wide]
            parts = [
                Part(part.cache, piece.tokens, piece.slot, piece.wanted)
                for (part, _, _), piece in zip(wide, pieces, strict=True)
            ]
            angles, _ = self._transformer.angles(max(part.cache.positions for part in parts))
            rows, row = sum(len(part.tokens) for part in parts), 0
            made = self._prompts.run(parts, angles[0])
            for (part, first, last), found in zip(wide, made, strict=True):
                weights, until = self._weight_bytes(part.mode, part.efforts), row + last - first
                shown[part.number].logits.append(found)
                shown[part.number].bytes_read += weights * until // rows - weights * row // rows
                shown[part.number].bytes_read += self._history_bytes * (part.cache.length + last)
                row = until
