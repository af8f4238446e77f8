"""From the mean effort that a policy names to the effort of every matrix: `EffortScale`."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

from specdec.model.architecture import ModelConfig
from specdec.model.effort import Efforts, EffortSchedule, resolve_efforts

_REMEMBERED = 256  # efforts kept; working out a new one costs milliseconds when it has rules


class EffortScale:
    """Efforts of one shape: those of `scale(e)` have mean `e` and the proportions of the caller's schedule.

    Args:
        base: what the caller asked for.
        config: the model, whose matrices weigh in the mean.

    Raises:
        InvalidArgumentError: a rule of `base` matches no matrix of the model.
    """

    def __init__(self, base: EffortSchedule, config: ModelConfig) -> None:
        self._base, self._config = base, config
        self.mean = base.mean(config) if base.rules else base.default
        self._known: OrderedDict[float, Efforts] = OrderedDict({self.mean: resolve_efforts(base, config)})

    def __call__(self, effort: float) -> Efforts:
        """Efforts of mean `effort`, the same object for the same number while it is remembered."""
        efforts = self._known.get(effort)
        if efforts is None:
            scaled = self._base.scaled_to(effort, self._config) if self._base.rules else effort
            efforts = self._known[effort] = resolve_efforts(scaled, self._config)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return efforts


@lru_cache(maxsize=64)
def effort_scale(base: EffortSchedule, config: ModelConfig) -> EffortScale:
    """The efforts of a shape for a model: answers share what has been worked out.

    Raises:
        InvalidArgumentError: as for `EffortScale`.
    """
    return EffortScale(base, config)


def describe_target(schedule: EffortSchedule, config: ModelConfig) -> str:
    """What plain decoding at this effort is: "dense", "effort 0.6", or "effort schedule (mean 0.6)"."""
    efforts = set(schedule.resolve(config).values())
    if len(efforts) > 1:
        return f"effort schedule (mean {schedule.mean(config):.3g})"
    effort = efforts.pop()
    return "dense" if effort == 1 else f"effort {effort:g}"
