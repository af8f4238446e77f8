"""Keeps a faulty policy from doing harm: `GuardedPolicy` checks every answer and names the policy in the error."""

from __future__ import annotations

import json
import numbers
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from specdec.checks import is_integral
from specdec.conforms import conforms
from specdec.engine.policy import (
    CostTable,
    DraftOption,
    DraftPlan,
    Estimator,
    Knowledge,
    Learner,
    Patient,
    Policy,
    Reporter,
    RoundOutcome,
    RoundState,
    StepSignals,
)
from specdec.errors import PluginError
from specdec.interrupts import unless_signalled

_SCALARS = (str, float, int, bool, type(None))
_PLAIN = DraftPlan(num_draft_tokens=0, effort=1.0)


class GuardedPolicy:
    """A policy whose answers can be relied on.

    Every method raises PluginError, with the policy's name, when the policy raises or its answer is out of range. The
    engine then takes the round back, so the cache holds what it held before.

    Attributes:
        learns: the policy wants measured costs and a memory.
    """

    def __init__(self, policy: Policy, name: str) -> None:
        self._policy, self._name = policy, name
        self.learns = conforms(policy, Learner)
        # A plan of the policy that fits these options.
        self._valid: tuple[DraftPlan, tuple[DraftOption, ...]] = _PLAIN, ()

    @property
    def quiet_rounds(self) -> int:
        """First rounds of an answer that the policy is not asked about; see `Patient`."""
        if not conforms(self._policy, Patient):
            return 0
        try:
            found = self._policy.quiet_rounds
        except unless_signalled(Exception) as error:
            raise PluginError.raised("policy", self._name, error, doing="quiet_rounds") from error
        if type(found) is not int or found < 0:
            raise self._error("quiet_rounds must be a whole number of at least 0", found)
        return found

    def begin(self, knowledge: Knowledge) -> None:
        """Hand the policy what it starts from, if it wants it."""
        if conforms(self._policy, Learner):
            self._ask("begin", self._policy.begin, knowledge)

    def costs(self) -> CostTable | None:
        """What passes cost, by what the policy has learnt; None where it does not tell."""
        if not conforms(self._policy, Estimator):
            return None
        try:
            table = self._policy.costs()
        except unless_signalled(Exception) as error:
            raise PluginError.raised("policy", self._name, error, doing="costs") from error
        if table is not None and not isinstance(table, CostTable):
            raise self._error("costs must answer a CostTable or None", table)
        return table

    def summary(self) -> dict[str, Any]:
        """What the policy has to say in the statistics."""
        if not conforms(self._policy, Reporter):
            return {}
        try:
            summary = dict(self._policy.summary())
            if not _is_json(summary):  # what is doubtful, json tells; it takes several times as long
                json.dumps(summary)
        except unless_signalled(Exception) as error:
            raise PluginError.raised("policy", self._name, error, doing="summary") from error
        return summary

    def plan(self, state: RoundState) -> DraftPlan:
        """The policy's plan: its length capped at what the budget allows, its drafter and view named."""
        plan: object = self._ask("plan", self._policy.plan, state)
        valid, options = self._valid
        if plan is valid and options is state.options and valid.num_draft_tokens <= state.max_draft_tokens:
            return valid
        found = self._checked(plan, state)
        if found is plan:
            self._valid = plan, state.options
        return found

    def _checked(self, plan: object, state: RoundState) -> DraftPlan:
        if not isinstance(plan, DraftPlan):
            raise self._error("plan must answer a DraftPlan", plan)
        length = plan.num_draft_tokens
        if not (type(length) is int or isinstance(length, numbers.Integral)) or length < 0:
            raise self._error("num_draft_tokens must be a whole number of at least 0", length)
        if length:
            self._check_effort(plan.effort)
        if not is_integral(plan.turns) or plan.turns < 1:
            raise self._error("turns must be a whole number of at least 1", plan.turns)
        if not is_integral(plan.at_once) or plan.at_once < 1:
            raise self._error("at_once must be a whole number of at least 1", plan.at_once)
        if not isinstance(plan.least_margin, numbers.Real) or not plan.least_margin >= 0:
            raise self._error("least_margin must be a number of at least 0", plan.least_margin)
        if not isinstance(plan.windowed, bool | None):
            raise self._error("windowed must be True, False or None", plan.windowed)
        if any(isinstance(value, np.generic) for value in (length, plan.effort, plan.turns, plan.at_once)):
            # NumPy's numbers are no part of statistics.
            plan = replace(
                plan, num_draft_tokens=int(length), effort=float(plan.effort), turns=int(plan.turns),
                at_once=int(plan.at_once),
            )  # fmt: skip
        length = min(int(length), state.max_draft_tokens)
        if plan.num_draft_tokens == 0 and plan.drafter is plan.view is None:
            return plan
        for option in state.options:
            if plan.drafter in (None, option.drafter) and plan.view in (None, option.view):
                if length == plan.num_draft_tokens and plan.drafter is not None and plan.view == option.view:
                    return plan
                return replace(plan, num_draft_tokens=length, drafter=option.drafter, view=option.view)
        offered = ", ".join(f"{option.drafter} with view {option.view}" for option in state.options)
        raise self._error(f"drafter and view must be on offer ({offered})", (plan.drafter, plan.view))

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
        except unless_signalled(Exception) as error:
            raise PluginError.raised("policy", self._name, error, doing=method) from error

    def _check_effort(self, effort: object) -> float:
        if type(effort) is float and 0.0 < effort <= 1.0:
            return effort
        value = float(effort) if isinstance(effort, numbers.Real) and not isinstance(effort, bool) else 0.0
        if not 0 < value <= 1:
            raise self._error("an effort must be a number above 0 and at most 1", effort)
        return value

    def _error(self, wanted: str, answer: object) -> PluginError:
        return PluginError("policy", self._name, f"gave a wrong answer: {wanted}, not {answer!r}")


def _is_json(value: object) -> bool:
    """Whether a value is certainly JSON: made of plain dictionaries with text as keys, lists, text, numbers, None."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_json(one) for key, one in value.items())  # type: ignore[attr-defined]
    return kind in _SCALARS or (kind is list and all(map(_is_json, value)))  # type: ignore[call-overload]
