"""How much of each matrix a call multiplies: `EffortSchedule`, from one number to one per matrix and layer, and
`Efforts`, a schedule resolved for one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specdec.checks import check_effort
from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.model.architecture import ModelConfig
from specdec.parse import ParseError, parse_yaml
from specdec.read_file import read_bytes


@dataclass(frozen=True, eq=False)
class EffortSchedule:
    """Effort for every matrix of a model.

    A rule is a canonical matrix name or a shell pattern over such names (`layers.*.mlp.down`, `layers.0.*`, `head`).
    Of the rules that match a matrix the last one written wins; without one, `default` holds.

    Attributes:
        default: effort in (0, 1] of every matrix that no rule names.
        rules: pattern to effort, in order.

    Raises:
        InvalidArgumentError: an effort is outside (0, 1], or the rules are no mapping.
    """

    default: float = 1.0
    rules: Mapping[str, float] = field(default_factory=dict)
    # What makes two schedules the same (the order of the rules counts, since the last match wins), and its hash.
    _key: tuple[float, tuple[tuple[str, float], ...]] = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "default", check_effort(self.default, "effort"))
        if not isinstance(self.rules, Mapping):
            raise InvalidArgumentError(f"rules must be a mapping of patterns to efforts, not {self.rules!r}")
        object.__setattr__(self, "rules", {str(k): check_effort(v, f"effort of {k!r}") for k, v in self.rules.items()})
        # A tuned schedule has a rule for every matrix, and every pass looks its schedule up.
        object.__setattr__(self, "_key", (self.default, tuple(self.rules.items())))
        object.__setattr__(self, "_hash", hash(self._key))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, EffortSchedule) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def of(self, matrix: str) -> float:
        """Effort of the matrix with this canonical name."""
        effort = self.default
        for pattern, value in self.rules.items():
            if fnmatchcase(matrix, pattern):
                effort = value
        return effort

    def resolve(self, config: ModelConfig) -> dict[str, float]:
        """Effort of every matrix of a model, by canonical name.

        Raises:
            InvalidArgumentError: a rule matches no matrix of this model.
        """
        efforts = dict.fromkeys(config.matrices(), self.default)
        for pattern, value in self.rules.items():
            # A tuned schedule names every matrix: without pattern matching a new one takes no noticeable time.
            matches = [pattern] if pattern in efforts else [name for name in efforts if fnmatchcase(name, pattern)]
            if not matches:
                raise InvalidArgumentError(
                    f"effort rule {pattern!r} matches no matrix of this model; names look like 'layers.0.attn.q', "
                    "'layers.*.mlp.down' or 'head'"
                )
            efforts.update(dict.fromkeys(matches, value))
        return efforts

    def scaled_to(self, effort: float, config: ModelConfig) -> EffortSchedule:
        """The same proportions at another mean: every effort times one factor, capped at 1, so that the mean over all
        multiplications of the model is `effort` (reached within 1e-6, or as near as the caps allow)."""
        target = check_effort(effort)
        sizes = {name: out * inputs for name, (out, inputs) in config.matrices().items()}
        base = self.resolve(config)
        total = sum(sizes.values())
        low, high = 0.0, 1.0 / min(base.values())
        for _ in range(60):
            middle = (low + high) / 2
            mean = sum(size * min(1.0, base[name] * middle) for name, size in sizes.items()) / total
            low, high = (middle, high) if mean < target else (low, middle)
        smallest = 1e-6
        return EffortSchedule(
            max(smallest, min(1.0, self.default * high)),
            {pattern: max(smallest, min(1.0, value * high)) for pattern, value in self.rules.items()},
        )

    def mean(self, config: ModelConfig) -> float:
        """Share of all the model's multiplications that this schedule performs."""
        if not self.rules:
            return self.default
        sizes = {name: out * inputs for name, (out, inputs) in config.matrices().items()}
        efforts = self.resolve(config)
        return sum(sizes[name] * efforts[name] for name in sizes) / sum(sizes.values())

    @classmethod
    def from_yaml(cls, path: str | Path) -> EffortSchedule:
        """Read `effort:` (a number) and `rules:` (a mapping) from a YAML file.

        Raises:
            InvalidArgumentError: the file is missing, no YAML, or has other keys.
        """
        try:
            loaded = parse_yaml(read_bytes(path))
        except unless_signalled(OSError) as error:
            raise InvalidArgumentError(f"cannot read effort schedule {path}: {error.strerror}") from None
        except ParseError as error:
            raise InvalidArgumentError(f"effort schedule {path} {error}") from None
        keys = set(loaded) if isinstance(loaded, dict) else {"not a mapping"}
        if keys - {"effort", "rules"} or not isinstance(loaded.get("rules") or {}, dict):
            raise InvalidArgumentError(
                f"effort schedule {path} must be a mapping with 'effort' (a number) and 'rules' (pattern: number)"
            )
        return cls(loaded.get("effort", 1.0), loaded.get("rules") or {})

    @classmethod
    def of_value(cls, value: float | EffortSchedule) -> EffortSchedule:
        """A schedule from a number, or the schedule itself."""
        return value if isinstance(value, EffortSchedule) else cls(value)


