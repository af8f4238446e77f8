"""Keeps a faulty policy from doing harm: `GuardedPolicy` checks every answer and names the policy in the error."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.policies.base import DraftPlan, Policy, RoundOutcome, RoundState, StepSignals


class GuardedPolicy:
    """A policy whose answers can be relied on.

    Every method raises InvalidArgumentError, with the policy's name, when the policy raises or its answer is out of
    range. The engine then takes the round back, so the cache holds what it held before.
    """

    def __init__(self, policy: Policy, name: str) -> None:
        self._policy, self._name = policy, name

    def plan(self, state: RoundState) -> DraftPlan:
        """The policy's plan, its length capped at what the budget allows."""
        plan = self._ask("plan", self._policy.plan, state)
        if not isinstance(plan, DraftPlan):
            raise self._error("plan must answer a DraftPlan", plan)
        length = plan.num_draft_tokens
        if not isinstance(length, numbers.Integral) or length < 0:
            raise self._error("num_draft_tokens must be a whole number of at least 0", length)
        if length:
            self._check_effort(plan.effort)
        return DraftPlan(num_draft_tokens=min(int(length), state.max_draft_tokens), effort=plan.effort)

    def next_step(self, signals: StepSignals) -> float | None:
        """The policy's effort for the next step, or None to stop."""
        effort = self._ask("next_step", self._policy.next_step, signals)
        return None if effort is None else self._check_effort(effort)

    def observe(self, outcome: RoundOutcome) -> None:
        """Pass the outcome on."""
        self._ask("observe", self._policy.observe, outcome)

    def _ask(self, method: str, call: Callable[..., Any], argument: object) -> Any:
        try:
            return call(argument)
        except Exception as error:
            raise InvalidArgumentError(
                f"policy {self._name!r} failed in {method}: {type(error).__name__}: {error}"
            ) from error

    def _check_effort(self, effort: object) -> float:
        value = float(effort) if isinstance(effort, numbers.Real) and not isinstance(effort, bool) else 0.0
        if not 0 < value <= 1:
            raise self._error("an effort must be a number above 0 and at most 1", effort)
        return value

    def _error(self, wanted: str, answer: object) -> InvalidArgumentError:
        return InvalidArgumentError(f"policy {self._name!r} gave a wrong answer: {wanted}, not {answer!r}")
