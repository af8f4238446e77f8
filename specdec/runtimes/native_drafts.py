"""Draft views of the native runtime that have weights of their own: their names, and how each is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.config import ModelConfig
from specdec.errors import UnknownNameError

if TYPE_CHECKING:
    from specdec.store import Store


def build_draft(view: str, model: Any, store: Store) -> Any:
    """A `_native.DraftView` of every matrix of a model.

    Args:
        view: one of `DRAFT_VIEWS`.
        model: the `_native.Model` that holds the exact weights.
        store: where the weights come from; its stored arrays are used when it has them.

    Raises:
        UnknownNameError: there is no such view.
    """
    if view not in _BUILDERS:
        raise UnknownNameError("view", view, list(DRAFT_VIEWS))
    return _BUILDERS[view](model, store)


def joined_names(config: ModelConfig) -> list[list[str]]:
    """The matrices of a model, those that multiply the same row side by side: q, k and v; gate and up."""
    joined: list[list[str]] = []
    for layer in range(config.num_layers):
        attn = f"layers.{layer}.attn"
        joined += [[f"{attn}.q", f"{attn}.k", f"{attn}.v"], [f"{attn}.o"]]
        for mlp in config.mlp_names(layer):
            joined += [[f"{mlp}.gate", f"{mlp}.up"], [f"{mlp}.down"]]
    return [*joined, ["head"]]


def _build_int4(model: Any, store: Store) -> Any:
    from specdec.runtimes.native import native_module

    index = {name: number for number, name in enumerate(store.config.matrices())}
    joined = joined_names(store.config)
    view = native_module().Int4View(model, [[index[name] for name in names] for names in joined])
    for number, names in enumerate(joined):
        if "int4" in store.views:
            stored = [store.view("int4", name) for name in names]
            view.load(
                model,
                number,
                [arrays["q"] for arrays in stored],
                [np.ascontiguousarray(arrays["scale"]).view(np.uint16) for arrays in stored],
                [arrays["scores"] for arrays in stored],
            )
        else:
            view.build(model, number)
    return view


_BUILDERS: dict[str, Callable[[Any, Store], Any]] = {"int4": _build_int4}
DRAFT_VIEWS: tuple[str, ...] = tuple(_BUILDERS)
