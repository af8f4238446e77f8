"""The reference runtime against transformers: tiny random checkpoints, and real models teacher-forced."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import real_model_path
from specdec.kernels.reference import transformer
from specdec.kernels.reference.layers import rotary_frequencies

from specdec.effort import EffortSchedule
from specdec.runtimes.base import Runtime
from specdec.sources import open_source
from specdec.store import Store, convert
from specdec.views.dtypes import to_float32

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)

from specdec.kernels.reference import mlx_transformer

from specdec.runtimes.reference import ReferenceRuntime

DATA = Path(__file__).parent / "data"
TINY = sorted(path.name for path in DATA.glob("tiny-*"))
FULL = EffortSchedule(1.0)

MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Store]:
    """A store converted from a model file or folder, once."""

    @cache
    def build(path: Path) -> Store:
        target = tmp_path_factory.mktemp("stores") / "store"
        source = open_source(path)
        convert(source, target)
        source.close()
        return Store.open(target, verify=False)

    return build


@cache
def expected(name: str) -> dict[str, Any]:
    return json.loads((DATA / name / "expected.json").read_text())


def float16_frequencies(config: Any) -> np.ndarray:
    return rotary_frequencies(config).astype(np.float16).astype(np.float64)


def largest_difference(name: str, logits_of: Callable[[list[int]], np.ndarray]) -> float:
    pairs = zip(expected(name)["input_ids"], expected(name)["logits"], strict=True)
    return max(float(np.abs(logits_of(ids) - np.array(logits)).max()) for ids, logits in pairs)


def test_all_six_checkpoints_are_here() -> None:
    assert len(TINY) == 6


@pytest.mark.parametrize("name", TINY)
def test_tiny_logits_are_within_float16_rounding(store_of: Callable[[Path], Store], name: str) -> None:
    runtime = ReferenceRuntime(store_of(DATA / name))
    # The models behind expected.json were cast to float16 and back, rotary frequencies included: each is off by up to
    # 2^-11, so angles by up to 39 * 2^-11 = 0.02 at the last position. That is the whole difference, as the next test
    # shows; it grows with position from 5e-6 to at most 5.2e-3 (in tiny-llama), on logits of up to 4.8.
    assert largest_difference(name, lambda ids: runtime.forward(ids, runtime.new_cache(40), effort=FULL).logits) < 0.008


@pytest.mark.parametrize("name", TINY)
def test_tiny_logits_are_equal_once_frequencies_are_rounded_alike(
    store_of: Callable[[Path], Store], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(mlx_transformer, "rotary_frequencies", float16_frequencies)
    runtime = ReferenceRuntime(store_of(DATA / name))
    # expected.json has five decimals (5e-6 off) and comes from float32, as does the runtime: each is off by a few
    # float32 roundings of logits up to 4.8 (5e-6). Largest difference measured: 1.1e-5.
    assert largest_difference(name, lambda ids: runtime.forward(ids, runtime.new_cache(40), effort=FULL).logits) < 3e-5


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
def test_tiny_greedy_continuations_are_equal(store_of: Callable[[Path], Store], name: str) -> None:
    runtime, golden = ReferenceRuntime(store_of(DATA / name)), expected(name)
    for ids, wanted in zip(golden["input_ids"], golden["greedy_ids"], strict=True):
        cache_ = runtime.new_cache(64)
        logits, found = (
            runtime.forward(ids[: golden["greedy_prompt_len"]], cache_, effort=FULL, last_only=True).logits,
            [],
        )
        for _ in wanted:
            found.append(int(logits[-1].argmax()))
            logits = runtime.forward(found[-1:], cache_, effort=FULL).logits
        assert found == wanted


def check_real_row(runtime: Runtime, row: dict[str, Any]) -> None:
    """Feed prompt and golden continuation, and compare every continuation step."""
    prompt, greedy = row["prompt_ids"], row["greedy_ids"]
    ids = (prompt + greedy)[:-1]
    logits = runtime.forward(ids, runtime.new_cache(len(ids)), effort=FULL).logits[len(prompt) - 1 :].astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    log_probabilities = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    assert len(log_probabilities) == len(row["top5"]) == len(greedy)
    for step, best in zip(log_probabilities, row["top5"], strict=True):
        (first, first_logprob), (_, second_logprob) = best[:2]
        # The golden run multiplied float32 dequantised blocks, a store keeps their float16 rounding (2^-12 relative):
        # log-probabilities move by up to 0.020 (SmolLM2) and 0.007 (Qwen), measured over all rows.
        assert abs(step[first] - first_logprob) < 0.05
        if first_logprob - second_logprob > 0.05:
            assert step.argmax() == first


def golden_rows(name: str) -> list[dict[str, Any]]:
    return json.loads((DATA / f"golden_logits-{name}.json").read_text())["rows"]


@pytest.fixture(scope="module")
def smollm2(store_of: Callable[[Path], Store]) -> ReferenceRuntime:
    return ReferenceRuntime(store_of(real_model_path("smollm2-135m")))


@pytest.mark.model
def test_smollm2_follows_golden_on_one_row(smollm2: ReferenceRuntime) -> None:
    check_real_row(smollm2, golden_rows("smollm2-135m")[4])


@pytest.mark.model
@pytest.mark.parametrize(("view", "effort"), [("exact", 1.0), ("exact", 0.6), ("bucket", 0.15), ("int4", 0.5)])
def test_smollm2_rows_equal_single_rows_bit_for_bit(smollm2: ReferenceRuntime, view: str, effort: float) -> None:
    ids, schedule = golden_rows("smollm2-135m")[4]["prompt_ids"][:4], EffortSchedule(effort)
    together = smollm2.forward(ids, smollm2.new_cache(4), effort=schedule, view=view).logits
    cache_ = smollm2.new_cache(300)
    alone = [smollm2.forward([token], cache_, effort=schedule, view=view).logits[0] for token in ids]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_model_follows_golden_on_every_row(store_of: Callable[[Path], Store], name: str) -> None:
    runtime = ReferenceRuntime(store_of(real_model_path(name)))
    for row in golden_rows(name):
        check_real_row(runtime, row)
