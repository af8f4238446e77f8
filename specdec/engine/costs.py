"""What passes cost on this machine, as policies get it: `machine_costs`; and what they learn of it: `keep_costs`.

Costs are measured when a model is first used on a machine, kept in the cache folder, refined by policies while they
run, and measured again where what is known is doubtful.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from specdec.engine.cost_file import cost_file, read_costs, write_costs
from specdec.engine.cost_join import disagreement, joined
from specdec.engine.measure_costs import measure
from specdec.engine.measure_turns import measure_turns, widths_of
from specdec.engine.plausible import faults, made_plausible
from specdec.engine.policy import CostTable, DraftKey, DraftOption
from specdec.model.effort import Efforts, EffortSchedule

if TYPE_CHECKING:
    from specdec.engine.crew import Crew
    from specdec.model.loaded import Model
    from specdec.runtimes.base import Late

_DOUBTFUL = 0.25  # spread of kept costs from which they are measured again
_DISAGREES = 0.35  # logarithm of the factor by which what was learnt may differ from what was known
_KEEP_EVERY_S = 2.0
_BOUND_SPREAD = 0.1  # of a step that is only bounded
_REFERENCE = (1, 5)  # rows that a table of further draft steps is joined by


def machine_costs(
    model: Model,
    options: Sequence[DraftOption],
    efforts: Callable[[float], EffortSchedule | Efforts],
    tried: Sequence[float],
    *,
    crew: Crew,
    measures: bool = True,
) -> CostTable:
    """Seconds of exact passes and of the model's own draft steps.

    A model without a store is not measured: there is nothing to keep the result under.

    Args:
        model: whose passes to time.
        options: what may draft; only steps of the model itself are timed, others are known once they have drafted.
        efforts: schedule for a mean effort.
        tried: efforts whose draft steps to time.
        crew: the drafters.
        measures: False makes do with what is known, if anything is: others wait for passes.
    """
    costs, asked = model.memory.costs, (tuple(options), tuple(tried))
    if not costs.table.verify_s and cost_file(model) is None:
        return CostTable()
    if costs.last is not None and costs.last[:2] == (asked, costs.table) and not costs.is_doubtful:
        return costs.last[2]
    steps: list[DraftKey] = [
        (one.drafter, one.view, effort) for one in options if one.drafter in crew.known.timed for effort in tried
    ]
    late = _late_views(model)
    ready = [key for key in steps if key[1] not in late]
    turns = any(one.turn_rows for one in options) and bool(widths_of(model.runtime, model.config))
    table = _measured(model, efforts, ready, crew, turns=turns, measures=measures)
    bounds = {
        key: late[key[1]].least_s(table.verify_s[1], key[2])
        for key in steps
        if key[1] in late and key not in table.draft_s
    }
    base, found = costs.bounded
    if not bounds:
        found = table
    elif base is not table or not bounds.keys() <= found.draft_s.keys():
        spreads = {**table.draft_spread, **dict.fromkeys(bounds, _BOUND_SPREAD)}
        found = replace(table, draft_s={**table.draft_s, **bounds}, draft_spread=spreads)
        costs.bounded = table, found
    if measures:
        costs.last = asked, table, found
    return found


def _late_views(model: Model) -> dict[str | None, Late]:
    """Views that are made when a pass first needs them: their steps are not measured, only bounded."""
    return {name: info.late for name, info in model.runtime.views().items() if info.late is not None}


def _measured(
    model: Model,
    efforts: Callable[[float], EffortSchedule | Efforts],
    wanted: list[DraftKey],
    crew: Crew,
    *,
    turns: bool,
    measures: bool,
) -> CostTable:
    """Measured costs, those kept included; see `machine_costs`. `turns`: turns of the runtime's own count."""
    costs = model.memory.costs
    table = costs.table
    if not table.verify_s and costs.is_kept and not costs.is_measured_anew and (file := cost_file(model)):
        table = read_costs(file)
    missing = [key for key in wanted if key not in table.draft_s]
    if table.verify_s and not measures:
        costs.table = table
        return table
    if not table.verify_s:
        table = measure(model, efforts, missing, heads=crew.heads())
    elif costs.is_doubtful or (not costs.table.verify_s and _is_doubtful(table)):
        table = joined(table, measure(model, efforts, wanted, heads=crew.heads()))
    elif missing:
        table = joined(table, measure(model, efforts, missing, rows=_REFERENCE, heads=crew.heads()))
    elif table.turn_s or not turns:
        costs.table = table
        return table
    if turns and not table.turn_s:
        table = replace(table, turn_s=measure_turns(model.runtime, model.config))
    costs.table, costs.is_doubtful = table, False
    if costs.is_kept and (file := cost_file(model)):
        write_costs(file, table)
    return table


def _is_doubtful(table: CostTable) -> bool:
    """Whether kept costs are worth measuring again: they were measured on a busy machine, or long ago."""
    return max([*table.verify_spread.values(), *table.draft_spread.values()], default=0.0) > _DOUBTFUL


def keep_costs(model: Model, ask: Callable[[], CostTable | None]) -> None:
    """Keep what a policy has learnt, for the next process, every few seconds: it takes as long as a short answer. Where
    it disagrees with what was known before, the next answer measures again: what the policy did not see may be as
    wrong. Nothing that goes wrong here is an error.

    Args:
        model: whose passes cost that.
        ask: the policy's table, measured costs that it did not see included; None where it has learnt nothing.

    Raises:
        PluginError: the policy cannot say.
    """
    costs, now_s = model.memory.costs, time.monotonic()
    if now_s < costs.keep_from_s or not costs.table.verify_s:
        return
    learnt = ask()
    if learnt is None or not learnt.verify_s:
        return
    costs.keep_from_s = now_s + _KEEP_EVERY_S
    if late := _late_views(model):  # what was only bounded is not known
        learnt = replace(learnt, draft_s={key: s for key, s in learnt.draft_s.items() if key[1] not in late})
    if faults(learnt):
        learnt = made_plausible(learnt)
    if not costs.is_doubted and disagreement(costs.table, learnt) > _DISAGREES:
        costs.is_doubtful = costs.is_doubted = True
        costs.table = learnt
    if costs.is_kept and (file := cost_file(model)):
        write_costs(file, learnt)
