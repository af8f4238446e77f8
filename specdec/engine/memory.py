"""What a loaded model keeps from one answer to the next: `Memory`. It changes how fast tokens come, never which."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from specdec.drafters.base import DrafterMemory
from specdec.engine.crew import Known
from specdec.engine.grammar_tables import Grammars
from specdec.engine.pass_costs import PassCosts
from specdec.engine.policy import CostTable, DraftOption
from specdec.model.effort import Efforts


@dataclass(slots=True)
class MachineCosts:
    """What passes cost on this machine.

    Attributes:
        table: measured seconds; empty until they are measured.
        is_kept: whether the cache folder is read, and written for the next process.
        is_measured_anew: what the cache folder holds is not read.
        is_doubtful: what a policy has learnt disagrees with the table: the next answer measures again.
        is_doubted: that has happened, which is enough for a process.
        bounded: a table, and the same with bounds for the steps of views that have yet to be made.
        last: what an answer that may measure asked for last, the table then, and the costs that it was given.
        keep_from_s: time, as of `time.monotonic`, before which policies are not asked again.
    """

    table: CostTable = field(default_factory=CostTable)
    is_kept: bool = True
    is_measured_anew: bool = False
    is_doubtful: bool = False
    is_doubted: bool = False
    bounded: tuple[CostTable | None, CostTable] = (None, CostTable())
    last: tuple[tuple[tuple[DraftOption, ...], tuple[float, ...]], CostTable, CostTable] | None = None
    keep_from_s: float = 0.0


@dataclass(slots=True)
class Memory:
    """What answers of one model share.

    Attributes:
        costs: of passes on this machine (`specdec.engine.costs`).
        drafters: tables and other models that drafters have read.
        policies: what policies have learnt, by their class.
        grammars: tables and compiled grammars.
        passes: seconds of passes that several sequences shared.
        crews: what is known of the drafters of `auto`, by their kind.
        turns_compiled: rows and efforts of verification for which the runtime has compiled its own turns.
    """

    costs: MachineCosts = field(default_factory=MachineCosts)
    drafters: DrafterMemory = field(default_factory=DrafterMemory)
    policies: dict[type, dict[Any, Any]] = field(default_factory=dict)
    grammars: Grammars = field(default_factory=Grammars)
    passes: PassCosts = field(default_factory=PassCosts)
    crews: dict[tuple[tuple[str, ...], str, bool], Known] = field(default_factory=dict)
    turns_compiled: set[tuple[int, Efforts]] = field(default_factory=set)

    def of_policy(self, policy: object) -> dict[Any, Any]:
        """What policies of the class of `policy` have learnt; theirs to change."""
        return self.policies.setdefault(type(policy), {})

    def fresh(self) -> Memory:
        """A memory in which no policy has learnt anything. Costs and what drafters have read stay shared with this one,
        because they are the same for every way of decoding."""
        return Memory(costs=self.costs, drafters=self.drafters, grammars=self.grammars, passes=self.passes)
