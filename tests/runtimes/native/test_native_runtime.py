"""The native runtime: golden logits, row invariance, agreement with float64, refusals. The kernels by
themselves are tested in C++ (`kernels/cpu/tests`, run by `test_native_kernels.py`)."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import check_blocks_are_kept
from native_models import ARCHITECTURES, TINY
from passes import logits_of
from places import DATA
from specdec.kernels.reference.selection import select_tiers
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, tiny_config

import specdec
from specdec.errors import InvalidArgumentError, RuntimeUnavailableError
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import forward_one
from specdec.runtimes.cores import usable_cores
from specdec.runtimes.native import runtime as native
from specdec.runtimes.native import shape
from specdec.store import BucketLayout, Store, convert
from specdec.weights.dtypes import to_float32

NativeRuntime = native.NativeRuntime
try:
    ISAS = list(native.native_module().supported_isas())
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

FULL = EffortSchedule(1.0)


def expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / name / "expected.json").read_text())
    return found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", TINY)
def test_tiny_logits_and_continuations_are_the_golden_ones(store_of, monkeypatch, name, isa):
    rounded = shape.rotary_frequencies
    monkeypatch.setattr(
        shape, "rotary_frequencies", lambda config, layer: rounded(config, layer).astype(np.float16).astype(float)
    )
    runtime, golden = NativeRuntime(store_of(name), threads=2, isa=isa), expected(name)
    for ids, wanted in zip(golden["input_ids"], golden["logits"], strict=True):
        # The expected values come from frequencies rounded to float16, as here. What is left is the cache, which holds
        # keys and values in float16 (half a unit: 2^-12 of each); logits of up to 4.8 moved by up to 3.3e-3.
        assert np.abs(logits_of(runtime, ids, 40) - np.array(wanted)).max() < 6e-3
    for ids, wanted in zip(golden["input_ids"], golden["greedy_ids"], strict=True):
        kv, found = runtime.new_cache(64), []
        logits = forward_one(runtime, ids[: golden["greedy_prompt_len"]], kv, effort=FULL, logits="last").logits
        for _ in wanted:
            found.append(int(logits[-1].argmax()))
            logits = forward_one(runtime, found[-1:], kv, effort=FULL).logits
        assert found == wanted


@pytest.mark.model
@pytest.mark.parametrize(
    ("quantised", "within"),
    [
        # Weights rounded from float32 to float16 move log-probabilities by up to 0.02 (see test_golden_logits.py).
        (None, 0.05),
        # The same weights: what is left is the float16 cache, and activations of 16 bits. Measured: 0.006 and 0.008.
        ("keep", 0.02),
    ],
)
@pytest.mark.parametrize("name", ["smollm2-135m", pytest.param("qwen2.5-coder-0.5b", marks=pytest.mark.slow)])
def test_real_models_follow_the_golden_tokens(store_of, name, quantised, within):
    store = store_of(name, quantised=quantised)
    if quantised:
        check_blocks_are_kept(store, name)
    runtime = NativeRuntime(store)
    for row in json.loads((DATA / f"golden_logits-{name}.json").read_text())["rows"]:
        prompt, greedy = row["prompt_ids"], row["greedy_ids"]
        ids = (prompt + greedy)[:-1]
        logits = logits_of(runtime, ids, 512)[len(prompt) - 1 :].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_probabilities = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        for step, best in zip(log_probabilities, row["top5"], strict=True):
            (first, first_logprob), (_, second_logprob) = best[:2]
            assert abs(step[first] - first_logprob) < within
            # Both may move, towards each other.
            if first_logprob - second_logprob > 2 * within:
                assert step.argmax() == first


@pytest.mark.parametrize("layout", [BucketLayout(), BucketLayout(24, (8, 16)), BucketLayout(64, (8, 8, 16, 32))])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_models_match_float64(store_of, name, layout):
    store = store_of(name, "bfloat16" if layout.bucket_size == 24 else "float16", layout)
    ids = [int(token) for token in np.random.default_rng(1).integers(0, 47, 30)]
    reference = DenseTransformer(
        store.config, lambda matrix: to_float32(dense_bits(store, matrix), store.dtype), store.vector
    )
    wanted = reference.logits(ids)
    # float32 sums of up to 100 terms are off by 1e-5, the float16 cache by 2^-12; random models amplify both a little.
    assert np.abs(logits_of(NativeRuntime(store), ids, 30) - wanted).max() < 4e-3 * max(1.0, np.abs(wanted).max())


def dense_bits(store: Store, name: str) -> np.ndarray:
    return store.table(name) if name in store.config.tables() else store.exact(name).dense_bits()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    isa=st.sampled_from(ISAS),
    effort=st.sampled_from([1.0, 0.999, 0.6, 0.3, 0.05]),
    length=st.integers(1, 40),
    piece=st.integers(1, 17),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_the_same_bits_in_any_company(store_of, name, isa, effort, length, piece, threads, seed):
    store = store_of(name, "bfloat16" if seed % 2 else "float16")
    ids = [int(token) for token in np.random.default_rng(seed).integers(0, 47, length)]
    alone = logits_of(NativeRuntime(store, threads=1, isa=isa), ids, 1, effort=effort)
    assert np.array_equal(logits_of(NativeRuntime(store, threads=threads, isa=isa), ids, piece, effort=effort), alone)


def test_long_inputs_and_late_chunks_have_the_same_bits(store_of):
    """Past the rows of one call (512) and several chunks of attention (128); one row after another from 600 on."""
    runtime = NativeRuntime(store_of("mistral"), threads=2)
    ids = [int(token) for token in np.random.default_rng(2).integers(0, 47, 700)]
    whole, kv = logits_of(runtime, ids, 700), runtime.new_cache(700)
    forward_one(runtime, ids[:600], kv, effort=FULL, logits="last")
    tail = np.concatenate([forward_one(runtime, [token], kv, effort=FULL).logits for token in ids[600:]])
    assert np.array_equal(tail, whole[600:])
    kv.trim(333)
    again = forward_one(runtime, ids[333:650], kv, effort=FULL, logits="last").logits
    assert np.array_equal(again[0], whole[649])


@pytest.mark.parametrize("effort", [0.1, 0.5, 0.9])
def test_partial_effort_multiplies_what_the_definition_selects(store_of, effort):
    """The logits layer alone below effort 1: its input is known from the full pass, so its output can be foretold."""
    store = store_of("llama")
    ids = [5, 7, 11]
    runtime, head = NativeRuntime(store), store.exact("head")
    full = logits_of(runtime, ids, 3).astype(np.float64)
    dense = to_float32(head.dense_bits(), store.dtype).astype(np.float64)
    hidden = np.linalg.lstsq(dense, full.T, rcond=None)[0].T.astype(np.float32)
    kv = runtime.new_cache(8)
    found = forward_one(runtime, ids, kv, effort=EffortSchedule(1.0, {"head": effort})).logits
    for row, logits in zip(hidden, found, strict=True):
        wanted = dense @ (row * select_tiers(row, store.input_scores("head"), (1,), effort=effort))
        # The input was solved for, to about 1e-6; another choice of even one input would show as 1e-2 or so.
        assert np.abs(logits - wanted).max() < 1e-4


def test_speculation_changes_nothing(store_of):
    model = Model(NativeRuntime(store_of("llama")), store=store_of("llama"))
    for temperature, verify_effort in ((0.0, 1.0), (1.0, 1.0), (0.8, 0.6)):
        options: dict[str, Any] = {
            "max_tokens": 40, "temperature": temperature, "seed": 3, "verify_effort": verify_effort
        }  # fmt: skip
        plain = specdec.generate(model, [3, 1, 4], speculate=False, **options)
        for length in (1, 4, 8):
            drafted = specdec.generate(
                model, [3, 1, 4], policy="fixed", draft_view="bucket", draft_effort=0.3, draft_len=length, **options
            )
            assert drafted.tokens == plain.tokens


def test_two_models_in_two_threads(store_of):
    runtimes = [NativeRuntime(store_of(name), threads=2) for name in ("llama", "qwen3")]
    ids = list(range(1, 40))
    wanted = [logits_of(runtime, ids, 5, effort=0.7) for runtime in runtimes]
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        for _ in range(5):
            found[number] = logits_of(runtimes[number % 2], ids, 3, effort=0.7)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[number], wanted[number % 2]) for number in range(4))


def test_other_threads_run_during_a_pass(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_layers": 4, "head_dim": 64, "max_context": 512}
    path = convert(SyntheticSource(tiny_config(**sizes)), tmp_path / "store")
    runtime = NativeRuntime(Store.open(path), threads=1)
    ids, done, ticks = [1] * 512, threading.Event(), 0

    def passes() -> None:
        try:
            for _ in range(10):
                forward_one(runtime, ids, runtime.new_cache(512), effort=FULL)
        finally:
            done.set()

    thread = threading.Thread(target=passes)
    thread.start()
    while not done.is_set():
        ticks += 1
        time.sleep(0.001)
    thread.join()
    # Holding the interpreter lock through ten passes of tens of milliseconds would leave a tick between two at best.
    assert ticks > 12


def test_work_done_and_memory_are_counted(store_of):
    store = store_of("llama")
    runtime = NativeRuntime(store)
    config, kv = store.config, runtime.new_cache(64)
    one = forward_one(runtime, [1], kv, effort=FULL)
    five = forward_one(runtime, [1] * 5, kv, effort=FULL)
    weights = sum(2 * inputs * -(-out // 32) * 32 for out, inputs in config.matrices().values())
    assert weights < one.bytes_read < weights * 1.2  # panels are padded to 32 outputs; beside them cache and embedding
    assert one.bytes_read < five.bytes_read < one.bytes_read * 1.2  # weights are read once for all rows
    assert set(runtime.memory) == {"exact", "masks", "heads"}
    assert runtime.memory["masks"] == 0
    runtime.prepare("bucket")
    assert 0 < runtime.memory["masks"] < 0.6 * runtime.memory["exact"]  # 0.19 for large matrices; scores count here


def test_threads_default_to_the_cores_that_may_be_used(store_of, monkeypatch, tmp_path):
    monkeypatch.setattr("specdec.runtimes.native.runtime.usable_cores", usable_cores)  # conftest may say one
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    monkeypatch.setattr("specdec.runtimes.native.threads.choose", max)  # as if more were always faster
    assert NativeRuntime(store_of("llama")).threads == usable_cores()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_the_first_layers_alone_are_those_of_a_model_that_has_no_others(store_of):
    """An early exit reads the very weights of the first layers, the final norm and the logits layer, and nothing else.

    A random tensor depends on its name alone, so a shallower random model is the first layers of a deeper one.
    """
    deep, shallow = (SyntheticSource(tiny_config(num_layers=layers)) for layers in (3, 2))
    folder = store_of("llama").path.parent
    runtimes = [
        NativeRuntime(Store.open(convert(source, folder / f"layers-{source.config.num_layers}")), threads=1)
        for source in (deep, shallow)
    ]
    ids = [3, 1, 4, 1, 5]
    for view in ("exact", "bucket", "int4", "bucket8"):
        rows = []
        for runtime, layers in zip(runtimes, (2, None), strict=True):
            kv, options = runtime.new_cache(16), {"effort": EffortSchedule(0.5), "view": view, "layers": layers}
            rows.append(np.concatenate([forward_one(runtime, some, kv, **options).logits for some in (ids, [9])]))
        assert np.array_equal(rows[0].view(np.uint32), rows[1].view(np.uint32))
    kv = runtimes[0].new_cache(4)
    for layers in (0, 4, True, 1.0):
        with pytest.raises(InvalidArgumentError, match="layers must be a whole number from 1 to 3"):
            forward_one(runtimes[0], [1], kv, effort=FULL, layers=layers)
    assert kv.length == 0


def test_layers_that_an_early_exit_left_unwritten_do_not_show_afterwards(store_of):
    runtime = NativeRuntime(store_of("llama"), threads=1)
    clean, used = runtime.new_cache(16), runtime.new_cache(16)
    for kv in (clean, used):
        forward_one(runtime, [7, 8], kv, effort=FULL)
    forward_one(runtime, [1, 2, 3], used, effort=FULL, view="int4", layers=1)
    used.trim(2)
    rows = [forward_one(runtime, [5, 6, 7], kv, effort=FULL).logits for kv in (clean, used)]
    assert np.array_equal(rows[0].view(np.uint32), rows[1].view(np.uint32))


def test_hidden_states_are_those_of_the_layers(store_of) -> None:
    """After the last layer they lead to the logits; pieces and other rows change nothing; the first layers agree with a
    pass that stops there."""
    store = store_of("llama")
    runtime = NativeRuntime(store)
    ids = [int(token) for token in np.random.default_rng(3).integers(0, 47, 90)]
    schedule = EffortSchedule(0.4)
    result = forward_one(runtime, ids, runtime.new_cache(90), effort=schedule, states=True)
    states = result.states
    assert states.shape == (2, 90, 32)
    plain = forward_one(runtime, ids, runtime.new_cache(90), effort=schedule).logits
    assert np.array_equal(result.logits, plain)
    kv = runtime.new_cache(90)
    parts = [
        forward_one(runtime, ids[first : first + 7], kv, effort=schedule, states=True).states
        for first in range(0, 90, 7)
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), states)
    full = forward_one(runtime, ids[:20], runtime.new_cache(20), effort=FULL, states=True)
    head = to_float32(store.exact("head").dense_bits(), store.dtype).astype(np.float64)
    last = full.states[-1].astype(np.float64)
    normed = last / np.sqrt((last**2).mean(axis=1, keepdims=True) + store.config.norm_eps) * store.vector("final_norm")
    assert np.allclose(normed @ head.T, full.logits, atol=1e-4)  # float32 sums of 32 products


def test_hidden_states_equal_the_reference_runtimes(store_of) -> None:
    reference = pytest.importorskip("specdec.runtimes.reference.runtime", reason="needs MLX", exc_type=ImportError)
    store = store_of("qwen2")
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    found = []
    for runtime in (NativeRuntime(store), reference.ReferenceRuntime(store)):
        found.append(forward_one(runtime, ids, runtime.new_cache(8), effort=FULL, states=True).states)
    assert found[0].shape == found[1].shape == (2, 8, 32)
    # The native cache holds keys and values in float16: eleven bits of activations near 1.
    assert np.allclose(found[0], found[1], atol=5e-3)
