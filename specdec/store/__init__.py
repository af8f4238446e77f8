"""The bucket store: a converted model on disk, byte by byte in docs/format.md."""

from specdec.store.convert import convert
from specdec.store.store import Store

__all__ = ["Store", "convert"]
