"""Rotary scaling whose factors depend on the context that a model is loaded for.

Other rules (linear, Llama 3, YaRN) give the same factors for every context and are resolved by `specdec.families.rope`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from specdec.errors import ModelFormatError
from specdec.model.checks import check_choice, check_numbers, check_sizes, is_number

ScalingKind = Literal["dynamic", "longrope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """A rule that gives the divisors of the rotary frequencies for a context.

    A model keeps the factors of the context that it was loaded for, however long a text is: keys in a cache mean the
    same whatever comes after them.

    Attributes:
        kind: "dynamic" raises the base of the frequencies with the context (NTK-aware scaling; transformers
            `_compute_dynamic_ntk_parameters`), "longrope" chooses between two lists (LongRoPE, 2402.13753).
        original: longest context in tokens that the model was trained for without the rule.
        factor: how strongly the base grows; only for "dynamic".
        short: divisors up to `original` tokens; only for "longrope", as `long`, which holds those beyond.
    """

    kind: ScalingKind
    original: int
    factor: float = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_choice(self, "kind", ScalingKind)
        check_sizes(self, original="original")
        check_numbers(self, "factor")
        for name in ("short", "long"):
            if not all(is_number(factor) and factor > 0 for factor in getattr(self, name)):
                raise ModelFormatError(f"rope factors ({name}) must be positive numbers")

    def check_pairs(self, pairs: int) -> None:
        """Refuse lists of another length than the number of turned pairs of dimensions."""
        for name, factors in (("short", self.short), ("long", self.long)):
            if self.kind == "longrope" and len(factors) != pairs:
                raise ModelFormatError(f"rope factors ({name}) must hold {pairs} numbers, not {len(factors)}")

    def factors_for(self, context: int, pairs: int) -> tuple[float, ...] | None:
        """Divisors of the frequencies of `pairs` pairs of dimensions, or None where nothing is divided.

        Args:
            context: tokens that the model is loaded for.
            pairs: half of the turned dimensions of a head.
        """
        if self.kind == "longrope":
            return self.long if context > self.original else self.short
        if context <= self.original or pairs < 2:
            return None
        # The base grows by growth^(d / (d - 2)), d = 2 * pairs: frequency j is divided by growth^(2j / (d - 2)).
        growth = self.factor * context / self.original - (self.factor - 1)
        return tuple(growth ** (j / (pairs - 1)) for j in range(pairs))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> RopeScaling:
        """Rebuild from plain JSON values.

        Raises:
            ModelFormatError: a value is out of range. TypeError and the like for values of another kind.
        """
        lists: dict[str, Any] = {
            name: tuple(float(x) for x in values[name]) for name in ("short", "long") if name in values
        }
        return cls(**(values | lists))
