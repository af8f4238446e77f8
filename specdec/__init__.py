"""Speculative decoding without a second model: one bucketMul model drafts at low effort and verifies in a batch.

Names are imported when they are first used, so that a command of `specdec` handles signals from its first moments.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in `typing`, which takes long to import
if TYPE_CHECKING:
    from specdec.engine.batch import Batch
    from specdec.engine.generate import generate, stream
    from specdec.engine.generation import Generation
    from specdec.engine.options import Options
    from specdec.engine.prompt_cache import PromptCache
    from specdec.engine.result import Piece, Result
    from specdec.engine.stats import Stats
    from specdec.errors import SpecdecError
    from specdec.model.effort import EffortSchedule
    from specdec.model.loaded import Model, load

__all__ = [
    "Batch",
    "EffortSchedule",
    "Generation",
    "Model",
    "Options",
    "Piece",
    "PromptCache",
    "Result",
    "SpecdecError",
    "Stats",
    "generate",
    "load",
    "stream",
]

_HOMES = {
    "Batch": "engine.batch",
    "EffortSchedule": "model.effort",
    "Generation": "engine.generation",
    "Model": "model.loaded",
    "Options": "engine.options",
    "Piece": "engine.result",
    "PromptCache": "engine.prompt_cache",
    "Result": "engine.result",
    "SpecdecError": "errors",
    "Stats": "engine.stats",
    "generate": "engine.generate",
    "load": "model.loaded",
    "stream": "engine.generate",
}

if not TYPE_CHECKING:  # a type checker sees the names above, and no others

    def __getattr__(name):
        """One of the names above, or a module of the package."""
        if name in _HOMES:
            found = globals()[name] = getattr(importlib.import_module(f"specdec.{_HOMES[name]}"), name)
            return found
        try:
            return importlib.import_module(f"specdec.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"specdec.{name}":
                raise
        raise AttributeError(f"module 'specdec' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
