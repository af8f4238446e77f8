"""Many sequences in shared passes: each gets the tokens it gets alone, as others join, leave, fail or draft trees."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime, fake_config, fake_model
from hypothesis import given, settings
from hypothesis import strategies as st

import specdec
from specdec.drafters.base import Draft
from specdec.engine.accept import accept
from specdec.engine.begin import begin
from specdec.engine.policy import DraftPlan
from specdec.engine.sampler import Sampler, SamplingParams
from specdec.engine.scheduler import Scheduler
from specdec.errors import InvalidArgumentError
from specdec.model.loaded import Model
from specdec.runtimes.base import path_to

ENDLESS = ByteTokenizer(eos=frozenset())


class TreeDrafter:
    """Drafts a random tree in which the verifier's own tokens occur now and then."""

    views = ()
    takes_effort = False

    def __init__(self, seed: int, answer: list[int], prompt_length: int) -> None:
        self.random = np.random.default_rng(seed)
        self.answer, self.prompt_length = answer, prompt_length

    def draft(self, plan, context, *, policy):
        start = len(context.history) - self.prompt_length
        tokens, parents, depths, taken = [], [], [], set()
        for index in range(int(self.random.integers(0, min(plan.num_draft_tokens, 16) + 1))):
            parent = int(self.random.integers(-1, index))
            depth = 0 if parent < 0 else depths[parent] + 1
            right = self.answer[start + depth] if start + depth < len(self.answer) else 7
            token = right if self.random.random() < 0.7 else int(self.random.integers(0, 256))
            if (parent, token) in taken:  # siblings differ
                token = next(other for other in range(256) if (parent, other) not in taken)
            taken.add((parent, token))
            tokens.append(token)
            parents.append(parent)
            depths.append(depth)
        return Draft(tokens, parents=parents)


class Greedy:
    """Asks for as long a draft as there may be."""

    def plan(self, state):
        return DraftPlan(num_draft_tokens=min(20, state.max_draft_tokens), effort=0.5)

    def next_step(self, _signals):
        return 0.5

    def observe(self, outcome):
        assert 0 <= outcome.accepted <= outcome.drafted


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_trees_change_no_token(seed, temperature):
    options = {"max_tokens": 24, "temperature": temperature, "seed": seed}
    model = fake_model(seed=seed, tokenizer=ENDLESS)
    plain = specdec.generate(model, [1, 2, 3], speculate=False, **options)
    drafter = TreeDrafter(seed, plain.tokens, 3)
    found = specdec.generate(model, [1, 2, 3], drafter=drafter, policy=Greedy(), **options)
    assert found.tokens == plain.tokens
    stats = found.stats
    assert stats.emitted + stats.cut == stats.accepted + stats.rounds
    assert sum(stats.drafted_per_position) <= stats.drafted
    assert sum(stats.by_step["TreeDrafter"]["accepted"]) == stats.accepted
    assert sum(stats.by_step["TreeDrafter"]["drafted"]) == stats.drafted


def test_trees_are_kept_now_and_then():
    model = fake_model(seed=3, tokenizer=ENDLESS)
    plain = specdec.generate(model, [1, 2, 3], max_tokens=60, speculate=False)
    drafter = TreeDrafter(3, plain.tokens, 3)
    found = specdec.generate(model, [1, 2, 3], max_tokens=60, drafter=drafter, policy=Greedy())
    assert found.tokens == plain.tokens
    assert found.stats.mean_accepted_length > 0.5


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_tree_keeps_the_path_that_chains_would(data):
    """The longest of all paths, each accepted as a chain of its own."""
    count = data.draw(st.integers(1, 12))
    parents = [data.draw(st.integers(-1, index - 1)) for index in range(count)]
    draft: list[int] = []
    for index, parent in enumerate(parents):
        siblings = {draft[other] for other in range(index) if parents[other] == parent}
        draft.append(data.draw(st.sampled_from([token for token in range(14) if token not in siblings])))
    logits = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((count + 1, 14)).astype(np.float32)
    sampler = Sampler(SamplingParams(temperature=data.draw(st.sampled_from([0.0, 1.0]))))
    kept, token, _ = accept(draft, logits, sampler, position=5, parents=parents)
    best: tuple[list[int], int] = ([], sampler(logits[0], 5))
    for leaf in range(count):
        path = path_to(parents, leaf)
        rows = logits[[0, *(row + 1 for row in path)]]
        chain, bonus, _ = accept([draft[row] for row in path], rows, sampler, position=5)
        if len(chain) > len(best[0]):
            best = ([path[step] for step in chain], bonus)
    assert (list(kept), token) == best


