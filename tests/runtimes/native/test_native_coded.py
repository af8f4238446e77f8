"""bf16 weights in 12 bits on the native runtime: the bits of plain lines, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from passes import logits_of
from synthetic import SyntheticSource, tiny_config

from specdec.errors import MemoryShortError, RuntimeUnavailableError, StoreError
from specdec.runtimes.native import runtime as native
from specdec.store import Store, convert
from specdec.weights.dtypes import from_float32, to_float32

try:
    ISAS = list(native.native_module().supported_isas())
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 700, 30)]
# No size is a multiple of a panel's 32 outputs, or of the 4 inputs that are decoded together; several tables a panel.
CONFIG = tiny_config(
    vocab_size=701, hidden_size=310, intermediate_size=602, head_dim=78, num_heads=4, num_kv_heads=1, max_context=64
)


class Changed(SyntheticSource):
    """bfloat16 values in a store of another type, or with some weights replaced."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray], dtype: str) -> None:
        super().__init__(CONFIG, dtype="bfloat16")
        self.bits, self.dtype, self.change = SyntheticSource(CONFIG, dtype="bfloat16"), dtype, change

    def matrix(self, name: str) -> np.ndarray:
        return from_float32(self.change(to_float32(self.bits.matrix(name), "bfloat16")), self.dtype)


def eleven_bits(values: np.ndarray) -> np.ndarray:
    """One weight that float16 holds and bfloat16 does not, late in every matrix."""
    values = values.copy()
    values[-1, -1] = 1 + 2**-10
    return values


def rare(values: np.ndarray) -> np.ndarray:
    """Weights that need patches: zeros, denormals of bfloat16, large ones."""
    values = values.copy()
    values[::7, ::31] = -0.0
    values[0, 0] = values[-1, -1] = 2.0**-130
    values[-1, 0] = values[0, -1] = -(2.0**8)
    return values


def not_small(values: np.ndarray) -> np.ndarray:
    """What float16 holds in as many bits: no values that are denormal there."""
    return np.where(np.abs(values) < 2.0**-14, np.float32(0), values)


SOURCES: dict[str, Callable[[], SyntheticSource]] = {
    "bfloat16": lambda: SyntheticSource(CONFIG, dtype="bfloat16"),
    "float16": lambda: SyntheticSource(CONFIG, dtype="float16"),
    "float16 of eight bits": lambda: Changed(not_small, "float16"),
    "bfloat16 without small values": lambda: Changed(not_small, "bfloat16"),
    "float16 of eleven bits": lambda: Changed(eleven_bits, "float16"),
    "patched": lambda: Changed(rare, "bfloat16"),
}


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    @cache
    def build(name: str) -> Store:
        return Store.open(convert(SOURCES[name](), tmp_path_factory.mktemp("stores") / "store"), verify=False)

    return build


def coded(runtime: Any) -> list[bool]:
    return [runtime._model.is_coded(number) for number in range(len(runtime.config.matrices()))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["bfloat16", "patched", "float16 of eight bits"])
def test_rows_have_the_bits_of_plain_lines(store_of: Callable[[str], Store], name: str, isa: str) -> None:
    runtime = native.NativeRuntime(store_of(name), threads=2, isa=isa)
    assert all(coded(runtime))
    wanted = logits_of(runtime, TOKENS, 1)
    for rows in (2, 5, 9, 16, 30):
        assert np.array_equal(logits_of(runtime, TOKENS, rows), wanted), rows
    drafted = logits_of(runtime, TOKENS, 1, view="int4")
    held = runtime.memory["exact"]
    runtime.prepare("bucket")  # reads by tiers, and so needs plain lines
    assert not any(coded(runtime))
    assert 0.74 < held / runtime.memory["exact"] < 0.79
    for rows in (1, 6, 30):
        assert np.array_equal(logits_of(runtime, TOKENS, rows), wanted), rows
    plain = native.NativeRuntime(store_of(name), threads=1, isa=isa)
    plain.prepare("bucket")
    assert np.array_equal(logits_of(plain, TOKENS, 1, view="int4"), drafted)


def test_values_that_bfloat16_does_not_hold_stay_in_sixteen_bits(store_of: Callable[[str], Store]) -> None:
    of = {name: native.NativeRuntime(store_of(name), threads=2) for name in SOURCES}
    assert not any(coded(of["float16"]))
    assert not any(coded(of["float16 of eleven bits"]))
    assert of["float16"].memory == of["float16 of eleven bits"].memory
    assert of["bfloat16"].memory["exact"] < 0.79 * of["float16"].memory["exact"]
    # The same values in two types.
    same = of["bfloat16 without small values"], of["float16 of eight bits"]
    assert np.array_equal(logits_of(same[0], TOKENS, 4), logits_of(same[1], TOKENS, 7))


def test_matrices_of_all_magnitudes_stay_in_sixteen_bits(tmp_path: Any) -> None:
    def scattered(values: np.ndarray) -> np.ndarray:
        return values * np.exp2(np.random.default_rng(0).integers(-60, 4, values.shape)).astype(np.float32)

    store = Store.open(convert(Changed(scattered, "bfloat16"), tmp_path / "store"), verify=False)
    runtime = native.NativeRuntime(store, threads=2)
    assert not any(coded(runtime))
    assert np.array_equal(logits_of(runtime, TOKENS, 1), logits_of(runtime, TOKENS, 9))


@pytest.mark.parametrize("effort", [0.5, 0.95])
def test_effort_below_one_takes_plain_lines_where_it_leaves_enough_out(
    store_of: Callable[[str], Store], effort: float
) -> None:
    runtime = native.NativeRuntime(store_of("bfloat16"), threads=2)
    full, part = logits_of(runtime, TOKENS, 3), logits_of(runtime, TOKENS, 3, effort=effort)
    assert any(coded(runtime)) == (effort > 0.9)
    assert np.array_equal(logits_of(runtime, TOKENS, 1), full)
    assert np.array_equal(logits_of(runtime, TOKENS, 1, effort=effort), part)
    assert not np.array_equal(full, part)


def test_slices_of_a_large_matrix_are_those_of_a_whole_one(
    store_of: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec.runtimes.native import load

    whole = logits_of(native.NativeRuntime(store_of("patched"), threads=2), TOKENS, 5)
    monkeypatch.setattr(load, "_RELEASE_BYTES", 1 << 10)
    sliced = native.NativeRuntime(store_of("patched"), threads=2)
    assert all(coded(sliced))
    assert np.array_equal(logits_of(sliced, TOKENS, 5), whole)


def test_plain_lines_need_room(store_of: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = native.NativeRuntime(store_of("bfloat16"), threads=2)
    monkeypatch.setattr(native, "available_bytes", lambda: 1 << 16)
    with pytest.raises(MemoryShortError, match="an effort below 1"):
        logits_of(runtime, TOKENS, 3, effort=0.5)
    with pytest.raises(MemoryShortError, match="an effort below 1"):
        runtime.prepare("bucket")
    assert all(coded(runtime))
    logits_of(runtime, TOKENS, 3)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC1])
def test_infinite_weights_and_nan_are_refused(tmp_path: Any, bits: int) -> None:
    """A store cannot be converted with them; one that was damaged is refused when it is loaded."""
    path = convert(SyntheticSource(CONFIG, dtype="bfloat16"), tmp_path / "store")
    with (path / "exact.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(bits.to_bytes(2, "little"))
    with pytest.raises(StoreError, match="holds an infinite weight or a NaN"):
        native.NativeRuntime(Store.open(path, verify=False), threads=1)
