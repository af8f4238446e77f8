"""The native runtime: what it refuses, and passes that are interrupted or forked."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from specdec.errors import InvalidArgumentError, RuntimeUnavailableError, StoreError, UnknownNameError
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.native import runtime as native

NativeRuntime = native.NativeRuntime
try:
    ISAS = list(native.native_module().supported_isas())
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)
FULL = EffortSchedule(1.0)


def test_a_weight_that_is_not_finite_is_refused_by_name(store_of):
    store = store_of("qwen2")
    name = "layers.1.mlp.up"
    values = store.bucket_arrays(name)["tier2.values"].copy()
    values.flat[7] = 0x7E00

    class Damaged:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(store, attribute)

        def bucket_arrays(self, wanted: str) -> Any:
            return store.bucket_arrays(wanted) | ({"tier2.values": values} if wanted == name else {})

        def vector(self, wanted: str) -> Any:
            vector = store.vector(wanted).copy()
            return np.full_like(vector, np.nan) if wanted == self.nan_vector else vector

        nan_vector = ""

    damaged = Damaged()
    with pytest.raises(StoreError, match=f"'{name}' holds an infinite weight or a NaN"):
        NativeRuntime(damaged)
    damaged.nan_vector = "layers.0.mlp_norm"
    with pytest.raises(StoreError, match=r"'layers.0.mlp_norm' holds an infinite number or a NaN"):
        NativeRuntime(damaged)


def test_malformed_buffers_do_not_reach_the_kernels(store_of):
    store = store_of("llama")
    runtime = NativeRuntime(store)
    model, matrix = runtime._model, store.exact("head")
    number = len(store.config.matrices()) - 1
    masks, values = list(matrix.masks), list(matrix.values)
    for arguments in (
        (number, values[:-1], masks, 0, 1),
        (number, values, masks[:-1], 0, 1),
        (number, [values[0][:1], *values[1:]], masks, 0, 1),
        (number, values, [masks[0][1:], *masks[1:]], 0, 1),
        (number + 1, values, masks, 0, 1),
        (number, values, masks, 0, matrix.shape[1] + 1),
        (number, values, masks, -1, 1),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            model.load_values(*arguments)
    with pytest.raises(ValueError, match="scores"):
        model.load_masks(number, values, masks, matrix.scores[1:])
    with pytest.raises(ValueError, match="all but the last"):
        model.load_masks(number, values[:-1], masks, matrix.scores)
    with pytest.raises(ValueError, match="tiers must be known"):
        model.set_tiers(number, 1)
    with pytest.raises(TypeError):
        model.load_values(number, [array.astype(np.uint32) for array in values], masks, 0, 1)
    with pytest.raises(TypeError):
        model.load_values(number, [array[:, ::2] for array in values], masks, 0, 1)
    kv, efforts = runtime.new_cache(4).handle, np.ones(number + 1)
    ids = np.array([1, 2], np.int32)

    def good(**other: Any) -> dict[str, Any]:
        usual = {"caches": [kv], "tokens": ids, "counts": [2], "efforts": [efforts], "parents": [], "layers": [0]}
        usual |= {"shown": [2], "draft": None, "logits": np.empty((2, 47), np.float32), "states": [], "heads": []}
        return usual | other

    for wrong in (
        {"efforts": [efforts[1:]]},
        {"efforts": [efforts * 2]},
        {"efforts": []},
        {"logits": np.empty((1, 47), np.float32)},
        {"logits": np.empty((2, 48), np.float32)},
        {"tokens": np.array([1, 47], np.int32)},
        {"counts": [1]},
        {"counts": [3]},
        {"counts": [0]},
        {"counts": [2, 2]},
        {"parents": [[-1]]},
        {"parents": [[-1, 1]]},
        {"parents": [[-2, 0]]},
        {"layers": [9]},
        {"shown": [3]},
        {"states": [np.empty((2, 2, 7), np.float32)]},
        {"caches": [kv, kv]},
        {"caches": []},
        {"tokens": np.ones(5, np.int32), "counts": [5], "logits": np.empty((5, 47), np.float32)},
        {"tokens": np.ones(0, np.int32), "counts": [0], "logits": np.empty((0, 47), np.float32)},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            model.forward(**good(**wrong))
    with pytest.raises((ValueError, TypeError)):
        model.forward(**good(caches=[None]))
    for base, rows in ((1, []), (-1, []), (0, [0])):
        with pytest.raises(ValueError, match=r"\w"):
            kv.keep(base, rows)
    with pytest.raises(ValueError, match="fork"):
        kv.fork(1, 4)
    assert kv.length == 0


def test_refusals_have_one_sentence(store_of):
    store = store_of("llama")
    runtime, other = NativeRuntime(store), NativeRuntime(store_of("qwen3"))
    kv = runtime.new_cache(4)
    with pytest.raises(InvalidArgumentError, match="token id 47 is outside the vocabulary of 47"):
        forward_one(runtime, [1, 47], kv, effort=FULL)
    with pytest.raises(InvalidArgumentError, match="at least one token"):
        forward_one(runtime, [], kv, effort=FULL)
    with pytest.raises(InvalidArgumentError, match="holds 0 of at most 4 tokens: no room for 5"):
        forward_one(runtime, [1] * 5, kv, effort=FULL)
    with pytest.raises(UnknownNameError, match="unknown view 'int1'"):
        forward_one(runtime, [1], kv, effort=FULL, view="int1")
    with pytest.raises(InvalidArgumentError, match="cannot be trimmed to 1"):
        kv.trim(1)
    with pytest.raises(InvalidArgumentError, match="must come from new_cache"):
        forward_one(runtime, [1], object(), effort=FULL)
    with pytest.raises(ValueError, match="another shape"):
        forward_one(runtime, [1], other.new_cache(4), effort=FULL)
    for capacity in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="capacity"):
            runtime.new_cache(capacity)
    for threads in (0, 5000):
        with pytest.raises(InvalidArgumentError, match="threads must be 1 to 1024"):
            NativeRuntime(store, threads=threads)
    with pytest.raises(InvalidArgumentError, match=f"isa is 'sparc'.*choose from {', '.join(ISAS)}"):
        NativeRuntime(store, isa="sparc")


def test_an_environment_variable_forces_the_instruction_set(store_of, monkeypatch):
    monkeypatch.setenv("SPECDEC_CPU", "scalar")
    assert NativeRuntime(store_of("llama")).isa == "scalar"
    monkeypatch.setenv("SPECDEC_CPU", "pentium")
    with pytest.raises(InvalidArgumentError, match="SPECDEC_CPU is 'pentium', which this machine cannot run"):
        NativeRuntime(store_of("llama"))
    monkeypatch.delenv("SPECDEC_CPU")
    assert NativeRuntime(store_of("llama")).isa == ISAS[0]


def test_an_interrupted_pass_leaves_the_cache_as_it_was(store_of, monkeypatch):
    runtime = NativeRuntime(store_of("llama"))
    ids, calls = [1] * 1200, 0
    kv = runtime.new_cache(2000)
    forward_one(runtime, ids[:10], kv, effort=FULL)
    inner = runtime._model

    class Interrupted:
        def forward(self, *arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return inner.forward(*arguments)

    monkeypatch.setattr(runtime, "_model", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        forward_one(runtime, ids, kv, effort=FULL)
    assert kv.length == 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_told_to_load_again(store_of):
    code = """
import os, sys
import numpy as np
from specdec.errors import RuntimeUnavailableError
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.native.runtime import NativeRuntime
from specdec.store import Store
runtime = NativeRuntime(Store.open(sys.argv[1]), threads=2)
kv = runtime.new_cache(4)
forward_one(runtime, [1], kv, effort=EffortSchedule(1.0))
child = os.fork()
if child == 0:
    try:
        forward_one(runtime, [1], kv, effort=EffortSchedule(1.0))
    except RuntimeUnavailableError as error:
        os._exit(7 if "forked" in str(error) else 8)
    os._exit(9)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code, str(store_of("llama").path)], timeout=60, check=False)
    assert done.returncode == 7
