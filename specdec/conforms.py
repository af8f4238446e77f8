"""Whether an object has the members of a protocol: `conforms`, for checks that every answer makes.

`isinstance` on a protocol looks through its members again each time, which takes some ten microseconds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeGuard, TypeVar

T = TypeVar("T")

_KINDS = 1024  # pairs of a class and a protocol that are remembered


def conforms(value: object, protocol: type[T]) -> TypeGuard[T]:
    """Whether `value` has every member of `protocol`, as `isinstance` says of a runtime-checkable protocol.

    Members that are properties of the class are not evaluated. What they raise, they raise when they are used.
    """
    for name in _missing(type(value), protocol):  # type: ignore[arg-type]  # noqa: SIM110  # all() takes twice as long
        if getattr(value, name, None) is None:
            return False
    return True


@lru_cache(maxsize=_KINDS)
def _missing(kind: type, protocol: type) -> tuple[str, ...]:
    """Members of a protocol that a class does not have itself; its objects may."""
    return tuple(name for name in _members(protocol) if getattr(kind, name, None) is None)


@lru_cache(maxsize=_KINDS)
def _members(protocol: type) -> tuple[str, ...]:
    """Public names that a protocol and its bases declare."""
    declared = (name for base in protocol.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", ())))
    return tuple(dict.fromkeys(name for name in declared if not name.startswith("_")))
