"""Every model family against transformers, from each kind of source: logits, continuations, and their identity."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import FAMILIES, FOLDER, config_of, expected, mlx_weights, write_family_gguf
from model_files import write_huggingface
from specdec.kernels.reference.transformer import DenseTransformer

import specdec
from specdec.formats import Source, open_source
from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.model.loaded import Model
from specdec.runtimes.base import Rows, Runtime, forward_one
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert
from specdec.weights.dtypes import to_float32

# expected.json has five decimals (5e-6 off) and comes from float32 logits of up to 8, which are off by a few roundings
# of 5e-7 each; largest difference of the float64 model measured: 1.5e-5, of a runtime in float32: 1.9e-5.
WITHIN = 3e-5
# The native runtime's cache holds keys and values in float16 (half a unit: 2^-12 of each); largest
# difference measured: 1.2e-2.
BOUNDS = {"reference": WITHIN, "native": 2e-2}
# A file has the same weights, but some of its numbers in float32.
GGUF = tuple(name for name in FAMILIES if not name.endswith("-images"))
MIXTURES = ("gpt-oss", "granitemoe", "granitemoeshared", "mixtral-own-heads", "olmoe", "qwen3moe")
TREE = [-1, 0, 0, 1, 2, 4]


def dense(source: Source) -> DenseTransformer:
    def matrix(name: str) -> np.ndarray:
        return to_float32(source.matrix(name), source.dtype)

    return DenseTransformer(source.config, cache(matrix), cache(source.vector))


def difference(name: str, logits_of: Callable[[list[int]], np.ndarray]) -> float:
    golden = expected(name)
    pairs = zip(golden["input_ids"], golden["logits"], strict=True)
    return max(float(np.abs(logits_of(ids) - np.array(logits)).max()) for ids, logits in pairs)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_the_float64_model(name: str) -> None:
    assert difference(name, dense(open_source(FOLDER / name)).logits) < WITHIN


@pytest.mark.parametrize("name", GGUF)
def test_logits_of_gguf_files(tmp_path: Path, name: str) -> None:
    source = open_source(write_family_gguf(tmp_path / "m.gguf", name))
    assert difference(name, dense(source).logits) < WITHIN
    original = open_source(FOLDER / name)
    assert set(source.config.matrices()) == set(original.config.matrices())
    for matrix in original.config.matrices():
        np.testing.assert_array_equal(source.matrix(matrix), original.matrix(matrix))


@pytest.mark.parametrize("name", MIXTURES)
def test_logits_of_folders_of_mlx_lm(tmp_path: Path, name: str) -> None:
    tensors = {key: ("F16", value) for key, value in mlx_weights(name).items()}
    source = open_source(write_huggingface(tmp_path / "m", config_of(name), tensors))
    assert difference(name, dense(source).logits) < WITHIN


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Runtime]:
    """A runtime by its name over a checkpoint, each made once."""

    @cache
    def store(name: str) -> Store:
        source = open_source(FOLDER / name)
        return Store.open(convert(source, tmp_path_factory.mktemp("stores") / "store", views=("int4",)))

    @cache
    def build(kind: str, name: str) -> Runtime:
        return create_runtime(kind, store(name))

    return build


@pytest.fixture(params=["reference", "native"])
def kind(request: pytest.FixtureRequest) -> str:
    """Name of a runtime, where it is installed."""
    if request.param == "reference":
        pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    else:
        pytest.importorskip("specdec.kernels.cpu._native", reason="needs the extension module", exc_type=ImportError)
    return str(request.param)


def fed(runtime: Runtime, tokens: list[int], **options: Any) -> np.ndarray:
    return forward_one(runtime, tokens, runtime.new_cache(len(tokens)), **options).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_continuations_of_runtimes(runtime_of: Callable[..., Runtime], kind: str, name: str) -> None:
    runtime, golden, full = runtime_of(kind, name), expected(name), EffortSchedule(1.0)
    assert difference(name, lambda ids: fed(runtime, ids, effort=full)) < BOUNDS[kind]
    for ids, wanted in zip(golden["input_ids"], golden["greedy_ids"], strict=True):
        prompt, cache_ = ids[: golden["greedy_prompt_len"]], runtime.new_cache(64)
        logits, found = forward_one(runtime, prompt, cache_, effort=full, logits="last").logits, []
        for _ in wanted:
            found.append(int(logits[-1].argmax()))
            logits = forward_one(runtime, found[-1:], cache_, effort=full).logits
        assert found == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_beside_others_and_in_trees_have_the_bits_that_they_have_alone(
    runtime_of: Callable[..., Runtime], kind: str, name: str
) -> None:
    runtime, effort = runtime_of(kind, name), 0.4
    ids, efforts = expected(name)["input_ids"][0], resolve_efforts(effort, runtime.config)
    first, second = ids[:24], ids[24:29]
    alone = [fed(runtime, one, effort=effort) for one in (first, second)]
    one_by_one = runtime.new_cache(24)
    rows = [forward_one(runtime, [token], one_by_one, effort=effort).logits[0] for token in first]
    assert np.array_equal(np.stack(rows), alone[0])
    # Two sequences and a tree of a third one in a pass.
    grown = runtime.new_cache(64)
    forward_one(runtime, first, grown, effort=effort, logits="none")
    nodes = ids[29:35]
    batch = [Rows(runtime.new_cache(64), one, efforts) for one in (first, second)]
    results = runtime.forward([*batch, Rows(grown, nodes, efforts, TREE)])
    for result, wanted in zip(results, alone, strict=False):
        assert np.array_equal(result.logits, wanted)
    for leaf, path in ((3, (0, 1, 3)), (5, (0, 2, 4, 5))):
        chain = fed(runtime, [*first, *(nodes[node] for node in path)], effort=effort)
        assert np.array_equal(results[2].logits[leaf], chain[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_draft_view_leaves_nothing_behind(runtime_of: Callable[..., Runtime], kind: str, name: str) -> None:
    runtime, ids = runtime_of(kind, name), expected(name)["input_ids"][1][:20]
    wanted, cache_ = fed(runtime, ids, effort=1.0), runtime.new_cache(64)
    forward_one(runtime, ids[:8], cache_, effort=1.0, logits="none")
    forward_one(runtime, [5, 6], cache_, effort=0.5, view="int4")
    cache_.trim(8)
    assert np.array_equal(forward_one(runtime, ids[8:], cache_, effort=1.0).logits, wanted[8:])


DRAFTS: tuple[dict[str, Any], ...] = (
    {"policy": "fixed", "draft_view": "int4", "draft_effort": 0.5, "draft_len": 3},
    {"policy": "fixed", "drafter": "ngram:min=1;effort", "draft_effort": 0.3, "temperature": 1.0, "seed": 3},
)


@pytest.mark.parametrize("name", FAMILIES)
def test_speculation_changes_no_token(runtime_of: Callable[..., Runtime], kind: str, name: str) -> None:
    model, prompt = Model(runtime_of(kind, name), None), expected(name)["input_ids"][0][:9]
    for options in DRAFTS if kind == "native" else DRAFTS[:1]:
        sampling = {key: value for key, value in options.items() if key in ("temperature", "seed")}
        plain = specdec.generate(model, prompt, max_tokens=8, speculate=False, **sampling)
        assert specdec.generate(model, prompt, max_tokens=8, **options).tokens == plain.tokens
