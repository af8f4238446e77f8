"""Speculative decoding without a second model: one bucketMul model drafts at low effort and verifies in a batch."""

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
