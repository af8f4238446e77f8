"""Which kernels passes need, compiled before they run, and as many as possible at the same time: `Compiling`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from specdec.runtimes.base import EXACT, Planned
from specdec.runtimes.mlx.model import Kind, Transformer
from specdec.workers import Workers

if TYPE_CHECKING:
    from specdec.model.effort import Efforts
    from specdec.runtimes.mlx.recycle import Turning
    from specdec.runtimes.mlx.takes import Takes
    from specdec.runtimes.mlx.wide import WidePasses


class Compiling:
    """Of a model whose steps are one kernel; of others nothing is compiled beforehand.

    Args:
        transformer: of the model.
        turning: its turns.
        wide: its wide passes.
        takes: which efforts select inputs.
        mode: `(view, selects)` to the `Kind.mode` of its steps.
        most_rows: `(view, mode)` to the most rows of a step.
    """

    def __init__(
        self,
        transformer: Transformer,
        turning: Turning,
        wide: WidePasses,
        takes: Takes,
        *,
        mode: Callable[[str, bool], str],
        most_rows: Callable[[str, str], int],
    ) -> None:
        self._whole, self._turning, self._wide, self._takes = transformer.whole, turning, wide, takes
        self._mode, self._most_rows = mode, most_rows
        self._begun: set[bool] = set()  # a pass over one sequence, or over several, was asked for

    def begin(self, efforts: Efforts, *, shared: bool) -> None:
        """Compile what the first passes will need: those of one sequence, or of several, which come and go."""
        if shared in self._begun:
            return
        self._begun.add(shared)
        if not shared:
            self.compile([Planned(1, efforts)])
        elif self._whole is not None:
            selects = self._takes.selects(efforts, EXACT)
            mode = self._mode(EXACT, selects)
            steps = {self._whole.row_step(rows) for rows in range(2, self._most_rows(EXACT, mode) + 1)}
            self._together((Kind(mode, selects, rows, 0, rows, shared=True) for rows in sorted(steps)), decodes=True)

    def compile(self, passes: Sequence[Planned]) -> None:
        """Compile what passes over one sequence need, and the pieces of its prompt."""
        whole = self._whole
        if whole is None:
            return
        kinds, decodes, others = list[Kind](), False, list[Planned]()
        if any(one.recycles for one in passes):
            # A survey, steps of all sizes whose costs are measured, and the sequence's other passes come next.
            kinds.append(self._turning.kind_of_surveys)
            others = [Planned(count, passes[0].efforts) for count in range(1, self._most_rows(EXACT, "") + 1)]
        for rows, efforts, view, recycles in (*passes, *others):
            selects = self._takes.selects(efforts, view)
            mode = self._mode(view, selects)
            if recycles and not selects:
                by_graphs = self._turning.has_graphs(rows)
                decodes = decodes or by_graphs
                kinds += [] if by_graphs else [self._turning.kind(rows)]
                continue
            for count in (rows, self._most_rows(EXACT, "")) if view == EXACT else (1,):
                built = whole.row_step(min(count, self._most_rows(view, mode)))
                kinds.append(Kind(mode, selects, built, 0, built))
        self._together(kinds, decodes=decodes)

    def _together(self, kinds: Iterable[Kind], *, decodes: bool) -> None:
        """Steps, and the kernels of wide passes; also those that choose tokens, if wanted."""
        whole = self._whole
        assert whole is not None  # callers look
        with Workers(1) as workers:
            wide = workers.submit(lambda: self._wide.compile(decodes=decodes))
            whole.compile(kinds)
            wide.result()
