"""Draft views of the native runtime that have weights of their own: their names, and how each is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.errors import StoreError, UnknownNameError
from specdec.interrupts import unless_signalled
from specdec.model.architecture import ModelConfig
from specdec.progress import Count, reported
from specdec.runtimes.base import ViewInfo
from specdec.store.share import can_divide
from specdec.weights.registry import get_view

if TYPE_CHECKING:
    from specdec.runtimes.share import Part
    from specdec.store import Store


def build_draft(view: str, model: Any, store: Store, progress: Count | None = None) -> Any:
    """A `_native.DraftView` of every matrix of a model.

    Args:
        view: one of `draft_views` with weights of its own.
        model: the `_native.Model` that holds the exact weights.
        store: where the weights come from; its stored arrays are used when it has them.
        progress: see `Runtime.prepare`.

    Raises:
        UnknownNameError: there is no such view.
        StoreError: its stored arrays contradict the view's definition.
    """
    if view not in _BUILDERS:
        raise UnknownNameError("view", view, list(_BUILDERS))
    from specdec.runtimes.native.runtime import native_module

    return _BUILDERS[view](native_module(), model, store, progress)


def joined_names(config: ModelConfig) -> list[list[str]]:
    """The matrices of a model, those that multiply the same row side by side: q, k and v; gate and up."""
    joined: list[list[str]] = []
    for layer in range(config.num_layers):
        attn = f"layers.{layer}.attn"
        joined += [[f"{attn}.q", f"{attn}.k", f"{attn}.v"]]
        if config.layers[layer].attention.gate:
            joined += [[f"{attn}.gate"]]
        joined += [[f"{attn}.o"]]
        for mlp in config.mlp_names(layer):
            joined += [[f"{mlp}.gate", f"{mlp}.up"], [f"{mlp}.down"]]
    return [*joined, ["head"]]


def _joined_numbers(config: ModelConfig) -> tuple[list[list[str]], list[list[int]]]:
    """`joined_names`, and the same as matrix numbers."""
    index = {name: number for number, name in enumerate(config.matrices())}
    names = joined_names(config)
    return names, [[index[name] for name in joined] for joined in names]


def _build_int4(module: Any, model: Any, store: Store, progress: Count | None) -> Any:
    names, numbers = _joined_numbers(store.config)
    view = module.Int4View(model, numbers)
    for number, joined in enumerate(reported(names, progress)):
        if "int4" not in store.views:
            view.build(model, number)
            continue
        stored = [store.view("int4", name) for name in joined]
        view.load(
            model,
            number,
            q=[arrays["q"] for arrays in stored],
            scale=[arrays["scale"].view(np.uint16) for arrays in stored],
            scores=[arrays["scores"] for arrays in stored],
        )
    return view


def _build_bucket8(module: Any, model: Any, store: Store, progress: Count | None) -> Any:
    names, numbers = _joined_numbers(store.config)
    view = module.Bucket8View(model, numbers)
    for number, joined in enumerate(reported(names, progress)):
        if "bucket8" not in store.views:
            view.build(model, number)
            continue
        stored = [store.view("bucket8", name) for name in joined]
        try:
            view.load(
                model,
                number,
                values=[arrays[f"tier{k}.values"].view(np.uint8) for arrays in stored for k in range(4)],
                masks=[arrays[f"tier{k}.mask"] for arrays in stored for k in range(3)],
                step=[arrays["step"] for arrays in stored],
                scores=[arrays["scores"] for arrays in stored],
            )
        except unless_signalled(ValueError) as error:
            raise StoreError(f"view 'bucket8' of {joined[0]!r}: {error}; convert the model again") from None
    return view


def draft_views(config: ModelConfig, *, quantised: bool, share: Part | None = None) -> dict[str, ViewInfo]:
    """Draft views of a store, which may have matrices in quantised blocks, by name. Where a device holds nothing of a
    matrix, there are none with matrices of their own."""
    names: tuple[str, ...] = ("own", "nested", "int4") if quantised else ("bucket", "bucket8", "int4")
    if share is not None and share.is_uneven:
        names = tuple(name for name in names if name not in _BYTES_PER_WEIGHT)
    if share is not None:
        names = tuple(name for name in names if can_divide(name, share))
    weights = sum(outputs * inputs for outputs, inputs in config.matrices().values())
    return {
        name: ViewInfo(
            name=name,
            own_bytes=int(weights * _BYTES_PER_WEIGHT.get(name, 0.0) / (1 if share is None else share.ranks)),
            reads_exact=get_view(name).reads_exact,
        )
        for name in names
    }


def _build_nested(module: Any, model: Any, store: Store, _: Count | None) -> Any:
    return module.NestedView(model, _joined_numbers(store.config)[1])


# Levels and scales of int4; codes, masks and steps of bucket8. Without what rounding to whole tiles and pages adds, a
# few percent.
_BYTES_PER_WEIGHT = {"bucket8": 1.375, "int4": 0.535}
_BUILDERS: dict[str, Callable[[Any, Any, Store, Count | None], Any]] = {
    "bucket8": _build_bucket8,
    "int4": _build_int4,
    "nested": _build_nested,
}
