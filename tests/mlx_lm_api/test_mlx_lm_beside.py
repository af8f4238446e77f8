"""The interface of `specdec.mlx_lm` beside the real mlx-lm: signatures, fields, and the same greedy tokens."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_checkpoint import write_checkpoint

from specdec import mlx_lm as ours

theirs = pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install 'specdec-mlx[test-mlx-lm]'")

PROMPTS = ("Tell me a story.", "Zwölf Boxkämpfer", "0123456789" * 6)
CLEAR = 0.1  # difference of the two likeliest log-probabilities above which float16 and float32 agree

SAME = {
    "": ("load", "generate", "stream_generate", "batch_generate", "convert"),
    "generate": ("generate", "stream_generate", "batch_generate", "generate_step"),
    "utils": ("load", "load_tokenizer"),
    "models.cache": (
        "make_prompt_cache", "save_prompt_cache", "load_prompt_cache", "trim_prompt_cache", "can_trim_prompt_cache",
    ),
    "sample_utils": (
        "make_sampler", "make_logits_processors", "greedy_sampler", "apply_top_k", "apply_min_p", "apply_top_p",
        "apply_xtc", "categorical_sampling", "make_repetition_penalty", "make_presence_penalty",
        "make_frequency_penalty",
    ),
}  # fmt: skip


def module(package: str, name: str) -> Any:
    return importlib.import_module(f"{package}.{name}" if name else package)


@pytest.mark.parametrize(("place", "name"), [(place, name) for place, names in SAME.items() for name in names])
def test_signatures(place: str, name: str) -> None:
    mine = inspect.signature(getattr(module("specdec.mlx_lm", place), name))
    its = inspect.signature(inspect.unwrap(getattr(module("mlx_lm", place), name)))
    assert [(one.name, one.kind) for one in mine.parameters.values()] == [
        (one.name, one.kind) for one in its.parameters.values()
    ]
    for one in its.parameters.values():
        if one.name != "stream":  # an object of each package's own
            assert mine.parameters[one.name].default == one.default, one.name


@pytest.mark.parametrize("name", ["GenerationResponse", "BatchResponse"])
def test_fields(name: str) -> None:
    mine, its = (getattr(module(package, "generate"), name) for package in ("specdec.mlx_lm", "mlx_lm"))
    assert [(one.name, one.default) for one in dataclasses.fields(mine)] == [
        (one.name, one.default) for one in dataclasses.fields(its)
    ]


def test_fields_of_statistics() -> None:
    mine, its = (module(package, "generate_utils").BatchStats for package in ("specdec.mlx_lm", "mlx_lm"))
    assert {one.name for one in dataclasses.fields(mine)} == {one.name for one in dataclasses.fields(its)}
    shown = {name for name, value in vars(its).items() if isinstance(value, property)}
    assert {name for base in its.__mro__ for name, value in vars(base).items() if isinstance(value, property)} <= {
        name for name, value in vars(mine).items() if isinstance(value, property)
    } | shown


@pytest.fixture(scope="module", params=[None, 4], ids=["float16", "4-bit"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Model and tokenizer of both packages."""
    folder = str(write_checkpoint(tmp_path_factory.mktemp("mlx") / "tiny", bits=request.param))
    return ours.load(folder), theirs.load(folder)


def clear_prefix(responses: list[Any]) -> int:
    """How many tokens come before the first one that is hardly likelier than the next."""
    for number, one in enumerate(responses):
        top = np.sort(np.array(one.logprobs.astype(mx.float32)))[-2:]
        if top[1] - top[0] < CLEAR:
            return number
    return len(responses)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_responses(both: tuple[Any, Any], prompt: str) -> None:
    mine, its = both
    messages = [{"role": "user", "content": prompt}]
    ids = mine[1].apply_chat_template(messages, add_generation_prompt=True)
    assert ids == its[1].apply_chat_template(messages, add_generation_prompt=True)
    text = mine[1].apply_chat_template(messages, tokenize=False)
    assert text == its[1].apply_chat_template(messages, tokenize=False)
    assert mine[1].encode(prompt) == its[1].encode(prompt)
    assert mine[1].decode(ids) == its[1].decode(ids)
    assert mine[1].eos_token_ids == its[1].eos_token_ids
    got, wanted = (
        list(package.stream_generate(*one, ids, max_tokens=24)) for package, one in ((ours, mine), (theirs, its))
    )
    count = clear_prefix(wanted)
    assert count >= 2  # and far more for most prompts
    for one, other in zip(got[:count], wanted[:count], strict=True):
        assert (one.token, one.prompt_tokens, one.generation_tokens) == (
            other.token, other.prompt_tokens, other.generation_tokens,
        )  # fmt: skip
        assert one.logprobs.shape == other.logprobs.shape
        # float16 has a resolution of 1/32 where these are, and the head multiplies what was rounded before by 6.
        assert np.allclose(np.array(one.logprobs), np.array(other.logprobs.astype(mx.float32)), atol=1.0)
    if count == len(wanted):
        assert len(got) == len(wanted)
        assert "".join(one.text for one in got) == "".join(one.text for one in wanted)
        assert [one.finish_reason for one in got] == [one.finish_reason for one in wanted]
        assert ours.generate(*mine, ids, max_tokens=24) == theirs.generate(*its, ids, max_tokens=24)


