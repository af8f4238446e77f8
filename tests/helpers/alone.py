"""What a sequence gets when it is computed alone: one row a pass, over a cache that no other sequence has touched.

The rows form a trie, each held once, so that a property test which asks for many similar histories stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from specdec.model.effort import Efforts
from specdec.runtimes.base import Cache, Rows, Runtime

_MOST_ROWS = 100_000


@dataclass(frozen=True)
class Entry:
    """A row: its token, and the kind of pass that computed it.

    Attributes:
        token: id.
        view: of the weights.
        efforts: of the matrices.
        layers: the first so many; None means all.
    """

    token: int
    view: str
    efforts: Efforts
    layers: int | None = None


@dataclass(eq=False)
class Row:
    """A row of the trie: an entry after the entries of its ancestors. The root has none.

    Attributes:
        logits: float32 (V,), once computed.
        states: float32 (layers, hidden), once computed and where the runtime shows them.
    """

    entry: Entry | None = None
    parent: Row | None = None
    children: dict[Entry, Row] = field(default_factory=dict)
    logits: np.ndarray | None = None
    states: np.ndarray | None = None

    def after(self, entry: Entry) -> Row:
        """The row of `entry` that follows this one."""
        if entry not in self.children:
            self.children[entry] = Row(entry, self)
        return self.children[entry]

    def path(self) -> list[Row]:
        """The rows from the first one to this one."""
        found, row = [], self
        while row.parent is not None:
            found.append(row)
            row = row.parent
        return found[::-1]


class Alone:
    """Computes rows alone, and remembers them.

    Args:
        runtime: whose rows.
        capacity: of its caches.
        caches: how many to keep; the one with the longest common history is trimmed and continued.
    """

    def __init__(self, runtime: Runtime, *, capacity: int, caches: int = 12) -> None:
        self.runtime, self.capacity = runtime, capacity
        self._most_caches = caches
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.root, self._count = Row(), 0
        self._caches: list[tuple[Cache, list[Row]]] = []

    def begin(self) -> Row:
        """The root, for a new set of sequences; forgets the rows of old ones when they are many."""
        if self._count > _MOST_ROWS:
            self.clear()
        return self.root

    def compute(self, row: Row) -> Row:
        """The row, with logits."""
        if row.logits is None:
            path = row.path()
            cache, held = self._nearest(path)
            for new in path[len(held) :]:
                self._append(cache, new)
                held.append(new)
        return row

    def compute_afresh(self, row: Row) -> np.ndarray:
        """Logits float32 (V,) of the row, over a new cache that is never trimmed."""
        cache, path = self.runtime.new_cache(self.capacity), row.path()
        for each in path[:-1]:
            self._forward(cache, each, "none")
        return self._forward(cache, path[-1], "all")[0]

    def _nearest(self, path: list[Row]) -> tuple[Cache, list[Row]]:
        """A cache that holds a beginning of the path, and the rows that it holds."""
        shared = [_shared(held, path) for _, held in self._caches]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        # A cache with a long history is worth more than the one that it would be trimmed for.
        if best is None or (2 * shared[best] < len(self._caches[best][1]) and len(shared) < self._most_caches):
            chosen: tuple[Cache, list[Row]] = self.runtime.new_cache(self.capacity), []
        else:
            if shared[best] == 0:
                best = 0  # the one that was used least recently
            chosen = self._caches.pop(best)
            chosen[0].trim(shared[best])
            del chosen[1][shared[best] :]
        self._caches.append(chosen)
        return chosen

    def _append(self, cache: Cache, row: Row) -> None:
        if row.logits is not None:
            self._forward(cache, row, "none")
            return
        logits, states = self._forward(cache, row, "all", states=self.runtime.info.shows_states)
        row.logits, row.states = logits, states
        self._count += 1

    def _forward(
        self, cache: Cache, row: Row, logits: str, *, states: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        entry = row.entry
        assert entry is not None
        rows = Rows(cache, [entry.token], entry.efforts, None, entry.layers, logits)  # type: ignore[arg-type]
        found = self.runtime.forward([rows], view=entry.view, states=states)[0]
        shown = None if found.states is None else found.states[:, 0].copy()
        return (found.logits[0].copy() if logits == "all" else found.logits), shown


def _shared(held: list[Row], path: list[Row]) -> int:
    """How many rows the two begin with alike; a row is in both only when its ancestors are."""
    low, high = 0, min(len(held), len(path))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if held[middle - 1] is path[middle - 1] else (low, middle - 1)
    return low
