"""Biases, penalties, processors: by their formulas, the same with and without speculation, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime, fake_config, fake_model
from hypothesis import given, settings
from hypothesis import strategies as st
from useful import useful

import specdec
from specdec.engine.accept import accept
from specdec.engine.chooser import LenientRules, NoTokenError, Rules, TokenChooser
from specdec.engine.penalties import Penalties
from specdec.engine.sampler import Sampler, SamplingParams
from specdec.errors import OptionError, PluginError
from specdec.model.loaded import Model

VOCAB = 23
ENDLESS = ByteTokenizer(eos=frozenset())

penalties = st.builds(
    Penalties,
    presence=st.sampled_from([0.0, 0.5, -2.0]),
    frequency=st.sampled_from([0.0, 0.7, -0.25]),
    repetition=st.sampled_from([1.0, 1.3, 0.5]),
)
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def penalised(logits: np.ndarray, prompt: list[int], answer: list[int], asked: Penalties) -> np.ndarray:
    """The formulas written out: Keskar et al. for the repetition, then OpenAI's for frequency and presence."""
    found = logits.astype(np.float64)
    for token in {*prompt, *answer}:
        found[token] = found[token] / asked.repetition if found[token] > 0 else found[token] * asked.repetition
    for token, count in Counter(answer).items():
        found[token] -= count * asked.frequency + asked.presence
    return found


def chooser_of(prompt: list[int], said: list[int], **rules: Any) -> TokenChooser:
    text = [*prompt]
    chooser = TokenChooser(Sampler(SamplingParams()), Rules(**rules), text, VOCAB)
    text += said
    return chooser


