"""How many weights of every multiplication the rows of a step take: lines of numbers on the device, by effort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from specdec.kernels.reference.experts import share_to_keep
from specdec.model.architecture import ModelConfig
from specdec.model.effort import Efforts
from specdec.runtimes.mlx.ops import cache_step
from specdec.runtimes.mlx.weights import Linear

_MOST_SCHEDULES = 64

Key = TypeVar("Key")
Value = TypeVar("Value")


class Takes:
    """Numbers of weights to take.

    Args:
        mx: MLX.
        config: of the model.
        linears: every multiplication, in order of use.
        bucket_size: of the store.
        quantised: the store is.
        by_inputs: the exact view chooses whole inputs.
        whole: a step is one kernel, which takes all numbers in one array.
    """

    def __init__(
        self,
        mx: Any,
        config: ModelConfig,
        linears: list[Linear],
        *,
        bucket_size: int,
        quantised: bool,
        by_inputs: bool,
        whole: bool,
    ) -> None:
        self._mx, self._config, self._linears, self._whole = mx, config, linears, whole
        self._bucket_size, self._quantised, self._by_inputs = bucket_size, quantised, by_inputs
        self._counts: dict[tuple[Efforts, str], list[list[int]] | None] = {}
        self._lines: dict[tuple[str, tuple[Efforts, ...]], list[Any]] = {}

    def selects(self, effort: Efforts, view: str) -> bool:
        """Whether a row at this effort chooses anything."""
        return self._counted(effort, view) is not None

    def lines(self, efforts: Sequence[Efforts], view: str) -> list[Any]:
        """Int32 (lines, matrices) for every multiplication, a line for each of the efforts, or one array; then what
        every mixture keeps, float32 (lines, 1)."""
        key = (view, tuple(efforts))
        return kept(self._lines, key, lambda: self._made(efforts, view))

    def _made(self, efforts: Sequence[Efforts], view: str) -> list[Any]:
        mx, counts = self._mx, [self._counted(effort, view) for effort in efforts]
        table = np.array([[count for group in line or () for count in group] for line in counts], np.int32)
        # One array from the host, taken apart on the device: see `weights` on small arrays.
        lines = cache_step(len(table))
        flat = mx.array(np.concatenate([table, np.repeat(table[:1], lines - len(table), axis=0)]))
        if self._whole:
            parts = [flat]
        else:
            ends = np.cumsum([len(group) for group in counts[0] or ()])[:-1].tolist()
            parts = [mx.contiguous(part) for part in mx.split(flat, ends, axis=1)]
        parts += self._to_keep(efforts, lines)
        takes = [part + mx.zeros_like(part) for part in parts]
        mx.eval(takes)
        return takes

    def _to_keep(self, efforts: Sequence[Efforts], lines: int) -> list[Any]:
        """For every mixture the share of the experts' squared weights that a row keeps, float32 (lines, 1)."""
        mixtures = [number for number, layer in enumerate(self._config.layers) if layer.mlp.experts]
        if not mixtures:
            return []
        decide = [effort.of_mixtures(self._config) for effort in efforts]
        found = [[_share_to_keep(line[number]) for number in mixtures] for line in decide]
        table = self._mx.array(np.array(found + found[:1] * (lines - len(found)), np.float32))
        return [self._mx.contiguous(part) for part in self._mx.split(table, len(mixtures), axis=1)]

    def _counted(self, effort: Efforts, view: str) -> list[list[int]] | None:
        """Weights to take of the matrices of every multiplication; None where all are taken."""
        return kept(self._counts, (effort, view), lambda: self._count(effort, view))

    def _count(self, effort: Efforts, view: str) -> list[list[int]] | None:
        efforts = effort.by_name(self._config)
        if view != "bucket" and all(value >= 1 for value in efforts.values()):
            return None
        inputs = view == "int4" or self._quantised or (view == "exact" and self._by_inputs)
        size, together = 1 if inputs else self._bucket_size, view in ("int4", "bucket")
        return [
            linear.takes([efforts[name] for name in linear.names], size, together=together) for linear in self._linears
        ]


def _share_to_keep(effort: float) -> float:
    """As `share_to_keep`; at effort 1 more than there is, so that rounding drops no expert."""
    return share_to_keep(effort) if effort < 1 else 2.0


def kept(held: dict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """A value of a table that does not grow without bounds: a policy may try any number of efforts. Another thread may
    empty the table at any time."""
    with suppress(KeyError):
        return held[key]
    made = make()
    if len(held) >= _MOST_SCHEDULES:
        held.clear()
    held[key] = made
    return made
