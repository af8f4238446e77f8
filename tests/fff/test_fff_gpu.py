"""Fast feedforward kernels of GPUs, their texts run on the host: against float64, and rows alone and together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fff_weights import SHAPES, certain_rows, random_weights
from metal_host_kernels import HostKernels, compiler
from metal_runtime import host_builder
from specdec.kernels.reference import fff as reference

from specdec.errors import InvalidArgumentError, RuntimeUnavailableError
from specdec.runtimes.mlx.device import Gpu

mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

# Up to 250 products are added in float32, the largest of order 1.
CLOSE = 5e-6


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled kernels."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def gpu_trees(host: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes layers whose kernels run on the host."""
    from specdec.fff import gpu

    monkeypatch.setattr(gpu.mlx_kernels, "build", host_builder(mx, HostKernels(host)))
    return lambda weights, backend: gpu.GpuTrees(weights, gpu=Gpu(mx, backend, "host", "0"))


@pytest.mark.parametrize("backend", ["metal", "cuda"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("shape", "sizes"), SHAPES)
def test_kernels_equal_the_reference(gpu_trees: Any, backend: str, dtype: Any, shape: Any, sizes: Any) -> None:
    weights = random_weights(*sizes, **shape, dtype=dtype)
    x = certain_rows(weights, 3)
    found = np.array(gpu_trees(weights, backend)(mx.array(x)))
    assert np.abs(found - reference.forward(x, weights.arrays(), weights.activation)).max() < CLOSE


@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_rows_do_not_depend_on_each_other_or_on_the_step(gpu_trees: Any, backend: str) -> None:
    weights = random_weights(*SHAPES[4][1], **SHAPES[4][0])
    x = certain_rows(weights, 5)
    layer = gpu_trees(weights, backend)
    together = np.array(layer(mx.array(x)))
    for row in (0, 4):
        assert np.array_equal(np.array(layer(mx.array(x[row : row + 1])))[0], together[row])
    assert np.array_equal(np.array(layer(mx.array(x), step=1)), together)
    assert np.array_equal(np.array(layer(mx.array(x), step=3)), together)


def test_layers_of_other_types_have_kernels_of_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX keeps machine code by name."""
    from specdec.fff import gpu

    names: list[str] = []
    monkeypatch.setattr(gpu.mlx_kernels, "build", lambda _mx, _backend, text: names.append(text.name))
    for dtype in (np.float32, np.float16):
        layer = gpu.GpuTrees(random_weights(7, 5, depth=1, leaf_width=3, dtype=dtype), gpu=Gpu(mx, "cuda", "host", "0"))
        for name in ("fff_choose", "fff_combine"):
            layer._kernel(name, 33)
    assert len(set(names)) == 4


def test_wrong_rows_are_refused(gpu_trees: Any) -> None:
    layer = gpu_trees(random_weights(7, 5, depth=0, leaf_width=3), "metal")
    with pytest.raises(InvalidArgumentError, match=r"x must have the shape \(M, 7\)"):
        layer(mx.zeros((2, 6)))


@pytest.mark.parametrize(("shape", "sizes"), SHAPES)
def test_on_the_gpu_of_this_machine(shape: Any, sizes: Any) -> None:
    from specdec.fff import GpuTrees

    try:
        layer = GpuTrees(random_weights(*sizes, **shape))
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    x = certain_rows(layer.weights, 300)
    together = np.array(layer(mx.array(x)))
    assert np.abs(together - reference.forward(x, layer.weights.arrays(), layer.weights.activation)).max() < CLOSE
    assert np.array_equal(np.array(layer(mx.array(x[:1]))), together[:1])
