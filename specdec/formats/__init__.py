"""Sources: model files of others, read one matrix at a time under this project's own names."""

from specdec.formats.base import Source
from specdec.formats.open import open_source

__all__ = ["Source", "open_source"]
