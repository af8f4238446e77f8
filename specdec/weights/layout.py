"""How outputs group into buckets and ranks into tiers: `BucketLayout`. The weights themselves live in `bucket`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdec.errors import InvalidArgumentError, OptionError


@dataclass(frozen=True, slots=True)
class BucketLayout:
    """Bucket and tier sizes of a store.

    A bucket is `bucket_size` consecutive outputs of one input. Its weights are ranked by |w|, largest first, and the
    ranks split into tiers: tier 0 the first `tier_sizes[0]` of them, and so on.

    Attributes:
        bucket_size: B, a multiple of 8 (a tier's mask is whole bytes), 8 to 64.
        tier_sizes: n_k, positive, with sum B.

    Raises:
        InvalidArgumentError: the sizes do not fit together.
    """

    bucket_size: int = 16
    tier_sizes: tuple[int, ...] = (4, 4, 4, 4)

    def __post_init__(self) -> None:
        whole = [self.bucket_size, *self.tier_sizes] if isinstance(self.tier_sizes, (tuple, list)) else [None]
        if any(isinstance(n, bool) or not isinstance(n, int) for n in whole):
            raise InvalidArgumentError(
                f"bucket and tier sizes must be whole numbers, not {self.bucket_size!r}, {self.tier_sizes!r}"
            )
        object.__setattr__(self, "tier_sizes", tuple(self.tier_sizes))
        if self.bucket_size % 8 or not 8 <= self.bucket_size <= 64:
            raise OptionError("bucket_size", f"must be a multiple of 8 from 8 to 64, not {self.bucket_size}")
        if min(self.tier_sizes, default=0) < 1 or sum(self.tier_sizes) != self.bucket_size:
            raise InvalidArgumentError(
                f"tier_sizes must be positive and add up to bucket_size {self.bucket_size}, not {self.tier_sizes}"
            )

    @property
    def num_tiers(self) -> int:
        """Tiers per bucket, K."""
        return len(self.tier_sizes)

    @property
    def mask_bytes(self) -> int:
        """Bytes of one tier's mask of one bucket."""
        return self.bucket_size // 8

    def buckets(self, outputs: int) -> int:
        """Buckets that hold `outputs` outputs; the last one may be partly padding."""
        return -(-outputs // self.bucket_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores an equal object."""
        return {"bucket_size": self.bucket_size, "tier_sizes": list(self.tier_sizes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BucketLayout:
        """Rebuild from `to_dict` output.

        Raises:
            InvalidArgumentError: a key is missing or unknown, or the sizes do not fit together.
        """
        if set(values) != {"bucket_size", "tier_sizes"} or not isinstance(values["tier_sizes"], (tuple, list)):
            raise InvalidArgumentError("a bucket layout has exactly the keys bucket_size and tier_sizes (a list)")
        return cls(values["bucket_size"], tuple(values["tier_sizes"]))