@given(prompt=tokens, said=tokens, drafts=st.lists(tokens, max_size=4), asked=penalties, seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_penalties_are_their_formulas_at_every_place(
    prompt: list[int], said: list[int], drafts: list[list[int]], asked: Penalties, seed: int
) -> None:
    """One object asked about many places, drafts among them, as the text grows and is taken back."""
    text = [0, *prompt]
    chooser = TokenChooser(Sampler(SamplingParams()), Rules(penalties=asked), text, VOCAB)
    random = np.random.default_rng(seed)
    for length in [*range(len(said) + 1), len(said) // 2]:
        del text[1 + len(prompt) :]
        text += said[:length]
        for drafted in [[], *drafts]:
            logits = random.standard_normal(VOCAB).astype(np.float32)
            before = logits.copy()
            wanted = penalised(logits, [0, *prompt], said[:length] + drafted, asked)
            assert np.allclose(chooser.shape(logits, drafted), wanted, atol=1e-5)
            assert np.array_equal(logits, before)


def test_biases_are_added_and_minus_100_bans() -> None:
    chooser = chooser_of([1], [], bias={2: 1.5, 3: -100.0, 4: 100.0})
    logits = np.linspace(-1, 1, VOCAB, dtype=np.float32)
    wanted = logits.copy()
    wanted[[2, 4]] += np.float32([1.5, 100.0])
    wanted[3] = -np.inf
    assert np.array_equal(chooser.shape(logits, []), wanted)
    assert not chooser.allows(logits, 3, [])
    assert chooser.allows(logits, 2, [])


def test_the_order_is_bias_penalties_processors() -> None:
    seen = []

    def note(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen.append((ids.tolist(), float(logits[5])))
        return logits + 1

    chooser = chooser_of([5], [7], bias={5: 3.0}, penalties=Penalties(repetition=2.0), processors=(note, note))
    shaped = chooser.shape(np.zeros(VOCAB, np.float32), [9])
    assert seen == [([5, 7, 9], 1.5), ([5, 7, 9], 2.5)]
    assert shaped[5] == 3.5


def test_a_draft_model_with_fewer_tokens_gets_all_of_them() -> None:
    chooser = chooser_of([1], [], bias={20: 5.0, 2: 1.0})
    shaped = chooser.shape(np.zeros(8, np.float32), [])
    assert shaped.shape == (VOCAB,)
    assert shaped[2] == 1
    assert np.all(shaped[8:] == -np.inf)


def test_a_trusted_token_that_is_ruled_out_is_not_kept() -> None:
    logits = np.zeros((3, VOCAB), np.float32)
    logits[:, 6] = 1
    chooser = chooser_of([1], [], bias={4: -100.0})
    for parents in (None, [-1, 0]):
        kept, token, _ = accept([4, 6], logits, chooser, position=1, parents=parents, trusted=[True, True])
        assert (list(kept), token) == ([], 6)
        kept, token, _ = accept([5, 4], logits, chooser, position=1, parents=parents, trusted=[True, True])
        assert (list(kept), token) == ([0], 6)


def no_repeats(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Rules out the last three tokens."""
    logits[ids[-3:]] = -np.inf
    return logits


def by_parity(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(logits)) % 2 == len(ids) % 2, logits, logits - 2)


shaping = st.fixed_dictionaries(
    {},
    optional={
        "presence_penalty": st.sampled_from([0.0, 1.5, -1.0]),
        "frequency_penalty": st.sampled_from([0.0, 2.0, -0.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.4, 0.8]),
        "logit_bias": st.dictionaries(st.integers(0, 39), st.sampled_from([-100, -2, 3.5]), max_size=30),
        "logits_processors": st.lists(st.sampled_from([no_repeats, by_parity]), max_size=2),
    },
)
drafting = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["fixed", "auto", "heuristic:longest=6", "entropy:threshold=0.5"]),
        "drafter": st.sampled_from(["effort", "auto", "ngram:min=1", "chain:ngram:min=1,effort"]),
        "draft_len": st.integers(1, 8),
        "draft_effort": st.sampled_from([0.5, 0.9]),
    }
).map(useful)


@given(
    shaping=shaping,
    drafting=drafting,
    weights=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 0.8, 2.0]),
    logprobs=st.sampled_from([None, 0, 3]),
)
@settings(max_examples=80, deadline=None)
def test_speculation_changes_nothing(
    shaping: dict[str, Any], drafting: dict[str, Any], weights: int, temperature: float, logprobs: int | None
) -> None:
    model = fake_model(config=fake_config(vocab_size=40), seed=weights, tokenizer=ENDLESS)
    options = {"max_tokens": 30, "temperature": temperature, "seed": weights, "logprobs": logprobs, **shaping}
    plain = specdec.generate(model, [3, 4, 3], speculate=False, **options)
    fast = specdec.generate(model, [3, 4, 3], **drafting, **options)
    assert (fast.tokens, fast.text, fast.logprobs) == (plain.tokens, plain.text, plain.logprobs)
    assert fast.identical_to == plain.identical_to
    with specdec.Batch(model) as batch:
        asked = [batch.submit([3, 4, 3], **drafting, **options), batch.submit([7], max_tokens=9)]
        for generation in asked:
            for _ in generation:
                pass
        assert asked[0].result().tokens == plain.tokens


def test_shaping_does_change_the_answer_and_drafts_follow_it() -> None:
    model = fake_model(seed=3, tokenizer=ENDLESS)
    free = specdec.generate(model, [1, 2], max_tokens=40)
    bans = dict.fromkeys(set(free.tokens[:20]), -100)
    shaped = specdec.generate(model, [1, 2], max_tokens=40, logit_bias=bans, policy="fixed", draft_effort=0.95)
    assert not set(shaped.tokens) & set(bans)
    # Drafts from the bare logits would propose the banned tokens, every time at first.
    assert shaped.stats.acceptance_rate > 0.5


def test_drafts_are_cut_before_a_banned_token() -> None:
    model = fake_model(seed=3, tokenizer=ENDLESS)
    plain = specdec.generate(model, [9, 8, 9, 8], max_tokens=30, logit_bias={8: -100}, speculate=False)
    fast = specdec.generate(
        model, [9, 8, 9, 8], max_tokens=30, logit_bias={8: -100}, policy="fixed", drafter="ngram:min=1"
    )
    assert fast.tokens == plain.tokens
    assert 8 not in fast.tokens


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"presence_penalty": 2.5}, "presence_penalty must be a number from -2 to 2, not 2.5"),
        ({"frequency_penalty": "a"}, "frequency_penalty must be a number from -2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number from 0.000001 to 1000000, not 0"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty must be a number from 0.000001 to 1000000, not 1e-300"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be"),
        ({"presence_penalty": -(10**400)}, "presence_penalty must be a number from -2 to 2"),
        ({"temperature": 10**400}, "temperature must be a number of at least 0"),
        ({"logit_bias": [1]}, "logit_bias must be a mapping"),
        ({"logit_bias": {"x": 1}}, "logit_bias must have token ids for keys, not 'x'"),
        ({"logit_bias": {-1: 1}}, "logit_bias must have token ids"),
        ({"logit_bias": {1: 101}}, "logit_bias must be a number from -100 to 100 for token 1, not 101"),
        ({"logit_bias": {258: 1}}, "logit_bias must have token ids from 0 to 257 for this model, not 258"),
        ({"repetition_penalty": 1e300}, r"repetition_penalty must be a number from 0.000001 to 1000000, not 1e\+300"),
        ({"logits_processors": 3}, "logits_processors must be a sequence of functions"),
        ({"logits_processors": [3]}, "logits_processors must be functions"),
    ],
)
def test_what_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        specdec.generate(fake_model(), [1], **options)


def test_ids_of_biases_may_be_text_as_in_json() -> None:
    wanted = specdec.generate(fake_model(), [1], max_tokens=5, logit_bias={7: 50})
    assert specdec.generate(fake_model(), [1], max_tokens=5, logit_bias={"7": 50}).tokens == wanted.tokens
    assert 7 in wanted.tokens


@pytest.mark.parametrize(
    ("processor", "told"),
    [
        (lambda _ids, _logits: 1 / 0, r"logits processor '.*lambda.*' failed in its call: ZeroDivisionError"),
        (lambda _ids, _logits: None, "must return logits of shape"),
        (lambda _ids, logits: logits[:3], r"must return logits of shape \(258,\), not float32 \(3,\)"),
        (lambda _ids, logits: logits * np.nan, "must be below infinity, and not NaN"),
        (lambda _ids, logits: logits + np.inf, "must be below infinity"),
    ],
)
@pytest.mark.parametrize("speculate", [True, False])
def test_a_faulty_processor_is_named(processor: Any, told: str, speculate: bool) -> None:
    with pytest.raises(PluginError, match=told):
        specdec.generate(fake_model(), [1], logits_processors=[processor], speculate=speculate)


def test_a_processor_that_fails_on_a_draft_alone_fails_nothing() -> None:
    """Drafts go astray: what plain decoding is never asked about must not matter."""
    model = Model(FakeRuntime(seed=1), ENDLESS)
    plain = specdec.generate(model, [1], max_tokens=20, speculate=False).tokens

    def only_there(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        if ids.tolist() != [1, *plain][: len(ids)]:
            raise ValueError("astray")
        return logits

    fast = specdec.generate(
        model, [1], max_tokens=20, logits_processors=[only_there], policy="fixed", draft_effort=0.3, drafter="effort"
    )
    assert fast.tokens == plain
    assert 0 < fast.stats.accepted < fast.stats.drafted


def test_where_no_token_is_left_the_answer_fails_and_says_why() -> None:
    model = fake_model(config=fake_config(vocab_size=4), tokenizer=ENDLESS)
    with pytest.raises(NoTokenError, match="no token can follow the first 0 of the answer: the banned tokens"):
        specdec.generate(model, [1], logit_bias=dict.fromkeys(range(4), -100))
    rules = LenientRules(chooser_of([1], [], bias=dict.fromkeys(range(VOCAB), -100.0)), [1], 9)
    assert rules.shape(np.zeros(VOCAB, np.float32), []) is None
    assert rules(np.eye(1, VOCAB, 5, np.float32)[0], 1) == 5