def test_the_same_draws_under_a_seed(both: tuple[Any, Any]) -> None:
    from mlx_lm.sample_utils import make_logits_processors, make_sampler

    mine, its = both
    for sampler in (ours_sampler(temp=0.5, top_p=0.9), make_sampler(temp=0.5, top_p=0.9)):
        drawn = []
        for package, one in ((ours, mine), (theirs, its)):
            mx.random.seed(11)
            processors = make_logits_processors({7: 1.0}, 1.2)
            options = {"max_tokens": 6, "sampler": sampler, "logits_processors": processors}
            drawn.append([r.token for r in package.stream_generate(*one, "abc", **options)])
        assert drawn[0] == drawn[1]


def ours_sampler(**options: float) -> Any:
    from specdec.mlx_lm.sample_utils import make_sampler

    return make_sampler(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"temp": 0.0}, {"temp": 1.0}, {"temp": 0.7, "top_k": 5}, {"temp": 1.0, "top_p": 0.5},
        {"temp": 1.5, "min_p": 0.1, "min_tokens_to_keep": 3},
        {"temp": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"temp": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.01, "xtc_special_tokens": [3, 4], "top_k": 9},
    ],
)  # fmt: skip
def test_samplers_draw_the_same(options: dict[str, Any]) -> None:
    from mlx_lm.sample_utils import make_sampler

    values = mx.array(np.random.default_rng(3).standard_normal((1, 61)).astype(np.float32) * 2)
    logprobs = values - mx.logsumexp(values, axis=-1, keepdims=True)
    drawn = []
    for make in (ours_sampler, make_sampler):
        mx.random.seed(5)
        sampler = make(**options)
        drawn.append([sampler(logprobs).item() for _ in range(40)])
    assert drawn[0] == drawn[1]


def test_processors_give_the_same() -> None:
    from mlx_lm.sample_utils import make_logits_processors as its

    from specdec.mlx_lm.sample_utils import make_logits_processors as mine

    options: dict[str, Any] = {
        "logit_bias": {3: 2.5, 9: -1.0}, "repetition_penalty": 1.3, "repetition_context_size": 4,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "frequency_context_size": 3,
    }  # fmt: skip
    tokens = mx.array([1, 3, 3, 9, 9, 9, 2])
    values = np.random.default_rng(4).standard_normal((1, 12)).astype(np.float32)
    found = []
    for make in (mine, its):
        logits = mx.array(values)
        for processor in make(**options):
            logits = processor(tokens, logits)
        found.append(np.array(logits))
    assert np.array_equal(*found)


def test_batches_give_the_same(both: tuple[Any, Any]) -> None:
    mine, its = both
    prompts = [mine[1].encode(prompt) for prompt in PROMPTS]
    wanted_too = ("return_token_ids", "return_logprobs", "return_prompt_caches")
    options = {"max_tokens": [3, 4, 2]} | dict.fromkeys(wanted_too, True)
    got, wanted = ours.batch_generate(*mine, prompts, **options), theirs.batch_generate(*its, prompts, **options)
    assert got.stats.prompt_tokens == sum(map(len, prompts))  # mlx-lm leaves out the last one of each
    assert got.stats.generation_tokens == wanted.stats.generation_tokens
    assert [len(ids) for ids in got.token_ids or ()] == [len(ids) for ids in wanted.token_ids]
    for ids, logprobs, other, expected in zip(
        got.token_ids or (), got.logprobs or (), wanted.token_ids, wanted.logprobs, strict=True
    ):
        if ids == other:
            assert np.allclose(logprobs, expected, atol=0.1)
    assert got.caches is not None
    assert [cache[0].offset for cache in got.caches] == [cache[0].offset for cache in wanted.caches]


def test_a_prompt_cache_grows_alike(both: tuple[Any, Any]) -> None:
    from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

    from specdec.mlx_lm.models import cache as own

    caches = own.make_prompt_cache(both[0][0]), make_prompt_cache(both[1][0])
    assert len(caches[0]) == len(caches[1])
    for text in ("abc", "defgh"):
        for package, one, cache in ((ours, both[0], caches[0]), (theirs, both[1], caches[1])):
            package.generate(*one, text, max_tokens=5, prompt_cache=cache)
        assert caches[0][0].offset == caches[1][0].offset
    assert own.trim_prompt_cache(caches[0], 3) == trim_prompt_cache(caches[1], 3) == 3
    assert caches[0][0].offset == caches[1][0].offset


def test_functions_become_the_same_tools(both: tuple[Any, Any]) -> None:
    def multiply(a: float, b: float, names: list[str] | None = None, kind: str = "x") -> float:
        """
        A function that multiplies
        two numbers

        Args:
            a: The first number
            b: The second number,
                on two lines
            names: Names
            kind: What

        Returns:
            The product
        """
        return a * b

    messages = [{"role": "user", "content": "hi"}]
    got, wanted = (one[1].apply_chat_template(messages, tools=[multiply], tokenize=False) for one in both)
    assert "on two lines" in got
    assert '"name": "multiply"' in got
    assert got.replace(" ", "") == wanted.replace(" ", "")
