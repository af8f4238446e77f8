"""Vector search: an index whose searches read a chosen share of the products. Used on its own: `docs/search.md`."""

from specdec.search.index import DEFAULT_EFFORT, BucketIndex

__all__ = ["DEFAULT_EFFORT", "BucketIndex"]