def test_a_chain_given_as_a_tree_is_a_chain():
    draft, logits = [4, 5], np.eye(3, 10, 4, dtype=np.float32)  # rows choose 4, 5, 6
    assert accept(draft, logits, Sampler(SamplingParams()), position=3, parents=[-1, 0])[:2] == ([0, 1], 6)


# --- the scheduler ---


def alone(prompts, **options):
    return [specdec.generate(fake_model(seed=5), prompt, **options) for prompt in prompts]


PROMPTS = [[1, 2, 3], "a longer prompt that takes some passes to read", [9], "ab ab ab ab ab ab", list(range(200))]


@pytest.mark.parametrize(
    "options",
    [
        {"speculate": False},
        {"policy": "fixed", "draft_len": 3, "draft_effort": 0.6},
        {"temperature": 0.9, "seed": 11},
        {"verify_effort": 0.5, "drafter": "chain:ngram,effort", "policy": "heuristic"},
        {"drafter": "early-exit:1", "policy": "fixed"},
    ],
)
def test_several_prompts_get_the_answers_they_get_alone(options):
    model = fake_model(seed=5)
    together = specdec.generate(model, PROMPTS, max_tokens=40, **options)
    for one, other in zip(together, alone(PROMPTS, max_tokens=40, **options), strict=True):
        assert (one.tokens, one.text, one.stopped_by) == (other.tokens, other.text, other.stopped_by)
        assert one.stats.prompt_tokens == other.stats.prompt_tokens


def test_rows_share_passes():
    model = fake_model(seed=5, tokenizer=ENDLESS)
    batches: list[int] = []
    forward = model.runtime.forward

    def watched(batch, **options):
        batches.append(len(batch))
        return forward(batch, **options)

    model.runtime.forward = watched
    specdec.generate(model, [[1], [2], [3]], max_tokens=20, policy="fixed", draft_len=2, drafter="effort")
    assert set(batches[:-12]) == {3}


def test_drafts_of_other_models_share_passes_too():
    model = fake_model(seed=5, tokenizer=ENDLESS)
    other = specdec.drafters.base.LoadedModel(FakeRuntime(seed=5), ByteTokenizer())
    model.load_other = lambda _name: other
    batches: list[int] = []
    forward = other.runtime.forward

    def watched(batch, **options):
        batches.append(len(batch))
        return forward(batch, **options)

    other.runtime.forward = watched
    found = specdec.generate(model, [[1], [2]], max_tokens=20, drafter="model:same,view=exact", policy="fixed")
    assert [one.tokens for one in found] == [
        specdec.generate(fake_model(seed=5, tokenizer=ENDLESS), [first], max_tokens=20, speculate=False).tokens
        for first in (1, 2)
    ]
    assert set(batches) == {2}


class Nosy(Greedy):
    """Remembers what it was told of others."""

    def __init__(self):
        self.beside, self.seen = [], []

    def plan(self, state):
        self.beside.append(state.rows_beside)
        return DraftPlan(num_draft_tokens=2, effort=0.5)

    def observe(self, outcome):
        self.seen.append(outcome.rows_beside)


