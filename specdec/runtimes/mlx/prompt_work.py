"""What wide passes on CUDA are about (`prompt`): rows of sequences, a pass under way, and the tree of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.pack import padded

ROW_BAND = 64  # rows that a block multiplies


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one sequence: tokens that follow what its cache holds.

    Attributes:
        cache: where keys and values go; there is memory for them.
        tokens: of the rows.
        place: position of the first.
        wanted: rows at the end whose logits are wanted.
    """

    cache: GpuCache
    tokens: Sequence[int]
    place: int
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """A pass that is being run.

    Attributes:
        rows: of all sequences.
        splits: of the longest history.
        about: address of the table of rows.
        tiles: address of the table of tiles.
        tile_count: how many tiles there are.
        angles: address of the rotary angles.
        which: address of the list of rows whose logits are wanted.
        wanted: how many these are.
        places: addresses of what the pass keeps in device memory, by name.
        decodes: a pass of `decode`: every row counts its own position.
        chains: several rows of such a pass have one history.
        paths: address of the paths of rows of a tree; 0 for other rows.
    """

    rows: int
    splits: int
    about: int
    tiles: int
    tile_count: int
    angles: int
    which: int
    wanted: int
    places: dict[str, int]
    decodes: bool = False
    chains: bool = False
    paths: int = 0

    @property
    def padded_rows(self) -> int:
        """Rows that there is memory for."""
        return padded(self.rows, ROW_BAND)


@dataclass(frozen=True, slots=True)
class Tree:
    """What turns share besides the memory of a pass.

    Attributes:
        state: address of their state, int32 (STATE_SIZE + 3,): see `decode_tree.cuh`.
        spare: address of a cache for rows that only fill a graph.
        spare_positions: positions of it.
        shown: address of float32 (turns, 1 + rows, CHOICE_WORDS) that the host sees.
    """

    state: int
    spare: int
    spare_positions: int
    shown: int
