"""Views by name: those of this package, and those that other packages add through the entry-point group
`specdec.views` (an entry point names a `View` subclass)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.views.base import View
from specdec.views.bucket import BucketView
from specdec.views.int4 import Int4View

ENTRY_POINT_GROUP = "specdec.views"

_makers: dict[str, Callable[[], View]] = {}


def register_view(name: str, maker: Callable[[], View]) -> None:
    """Make a view known under `name`.

    Raises:
        InvalidArgumentError: the name is taken, or cannot be part of a file name.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or name == "exact":
        raise InvalidArgumentError(f"view name {name!r} must be letters, digits, '-' and '_', and not 'exact'")
    if name in known_views():
        raise InvalidArgumentError(f"a view named {name!r} is already registered")
    _makers[name] = maker


def known_views() -> list[str]:
    """Names of all views, sorted."""
    return sorted({*_makers, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def get_view(name: str) -> View:
    """The view of that name.

    Raises:
        UnknownNameError: nobody registered it; the message lists those that exist.
    """
    if name in _makers:
        return _makers[name]()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            view = point.load()()
            if not isinstance(view, View):
                raise InvalidArgumentError(f"entry point {point.value!r} of view {name!r} must name a View subclass")
            return view
    raise UnknownNameError("view", name, known_views())


register_view("bucket", BucketView)
register_view("int4", Int4View)