def test_policies_hear_of_the_rows_beside_theirs():
    model = fake_model(seed=5, tokenizer=ENDLESS)
    policy = Nosy()
    scheduler = Scheduler(model.runtime)
    answers = [begin(model, [1, 2], {"max_tokens": 30, "policy": policy, "drafter": "effort"}, caller="test")]
    answers += [begin(model, [one], {"max_tokens": 30, "speculate": False}, caller="test") for one in range(3)]
    for answer in answers:
        scheduler.add(answer.sequence)
    for _ in range(4):
        scheduler.step()
    assert policy.seen == [3, 3, 3]  # the first step read the rest of its prompt
    assert policy.beside[1:] == [3, 3]
    alone_policy = Nosy()
    specdec.generate(model, [1, 2], max_tokens=9, policy=alone_policy, drafter="effort")
    assert {*alone_policy.beside, *alone_policy.seen} == {0}


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_joins_and_leaves_change_no_token(seed):
    random = np.random.default_rng(seed)
    model = fake_model(seed=seed % 7, tokenizer=ENDLESS)
    scheduler = Scheduler(model.runtime, max_sequences=int(random.integers(1, 5)), max_rows=int(random.integers(8, 90)))
    live, ended, begun = {}, [], 0
    while begun < 8 or live:
        if begun < 8 and random.random() < 0.4:
            prompt = random.integers(0, 256, int(random.integers(1, 60))).tolist()
            options = {
                "max_tokens": int(random.integers(1, 20)),
                "temperature": float(random.choice([0.0, 0.8])),
                "seed": begun,
                "verify_effort": float(random.choice([1.0, 0.5])),
            }
            answer = begin(model, prompt, {**options, "policy": random.choice(["auto", "fixed"])}, caller="test")
            live[id(answer.sequence)] = answer, prompt, options, []
            scheduler.add(answer.sequence)
            begun += 1
        if live and random.random() < 0.05:  # one leaves early
            key = next(iter(live))
            scheduler.remove(live[key][0].sequence)
            ended.append(live.pop(key))
        for event in scheduler.step():
            answer, _, _, said = live[id(event.sequence)]
            assert event.error is None
            if event.done is not None:
                said += answer.take(event.done).tokens
                if answer.stopped_by is not None:
                    scheduler.remove(event.sequence)
                    ended.append(live.pop(id(event.sequence)))
    assert len(scheduler) == 0
    for answer, prompt, options, said in ended:
        plain = specdec.generate(model, prompt, speculate=False, **options).tokens
        assert said == (plain if answer.stopped_by else plain[: len(said)])


@pytest.mark.parametrize(
    "options", [{"speculate": False}, {"policy": "fixed", "drafter": "effort"}, {"temperature": 1.0, "seed": 3}]
)
def test_the_pass_over_the_end_of_a_prompt_gives_the_first_token(options):
    """Nothing is drafted for it, and nothing waits for another pass."""
    model = fake_model(seed=5, tokenizer=ENDLESS)
    prompts = [[1, 2, 3], [4], list(range(20))]
    alone = [specdec.generate(model, prompt, max_tokens=6, **options) for prompt in prompts]
    model.runtime.passes.clear()
    first = specdec.generate(model, prompts, max_tokens=1, **options)
    assert [one.tokens for one in first] == [one.tokens[:1] for one in alone]
    exact = [(start, rows) for view, _, start, rows in model.runtime.passes if view == "exact"]
    assert sorted(exact) == [(0, 1), (0, 3), (0, 20)]
    together = specdec.generate(model, prompts, max_tokens=6, **options)
    for one, other in zip(together, alone, strict=True):
        assert (one.tokens, one.text) == (other.tokens, other.text)
        stats = one.stats
        assert stats.emitted + stats.cut == stats.accepted + stats.rounds
    assert sum(one.stats.prefill_bytes_read for one in first) > 0


def test_the_first_round_is_settled_as_a_whole_or_not_at_all():
    model = fake_model(seed=5, tokenizer=ENDLESS)
    answer = begin(model, [1, 2, 3, 4], {"max_tokens": 9, "policy": "fixed", "drafter": "effort"}, caller="test")
    sequence = answer.sequence
    rows = sequence.prompt_rows(9, begins=True)
    assert (rows.tokens, rows.logits) == ([1, 2, 3, 4], "last")
    (result,) = model.runtime.forward([rows])
    result.logits[:] = np.nan
    with pytest.raises(specdec.SpecdecError, match="not finite"):
        sequence.settle(result, seconds=0.1)
    assert (sequence.tokens, sequence.cache.length, sequence.unread) == ([1, 2, 3, 4], 3, 0)
    plain = specdec.generate(model, [1, 2, 3, 4], max_tokens=9, speculate=False).tokens
    scheduler = Scheduler(model.runtime)
    scheduler.add(sequence)
    scheduler.step()
    assert sequence.tokens[4] == plain[0]


