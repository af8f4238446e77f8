"""How the default policy decides where other sequences share a pass: prices of rows, and looks that are saved."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, fake_model
from specdec.policies.goodput.costs import MOST_ROWS
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.goodput.shared import _smoothed

from specdec.engine.begin import begin
from specdec.engine.policy import CostTable, DraftOption, Knowledge, RoundOutcome, RoundState
from specdec.engine.scheduler import Scheduler

OPTIONS = (DraftOption("effort", "int4", True), DraftOption("ngram", None, False))
ROW_S = 0.005
# Rows beyond the first few cost what their multiplications cost, as on a processor.
TABLE = CostTable(
    verify_s={rows: 0.02 + ROW_S * max(0, rows - 4) for rows in (1, 3, 5, 9, 17, 33)},
    draft_s={("effort", "int4", effort): 0.01 for effort in (0.2, 0.5, 1.0)},
)


@pytest.mark.parametrize("seed", range(5))
def test_errors_of_passes_do_not_make_rows_cheap(seed):
    """Each pass is known to 3 %: of 16 rows that is half a row, and the lowest price must not be a mistake."""
    random = np.random.default_rng(seed)
    true = [0.0, *[1.0 + 0.8 * rows for rows in range(MOST_ROWS)]]
    known = [cost + 12.0 * 0.03 * float(random.standard_normal()) for cost in true]
    known[1] = 1.0
    steps = np.diff(_smoothed(known, 15)[1:])
    assert np.diff(known[1:]).min() < 0.2  # what would be bought
    assert abs(steps - 0.8).max() < 0.35


def test_a_step_of_the_machine_stays_a_step():
    """A kernel that runs sixteen rows as cheaply as one: the seventeenth costs as much as all of them."""
    costs = [0.0, *[1.0 if rows <= 4 else 17.0 for rows in range(1, MOST_ROWS + 1)]]
    steps = np.diff(_smoothed(costs, 12)[1:])
    assert steps[:3].tolist() == [0.0, 0.0, 0.0]
    assert steps[3] == 16.0
    assert steps[4:].max() == 0.0


def rounds(policy: GoodputPolicy, count: int, *, beside: int = 15, match: int = 0, first: int = 0) -> list[int]:
    """Lengths of the drafts that the policy wants in rounds whose drafts are all rejected."""
    found = []
    for index in range(first, first + count):
        state = RoundState(
            round_index=index, position=50 + index, max_draft_tokens=100, draft_len=4, draft_effort=0.5,
            verify_effort=1.0, options=OPTIONS, is_effort_asked=False, matches={"ngram": match}, rows_beside=beside,
        )  # fmt: skip
        plan = policy.plan(state)
        drafted = plan.num_draft_tokens if plan.drafter == "ngram" else 0
        found.append(drafted)
        pass_s = 0.02 + ROW_S * (beside + drafted - 3)
        policy.observe(
            RoundOutcome(
                drafted=drafted,
                accepted=0,
                signals=(),
                drafter=plan.drafter,
                view=plan.view,
                context_length=50,
                draft_s=0.0,
                verify_s=pass_s,
                round_s=pass_s,
                rows_beside=beside,
            )
        )
    return found


def test_looks_are_few_where_drafting_does_not_pay(monkeypatch):
    policy = GoodputPolicy(explore=0.0)
    policy.begin(Knowledge(costs=TABLE))
    looks = []
    original = GoodputPolicy._prospect

    def prospect(self, now, option, way):
        looks.append(now.state.round_index)
        return original(self, now, option, way)

    monkeypatch.setattr(GoodputPolicy, "_prospect", prospect)
    assert rounds(policy, 80) == [0] * 80
    assert len(set(looks)) <= 12
    summary = policy.summary()
    assert summary["parked_rounds"] == 80
    assert summary["estimated_gain"] == pytest.approx(1.0, abs=0.05)
    looks.clear()
    rounds(policy, 1, beside=3, first=80)  # fewer others: another question
    assert looks[0] == 80


def test_a_long_match_is_not_overlooked():
    policy = GoodputPolicy(explore=0.0)
    policy.begin(Knowledge(costs=TABLE))
    assert rounds(policy, 2, beside=3) == [0, 0]
    assert rounds(policy, 1, beside=3, match=6, first=2)[0] > 0


def test_policies_hear_nothing_of_pieces_of_prompts():
    """Only sequences that decode count: a long prompt in the same pass is not a reason to draft."""

    class Nosy:
        def __init__(self):
            self.beside, self.seen = [], []

        def plan(self, state):
            from specdec.engine.policy import DraftPlan

            self.beside.append(state.rows_beside)
            return DraftPlan(num_draft_tokens=0, effort=1.0)

        def next_step(self, _signals):
            return None

        def observe(self, outcome):
            self.seen.append((outcome.rows_beside, outcome.verify_s))

    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    scheduler, policy = Scheduler(model.runtime), Nosy()
    scheduler.add(begin(model, [1], {"max_tokens": 50, "policy": policy}, caller="test").sequence)
    scheduler.add(begin(model, [2], {"max_tokens": 50, "speculate": False}, caller="test").sequence)
    for _ in range(3):
        scheduler.step()
    long = begin(model, [3] * 400, {"max_tokens": 5, "speculate": False}, caller="test")
    scheduler.add(long.sequence)
    while long.sequence.unread:
        scheduler.step()
    assert set(policy.beside) == {1}
    assert {beside for beside, _ in policy.seen} == {1}
