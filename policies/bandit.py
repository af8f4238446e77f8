"""The policy that lets other policies compete, and gives most rounds to the one that is fastest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.engine.policy import (
    CostTable,
    DraftPlan,
    Estimator,
    InvalidArgumentError,
    Knowledge,
    Learner,
    Policy,
    RoundOutcome,
    RoundState,
    StepSignals,
    check_count,
    check_number,
)


@dataclass(slots=True)
class _Arm:
    """A competitor: discounted tokens, seconds and blocks of rounds."""

    spec: str
    policy: Policy
    tokens: float = 0.0
    seconds: float = 0.0
    blocks: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else math.inf


@dataclass(slots=True)
class BanditPolicy:
    """Run each of `arms` for blocks of `block` rounds, by upper confidence bounds on its tokens a second.

    Discounted UCB (Garivier and Moulines 0805.3415, section 3). An arm's rate is compared with the best one's, so that
    the bound means the same on fast and slow machines. What was counted outlives the generation with the loaded model.

    Attributes:
        arms: policies as `name` or `name:key=value`, at least two; on the command line with "+" between.
        block: rounds before another arm may take over.
        width: how much the bound allows for chance, as a share of the best rate.
        forget: share of all counts that is kept from block to block.

    Raises:
        InvalidArgumentError: a value is out of range, or an arm is not a policy.
    """

    arms: str | Sequence[str] = ("goodput", "fixed", "confidence", "entropy", "heuristic")
    block: int = 8
    width: float = 0.1
    forget: float = 0.98
    _arms: list[_Arm] = field(default_factory=list, init=False, repr=False)
    _current: _Arm | None = field(default=None, init=False, repr=False)
    _left: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        from specdec.policies.registry import create  # the registry knows this policy, too

        self.block = check_count("block", self.block)
        self.width, self.forget = check_number("width", self.width, 0), check_number("forget", self.forget, 0.5, 1)
        specs = self.arms.split("+") if isinstance(self.arms, str) else list(self.arms)
        if len(specs) < 2 or len(set(specs)) < len(specs):
            raise InvalidArgumentError(f"arms must be at least two different policies, not {self.arms!r}")
        if any(spec.partition(":")[0] == "bandit" for spec in specs):
            raise InvalidArgumentError("arms must be other policies than bandit itself")
        self._arms = [_Arm(spec, create(spec)) for spec in specs]

    def begin(self, knowledge: Knowledge) -> None:
        """Hand on what arms want, and take up the counts of earlier generations."""
        for arm in self._arms:
            if isinstance(arm.policy, Learner):
                arm.policy.begin(knowledge)
        counts: dict[str, _Arm] = knowledge.memory.setdefault(("bandit", tuple(arm.spec for arm in self._arms)), {})
        for arm in self._arms:
            if (known := counts.get(arm.spec)) is not None:
                arm.tokens, arm.seconds, arm.blocks = known.tokens, known.seconds, known.blocks
            counts[arm.spec] = arm

    def plan(self, state: RoundState) -> DraftPlan:
        """The plan of the arm whose turn it is."""
        if self._current is None or not self._left:
            self._current, self._left = self._choose(), self.block
        return self._current.policy.plan(state)

    def next_step(self, signals: StepSignals) -> float | None:
        """The answer of the arm whose turn it is."""
        assert self._current is not None  # plan has run
        return self._current.policy.next_step(signals)

    def observe(self, outcome: RoundOutcome) -> None:
        """Count for the arm whose round it was."""
        arm = self._current
        assert arm is not None  # plan has run
        arm.policy.observe(outcome)
        arm.tokens += outcome.accepted + 1
        arm.seconds += outcome.round_s
        self._left -= 1
        if not self._left:
            arm.blocks += 1
            for one in self._arms:
                one.tokens, one.seconds, one.blocks = (
                    self.forget * value for value in (one.tokens, one.seconds, one.blocks)
                )

    def costs(self) -> CostTable | None:
        """What passes cost, by the first arm that knows."""
        tables = (arm.policy.costs() for arm in self._arms if isinstance(arm.policy, Estimator))
        return next((table for table in tables if table is not None), None)

    def summary(self) -> Mapping[str, Any]:
        """Tokens a second and blocks of each arm, lately."""
        return {
            arm.spec: {"tok_per_s": round(arm.rate, 3), "blocks": round(arm.blocks, 2)}
            for arm in self._arms
            if arm.seconds
        }

    def _choose(self) -> _Arm:
        """The arm with the highest bound; arms without a block first, in order."""
        fresh = next((arm for arm in self._arms if not arm.blocks), None)
        if fresh is not None:
            return fresh
        best = max(arm.rate for arm in self._arms)
        total = math.log(1.0 + sum(arm.blocks for arm in self._arms))
        return max(self._arms, key=lambda arm: arm.rate / best + self.width * math.sqrt(total / arm.blocks))
