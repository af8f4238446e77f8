"""Layers in stages: every rank holds consecutive layers, whole, and rows go from rank to rank once in a pass.

For links that are too slow for four gathers a layer. Ranks work one after the other, so an answer gains memory and no
speed. The first rank embeds tokens, the last one makes the logits, which go to rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specdec.distributed.local import OverLocal
from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import Efforts
from specdec.progress import Count
from specdec.runtimes.base import EXACT, Cache, Pass, Rows, Runtime, RuntimeInfo
from specdec.runtimes.share import bounds_of
from specdec.store.store import Store

if TYPE_CHECKING:
    from specdec.weights.base import ViewMatrix
    from specdec.weights.quantised import ExactMatrix

_LEAVING = -2


class Chain(Protocol):
    """Connects ranks that follow each other; see `specdec.distributed.group.Group`."""

    rank: int
    ranks: int

    def hand_on(self, rows: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
        """Rows of rank `source` on rank `target`; on others `rows` as it is."""
        ...


def stage_bounds(config: ModelConfig, ranks: int) -> tuple[int, ...]:
    """First layer of every rank, and the number of layers: as many for each, the first ranks one more.

    Raises:
        InvalidArgumentError: there are more ranks than layers.
    """
    if ranks > config.num_layers:
        raise InvalidArgumentError(
            f"{config.num_layers} layers cannot be divided among {ranks} ranks: use --split outputs"
        )
    return bounds_of(config.num_layers, 1, ranks)


class Stage:
    """What rank `chain.rank` holds: a `Share` whose layers are whole.

    Args:
        config: the model.
        chain: connects the ranks.

    Attributes:
        config: the layers of this rank as a model of their own.
        whole: the model.
        first: number of the first of these layers.
        vectors: this rank's part of each vector: all of it.
    """

    is_staged = True
    is_uneven = True  # other ranks hold nothing of these layers

    def __init__(self, config: ModelConfig, chain: Chain) -> None:
        self.whole, self._chain = config, chain
        self.rank, self.ranks = chain.rank, chain.ranks
        bounds = stage_bounds(config, chain.ranks)
        self.first, self.last = bounds[chain.rank], bounds[chain.rank + 1]
        self.config = replace(config, layers=config.layers[self.first : self.last])
        self.embeds, self.scores = self.rank == 0, self.rank == self.ranks - 1
        self._shapes = self.config.matrices()
        self._names = list(self._shapes)
        self.vectors = {name: slice(0, size) for name, size in self.config.vectors().items()}

    @property
    def tokens(self) -> slice:
        """Tokens of the logits layer: all where it is needed, for logits or as a tied embedding."""
        needed = self.scores or (self.embeds and self.config.tied)
        return slice(0, self.config.vocab if needed else 0)

    @property
    def embedded(self) -> slice:
        """Tokens of the embedding: all where rows begin."""
        return slice(0, self.config.vocab if self.embeds else 0)

    def part_of(self, store: Store) -> Store:
        """This rank's layers of a store."""
        return StoreStage(store, self)

    @property
    def hidden(self) -> slice:
        """Outputs of matrices that return to the residual stream: all."""
        return slice(0, self.config.hidden)

    def is_cut_in(self, size: int) -> bool:  # noqa: ARG002
        """Nothing is cut."""
        return True

    def outputs(self, matrix: str) -> slice:
        """This rank's outputs of one of its matrices."""
        return self.tokens if matrix == "head" else slice(0, self._shapes[matrix][0])

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of each matrix; the logits layer has no outputs where it is not needed."""
        return {**self._shapes, "head": (self.tokens.stop, self._shapes["head"][1])}

    def heads(self, layer: int) -> slice:
        """Query heads of a layer: all."""
        return slice(0, self.config.layers[layer].attention.heads)

    def kv_heads(self, layer: int) -> slice:
        """Key-value heads of a layer: all."""
        return slice(0, self.config.layers[layer].attention.kv_heads)

    def gather(
        self, matrix: str | int, own: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Rows of a matrix's outputs: they are whole. Logits go from the last rank to rank 0."""
        name = self._names[matrix] if isinstance(matrix, int) else matrix
        if name != "head":
            return _put(own, out)
        sent = own if self.scores else np.zeros((len(own), self.config.vocab), np.float32)
        return _put(self._chain.hand_on(sent, self.ranks - 1, 0), out)

    def gather_embeddings(
        self,
        tokens: Sequence[int] | NDArray[np.int32],
        own: NDArray[np.float32],
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Rows that enter this rank's layers: embeddings, or what the rank before has made of them."""
        del tokens
        rows = np.ascontiguousarray(own)
        for source in range(self.rank):
            rows = self._chain.hand_on(rows, source, source + 1)
        return _put(rows, out)

    def leave(self, rows: NDArray[np.float32]) -> None:
        """Hand rows on to the rank after this one."""
        rows = np.ascontiguousarray(rows)
        for source in range(self.rank, self.ranks - 1):
            self._chain.hand_on(rows, source, source + 1)

    def put_together(
        self, matrix: int, own: NDArray[np.float32], out: NDArray[np.float32], tokens: NDArray[np.int32]
    ) -> None:
        """What the native kernels call; see `Share.put_together`."""
        if matrix == _LEAVING:
            self.leave(own)
        elif matrix < 0:
            self.gather_embeddings(tokens, own, out)
        else:
            self.gather(matrix, own, out)


def _put(rows: NDArray[np.float32], out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if out is None:
        return rows
    out[:] = rows
    return out


class StoreStage(Store):
    """The layers of a store that one rank holds, as a store of their own.

    Args:
        whole: the open store.
        stage: what the rank holds.
    """

    def __init__(self, whole: Store, stage: Stage) -> None:
        self.__dict__.update(whole.__dict__)
        self._whole_store, self._stage = whole, stage
        self.config = stage.config
        self._shapes = stage.config.matrices()
        self.types = {name: whole.types[self._there(name)] for name in self._shapes if self._there(name) in whole.types}
        self.types |= {name: kind for name, kind in whole.types.items() if name in ("embed", "head")}

    def _there(self, name: str) -> str:
        """The name that a matrix, table or vector of this stage has in the whole model."""
        parts = name.split(".")
        return (
            ".".join([parts[0], str(int(parts[1]) + self._stage.first), *parts[2:]]) if parts[0] == "layers" else name
        )

    @property
    def whole(self) -> Store:
        """The store of all ranks."""
        return self._whole_store

    def exact(self, name: str) -> ExactMatrix:
        """See `Store.exact`."""
        return self._whole_store.exact(self._there(name))

    def bucket_arrays(self, name: str) -> dict[str, np.ndarray]:
        """See `Store.bucket_arrays`."""
        return self._whole_store.bucket_arrays(self._there(name))

    def bucketed(self, name: str) -> Any:
        """See `Store.bucketed`."""
        return self._whole_store.bucketed(self._there(name))

    def input_scores(self, name: str) -> np.ndarray:
        """See `Store.input_scores`."""
        return self._whole_store.input_scores(self._there(name))

    def loaded_tiers(self, name: str) -> int:
        """See `Store.loaded_tiers`."""
        return self._whole_store.loaded_tiers(self._there(name))

    def shape(self, name: str) -> tuple[int, int]:
        """(out, in) of a matrix; the logits layer has no outputs where it is not needed."""
        return self._stage.shapes()[name]

    def table(self, name: str) -> Any:
        """See `Store.table`; the embedding where it is needed."""
        table = self._whole_store.table(self._there(name))
        return table if name != "embed" or self._stage.embeds else np.empty((0, self.config.hidden), np.uint16)

    def table_rows(self, name: str, rows: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """See `Store.table_rows`."""
        return self._whole_store.table_rows(self._there(name), rows)

    def vector(self, name: str) -> np.ndarray:
        """See `Store.vector`."""
        return self._whole_store.vector(self._there(name))

    def view(self, view: str, name: str) -> dict[str, np.ndarray]:
        """See `Store.view`."""
        return self._whole_store.view(view, self._there(name))

    def draft(self, view: str, name: str) -> ViewMatrix:
        """See `Store.draft`."""
        return self._whole_store.draft(view, self._there(name))


class StagedRuntime(OverLocal):
    """A rank's layers as a `Runtime` of the whole model: what `LeaderRuntime` and followers run.

    Args:
        local: of the stage's layers.
        stage: which they are.
    """

    def __init__(self, local: Runtime, stage: Stage) -> None:
        super().__init__(local)
        self._stage = stage
        self.config: ModelConfig = stage.whole
        self.info: RuntimeInfo = replace(local.info, shows_states=False, build=f"{local.info.build} in stages")
        names = {name: number for number, name in enumerate(self.config.matrices())}
        own = ([*name.split(".")] for name in stage.config.matrices())
        self._own = np.array([names[_shifted(parts, stage.first)] for parts in own])
        self._efforts: dict[Efforts, Efforts] = {}

    def prepare(self, view: str, *, progress: Count | None = None) -> None:
        """Make a view of this rank's layers ready."""
        self._local.prepare(view, progress=progress)

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache of this rank's layers."""
        return self._local.new_cache(capacity)

    def forward(self, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
        """This rank's part of a pass; logits mean something on rank 0.

        Raises:
            InvalidArgumentError: hidden states or fewer layers are asked for.
        """
        self.check(batch, states)
        own = [replace(rows, efforts=self._of_stage(rows.efforts), layers=None) for rows in batch]
        return self._local.forward(own, view=view)

    def check(self, batch: Sequence[Rows], states: bool) -> None:
        """Refuse what stages cannot do.

        Raises:
            InvalidArgumentError: see `forward`.
        """
        if states:
            raise InvalidArgumentError("a model in stages does not show hidden states: use --split outputs")
        if any(rows.layers not in (None, self.config.num_layers) for rows in batch):
            raise InvalidArgumentError("a model in stages always runs all layers: early exit needs --split outputs")

    def _of_stage(self, efforts: Efforts) -> Efforts:
        found = self._efforts.get(efforts)
        if found is None:
            found = self._efforts[efforts] = Efforts(efforts.values[self._own])
        return found


def _shifted(parts: list[str], first: int) -> str:
    return ".".join([parts[0], str(int(parts[1]) + first), *parts[2:]]) if parts[0] == "layers" else ".".join(parts)