class Efforts:
    """The effort of every matrix of one model, resolved once from a schedule.

    Two of equal values are equal.

    Args:
        values: one for each matrix, in the order of `ModelConfig.matrices()`, in (0, 1].

    Attributes:
        values: the same, float64 (matrices,), not writable.
        is_full: all of them are 1.
    """

    __slots__ = ("_hash", "_key", "is_full", "values")

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = np.array(values, dtype=np.float64)
        self.values.flags.writeable = False
        self.is_full = bool((self.values >= 1).all())
        self._key = self.values.tobytes()
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Efforts) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def mean(self, config: ModelConfig) -> float:
        """Share of all the model's multiplications that these perform."""
        sizes = np.array([outputs * inputs for outputs, inputs in config.matrices().values()], dtype=np.float64)
        return float(self.values @ sizes / sizes.sum())

    def by_name(self, config: ModelConfig) -> dict[str, float]:
        """Effort of every matrix by canonical name."""
        return dict(zip(config.matrices(), self.values.tolist(), strict=True))

    def of_mixtures(self, config: ModelConfig) -> tuple[float, ...]:
        """For every layer the effort that decides how many of its chosen experts a row keeps: the largest of its
        experts' matrices, the shared one's left out; 1 in a layer without experts.

        The rule is `specdec.kernels.reference.experts.kept_experts`.
        """
        return _of_mixtures(self, config)


def resolve_efforts(value: float | EffortSchedule | Efforts, config: ModelConfig) -> Efforts:
    """Efforts of a model's matrices from a number or a schedule; the same object for the same schedule.

    Raises:
        InvalidArgumentError: a number is outside (0, 1], or a rule matches no matrix of the model.
    """
    if isinstance(value, Efforts):
        return value
    return _resolved(EffortSchedule.of_value(value), config)


@lru_cache(maxsize=1024)
def _of_mixtures(efforts: Efforts, config: ModelConfig) -> tuple[float, ...]:
    found = [1.0] * config.num_layers
    if efforts.is_full:
        return tuple(found)
    by_name = efforts.by_name(config)
    for number, layer in enumerate(config.layers):
        names = config.mlp_names(number)[: layer.mlp.experts]
        if layer.mlp.experts:
            found[number] = max(by_name[f"{name}.{part}"] for name in names for part in ("gate", "up", "down"))
    return tuple(found)


@lru_cache(maxsize=1024)
def _resolved(schedule: EffortSchedule, config: ModelConfig) -> Efforts:
    if schedule.rules:
        return Efforts(np.fromiter(schedule.resolve(config).values(), dtype=np.float64))
    return Efforts(np.full(len(config.matrices()), schedule.default))
