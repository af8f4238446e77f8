"""Draft views of the native runtime: against the reference runtime, by instruction set, stored and built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_source, tiny_config

from specdec.errors import RuntimeUnavailableError
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.native.runtime import NativeRuntime, native_module
from specdec.runtimes.reference.runtime import ReferenceRuntime
from specdec.store import Store, convert

try:
    ISAS = list(native_module().supported_isas())
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

FULL = EffortSchedule(1.0)
PROMPT = [3, 41, 7, 19, 2]


@dataclass(frozen=True)
class Expected:
    """What a view is to show.

    Attributes:
        dtype: of the exact weights beside it.
        efforts: falling, the second of them where the view is at its best for its bytes.
        at_first, at_last: bounds of the cosine with the full view at the first and the last of them.
        bytes_read: bounds of the bytes that half the effort reads, of those that all of it does.
        memory: bounds of its bytes, of those of the exact weights.
    """

    dtype: str
    efforts: tuple[float, float, float]
    at_first: float
    at_last: float
    bytes_read: tuple[float, float]
    memory: tuple[float, float]


EXPECTED = {
    # Half the inputs by size hold over 90 % of the energy of Gaussian activations. 4.27 bits a weight of 16; scores.
    "int4": Expected("float16", (0.9, 0.6, 0.3), 0.97, 0.97, (0.4, 0.65), (0.26, 0.3)),
    # Four fifths of the products, the largest, leave out about 1 % of the energy of Gaussian ones. 11 bits a weight of
    # 16 (8 of the level, and 64 for the mask of every 16 but the last), steps and scores.
    "bucket8": Expected("bfloat16", (0.8, 0.5, 0.2), 0.98, 0.98, (0.4, 0.65), (0.68, 0.75)),
}


@dataclass(frozen=True)
class Drafts:
    """A view, and one model of odd sizes with it and without it."""

    view: str
    stored: Store
    plain: Store

    @property
    def expected(self) -> Expected:
        return EXPECTED[self.view]

    def logits(self, runtime: NativeRuntime | ReferenceRuntime, effort: EffortSchedule = FULL) -> np.ndarray:
        """Logits of the last prompt token by a draft step over the exact history."""
        cache = runtime.new_cache(16)
        forward_one(runtime, PROMPT[:-1], cache, effort=FULL)
        return forward_one(runtime, PROMPT[-1:], cache, effort=effort, view=self.view).logits[0]


@pytest.fixture(scope="module", params=list(EXPECTED))
def drafts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Drafts:
    folder: Path = tmp_path_factory.mktemp("stores")
    sizes = {"hidden_size": 72, "intermediate_size": 230, "num_heads": 6, "head_dim": 12}
    source = synthetic_source(
        tiny_config(architecture="qwen2", qkv_bias=True, **sizes), dtype=EXPECTED[request.param].dtype
    )
    stored = convert(source, folder / "stored", views=(request.param,))
    return Drafts(request.param, Store.open(stored), Store.open(convert(source, folder / "plain")))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("isa", ISAS)
def test_full_effort_matches_the_reference_view(drafts: Drafts, isa: str) -> None:
    expected = drafts.logits(ReferenceRuntime(drafts.stored))
    found = drafts.logits(NativeRuntime(drafts.stored, isa=isa))
    # Native rounds activations to 8 bits, a relative error of about 0.5 % a matrix, and the scales of int4 to 8 bits;
    # two layers of random weights add these up to under 2 %, which is a cosine of 0.9998.
    assert cosine(expected, found) > 0.999


@pytest.mark.parametrize("isa", ISAS)
def test_effort_chooses_what_matters_most(drafts: Drafts, isa: str) -> None:
    runtime = NativeRuntime(drafts.stored, isa=isa)
    exact = drafts.logits(runtime)
    by_effort = [cosine(exact, drafts.logits(runtime, EffortSchedule(effort))) for effort in drafts.expected.efforts]
    assert by_effort == sorted(by_effort, reverse=True)
    assert by_effort[0] > drafts.expected.at_first
    assert by_effort[2] < drafts.expected.at_last


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_or_repetition(drafts: Drafts, isa: str) -> None:
    rules = {"layers.*.mlp.up": 0.25, "layers.0.attn.k": 1.0}
    one, three = (NativeRuntime(drafts.stored, isa=isa, threads=threads) for threads in (1, 3))
    for schedule in (FULL, EffortSchedule(0.25), EffortSchedule(0.5), EffortSchedule(0.5, rules)):
        expected = drafts.logits(one, schedule)
        for runtime in (one, three, three):
            assert np.array_equal(expected, drafts.logits(runtime, schedule))


def test_efforts_of_joined_matrices_may_differ(drafts: Drafts) -> None:
    runtime = NativeRuntime(drafts.stored)
    full, half = drafts.logits(runtime), drafts.logits(runtime, EffortSchedule(0.5))
    joined = {f"layers.*.{name}": 1.0 for name in ("attn.k", "attn.v", "mlp.up")}
    rest = {f"layers.*.{name}": 1.0 for name in ("attn.q", "attn.o", "mlp.gate", "mlp.down")} | {"head": 1.0}
    mixed = drafts.logits(runtime, EffortSchedule(0.5, joined))
    assert not np.array_equal(mixed, full)
    assert not np.array_equal(mixed, half)
    assert np.array_equal(drafts.logits(runtime, EffortSchedule(0.5, joined | rest)), full)


def test_a_store_without_the_view_builds_the_same(drafts: Drafts) -> None:
    stored, plain = NativeRuntime(drafts.stored), NativeRuntime(drafts.plain)
    assert drafts.view in plain.views()
    if drafts.view == "bucket8":
        # Ranking and rounding are exact; only a score, a mean in float64 rounded once, could differ in its last bit,
        # which does not matter at effort 1.
        assert np.array_equal(drafts.logits(stored), drafts.logits(plain))
    # The rounding of int4 is the same arithmetic as specdec/weights/int4.py; only the order in which NumPy adds up
    # squared errors is its own, which may decide between two scales that are equally good.
    assert cosine(drafts.logits(stored), drafts.logits(plain)) > 0.9999
    assert cosine(drafts.logits(stored, EffortSchedule(0.25)), drafts.logits(plain, EffortSchedule(0.25))) > 0.999


def test_rows_that_share_a_pass_are_those_of_single_steps(drafts: Drafts) -> None:
    runtime = NativeRuntime(drafts.stored)
    effort = EffortSchedule(0.5)
    cache = runtime.new_cache(16)
    together = forward_one(runtime, PROMPT, cache, effort=effort, view=drafts.view).logits
    cache.trim(0)
    apart = [forward_one(runtime, [token], cache, effort=effort, view=drafts.view).logits[0] for token in PROMPT]
    assert np.array_equal(together, np.stack(apart))


def test_fewer_bytes_are_read_at_lower_effort(drafts: Drafts) -> None:
    runtime = NativeRuntime(drafts.stored)
    cache = runtime.new_cache(16)
    read = []
    for effort in (1.0, 0.5):
        cache.trim(0)
        read.append(forward_one(runtime, PROMPT[:1], cache, effort=EffortSchedule(effort), view=drafts.view).bytes_read)
    low, high = drafts.expected.bytes_read
    assert low < read[1] / read[0] < high


@pytest.mark.parametrize("view", EXPECTED)
def test_memory_is_reported(tmp_path: Path, view: str) -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512, num_heads=4, head_dim=64, vocab_size=1024)
    runtime = NativeRuntime(Store.open(convert(synthetic_source(config), tmp_path / "store")))
    assert view not in runtime.memory
    runtime.prepare(view)
    low, high = EXPECTED[view].memory
    assert low < runtime.memory[view] / runtime.memory["exact"] < high
