"""The int4 draft view of the native runtime: against the reference runtime, by instruction set, stored and built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_source, tiny_config

from specdec.effort import EffortSchedule
from specdec.errors import RuntimeUnavailableError
from specdec.runtimes.native import NativeRuntime, native_module
from specdec.runtimes.reference import ReferenceRuntime
from specdec.store import Store, convert

try:
    ISAS = list(native_module().supported_isas())
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

FULL = EffortSchedule(1.0)
PROMPT = [3, 41, 7, 19, 2]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """One model with odd sizes, twice: with the view stored, and without."""
    folder = tmp_path_factory.mktemp("stores")
    config = tiny_config(
        hidden_size=72, intermediate_size=230, num_heads=6, head_dim=12, qkv_bias=True, architecture="qwen2"
    )
    stored = convert(synthetic_source(config), folder / "stored", views=("int4",))
    plain = convert(synthetic_source(config), folder / "plain")
    return {"stored": Store.open(stored), "plain": Store.open(plain)}


def draft_logits(runtime: NativeRuntime | ReferenceRuntime, effort: EffortSchedule) -> np.ndarray:
    """Logits of the last prompt token by an int4 step over the exact history."""
    cache = runtime.new_cache(16)
    runtime.forward(PROMPT[:-1], cache, effort=FULL)
    return runtime.forward(PROMPT[-1:], cache, effort=effort, view="int4").logits[0]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("isa", ISAS)
def test_full_effort_matches_the_reference_view(stores: dict[str, Store], isa: str) -> None:
    expected = draft_logits(ReferenceRuntime(stores["stored"]), FULL)
    found = draft_logits(NativeRuntime(stores["stored"], isa=isa), FULL)
    # Native rounds activations to 8 bits, a relative error of about 0.4 % a matrix, and scales to 8 bits; two layers of
    # random weights add these up to under 2 %, which is a cosine of 0.9998.
    assert cosine(expected, found) > 0.999


@pytest.mark.parametrize("isa", ISAS)
def test_effort_chooses_inputs(stores: dict[str, Store], isa: str) -> None:
    runtime = NativeRuntime(stores["stored"], isa=isa)
    exact = draft_logits(runtime, FULL)
    by_effort = [cosine(exact, draft_logits(runtime, EffortSchedule(effort))) for effort in (0.9, 0.6, 0.3)]
    assert by_effort == sorted(by_effort, reverse=True)
    # Random weights and Gaussian activations: half the inputs by size hold over 90 % of the energy.
    assert by_effort[0] > 0.97
    assert by_effort[2] < 0.97


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_or_repetition(stores: dict[str, Store], isa: str) -> None:
    schedules = [FULL, EffortSchedule(0.5), EffortSchedule(0.5, {"layers.*.mlp.up": 0.25, "layers.0.attn.k": 1.0})]
    one, three = (NativeRuntime(stores["stored"], isa=isa, threads=threads) for threads in (1, 3))
    for schedule in schedules:
        expected = draft_logits(one, schedule)
        for runtime in (one, three, three):
            assert np.array_equal(expected, draft_logits(runtime, schedule))


def test_efforts_of_joined_matrices_may_differ(stores: dict[str, Store]) -> None:
    runtime = NativeRuntime(stores["stored"])
    full, half = draft_logits(runtime, FULL), draft_logits(runtime, EffortSchedule(0.5))
    rules = {f"layers.*.{name}": 1.0 for name in ("attn.k", "attn.v", "mlp.up")}
    mixed = draft_logits(runtime, EffortSchedule(0.5, rules))
    assert cosine(full, half) < cosine(full, mixed) < 0.9999


def test_view_is_built_where_the_store_lacks_it(stores: dict[str, Store]) -> None:
    stored, plain = NativeRuntime(stores["stored"]), NativeRuntime(stores["plain"])
    assert "int4" in plain.views
    # The rounding is the same arithmetic as specdec/views/int4.py; only the order in which NumPy adds up squared errors
    # is its own, which may decide between two scales that are equally good.
    assert cosine(draft_logits(stored, FULL), draft_logits(plain, FULL)) > 0.9999


def test_rows_of_a_pass_do_not_meet(stores: dict[str, Store]) -> None:
    runtime = NativeRuntime(stores["stored"])
    effort = EffortSchedule(0.5)
    cache = runtime.new_cache(16)
    together = runtime.forward(PROMPT, cache, effort=effort, view="int4").logits
    cache.trim(0)
    apart = [runtime.forward([token], cache, effort=effort, view="int4").logits[0] for token in PROMPT]
    assert np.array_equal(together, np.stack(apart))


def test_fewer_bytes_are_read_at_lower_effort(stores: dict[str, Store]) -> None:
    runtime = NativeRuntime(stores["stored"])
    cache = runtime.new_cache(16)
    read = []
    for effort in (1.0, 0.5):
        cache.trim(0)
        read.append(runtime.forward(PROMPT[:1], cache, effort=EffortSchedule(effort), view="int4").bytes_read)
    assert 0.4 < read[1] / read[0] < 0.65


def test_memory_is_reported(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512, num_heads=4, head_dim=64, vocab_size=1024)
    runtime = NativeRuntime(Store.open(convert(synthetic_source(config), tmp_path / "store")))
    assert "int4" not in runtime.memory
    runtime.prepare_view("int4")
    # 4.27 bits a weight of 16, and scores.
    assert 0.26 < runtime.memory["int4"] / runtime.memory["exact"] < 0.3
