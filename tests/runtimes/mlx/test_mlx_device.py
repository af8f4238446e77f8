"""Which GPU the mlx runtime takes, what `auto` makes of it, and the one line that says why a GPU is not used."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
import types
import warnings
from typing import Any

import pytest
from places import ROOT
from synthetic import quantised_config, quantised_source, synthetic_source, tiny_config

from specdec.errors import RuntimeUnavailableError
from specdec.runtimes import choose as registry
from specdec.runtimes.mlx.device import _OLDEST, find_gpu
from specdec.store import Store, convert


def pretend(monkeypatch: Any, *, metal: bool, cuda: bool, version: str = "0.32.4", kernels: bool = True) -> None:
    """Make `import mlx.core` give an MLX with these backends."""
    core = types.ModuleType("mlx.core")
    made: Any = core
    made.__version__ = version
    made.metal = types.SimpleNamespace(is_available=lambda: metal)
    made.cuda = types.SimpleNamespace(is_available=lambda: cuda)
    names = {"metal_kernel": print, "cuda_kernel": print} if kernels else {}
    made.fast = types.SimpleNamespace(**names)
    made.device_info = lambda: {"device_name": "some GPU"}
    package: Any = types.ModuleType("mlx")
    package.core = core
    monkeypatch.setitem(sys.modules, "mlx", package)
    monkeypatch.setitem(sys.modules, "mlx.core", core)


@pytest.mark.parametrize(
    ("metal", "cuda", "chosen"), [(True, True, "metal"), (True, False, "metal"), (False, True, "cuda")]
)
def test_metal_comes_before_cuda(monkeypatch, metal, cuda, chosen):
    pretend(monkeypatch, metal=metal, cuda=cuda)
    gpu = find_gpu()
    assert (gpu.backend, gpu.name, gpu.version) == (chosen, "some GPU", "0.32.4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuda": False}, "has no GPU here"),
        ({"cuda": True, "version": "0.30.6"}, r"MLX 0\.30\.6 is too old for the mlx runtime: install mlx>=0\.31"),
        ({"cuda": True, "kernels": False}, "too old"),
    ],
)
def test_why_there_is_none(monkeypatch, options, message):
    pretend(monkeypatch, metal=False, **options)
    with pytest.raises(RuntimeUnavailableError, match=message) as caught:
        find_gpu()
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_not_used_is_told_in_one_line(monkeypatch, tmp_path):
    pretend(monkeypatch, metal=False, cuda=False)
    monkeypatch.setattr(registry, "_gpu_is_here", lambda: True)
    monkeypatch.setattr(registry, "_RUNTIMES", dict.fromkeys(registry.known_runtimes(), lambda *_: "made"))
    store = Store.open(convert(synthetic_source(), tmp_path / "store"))
    with pytest.warns(UserWarning, match="the GPU is not used, runtime '(native|reference)' is: MLX 0.32.4 has no GPU"):
        assert registry.create_runtime("auto", store) == "made"
    monkeypatch.setattr(registry, "_gpu_is_here", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.create_runtime("auto", store)


def test_auto_takes_the_gpu_for_models_that_it_runs(monkeypatch, tmp_path):
    pretend(monkeypatch, metal=True, cuda=False)
    makers = {name: (lambda *_, name=name: name) for name in registry.known_runtimes()}
    monkeypatch.setattr(registry, "_RUNTIMES", makers)
    store = Store.open(convert(synthetic_source(), tmp_path / "dense"))
    assert registry.best_runtime() == registry.create_runtime("auto", store) == "mlx"
    wide = Store.open(convert(synthetic_source(tiny_config(head_dim=264)), tmp_path / "wide"))
    with pytest.warns(UserWarning, match="does not execute heads of more than 256"):
        assert registry.create_runtime("auto", wide) in ("native", "reference")
    blocks = Store.open(convert(quantised_source(quantised_config(), "q8_0"), tmp_path / "blocks", quantised="keep"))
    assert registry.create_runtime("auto", blocks) == "mlx"


def test_the_runtime_refuses_where_there_is_no_gpu_and_its_module_does_not(monkeypatch, tmp_path):
    pretend(monkeypatch, metal=False, cuda=False)
    module = importlib.import_module("specdec.runtimes.mlx.runtime")
    with pytest.raises(RuntimeUnavailableError, match="has no GPU"):
        module.MlxRuntime(Store.open(convert(synthetic_source(), tmp_path / "store")))


def test_the_oldest_mlx_is_the_one_that_the_package_asks_for():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [one for one in metadata["project"]["dependencies"] if one.startswith("mlx")]
    assert asked == [f"mlx>={'.'.join(map(str, _OLDEST))}"]


def test_importing_a_runtime_loads_no_kernels():
    code = """
import sys
sys.modules["specdec.kernels.cpu._native"] = None
import specdec.runtimes.native.runtime, specdec.runtimes.mlx.runtime
assert "mlx.core" not in sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
