"""Plug-ins by name: one `Registry` each for policies and drafters.

A registry maps names to constructors. The package's own entries are registered when their module is imported; other
packages add theirs through an entry-point group, which is read when a name is first looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from specdec.errors import InvalidArgumentError, PluginError, UnknownNameError
from specdec.interrupts import unless_signalled

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Constructors of one kind of plug-in.

    Args:
        kind: what an entry is called in messages, for instance "policy".
        group: entry-point group in which other packages announce theirs.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._own: dict[str, T] = {}
        self._points: list[EntryPoint] | None = None

    def register(self, name: str, constructor: T) -> None:
        """Add an entry.

        Raises:
            InvalidArgumentError: the name is registered already, or holds a separator (`:`, `,`, `=`, space).
        """
        if not name or any(c in ":,=" or c.isspace() for c in name):
            raise InvalidArgumentError(f"a {self.kind} name must be one word without ':', ',' or '=', not {name!r}")
        if name in self._own:  # other packages' names are not read here: this runs at import
            raise InvalidArgumentError(f"{self.kind} {name!r} is registered already: choose another name")
        self._own[name] = constructor

    def names(self) -> list[str]:
        """Every name that `get` knows, sorted."""
        return sorted({*self._own, *(point.name for point in self._announced())})

    def get(self, name: str) -> T:
        """The constructor registered under a name.

        Raises:
            UnknownNameError: the name is not registered; the message lists those that exist.
            InvalidArgumentError: two packages claim the name.
            PluginError: the package that announces the name cannot be imported.
        """
        found: list[T] = [self._own[name]] if name in self._own else []
        for point in self._announced():
            if point.name == name and (constructor := self._load(point)) not in found:
                found.append(constructor)
        if not found:
            raise UnknownNameError(self.kind, name, self.names())
        if len(found) > 1:
            raise InvalidArgumentError(f"{self.kind} {name!r} is registered by {len(found)} packages: keep one of them")
        return found[0]

    def _announced(self) -> list[EntryPoint]:
        if self._points is None:  # reading the metadata of all installed packages takes milliseconds: once will do
            self._points = list(entry_points(group=self.group))
        return self._points

    def _load(self, point: EntryPoint) -> T:
        try:
            constructor: T = point.load()
        except unless_signalled(Exception) as error:
            fault = f"cannot be loaded from {point.value}: {type(error).__name__}: {error}"
            raise PluginError(self.kind, point.name, fault) from error
        return constructor
