"""Views by name: those of this package, and those that other packages add through the entry-point group
`specdec.views` (an entry point names a `View` subclass or a function that returns a view)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from specdec.errors import InvalidArgumentError, PluginError, SpecdecError
from specdec.interrupts import unless_signalled
from specdec.registry import Registry
from specdec.weights.base import EXACT, View
from specdec.weights.bucket import BucketView
from specdec.weights.bucket8 import Bucket8View
from specdec.weights.int4 import Int4View
from specdec.weights.nested import NestedView
from specdec.weights.own import OwnView

_views: Registry[Callable[[], View]] = Registry("view", "specdec.views")


def register_view(name: str, maker: Callable[[], View]) -> None:
    """Make a view known under `name`.

    Raises:
        InvalidArgumentError: the name is taken, or cannot be part of a file name.
    """
    _check_name(name)
    _views.register(name, maker)


def known_views() -> list[str]:
    """Names of all views, sorted."""
    return _views.names()


def get_view(name: str) -> View:
    """The view of that name.

    Raises:
        UnknownNameError: it is not registered; the message lists those that exist.
        PluginError: what another package registered cannot be made, or is not a view of that name.
    """
    maker = _views.get(name)
    with faults_of_view(name, "its constructor"):
        view = maker()
    if not isinstance(view, View) or view.name != name:
        raise PluginError("view", name, f"must be a View with that name, not {view!r}")
    _check_name(name)
    return view


@contextmanager
def faults_of_view(name: str, doing: str) -> Iterator[None]:
    """Around a call of a view, which another package may have added.

    Raises:
        PluginError: it raises something that is not an error of specdec, nor a shortage of memory.
    """
    try:
        yield
    except (SpecdecError, MemoryError):
        raise
    except unless_signalled(Exception) as error:
        raise PluginError.raised("view", name, error, doing=doing) from error


def _check_name(name: str) -> None:
    """A view's name is part of a file's name, and must differ from that of the exact view."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or name == EXACT:
        raise InvalidArgumentError(f"a view's name must be letters, digits, '-' or '_', and not 'exact': not {name!r}")


register_view("bucket", BucketView)
register_view("bucket8", Bucket8View)
register_view("int4", Int4View)
register_view("nested", NestedView)
register_view("own", OwnView)
