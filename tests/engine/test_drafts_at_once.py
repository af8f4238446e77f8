"""Drafts of several tokens in one pass, where a policy asks for them: as by single steps, with the same questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from drafting import EveryStep, context_of, drafted, other_model, setup_of
from fake_runtime import ByteTokenizer, FakeRuntime

import specdec
from specdec.drafters.registry import create
from specdec.engine.policy import DraftPlan, RoundOutcome, RoundState, StepSignals
from specdec.errors import PluginError
from specdec.model.loaded import Model

PROMPT = list(b"the quick brown fox, the quick")


@dataclass
class AtOnce:
    """Drafts `length` tokens, `at_once` in a pass; stops below a margin, and takes one effort after the other."""

    at_once: Any = 1
    least_margin: Any = 0.0
    length: int = 6
    stops_below: float = 0.0
    efforts: tuple[float, ...] = (0.7,)
    steps: list[tuple[int, int, float, float]] = field(default_factory=list)
    outcomes: list[RoundOutcome] = field(default_factory=list)

    def plan(self, state: RoundState) -> DraftPlan:
        length = min(self.length, state.max_draft_tokens)
        return DraftPlan(
            num_draft_tokens=length, effort=self.efforts[0], at_once=self.at_once, least_margin=self.least_margin
        )

    def next_step(self, signals: StepSignals) -> float | None:
        margin = signals.distribution.margin
        self.steps.append((signals.position, signals.context_length, signals.effort, margin))
        return None if margin < self.stops_below else self.efforts[len(self.steps) % len(self.efforts)]

    def observe(self, outcome: RoundOutcome) -> None:
        self.outcomes.append(outcome)


def answer(policy: AtOnce, *, drafts_ahead: int = 15, drafter: str = "effort", **options: Any) -> tuple[Any, list[int]]:
    """An answer, and the rows and further steps of its draft passes."""
    runtime = FakeRuntime(seed=4, most_ahead=0, drafts_ahead=drafts_ahead)
    model = Model(runtime, ByteTokenizer())
    found = specdec.generate(model, PROMPT, max_tokens=60, policy=policy, drafter=drafter, **options)
    return found, [length for view, _, length, _ in runtime.passes if view != "exact"]


@pytest.mark.parametrize("drafter", ["effort", "early-exit:1", "chain:ngram:min=1,effort"])
@pytest.mark.parametrize("stops_below", [0.0, 0.8])
def test_drafts_and_questions_are_those_of_single_steps(drafter: str, stops_below: float) -> None:
    single = AtOnce(stops_below=stops_below)
    wanted, _ = answer(single, drafter=drafter)
    for at_once, most in ((6, 15), (3, 15), (6, 2), (9, 15)):
        policy = AtOnce(at_once=at_once, stops_below=stops_below)
        found, _ = answer(policy, drafts_ahead=most, drafter=drafter)
        assert found.tokens == wanted.tokens
        assert policy.steps == single.steps
        assert [(one.drafted, one.accepted) for one in policy.outcomes] == [
            (one.drafted, one.accepted) for one in single.outcomes
        ]
        assert all(len(one.signals) in (0, one.drafted) for one in policy.outcomes)


def test_a_margin_ends_a_pass_and_the_policy_decides() -> None:
    """Nothing is dropped where the runtime stops at the margin at which the policy does."""
    careful = AtOnce(at_once=6, least_margin=0.8, stops_below=0.8)
    found, steps = answer(careful)
    assert found.stats.drafted == len(steps)
    eager = AtOnce(at_once=6, stops_below=0.8)
    same, more = answer(eager)
    assert same.tokens == found.tokens
    assert len(more) > len(steps)
    going = AtOnce(at_once=6, least_margin=0.8)
    assert answer(going)[0].stats.drafted == answer(AtOnce())[0].stats.drafted


def test_another_effort_counts_from_the_next_pass_on() -> None:
    policy = AtOnce(at_once=3, efforts=(0.5, 0.9))
    answer(policy)
    assert {effort for _, _, effort, _ in policy.steps} == {0.5, 0.9}
    first = policy.steps[:3]
    assert [effort for _, _, effort, _ in first] == [0.5, 0.5, 0.5]


def test_sampled_answers_are_drafted_one_by_one() -> None:
    policy = AtOnce(at_once=6)
    found, steps = answer(policy, temperature=1.0, seed=3)
    assert found.stats.drafted == len(steps)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"at_once": 0}, "at_once must be a whole number of at least 1, not 0"),
        ({"at_once": 1.5}, "at_once must be a whole number of at least 1, not 1.5"),
        ({"least_margin": -1}, "least_margin must be a number of at least 0, not -1"),
        ({"least_margin": float("nan")}, "least_margin must be a number of at least 0, not nan"),
        ({"least_margin": "high"}, "least_margin must be a number of at least 0, not 'high'"),
    ],
)
def test_wrong_numbers_are_the_policys_fault(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        answer(AtOnce(**values))


def test_a_model_drafter_knows_what_a_pass_has_appended() -> None:
    """Its own cache keeps what a later text has in common with it, dropped tokens included."""
    texts = [[1, 2, 3, 4]]
    runs: list[list[list[int]]] = []
    for ahead in (0, 15):
        runtime = FakeRuntime(most_ahead=0)
        other = other_model(seed=9, most_ahead=0, drafts_ahead=ahead)
        drafter = create("model:other", setup_of(runtime, load_model=lambda _name, other=other: other))
        plan, found = DraftPlan(num_draft_tokens=5, effort=1.0, at_once=5), []
        for number in range(4):
            if number == len(texts):
                kept = found[-1][: number + 1]
                texts.append([*texts[-1], *kept, 200 + number])
            draft = drafted(drafter.draft(plan, context_of(runtime, texts[number], is_greedy=True), policy=EveryStep()))
            found.append(draft.tokens)
        runs.append(found)
    assert runs[0] == runs[1]
    assert all(len(tokens) == 5 for tokens in runs[0])
