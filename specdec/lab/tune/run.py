"""The whole of tuning: `tune` measures, allocates, tries, chooses, and writes the profile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.checks import check_effort
from specdec.drafters.effort import draft_views
from specdec.errors import InvalidArgumentError
from specdec.lab.text import calibration, read_text, split_passages
from specdec.lab.tune.allocation import allocate, net_of_rounding
from specdec.lab.tune.costs import StepTimer, best_speedup
from specdec.lab.tune.sensitivity import Sums, measure, open_sums
from specdec.lab.tune.trial import try_schedules
from specdec.lab.tune.units import Unit, units_of
from specdec.model.effort import EffortSchedule
from specdec.progress import Progress
from specdec.store.profile import PROFILE_FILE, Candidate, DraftProfile, ProfileFile, check_place

if TYPE_CHECKING:
    from specdec.model.loaded import Model

MEANS = (0.25, 0.35, 0.5, 0.7)  # mean efforts that are tried unless one is asked for
# How far from equal efforts to what was allocated: the divergences are measured on few places and one at a time, so the
# whole way goes too far (SmolLM2, int4, mean 0.5: KL 0.56 with equal efforts, 0.49, 0.43 and 0.48 at 0.35, 0.7 and 1).
SHARES = (0.35, 0.7)
NEAR_FULL = 0.97  # effort at which hardly anything is left out, see `net_of_rounding`
_LEAST_RATE = 0.1  # of the mean cost of a multiplication: what no kind of matrix is taken to cost less than
# Matrices that multiply the same row side by side share their overhead, and are timed together.
_TIMED_TOGETHER = {"attn.k": "attn.q", "attn.v": "attn.q", "mlp.up": "mlp.gate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thoroughness:
    """How much is measured.

    Attributes:
        quick: few units, see `units_of`.
        levels: efforts at which each unit is tried, besides one just below 1.
        passages: passages of the text.
        passage_tokens: tokens of each.
        places: positions in each passage at which divergence is measured.
        trial_tokens: tokens that the model writes after the first half of each passage, for the trial.
        repeats: how often each pass is timed.
    """

    quick: bool
    levels: tuple[float, ...]
    passages: int
    passage_tokens: int
    places: int
    trial_tokens: int
    repeats: int


THOROUGH = Thoroughness(
    quick=False, levels=(0.2, 0.45), passages=8, passage_tokens=96, places=5, trial_tokens=24, repeats=15
)
QUICK = Thoroughness(
    quick=True, levels=(0.2, 0.45), passages=4, passage_tokens=64, places=4, trial_tokens=16, repeats=9
)


def tune(
    model: Model,
    *,
    text: str | Path | None = None,
    view: str = "auto",
    mean: float | None = None,
    thoroughness: Thoroughness = THOROUGH,
    restart: bool = False,
    progress: Progress,
) -> DraftProfile:
    """Find the efforts that draft fastest with this model on this machine, and write them into the folder of its store.

    When it is interrupted, the next call with the same arguments goes on where this one stopped.

    Args:
        model: from `specdec.load`.
        text: file to measure on; None takes the packaged text.
        view: draft view to tune, or "auto".
        mean: mean effort to share out; None tries several and takes the fastest.
        thoroughness: how much is measured.
        restart: forget what an interrupted call has measured.
        progress: called as the work goes on.

    Returns:
        The profile, which is on disk by then.

    Raises:
        InvalidArgumentError: the text or the mean will not do, the model has no store or no tokenizer, or what is
            measured cannot be kept.
        UnknownNameError: the runtime has no such view.
        StoreError: the profile cannot be written.
    """
    if model.store is None or model.tokenizer is None:
        raise InvalidArgumentError("tuning needs a model from specdec.load, with a store and a tokenizer")
    means = MEANS if mean is None else (check_effort(mean, "effort"),)
    check_place(model.store.path)
    content = read_text(text, calibration)
    plan = thoroughness
    length = min(plan.passage_tokens, model.config.max_context - plan.trial_tokens)
    passages = split_passages(content, model.tokenizer, count=plan.passages, length=length)
    view = draft_views(model.runtime, view)[0]
    units = units_of(model.config, quick=plan.quick)
    settings = {
        "store": model.store.checksum,
        "runtime": model.runtime.info.name,
        "context": model.config.max_context,
        "view": view,
        "text_sha256": hashlib.sha256(content.encode()).hexdigest(),
        **asdict(plan),
        "levels": list(plan.levels),
    }
    path, columns = model.store.path / f"{PROFILE_FILE}.partial", len(plan.levels) + 1
    sums = open_sums(path, settings, units=len(units), levels=columns, restart=restart)
    complete = False
    try:
        _measure(model, passages, units, plan, view, sums, progress)
        profile = _choose(model, passages, units, plan, view, sums, means, settings, progress)
        file = ProfileFile.read(model.store.path)
        file.profiles[profile.key] = profile
        file.write()
        complete = True
    finally:
        sums.close(remove=complete)
    return profile


def _measure(
    model: Model,
    passages: Sequence[Sequence[int]],
    units: Sequence[Unit],
    plan: Thoroughness,
    view: str,
    sums: Sums,
    progress: Progress,
) -> None:
    """Bring `sums` to all places."""
    places = [
        (passage, int(index))
        for passage, tokens in enumerate(passages)
        # From the first quarter on: a text's first tokens are like no others.
        for index in np.linspace(len(tokens) // 4, len(tokens) - 1, plan.places)
    ]
    stage = f"measuring {len(units)} matrices" if not plan.quick else f"measuring {len(units)} groups of matrices"
    total = len(places) * len(units)
    progress(stage, sums.done, total)
    measure(
        model.runtime,
        passages,
        units,
        view=view,
        levels=(*plan.levels, NEAR_FULL),
        places=places,
        sums=sums,
        done=lambda sums: progress(stage, sums.done, total),
    )


def _choose(
    model: Model,
    passages: Sequence[Sequence[int]],
    units: Sequence[Unit],
    plan: Thoroughness,
    view: str,
    sums: Sums,
    means: Sequence[float],
    settings: dict[str, Any],
    progress: Progress,
) -> DraftProfile:
    """Allocate for every mean, compare the results with equal efforts, and take the fastest."""
    runtime = model.runtime
    timer = StepTimer(runtime, passages[0], repeats=plan.repeats)
    kind_s = _kind_seconds(timer, units, view)
    mean_kl, mean_distance = sums.mean(sums.kl), sums.mean(sums.distance)
    drafts = _drafts(model, units, plan, sums, kind_s, means)
    schedules = [EffortSchedule(mean, efforts) for mean, _, efforts in drafts]
    step_s, verify_s = timer.drafts(schedules, view), timer.exact()
    total = len(passages) * plan.trial_tokens
    agreement, kl = try_schedules(
        runtime,
        [tokens[: max(1, len(tokens) // 2)] for tokens in passages],
        schedules,
        view=view,
        length=plan.trial_tokens,
        done=lambda count: progress(f"trying {len(schedules)} settings", count, total),
    )
    candidates = [
        _candidate(draft, agreement[index], kl[index], step_s[index], verify_s) for index, draft in enumerate(drafts)
    ]
    wanted = [index for index, one in enumerate(candidates) if one.mean in means] if len(means) == 1 else None
    return DraftProfile(
        runtime=runtime.info.name,
        view=view,
        store=settings["store"],
        settings=settings,
        verify_s=verify_s,
        kind_s=kind_s,
        tolerance={
            unit.name: {"kl": mean_kl[row].tolist(), "distance": mean_distance[row].tolist()}
            for row, unit in enumerate(units)
        },
        candidates=tuple(candidates),
        best=max(wanted or range(len(candidates)), key=lambda index: (candidates[index].speedup, -kl[index])),
    )


def _drafts(
    model: Model,
    units: Sequence[Unit],
    plan: Thoroughness,
    sums: Sums,
    kind_s: dict[str, float],
    means: Sequence[float],
) -> list[tuple[float, float, dict[str, float]]]:
    """What to try: mean effort, share of the way to what was allocated, and efforts by matrix (none: all equal)."""
    sizes = np.array([unit.multiplications for unit in units], dtype=np.float64)
    of_kind = {kind: sum(unit.multiplications for unit in units if _timed_as(unit.kind) == kind) for kind in kind_s}
    rates = np.array([kind_s[_timed_as(unit.kind)] / of_kind[_timed_as(unit.kind)] for unit in units])
    # Times on a busy machine are uncertain by about as much as they differ: half of their difference, in logarithms.
    rates = (rates * sum(kind_s.values()) / sizes.sum()) ** 0.5
    drafts: list[tuple[float, float, dict[str, float]]] = [(1.0, 0.0, {})]
    kl = net_of_rounding(sums.mean(sums.kl))
    for mean in (mean for mean in means if mean < 1):
        best = allocate(kl, levels=plan.levels, multiplications=sizes, cost_rate=rates, mean=mean)
        drafts.append((mean, 0.0, {}))
        for share in SHARES:
            mixed = mean + share * (best - mean)
            efforts = {name: float(e) for unit, e in zip(units, mixed, strict=True) for name in unit.matrices}
            drafts.append((mean, share, _exactly(efforts, mean, model)))
    return drafts


def _timed_as(kind: str) -> str:
    return _TIMED_TOGETHER.get(kind, kind)


def _exactly(efforts: dict[str, float], mean: float, model: Model) -> dict[str, float]:
    """The efforts in the same proportions at exactly this mean: allocation goes by steps."""
    scaled = EffortSchedule(mean, efforts).scaled_to(mean, model.config)
    return {name: round(effort, 4) for name, effort in scaled.rules.items()}


def _candidate(
    draft: tuple[float, float, dict[str, float]],
    agreement: float,
    kl: float,
    step_s: float,
    verify_s: dict[int, float],
) -> Candidate:
    mean, share, efforts = draft
    speedup, draft_len = best_speedup(agreement, step_s, verify_s)
    return Candidate(
        mean=mean,
        tuned=share,
        efforts=efforts,
        agreement=agreement,
        kl=kl,
        step_s=step_s,
        speedup=speedup,
        draft_len=draft_len,
    )


def _kind_seconds(timer: StepTimer, units: Sequence[Unit], view: str) -> dict[str, float]:
    """Seconds of a draft step that each kind of matrix takes: what a lower effort there saves, scaled up to all of it.

    A kind whose lower effort saves next to nothing (choosing inputs costs as much as skipping them gains) counts as a
    tenth of its share of the step, so that effort still has a price. Kinds that are timed together go by
    the first one's name.
    """
    lowered = 0.4
    kinds: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for unit in units:
        kind = _timed_as(unit.kind)
        kinds.setdefault(kind, []).extend(unit.matrices)
        sizes[kind] = sizes.get(kind, 0) + unit.multiplications
    schedules = [EffortSchedule(1.0, dict.fromkeys(matrices, lowered)) for matrices in kinds.values()]
    full, *alone = timer.drafts([EffortSchedule(), *schedules], view)
    total = sum(sizes.values())
    return {
        kind: max((full - seconds) / (1 - lowered), _LEAST_RATE * full * sizes[kind] / total)
        for kind, seconds in zip(kinds, alone, strict=True)
    }
