"""The bucket store: a converted model on disk, byte by byte in docs/store.md."""

from specdec.store.conversion import convert
from specdec.store.description import FORMAT_VERSION
from specdec.store.store import Store
from specdec.weights.layout import BucketLayout

__all__ = ["FORMAT_VERSION", "BucketLayout", "Store", "convert"]
