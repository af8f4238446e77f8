"""Draft views of the native runtime that have weights of their own: their names, and how each is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specdec.errors import UnknownNameError

if TYPE_CHECKING:
    from specdec.store import Store

DRAFT_VIEWS: tuple[str, ...] = ()


def build_draft(view: str, model: Any, store: Store) -> Any:
    """A `_native.DraftView` of every matrix of a model.

    Args:
        view: one of `DRAFT_VIEWS`.
        model: the `_native.Model` that holds the exact weights.
        store: where the weights come from; its stored arrays are used when it has them.

    Raises:
        UnknownNameError: there is no such view.
    """
    raise UnknownNameError("view", view, list(DRAFT_VIEWS))
