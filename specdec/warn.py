"""Warnings that name the caller's code: `warn`."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest caller outside this package, however deep inside it the reason was found.

    A fixed `stacklevel` names library code as soon as one function more lies between. Where nothing but this package
    is running, the warning names the outermost frame.

    Args:
        message: one sentence.
        category: of the warning.
    """
    frame = sys._getframe(1)
    while _is_own(frame) and frame.f_back is not None:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__", "<unknown>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _is_own(frame: FrameType) -> bool:
    """Whether a frame runs code of this package, the folders that install into it included."""
    name = frame.f_globals.get("__name__") or ""
    return name == "specdec" or name.startswith("specdec.")
