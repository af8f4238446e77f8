"""The reference runtime against transformers: tiny random checkpoints, and real models teacher-forced."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from models import check_blocks_are_kept, real_model_path
from places import DATA
from specdec.kernels.reference import transformer
from specdec.kernels.reference.layers import rotary_frequencies

from specdec.formats import Source, open_source
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import Runtime, forward_one
from specdec.store import Store, convert
from specdec.weights.dtypes import to_float32

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)

from specdec.kernels.reference import mlx_transformer

from specdec.runtimes.reference.runtime import ReferenceRuntime

TINY = sorted(path.name for path in DATA.glob("tiny-*"))
FULL = EffortSchedule(1.0)

MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """A store converted from a model file or folder, once; `quantised` as `convert` has it."""

    @cache
    def build(path: Path, quantised: str | None = None) -> Store:
        target = tmp_path_factory.mktemp("stores") / "store"
        source = open_source(path)
        convert(source, target, quantised=quantised)
        source.close()
        return Store.open(target, verify=False)

    return build


@cache
def expected(name: str) -> dict[str, Any]:
    return json.loads((DATA / name / "expected.json").read_text())


def float16_frequencies(config: Any, layer: int) -> np.ndarray:
    return rotary_frequencies(config, layer).astype(np.float16).astype(np.float64)


def largest_difference(name: str, logits_of: Callable[[list[int]], np.ndarray]) -> float:
    pairs = zip(expected(name)["input_ids"], expected(name)["logits"], strict=True)
    return max(float(np.abs(logits_of(ids) - np.array(logits)).max()) for ids, logits in pairs)


def test_all_six_checkpoints_are_here() -> None:
    assert len(TINY) == 6


@pytest.mark.parametrize("name", TINY)
def test_tiny_logits_are_within_float16_rounding(store_of: Callable[..., Store], name: str) -> None:
    runtime = ReferenceRuntime(store_of(DATA / name))
    # The models behind expected.json were cast to float16 and back, rotary frequencies included: each is off by up to
    # 2^-11, so angles by up to 39 * 2^-11 = 0.02 at the last position. That is the whole difference, as the next test
    # shows; it grows with position from 5e-6 to at most 5.2e-3 (in tiny-llama), on logits of up to 4.8.
    assert (
        largest_difference(name, lambda ids: forward_one(runtime, ids, runtime.new_cache(40), effort=FULL).logits)
        < 0.008
    )


@pytest.mark.parametrize("name", TINY)
def test_tiny_logits_are_equal_once_frequencies_are_rounded_alike(
    store_of: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(mlx_transformer, "rotary_frequencies", float16_frequencies)
    runtime = ReferenceRuntime(store_of(DATA / name))
    # expected.json has five decimals (5e-6 off) and comes from float32, as does the runtime: each is off by a few
    # float32 roundings of logits up to 4.8 (5e-6). Largest difference measured: 1.1e-5.
    assert (
        largest_difference(name, lambda ids: forward_one(runtime, ids, runtime.new_cache(40), effort=FULL).logits)
        < 3e-5
    )


@pytest.mark.parametrize("name", TINY)
def test_tiny_logits_of_the_float64_model(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(transformer, "rotary_frequencies", float16_frequencies)
    source = open_source(DATA / name)
    model = transformer.DenseTransformer(
        source.config, lambda matrix: to_float32(source.matrix(matrix), source.dtype), source.vector
    )
    # As above with one float32 computation less. Largest difference measured: 8.9e-6.
    assert largest_difference(name, model.logits) < 2e-5


@pytest.mark.parametrize("name", TINY)
def test_tiny_greedy_continuations_are_equal(store_of: Callable[..., Store], name: str) -> None:
    runtime, golden = ReferenceRuntime(store_of(DATA / name)), expected(name)
    for ids, wanted in zip(golden["input_ids"], golden["greedy_ids"], strict=True):
        cache_ = runtime.new_cache(64)
        logits, found = (
            forward_one(runtime, ids[: golden["greedy_prompt_len"]], cache_, effort=FULL, logits="last").logits,
            [],
        )
        for _ in wanted:
            found.append(int(logits[-1].argmax()))
            logits = forward_one(runtime, found[-1:], cache_, effort=FULL).logits
        assert found == wanted


# The golden run multiplied float32 dequantised blocks. A 16-bit store keeps their float16 rounding (2^-12 relative):
# log-probabilities move by up to 0.020 (SmolLM2) and 0.007 (Qwen), measured over all rows. A store of the same blocks
# has the same weights, and only float32 sums in another order: 8e-5 measured.
ROUNDED, SAME_WEIGHTS = 0.05, 3e-4


def check_real_row(runtime: Runtime, row: dict[str, Any], *, within: float = ROUNDED) -> None:
    """Feed prompt and golden continuation, and compare every continuation step."""
    prompt, greedy = row["prompt_ids"], row["greedy_ids"]
    ids = (prompt + greedy)[:-1]
    logits = (
        forward_one(runtime, ids, runtime.new_cache(len(ids)), effort=FULL).logits[len(prompt) - 1 :].astype(np.float64)
    )
    top = logits.max(axis=1, keepdims=True)
    log_probabilities = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    assert len(log_probabilities) == len(row["top5"]) == len(greedy)
    for step, best in zip(log_probabilities, row["top5"], strict=True):
        (first, first_logprob), (_, second_logprob) = best[:2]
        assert abs(step[first] - first_logprob) < within
        if first_logprob - second_logprob > within:
            assert step.argmax() == first


def golden_rows(name: str) -> list[dict[str, Any]]:
    return json.loads((DATA / f"golden_logits-{name}.json").read_text())["rows"]


@pytest.fixture(scope="module")
def smollm2(store_of: Callable[..., Store]) -> ReferenceRuntime:
    return ReferenceRuntime(store_of(real_model_path("smollm2-135m")))


@pytest.mark.model
def test_smollm2_follows_golden_on_one_row(smollm2: ReferenceRuntime) -> None:
    check_real_row(smollm2, golden_rows("smollm2-135m")[4])


@pytest.mark.model
def test_smollm2_in_its_own_blocks_follows_golden_on_one_row(store_of: Callable[..., Store]) -> None:
    store = store_of(real_model_path("smollm2-135m"), "keep")
    check_blocks_are_kept(store, "smollm2-135m")
    runtime = ReferenceRuntime(store)
    check_real_row(runtime, golden_rows("smollm2-135m")[4], within=SAME_WEIGHTS)


@pytest.mark.model
@pytest.mark.parametrize(("view", "effort"), [("exact", 1.0), ("exact", 0.6), ("bucket", 0.15), ("int4", 0.5)])
def test_smollm2_rows_equal_single_rows_bit_for_bit(smollm2: ReferenceRuntime, view: str, effort: float) -> None:
    ids, schedule = golden_rows("smollm2-135m")[4]["prompt_ids"][:4], EffortSchedule(effort)
    together = forward_one(smollm2, ids, smollm2.new_cache(4), effort=schedule, view=view).logits
    cache_ = smollm2.new_cache(300)
    alone = [forward_one(smollm2, [token], cache_, effort=schedule, view=view).logits[0] for token in ids]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_model_follows_golden_on_every_row(store_of: Callable[..., Store], name: str) -> None:
    runtime = ReferenceRuntime(store_of(real_model_path(name)))
    for row in golden_rows(name):
        check_real_row(runtime, row)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_model_in_its_own_blocks_follows_golden_on_every_row(store_of: Callable[..., Store], name: str) -> None:
    store = store_of(real_model_path(name), "keep")
    check_blocks_are_kept(store, name)
    runtime = ReferenceRuntime(store)
    for row in golden_rows(name):
        check_real_row(runtime, row, within=SAME_WEIGHTS)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, "qwen2.5-coder-1.5b"])
def test_kept_blocks_of_a_real_model_are_the_gguf_packages_weights(name: str) -> None:
    path = real_model_path(name)
    source, file = open_source(path), GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    # One of each kind: tied or not, every projection of a first and a last layer; llama's q and k have rows moved.
    last = source.config.num_layers - 1
    for ours, theirs in (("v", "attn_v"), ("o", "attn_output"), ("gate", "ffn_gate"), ("down", "ffn_down")):
        for layer in (0, last):
            part = "mlp" if theirs.startswith("ffn") else "attn"
            check_blocks(source, f"layers.{layer}.{part}.{ours}", tensors[f"blk.{layer}.{theirs}.weight"])
    if not source.config.tie_embeddings:
        check_blocks(source, "embed", tensors["token_embd.weight"])
    head = "token_embd.weight" if source.config.tie_embeddings else "output.weight"
    check_blocks(source, "head", tensors[head])


def check_blocks(source: Source, name: str, tensor: Any) -> None:
    table = source.quantised(name, source.types[name])
    assert np.array_equal(table.blocks, tensor.data)
    rows = slice(0, None, max(1, len(tensor.data) // 256))
    assert np.array_equal(
        table.rows(np.arange(table.shape[0])[rows]), dequantize(tensor.data[rows], tensor.tensor_type)
    )
