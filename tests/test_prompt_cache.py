"""The prompt cache: the same answers, from fewer passes over the prompt."""

from __future__ import annotations

import pytest
from fake_runtime import fake_config, fake_model
from synthetic import synthetic_source

import specdec
from specdec.engine.decode import PREFILL_CHUNK
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
    "change",
    [
        {"prompt": [*PROMPT[:-2], 1, 3]},
        {"prompt": PROMPT[:-1]},
        {"prompt": [*PROMPT, 3]},
        {"max_tokens": 13},
        {"verify_effort": 0.5},
    ],
)
def test_another_prompt_effort_or_length_is_read_anew(cached, change):
    specdec.generate(cached, PROMPT, max_tokens=12)
    options = {"prompt": PROMPT, "max_tokens": 12, "draft_effort": 0.2} | change
    prompt = options.pop("prompt")
    found = specdec.generate(cached, prompt, **options)
    assert cached_tokens(found) == 0
    cached.prompt_cache = None
    assert found.tokens == specdec.generate(cached, prompt, **options).tokens


def test_a_long_prompt_is_spared_its_shared_chunks():
    model = fake_model(config=fake_config(max_context=PREFILL_CHUNK + 64))
    prompt = [index % 50 for index in range(PREFILL_CHUNK + 40)]
    model.prompt_cache = specdec.PromptCache()
    specdec.generate(model, prompt, max_tokens=8)
    other = [*prompt[:-10], 3, 4, 5]
    found = specdec.generate(model, other, max_tokens=8)
    assert cached_tokens(found) == PREFILL_CHUNK
    model.prompt_cache = None
    assert found.tokens == specdec.generate(model, other, max_tokens=8).tokens


def test_a_generation_that_is_under_way_keeps_its_cache(cached):
    options = {"max_tokens": 12, "draft_effort": 0.3}
    expected = specdec.generate(cached, PROMPT, **options).tokens
    with specdec.stream(cached, PROMPT, **options) as first:
        next(first)
        second = specdec.generate(cached, PROMPT, **options)
        assert cached_tokens(second) == 0
        for _ in first:
            pass
    assert first.result().tokens == second.tokens == expected


def test_what_had_not_read_its_prompt_keeps_nothing(cached):
    specdec.stream(cached, PROMPT, max_tokens=12).close()
    assert cached_tokens(specdec.generate(cached, PROMPT, max_tokens=12)) == 0