class PoisonRuntime(FakeRuntime):
    """Fails on a pass with a certain token; any pass that has it, too."""

    def forward(self, batch, *, view="exact", states=False):
        if any(99 in rows.tokens for rows in batch):
            raise InvalidArgumentError("token 99 is poison")
        return super().forward(batch, view=view, states=states)


def test_a_failing_sequence_fails_alone():
    model = Model(PoisonRuntime(seed=2), ENDLESS)
    scheduler = Scheduler(model.runtime)
    prompts = [[1], [2, 99, 3], [3]]
    answers = [begin(model, prompt, {"max_tokens": 5, "speculate": False}, caller="test") for prompt in prompts]
    for answer in answers:
        scheduler.add(answer.sequence)
    events = scheduler.step()
    assert [str(event.error) for event in events if event.error] == ["token 99 is poison"]
    assert len(scheduler) == 2
    plain = [specdec.generate(model, prompt, max_tokens=5, speculate=False).tokens for prompt in ([1], [3])]
    assert [event.done.bonus_token for event in events if event.done] == [tokens[0] for tokens in plain]
    with pytest.raises(InvalidArgumentError, match="poison"):
        specdec.generate(model, prompts, max_tokens=5)


def test_an_interrupt_takes_every_open_round_back():
    model = fake_model(seed=2, tokenizer=ENDLESS)
    scheduler = Scheduler(model.runtime)
    options = {"max_tokens": 30, "policy": "fixed", "drafter": "effort", "draft_len": 3}
    answers = [begin(model, [one], options, caller="test") for one in range(3)]
    for answer in answers:
        scheduler.add(answer.sequence)
    scheduler.step()
    before = [(list(a.sequence.tokens), list(a.sequence.cache.entries)) for a in answers]
    for later in range(1, 13):
        model.runtime.fail_at_pass = len(model.runtime.passes) + later
        with pytest.raises(KeyboardInterrupt):
            scheduler.step()
        assert [(a.sequence.tokens, a.sequence.cache.entries) for a in answers] == before
    model.runtime.fail_at_pass = None
    for _ in range(5):
        scheduler.step()
    for first, answer in enumerate(answers):
        plain = specdec.generate(model, [first], max_tokens=30, speculate=False).tokens
        said = answer.sequence.tokens[1:31]
        assert said == plain[: len(said)]


def test_prompts_are_read_in_pieces_beside_others():
    """While others decode, a piece of a prompt is as long as the costs of passes allow; alone it is a whole chunk."""
    model = fake_model(config=fake_config(max_context=4096), tokenizer=ENDLESS)
    scheduler = Scheduler(model.runtime, max_rows=100)
    first = begin(model, [1], {"max_tokens": 50, "speculate": False}, caller="test")
    scheduler.add(first.sequence)
    scheduler.step()
    long = begin(model, [2] * 400, {"max_tokens": 5, "speculate": False}, caller="test")
    scheduler.add(long.sequence)
    assert long.sequence.unread == 399
    rounds = first.sequence.rounds
    while long.sequence.unread:
        left = long.sequence.unread
        scheduler.step()
        assert 1 <= left - long.sequence.unread <= 99
        rounds += 1
        assert first.sequence.rounds == rounds  # nobody's stream stalls


@pytest.mark.parametrize(
    "options", [{"max_sequences": 0}, {"max_sequences": 65}, {"max_rows": 513}, {"max_rows": True}]
)
def test_limits_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(InvalidArgumentError, match=f"{name} must be a whole number from 1 to"):
        Scheduler(FakeRuntime(), **options)
