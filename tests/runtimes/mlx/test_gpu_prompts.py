"""Prompts in wide passes on a real GPU: the cache and the logits have the bits of the same tokens in steps of few rows.

Skipped where MLX has no GPU, saying so, and where it has no wide passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gpu_models import Model, needed_gpu, runtimes_of

from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.runtimes.base import Rows, forward_one

needed_gpu()

FULL = EffortSchedule(1.0)
WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
# Shapes with a window, biases and norms of heads, whose sizes are not multiples of each other, and heads of 40 to 128.
MODELS: dict[str, Model] = {
    "tiny": (("float16",), {"tie_embeddings": False}),
    "window": (("float16",), {"architecture": "mistral", "sliding_window": 90, "first_sliding_layer": 1}),
    "bias": (("bfloat16",), {"architecture": "qwen2", "qkv_bias": True}),
    "heads of 40": (("float16",), {"hidden_size": 116, "intermediate_size": 300, "head_dim": 40}),
    "wide": (("float16",), WIDE | {"architecture": "qwen2", "qkv_bias": True, "num_layers": 3}),
    "wide bfloat16": (("bfloat16",), WIDE),
    "heads of 128": (("float16",), WIDE | {"architecture": "qwen3", "qk_norm": True, "head_dim": 128, "num_layers": 3}),
    "flat": (("float16",), {"hidden_size": 2048, "intermediate_size": 256, "num_heads": 2, "head_dim": 64}),
    "q4_k q8_0 q6_k": (("q4_k", "q8_0", "q6_k"), {"tie_embeddings": False}),
    "q5_0 q4_1 q5_k": (("q5_0", "q4_1", "q5_k"), {"architecture": "qwen2", "qkv_bias": True, "num_layers": 3}),
    "q4_0 q5_1": (("q4_0", "q5_1"), {"hidden_size": 576, "intermediate_size": 96, "num_heads": 9, "num_kv_heads": 3}),
    "affine": (("affine4-g64", "affine8-g32"), {"head_dim": 64, "sliding_window": 90, "architecture": "mistral"}),
}


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    return runtimes_of(
        MODELS,
        tmp_path_factory,
        needs=lambda runtime: runtime._wide._prompts is not None,
        without="this GPU reads prompts in steps",
    )


def tokens(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 47, count)]


def held(runtime: Any, kv: Any) -> list[np.ndarray]:
    """What a cache holds."""
    runtime._mx.eval(kv.arrays)
    return [np.array(array[..., : kv.length, :]) for array in kv.arrays]


def by_steps(runtime: Any, monkeypatch: pytest.MonkeyPatch, ids: list[int], kv: Any) -> np.ndarray:
    """Logits of the last token, read in steps of few rows."""
    with monkeypatch.context() as patch:
        patch.setattr(runtime._wide, "_prompts", None)
        return forward_one(runtime, ids, kv, effort=FULL, logits="last").logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cut", [(33,), (64, 1, 65), (7, 100), (257,), (250, 300), (600, 41)])
def test_a_prompt_leaves_the_bits_of_its_tokens_in_steps(runtime_of, monkeypatch, name, cut):
    runtime, ids = runtime_of(name), tokens(sum(cut))
    wide, steps = runtime.new_cache(len(ids) + 1), runtime.new_cache(len(ids) + 1)
    logits, first = np.empty(0), 0
    for count in cut:
        logits = forward_one(runtime, ids[first : first + count], wide, effort=FULL, logits="last").logits
        first += count
    wanted = by_steps(runtime, monkeypatch, ids, steps)
    for found, right in zip(held(runtime, wide), held(runtime, steps), strict=True):
        different = np.argwhere((found != right).any(axis=(-1,)))
        assert not len(different), f"first of {len(different)}: layer, key or value, head, position {different[0]}"
    assert np.array_equal(logits, wanted)


def test_the_rows_really_are_read_in_wide_passes(runtime_of, monkeypatch):
    runtime, runs = runtime_of("tiny"), []
    prompts = runtime._wide._prompts
    run = prompts.run
    monkeypatch.setattr(prompts, "run", lambda parts, angles: (runs.append(parts), run(parts, angles))[1])
    kv = runtime.new_cache(700)
    assert forward_one(runtime, tokens(600), kv, effort=FULL, logits="last").logits.shape == (1, 47)
    assert [len(part.tokens) for parts in runs for part in parts] == [512, 88]
    assert forward_one(runtime, tokens(50), kv, effort=FULL, logits="none").logits.shape == (0, 47)
    assert len(runs) == 3
    assert kv.length == 650


@pytest.mark.parametrize("name", ["window", "bias", "wide", "q4_k q8_0 q6_k"])
def test_prompts_of_several_sequences_share_passes(runtime_of, monkeypatch, name):
    runtime, lengths = runtime_of(name), (40, 3, 270, 90, 1)
    efforts = resolve_efforts(FULL, runtime.config)
    before = [tokens(count, 10 + count) for count in (5, 0, 200, 0, 33)]
    ids = [tokens(count, count) for count in lengths]
    caches, alone = ([runtime.new_cache(600) for _ in lengths] for _ in range(2))
    for kvs in (caches, alone):
        for kv, prefix in zip(kvs, before, strict=True):
            if prefix:
                by_steps(runtime, monkeypatch, prefix, kv)
    made = runtime.forward([Rows(kv, part, efforts, logits="last") for kv, part in zip(caches, ids, strict=True)])
    for kv, other, part, found in zip(caches, alone, ids, made, strict=True):
        wanted = by_steps(runtime, monkeypatch, part, other)
        assert all(np.array_equal(a, b) for a, b in zip(held(runtime, kv), held(runtime, other), strict=True))
        assert np.array_equal(found.logits, wanted)


def test_a_prefix_may_be_reused_at_any_length(runtime_of):
    runtime, ids = runtime_of("wide"), tokens(400)
    kv = runtime.new_cache(500)
    wanted = forward_one(runtime, ids, kv, effort=FULL, logits="last").logits
    for length in (1, 63, 64, 255, 257, 399):
        kv.trim(length)
        assert np.array_equal(forward_one(runtime, ids[length:], kv, effort=FULL, logits="last").logits, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_all_rows_are_those_of_steps(runtime_of, monkeypatch, name):
    runtime, ids = runtime_of(name), tokens(150)
    with monkeypatch.context() as patch:
        patch.setattr(runtime._wide, "_prompts", None)
        wanted = forward_one(runtime, ids, runtime.new_cache(200), effort=FULL).logits
    assert np.array_equal(forward_one(runtime, ids, runtime.new_cache(200), effort=FULL).logits, wanted)
