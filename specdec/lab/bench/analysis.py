"""What the answers say: rates, speed-ups with their intervals, acceptance, time, by task and over all. No output here.

Time counts all rounds after the prompt was read, and only emitted tokens count. Of the repetitions of an answer the
median time counts. A rate over several prompts is all their tokens over all that time, which weighs each by its tokens;
a speed-up is the plain time over the contender's, for the same tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specdec.lab.bench.bootstrap import ratio_interval
from specdec.lab.bench.grid import PLAIN
from specdec.lab.bench.plan import Plan
from specdec.lab.bench.sample import Sample

ALL = "all"  # the task that stands for all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender on one task, or on all, under one condition.

    Attributes:
        condition: its name.
        task: "all" for all prompts together.
        contender: its name.
        prompts: how many.
        answers: how many, repetitions included.
        tokens: emitted in one answer to each prompt.
        seconds: of those, the median of repetitions for each.
        tok_per_s: tokens / seconds.
        rate_quartiles: tokens a second of single answers: lower quartile, median, upper quartile.
        speedup: plain decoding's seconds over these.
        speedup_interval: 95 % bootstrap interval of it; None where there are too few answers for one.
        mean_of_tasks: mean of the tasks' speed-ups, each counting the same; None in the row of a task.
        drafted: tokens proposed, in all answers.
        accepted: of those, how many were kept.
        acceptance: accepted / drafted; None where nothing was drafted.
        tokens_per_round: emitted tokens a verify pass.
        draft_ms, verify_ms, overhead_ms: time for each emitted token, mean over all answers.
        predicted_speedup: what the policy expected, over the same answers; None for one that expects nothing.
        estimated_speedup: the gain that the policy itself saw, likewise, by its own estimate of a plain step.
    """

    condition: str
    task: str
    contender: str
    prompts: int
    answers: int
    tokens: int
    seconds: float
    tok_per_s: float
    rate_quartiles: tuple[float, float, float]
    speedup: float
    speedup_interval: tuple[float, float] | None
    mean_of_tasks: float | None = None
    drafted: int
    accepted: int
    acceptance: float | None
    tokens_per_round: float
    draft_ms: float
    verify_ms: float
    overhead_ms: float
    predicted_speedup: float | None
    estimated_speedup: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Fate of the drafted tokens of one contender under one condition.

    Attributes:
        condition: its name.
        contender: its name.
        step: kind of draft step, as in `Stats.by_step`: "effort int4 0.5", "ngram".
        drafted: by place in the draft, how many were proposed.
        checked: how many of those were looked at, all before them having been kept.
        accepted: how many were kept.
    """

    condition: str
    contender: str
    step: str
    drafted: list[int] = field(default_factory=list)
    checked: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def effort(self) -> float | None:
        """Effort of the step; None for drafters that it means nothing to."""
        last = self.step.rpartition(" ")[2]
        try:
            return float(last) if last != self.step else None
        except ValueError:
            return None


class Answers:
    """The answers of a run, by condition, contender, prompt and repetition.

    Args:
        plan: what was measured.
        samples: all its answers, in any order.
    """

    def __init__(self, plan: Plan, samples: Sequence[Sample]) -> None:
        self.plan = plan
        self._by_group: dict[tuple[int, str, int], list[Sample]] = defaultdict(list)
        for sample in sorted(samples, key=lambda one: one.place):
            place = sample.place
            self._by_group[place.condition, place.contender, place.prompt].append(sample)

    def of(self, condition: int, contender: str, prompt: int) -> list[Sample]:
        """The repetitions of an answer."""
        return self._by_group[condition, contender, prompt]

    def seconds(self, condition: int, contender: str, prompts: Sequence[int]) -> np.ndarray:
        """Times, float64 (prompts, repetitions)."""
        return np.array([[one.seconds for one in self.of(condition, contender, prompt)] for prompt in prompts])


def analyse(plan: Plan, samples: Sequence[Sample], *, seed: int = 0) -> list[Row]:
    """The rows of the result: for every condition and contender, all tasks together first, then each.

    Args:
        plan: what was measured.
        samples: all its answers.
        seed: of the bootstrap.
    """
    answers = Answers(plan, samples)
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(plan.prompts):
        by_task[prompt.task].append(index)
    rows: list[Row] = []
    for condition in range(len(plan.grid.conditions)):
        for contender in plan.grid.contenders:
            single = [_row(answers, condition, contender.name, {task: ps}, seed) for task, ps in by_task.items()]
            mean = sum(row.speedup for row in single) / len(single)
            rows.append(_row(answers, condition, contender.name, by_task, seed, mean_of_tasks=mean))
            rows += single
    return rows


def count_steps(plan: Plan, samples: Sequence[Sample]) -> list[Steps]:
    """What became of drafted tokens, for every condition, contender and kind of step, efforts in descending order."""
    found: dict[tuple[str, str, str], Steps] = {}
    for sample in sorted(samples, key=lambda one: one.place):
        condition = plan.grid.conditions[sample.place.condition].name
        for step, counts in sample.stats["by_step"].items():
            key = condition, sample.place.contender, step
            one = found.setdefault(key, Steps(condition=key[0], contender=key[1], step=step))
            for name in ("drafted", "checked", "accepted"):
                total = getattr(one, name)
                total.extend([0] * (len(counts[name]) - len(total)))
                for place, count in enumerate(counts[name]):
                    total[place] += count
    order = {one.name: index for index, one in enumerate(plan.grid.contenders)}
    conditions = {one.name: index for index, one in enumerate(plan.grid.conditions)}
    return sorted(
        found.values(),
        key=lambda one: (conditions[one.condition], order[one.contender], -(one.effort or 0.0), one.step),
    )


def _row(
    answers: Answers,
    condition: int,
    contender: str,
    tasks: Mapping[str, Sequence[int]],
    seed: int,
    *,
    mean_of_tasks: float | None = None,
) -> Row:
    prompts = [index for indices in tasks.values() for index in indices]
    samples = [sample for prompt in prompts for sample in answers.of(condition, contender, prompt)]
    own = answers.seconds(condition, contender, prompts)
    plain = answers.seconds(condition, PLAIN, prompts)
    seconds, plain_seconds = (float(np.median(times, axis=1).sum()) for times in (own, plain))
    tokens = sum(answers.of(condition, contender, prompt)[0].emitted for prompt in prompts)
    totals = {name: sum(one.stats[name] for one in samples) for name in ("drafted", "accepted", "rounds", "emitted")}
    ms = {name: 1e3 * sum(one.stats[f"{name}_s"] for one in samples) for name in ("draft", "verify", "overhead")}
    low, middle, high = np.quantile([one.emitted / one.seconds for one in samples], (0.25, 0.5, 0.75))
    strata = np.repeat(np.arange(len(tasks)), [len(indices) for indices in tasks.values()])
    return Row(
        condition=answers.plan.grid.conditions[condition].name,
        task=next(iter(tasks)) if mean_of_tasks is None else ALL,
        contender=contender,
        prompts=len(prompts),
        answers=len(samples),
        tokens=tokens,
        seconds=seconds,
        tok_per_s=tokens / seconds,
        rate_quartiles=(float(low), float(middle), float(high)),
        speedup=plain_seconds / seconds,
        speedup_interval=None if contender == PLAIN else ratio_interval(plain, own, strata=strata, seed=seed),
        mean_of_tasks=mean_of_tasks,
        drafted=totals["drafted"],
        accepted=totals["accepted"],
        acceptance=totals["accepted"] / totals["drafted"] if totals["drafted"] else None,
        tokens_per_round=totals["emitted"] / totals["rounds"],
        draft_ms=ms["draft"] / totals["emitted"],
        verify_ms=ms["verify"] / totals["emitted"],
        overhead_ms=ms["overhead"] / totals["emitted"],
        predicted_speedup=_gain(samples, plain, "predicted_gain"),
        estimated_speedup=_gain(samples, plain, "estimated_gain"),
    )


def _gain(samples: Sequence[Sample], plain: np.ndarray, name: str) -> float | None:
    """A policy's gain over several answers: all plain times over all the times that its gains amount to."""
    gains: list[Any] = [one.stats["policy"].get(name) for one in samples]
    if not gains or not all(gains):
        return None
    times = np.repeat(np.median(plain, axis=1), plain.shape[1])
    return float(times.sum() / (times / np.array(gains, float)).sum())
