"""The GPU that MLX can use, for tests that need one, and runtimes of random models on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

from specdec.errors import RuntimeUnavailableError
from specdec.runtimes.mlx import runtime as mlx_runtime
from specdec.runtimes.mlx.device import Gpu, find_gpu
from specdec.store import Store, convert

# Types of the matrices in turn (one type if they have 16 bits), and values that differ from the tiny configuration.
Model = tuple[tuple[str, ...], dict[str, Any]]
# With and without biases, a window, and an embedding table of its own.
STEP_MODELS: dict[str, Model] = {
    "float16": (
        ("float16",),
        {"architecture": "mistral", "sliding_window": 90, "first_sliding_layer": 1, "tie_embeddings": False},
    ),
    "bfloat16": (("bfloat16",), {"architecture": "qwen2", "qkv_bias": True}),
    "quantised": (("q4_k", "q8_0", "q6_k"), {"tie_embeddings": False}),
}
WAYS = ("one kernel", "one by one")
ONE_BY_ONE = "this model or GPU takes kernels one by one"


def needed_gpu() -> Gpu:
    """The GPU. Skips all tests of the calling module if MLX has none."""
    try:
        return find_gpu()
    except RuntimeUnavailableError as error:
        pytest.skip(f"needs a GPU that MLX can use: {error}", allow_module_level=True)


def random_store(folder: Path, model: Model) -> Store:
    """The store of a random model of at most 2,048 tokens."""
    types, sizes = model
    sizes = {"max_context": 2048} | sizes
    if types[0] in ("float16", "bfloat16"):
        path = convert(SyntheticSource(tiny_config(**sizes), dtype=types[0]), folder)
    else:
        path = convert(quantised_source(quantised_config(**sizes), *types), folder, quantised="keep")
    return Store.open(path, verify=False)


def runtime_in(way: str, store: Store) -> Any:
    """A runtime that runs a step in one of `WAYS`. Skips the test if the model or the GPU has no kernel for a step."""
    gpu = find_gpu()
    with pytest.MonkeyPatch.context() as patch:
        if way == "one by one":
            patch.setattr(mlx_runtime, "find_gpu", lambda: replace(gpu, driver=None))
        made = mlx_runtime.MlxRuntime(store)
    whole = made._transformer.whole
    assert way == "one kernel" or whole is None
    if way == "one kernel" and whole is None:
        pytest.skip(ONE_BY_ONE)
    return made


def runtimes_of(
    models: Mapping[str, Model],
    folders: pytest.TempPathFactory,
    *,
    needs: Callable[[Any], bool],
    without: str = ONE_BY_ONE,
) -> Callable[[str], Any]:
    """Return a function from the name of a model in `models` to its runtime, which is made once.

    Args:
        needs: what a runtime must fulfil; the test is skipped with the reason `without` if it does not.
    """

    @cache
    def build(name: str) -> Any:
        made = mlx_runtime.MlxRuntime(random_store(folders.mktemp("stores") / "store", models[name]))
        if not needs(made):
            pytest.skip(without)
        return made

    return build
