"""Steps of several rows at effort 1 as one CUDA kernel, run on the host: each block makes short rows by itself, all
blocks together make long rows, and both have the bits of rows alone."""

from __future__ import annotations

from typing import Any

import cuda_steps
import numpy as np
import pytest
from metal_host_kernels import compiler
from test_cuda_steps import Model

from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import path_to
from specdec.runtimes.mlx import step_sizes
from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.model import Kind
from specdec.runtimes.mlx.state import Piece, chain, show_choices, state_of
from specdec.runtimes.mlx.step import SHARED_KB, WholeStep
from specdec.runtimes.mlx.step_sizes import dense_rows

mx: Any = pytest.importorskip("mlx.core")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

GRID, POSITION = 7, SPAN - 3  # rows on both sides of the end of a split
TOKENS = [3, 100, 7, 150, 42, 199, 0]
SIZES = {"hidden": 100, "inner": 172, "positions": 2 * SPAN}  # no whole tiles of 16
ALONE = Kind("dense", False, 1, 0, 1)


class Passes:
    """Steps of one random model, each over a cache that it writes."""

    def __init__(self, monkeypatch: Any, folder: Any, dtype: str, **sizes: int) -> None:
        monkeypatch.setattr(cuda_steps, "GRID", GRID)
        monkeypatch.setattr(cuda_steps.Driver, "multiprocessors", GRID)
        self.model = Model(monkeypatch, folder, dtype, **(SIZES | sizes))
        self.entries = self.model.steps.step.entries(
            ALONE, self.model.layers, self.model.head, mx.ones((self.model.config.hidden_size,)), self.model.table
        )

    def cache(self, seed: int = 2) -> np.ndarray:
        """A cache with random keys and values, at a whole 16 bytes."""
        shape = self.model.cache.shape
        held = np.zeros(self.model.cache.size + 8, np.float16)
        at = -held.ctypes.data % 16 // 2
        made = held[at : at + self.model.cache.size].reshape(shape)
        made[:] = 0.5 * np.random.default_rng(seed).standard_normal(shape)
        return made

    def turns(
        self, kind: Kind, pieces: list[Piece], caches: list[np.ndarray], *, backwards: bool = False
    ) -> np.ndarray:
        """Choices of rows that go on twice with their own tokens, (3, rows, 8)."""
        state = self._state(kind, pieces, caches)
        show_choices(state, ahead=2)
        given = (kind, self.entries, caches[0], self.model.angles, state)
        return self.model.steps.turns(*given, rows=len(pieces), backwards=backwards)

    def _state(self, kind: Kind, pieces: list[Piece], caches: list[np.ndarray]) -> np.ndarray:
        addresses = [cache.ctypes.data for cache in caches] if kind.shared else []
        return state_of(pieces, [cache.shape[3] for cache in caches], addresses)

    def step(self, kind: Kind, pieces: list[Piece], caches: list[np.ndarray], *, backwards: bool = False) -> np.ndarray:
        """Logits of the wanted rows."""
        state = self._state(kind, pieces, caches)
        logits = self.model.steps.exact(kind, self.entries, caches[0], self.model.angles, state, backwards=backwards)
        return logits[: sum(piece.wanted for piece in pieces)]

    def alone(self, tokens: list[int], position: int, cache: np.ndarray) -> np.ndarray:
        """Logits of rows one after the other, a step each."""
        pieces = [chain([token], position + number, wanted=1) for number, token in enumerate(tokens)]
        return np.concatenate([self.step(ALONE, [piece], [cache]) for piece in pieces])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 16])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_have_the_bits_of_rows_alone(monkeypatch, tmp_path, dtype, rows):
    passes, kind, cache = Passes(monkeypatch, tmp_path, dtype), Kind("dense", False, rows, 0, rows), None
    own = passes.cache()
    alone = passes.alone(TOKENS, POSITION, own)
    layers = passes.model.config.num_layers
    for short_bytes, mixed_bytes, barriers in ((1 << 16, 1 << 16, 5), (1 << 16, 0, 6), (0, 0, 9)):
        monkeypatch.setattr(step_sizes, "SHORT_BYTES", short_bytes)
        monkeypatch.setattr(step_sizes, "MIXED_BYTES", mixed_bytes)
        passes.model.steps.forget(kind)
        for backwards, wanted in ((False, len(TOKENS)), (True, len(TOKENS)), (True, 2), (False, 0)):
            cache = passes.cache()
            found = passes.step(kind, [chain(TOKENS, POSITION, wanted=wanted)], [cache], backwards=backwards)
            assert np.array_equal(found, alone[len(TOKENS) - wanted :])
            assert np.array_equal(cache.view(np.uint16), own.view(np.uint16))
            head = 0 if wanted == 0 else 1 + (barriers == 9)
            assert passes.model.steps.barriers(kind) == 1 + barriers * layers + head


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_wider_rows_have_the_bits_of_rows_alone(monkeypatch, tmp_path, dtype):
    passes = Passes(monkeypatch, tmp_path, dtype, hidden=2116, inner=36)  # a thread has more than four inputs
    alone = passes.alone(TOKENS[:3], 5, passes.cache())
    kind = Kind("dense", False, 8, 0, 8)
    monkeypatch.setattr(step_sizes, "SHORT_BYTES", 1 << 17)
    found = passes.step(kind, [chain(TOKENS[:3], 5, wanted=3)], [passes.cache()])
    assert np.array_equal(found, alone)
    assert passes.model.steps.barriers(kind) == 2 + 5 * passes.model.config.num_layers


