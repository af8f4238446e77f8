"""The prompt cache: the same answers, from fewer passes over the prompt."""

from __future__ import annotations

import pytest
from fake_runtime import ByteTokenizer, fake_model
from synthetic import synthetic_source

import specdec
from specdec.errors import InvalidArgumentError
from specdec.model.loaded import Model
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert

PROMPT = [7, 3, 9, 3, 9, 3]


@pytest.fixture(scope="module", params=["reference", "native"])
def model(request, tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("prompt_cache")
    store = Store.open(convert(synthetic_source(seed=5), folder / "store"))
    try:
        return Model(create_runtime(request.param, store))
    except specdec.errors.RuntimeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def cached(model):
    model.prompt_cache = specdec.PromptCache()
    yield model
    model.prompt_cache = None


def cached_tokens(result: specdec.Result) -> int:
    return result.stats.cached_prompt_tokens


@pytest.mark.parametrize("options", [{"speculate": False}, {"draft_effort": 0.3}, {"temperature": 1.0, "seed": 4}])
def test_the_same_prompt_again_is_not_read_and_gives_the_same_answer(cached, options):
    first = specdec.generate(cached, PROMPT, max_tokens=12, **options)
    assert (cached_tokens(first), first.stats.prefill_bytes_read > 0) == (0, True)
    again = specdec.generate(cached, PROMPT, max_tokens=12, **options)
    assert again.tokens == first.tokens
    assert (cached_tokens(again), again.stats.prefill_bytes_read) == (len(PROMPT) - 1, 0)


def test_what_speculation_left_serves_plain_decoding(cached):
    speculative = specdec.generate(cached, PROMPT, max_tokens=12, draft_effort=0.2, policy="fixed", draft_len=4)
    plain = specdec.generate(cached, PROMPT, max_tokens=12, speculate=False)
    assert plain.tokens == speculative.tokens
    assert cached_tokens(plain) == len(PROMPT) - 1


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"prompt": [*PROMPT[:-2], 1, 3]}, 4),
        ({"prompt": PROMPT[:-1]}, 4),
        ({"prompt": [*PROMPT, 3]}, 6),
        ({"prompt": [*PROMPT, "answer", 5, 5]}, len(PROMPT) + 11),
        ({"prompt": [*PROMPT, "answer", 5, 5], "max_tokens": 30}, len(PROMPT) + 11),
        ({"prompt": [8, *PROMPT]}, 0),
        ({"max_tokens": 13}, 5),
        ({"verify_effort": 0.5}, 0),
    ],
)
def test_what_a_prompt_shares_with_a_text_is_not_read_again(cached, change, shared):
    """At any length, the answer included, with room for more; at another effort nothing is shared."""
    first = specdec.generate(cached, PROMPT, max_tokens=12)
    options = {"prompt": PROMPT, "max_tokens": 12, "draft_effort": 0.2} | change
    prompt = [token for part in options.pop("prompt") for token in (first.tokens if part == "answer" else [part])]
    found = specdec.generate(cached, prompt, **options)
    assert cached_tokens(found) == shared
    cached.prompt_cache = None
    assert found.tokens == specdec.generate(cached, prompt, **options).tokens


def test_the_longest_of_several_texts_serves(cached):
    texts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9, 9, 9, 9], [7, 7, 7]]
    for text in texts:
        specdec.generate(cached, text, max_tokens=2, speculate=False)
    assert len(cached.prompt_cache) == 3
    for text, shared in (([1, 2, 3, 4, 5, 6, 8], 5), ([1, 2, 3, 9, 9, 8, 8], 5), ([7, 7, 8], 2), ([1, 2, 8], 2)):
        assert cached_tokens(specdec.generate(cached, [*text, 11], max_tokens=2)) >= shared


def test_a_text_that_another_one_continues_is_kept_once():
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    model.prompt_cache = specdec.PromptCache()
    first = specdec.generate(model, PROMPT, max_tokens=5)
    specdec.generate(model, [*PROMPT, *first.tokens, 1, 2], max_tokens=5)
    specdec.generate(model, PROMPT, max_tokens=3)
    assert len(model.prompt_cache) == 1


def test_the_text_used_longest_ago_goes_first():
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    model.prompt_cache = specdec.PromptCache(max_bytes=5000)  # the fake counts 64 bytes a token
    for first in (10, 20):
        specdec.generate(model, [first] * 16, max_tokens=1)
    specdec.generate(model, [10] * 10 + [1], max_tokens=1)  # uses the older one
    specdec.generate(model, [30] * 30, max_tokens=1)
    assert model.prompt_cache.nbytes <= 5000
    assert cached_tokens(specdec.generate(model, [20] * 16, max_tokens=1)) == 0
    assert cached_tokens(specdec.generate(model, [10] * 16, max_tokens=1)) > 0
    specdec.generate(model, [40] * 100, max_tokens=1)  # more than the budget: not kept, and nothing else goes for it
    assert cached_tokens(specdec.generate(model, [40] * 100, max_tokens=1)) == 0
    model.prompt_cache.clear()
    assert (len(model.prompt_cache), model.prompt_cache.nbytes) == (0, 0)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1G"])
def test_a_budget_out_of_range_is_refused(value):
    with pytest.raises(InvalidArgumentError, match="max_bytes must be a positive whole number of bytes"):
        specdec.PromptCache(max_bytes=value)


def test_models_do_not_share_texts():
    kept = specdec.PromptCache()
    first, second = fake_model(seed=1), fake_model(seed=2)
    first.prompt_cache = second.prompt_cache = kept
    specdec.generate(first, PROMPT, max_tokens=4)
    found = specdec.generate(second, PROMPT, max_tokens=4)
    assert cached_tokens(found) == 0
    assert found.tokens == specdec.generate(fake_model(seed=2), PROMPT, max_tokens=4).tokens


def test_answers_under_way_have_caches_of_their_own(cached):
    options = {"max_tokens": 12, "draft_effort": 0.3}
    expected = specdec.generate(cached, PROMPT, **options).tokens
    with specdec.stream(cached, PROMPT, **options) as first:
        next(first)
        second = specdec.generate(cached, PROMPT, **options)
        assert cached_tokens(second) == len(PROMPT) - 1
        for _ in first:
            pass
    assert first.result().tokens == second.tokens == expected


def test_prompts_of_one_batch_share_what_was_read(cached):
    expected = specdec.generate(cached, PROMPT, max_tokens=12).tokens
    several = specdec.generate(cached, [PROMPT, [*PROMPT, 5], PROMPT], max_tokens=12)
    assert [cached_tokens(one) for one in several] == [5, 6, 5]
    assert several[0].tokens == several[2].tokens == expected


def test_what_had_not_read_its_prompt_keeps_nothing(cached):
    specdec.stream(cached, PROMPT, max_tokens=12).close()
    assert cached_tokens(specdec.generate(cached, PROMPT, max_tokens=12)) == 0
