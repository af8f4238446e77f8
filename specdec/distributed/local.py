"""What rank 0's runtime and a stage's have in common: they answer for a runtime of this rank alone."""

from __future__ import annotations

from collections.abc import Mapping

from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import DraftHead, Runtime, ViewInfo


class OverLocal:
    """Answers from this rank's runtime.

    Args:
        local: this rank's part.
    """

    def __init__(self, local: Runtime) -> None:
        self._local = local

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:  # noqa: ARG003 (every runtime's signature)
        """Nothing: what the local runtime lacks was refused when it was made."""
        return frozenset()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that this rank holds by kind, where its runtime says so."""
        return dict(getattr(self._local, "memory", {}))

    def views(self) -> Mapping[str, ViewInfo]:
        """Draft views that `forward` accepts in addition to "exact"."""
        return self._local.views()

    def cache_bytes(self, capacity: int) -> int:
        """Most bytes that this rank's part of a cache takes."""
        return self._local.cache_bytes(capacity)

    def draft_head(self, tokens: tuple[int, ...]) -> DraftHead:
        """There is none; see `RuntimeInfo.prunes_head`."""
        return self._local.draft_head(tokens)