@needs_compiler
@pytest.mark.slow
def test_rows_of_trees_and_of_several_sequences_have_the_bits_of_rows_alone(monkeypatch, tmp_path):
    passes = Passes(monkeypatch, tmp_path, "float16")
    parents = [-1, 0, 0, 1, 3]
    paths = [path_to(parents, row) for row in range(len(parents))]
    places = [POSITION + len(path) - 1 for path in paths]
    tree = Piece(TOKENS[:5], POSITION, POSITION, places, paths, 0, 5)
    alone = [passes.alone([TOKENS[row] for row in path], POSITION, passes.cache())[-1] for path in paths]
    other = passes.alone(TOKENS[5:], 9, passes.cache(3))
    found = passes.step(Kind("dense", False, 16, 0, 16, tree=True), [tree], [passes.cache()], backwards=True)
    assert np.array_equal(found, alone)
    kind = Kind("dense", False, 8, 0, 8, shared=True)
    pieces = [chain(TOKENS[5:], 9, wanted=2), tree]
    for backwards in (False, True):
        found = passes.step(kind, pieces, [passes.cache(3), passes.cache()], backwards=backwards)
        assert np.array_equal(found, [*other, *alone])
        assert passes.model.steps.barriers(kind) == 2 + 5 * passes.model.config.num_layers


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("rows", "vocabulary"), [(8, 4500), (16, 15001)])  # parts of rows for some blocks, and for all
def test_several_sequences_go_on_with_the_choices_of_rows_alone(monkeypatch, tmp_path, rows, vocabulary):
    passes = Passes(monkeypatch, tmp_path, "bfloat16", vocabulary=vocabulary)
    begun = [(3, 11), (4150, POSITION + 2), (42, 0)]
    pieces = [chain([token], place, wanted=1) for token, place in begun]
    alone = [passes.turns(ALONE, [piece], [passes.cache(number)]) for number, piece in enumerate(pieces)]
    kind = Kind("dense", False, rows, 0, rows, shared=True)
    for backwards in (False, True):
        caches = [passes.cache(number) for number in range(3)]
        turns = passes.turns(kind, pieces, caches, backwards=backwards)
        assert turns.shape[0] == 3
        assert np.array_equal(turns[..., :5], np.concatenate(alone, axis=1)[..., :5])


def sized(hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int) -> ModelConfig:
    return ModelConfig.uniform(
        family="llama", vocab_size=200, hidden_size=hidden, intermediate_size=inner, num_layers=2, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=head_dim, norm_eps=1e-5, rope_theta=10000.0, max_context=512,
    )  # fmt: skip


SMALL = {
    "135M": sized(576, 1536, 9, 3, 64),
    "0.5B": sized(896, 4864, 14, 2, 64),
    "0.6B, wide heads": sized(1024, 3072, 16, 8, 128),
}
LARGE = {"7B": sized(3584, 18944, 28, 4, 128), "7B, Llama": sized(4096, 11008, 32, 32, 128)}


class Driver(cuda_steps.Driver):
    multiprocessors = 132


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [8, 16])
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_blocks_make_the_rows_of_small_models_by_themselves(name, rows, dtype):
    config = (SMALL | LARGE)[name]
    step = WholeStep(mx, config, dtype=dtype, tier_sizes=(4, 4, 4, 4), driver=Driver())  # type: ignore[arg-type]
    kind = Kind("dense", False, rows, 0, rows)
    constants = step._constants(kind)
    assert constants["OWN_ROWS"] == (name in SMALL)
    step._layout(kind, constants)
    assert step._shared_bytes(kind, constants) <= SHARED_KB * 1024


def test_rows_that_do_not_fit_are_made_together():
    config = SMALL["0.6B, wide heads"]
    given: dict[str, int] = {"split": 2, "grid": 132}
    assert dense_rows(config, 16, shared_bytes=227 * 1024, **given)["OWN_ROWS"]
    assert not dense_rows(config, 16, shared_bytes=180 * 1024, **given)["OWN_ROWS"]
    assert not dense_rows(config, 8, split=1, grid=2, shared_bytes=227 * 1024)["OWN_ROWS"]  # tiles of a block
