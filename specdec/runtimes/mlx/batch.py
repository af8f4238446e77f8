"""How a pass over several sequences is cut into steps of the kernels. What a step computes is in `model`.

Rows with equal modes (`Share.mode`, `Share.selects`) share steps, whatever sequence they are of; a sequence of more
rows than are left in a step goes on in the next one, which finds its keys and values in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from specdec.model.effort import Efforts
from specdec.runtimes.base import Rows, depths, is_chain, path_to
from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.state import Piece, chain

LEAST_WIDE = 33  # rows that take a wide pass less time than steps
_WIDE_MODES = ("dense", "quant")


@dataclass(slots=True)
class Share:
    """One sequence's share of a pass.

    Attributes:
        number: of the sequence in the pass.
        cache: its cache, whose length does not change during the pass.
        ids: tokens of the rows.
        efforts: of the rows.
        mode: `Kind.mode` of its steps.
        selects: `Kind.selects`.
        wanted: rows at the end whose logits are wanted.
        parents: of a tree; None for a chain.
        places: position of each row of a tree.
        begun: rows at the front that are done: of a prompt, by a wide pass.
        chooses: choices are wanted instead of logits, which steps alone make.
    """

    number: int
    cache: GpuCache
    ids: list[int]
    efforts: Efforts
    mode: str
    selects: bool
    wanted: int
    parents: Sequence[int] | None = None
    places: Sequence[int] = ()
    begun: int = 0
    chooses: bool = False

    def piece(self, first: int, last: int, choice: int) -> Piece:
        """Rows `first` to `last` (not included) as a step takes them."""
        held, count = self.cache.length, len(self.ids)
        wanted = max(0, last - max(first, count - self.wanted))
        if self.parents is None:
            return chain(self.ids[first:last], held + first, choice=choice, wanted=wanted)
        paths = [path_to(self.parents, row) for row in range(first, last)]
        return Piece(self.ids[first:last], held + first, held, self.places[first:last], paths, choice, wanted)


def share_of(number: int, rows: Rows, cache: GpuCache, ids: list[int], mode: str, *, selects: bool) -> Share:
    """What a sequence brings to a pass, checked already."""
    wanted = {"all": len(ids), "choices": len(ids), "last": 1, "none": 0}[rows.logits]
    made = Share(number, cache, ids, rows.efforts, mode, selects, wanted, chooses=rows.logits == "choices")
    if rows.parents is not None and not is_chain(rows.parents):
        made.parents = list(rows.parents)
        made.places = [cache.length + depth for depth in depths(rows.parents)]
    return made


def steps_of(shares: Sequence[Share], most_rows: int) -> Iterator[list[tuple[Share, int, int]]]:
    """The steps of a pass: shares of equal mode with the first of their rows and the one past the last.

    Args:
        shares: of the pass.
        most_rows: of a step.
    """
    for kind in dict.fromkeys((share.mode, share.selects) for share in shares):
        step: list[tuple[Share, int, int]] = []
        free = most_rows
        for share in (share for share in shares if (share.mode, share.selects) == kind):
            first = share.begun
            while first < len(share.ids):
                if not free:
                    yield step
                    step, free = [], most_rows
                last = min(len(share.ids), first + free)
                step.append((share, first, last))
                free -= last - first
                first = last
        if step:
            yield step


def wide_passes(shares: Sequence[Share], most_rows: Callable[[int], int]) -> Iterator[list[tuple[Share, int, int]]]:
    """Rows cut into wide passes, where there are enough; counts them as begun, so that steps run the others.

    Args:
        shares: of the pass, perhaps of several modes; chains at effort 1 are cut, unless they want choices.
        most_rows: of a wide pass whose last position is given.
    """
    chains = [
        share
        for share in shares
        if share.mode in _WIDE_MODES and not share.selects and not share.chooses and share.parents is None
    ]
    if sum(len(share.ids) for share in chains) < LEAST_WIDE:
        return
    wide: list[tuple[Share, int, int]] = []
    most = free = most_rows(max(share.cache.length + len(share.ids) for share in chains))
    for share in chains:
        while share.begun < len(share.ids):
            if not free:
                yield wide
                wide, free = [], most
            first, last = share.begun, min(len(share.ids), share.begun + free)
            wide.append((share, first, last))
            share.begun, free = last, free - (last - first)
    if wide:
        yield wide


def decoded(shares: Sequence[Share], most_step: int, most: int) -> bool:
    """Whether a pass goes to `Decoder` as a whole: chains at effort 1 whose choices alone are wanted, and enough rows.

    Args:
        shares: shares of the pass.
        most_step: most rows that are left to steps.
        most: most rows of `Decoder`.
    """
    return most_step < sum(len(share.ids) for share in shares) <= most and all(
        share.mode in _WIDE_MODES and not share.selects and share.chooses and share.parents is None for share in shares
    )
