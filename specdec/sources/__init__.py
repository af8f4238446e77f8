"""Sources: model files of others, read one matrix at a time under this project's own names."""

from specdec.sources.base import Source
from specdec.sources.open import open_source

__all__ = ["Source", "open_source"]
