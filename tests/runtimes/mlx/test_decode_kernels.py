"""Kernels of passes over many answers, run on the host: the bits of the kernels for prompts, whose bits are a step's.

Which passes they are is in `test_mlx_decode.py`; the same on a GPU, in `test_gpu_decode.py`.
"""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import numpy as np
import pytest
from decode_kernels import ROWS, TILE, Attention, Given, aligned, build
from metal_host_kernels import compiler
from quant_steps import step_of

from specdec.runtimes.mlx.prompt_quant import QuantPrompts
from specdec.runtimes.mlx.state import PATH_WORDS

TYPES = ("q5_0", "q6_k", "q8_0", "q4_k")
TREELESS = (1 << 31) - 1  # root of a row that is not in a tree
pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")]


class Kernels:
    """The kernels of a model with the shape of another."""

    def __init__(self, folder: Any, shape: str) -> None:
        step, _ = step_of(shape, *TYPES)
        self.prompts = QuantPrompts(step.mx, step, [], None)  # type: ignore[arg-type]
        self.forms = self.prompts._step.forms
        self.compiled = build(folder, self.prompts.text(decodes=True))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("decode"), "135M")


@pytest.fixture(scope="module", params=["135M", "1.5B"])
def both(request: pytest.FixtureRequest, kernels: Kernels, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """With heads of 64 dimensions, of which a warp takes two at a time, and of 128."""
    return kernels if request.param == "135M" else Kernels(tmp_path_factory.mktemp("decode"), request.param)


class Product:
    """Random whole numbers times a random matrix of `tiles` times 128 outputs and `steps` times 32 inputs."""

    def __init__(self, kernels: Kernels, form: int, tiles: int, steps: int, blocks: int) -> None:
        self.compiled, rng = kernels.compiled, np.random.default_rng(form)
        kind = kernels.forms[form]
        spans, head = -(-steps // kind.span), (4 if kind.offset else 2) * TILE
        size = tiles * (spans * kind.head_bytes + steps * (2048 + 512 * kind.rest))
        data = rng.integers(0, 256, size, np.uint8)
        heads = data[: tiles * spans * kind.head_bytes].reshape(-1, kind.head_bytes)
        heads[:, :head] = (rng.standard_normal((len(heads), head // 2)) / 16).astype(np.float16).view(np.uint8)
        self.whole = rng.integers(-15000, 15001, (ROWS, steps, 32))
        self.group_scales = rng.uniform(1e-6, 1e-5, (ROWS, steps)).astype(np.float32)
        self.row_scales = rng.uniform(0.5, 2, ROWS).astype(np.float32)
        upper = (self.whole + 128) >> 8
        words = np.stack([upper, self.whole - 256 * upper], axis=2).astype(np.int8).view(np.uint32)
        # A quarter of the lanes has inputs 4 j to 4 j + 3 and 16 further on side by side.
        words = words.reshape(ROWS, steps, 2, 2, 4).swapaxes(3, 4)
        groups = np.zeros((ROWS, steps, 4), np.uint32)
        groups[..., 0] = self.group_scales.view(np.uint32)
        groups[..., 1:3] = self.whole.reshape(ROWS, steps, 2, 16).sum(3).astype(np.int32).view(np.uint32)
        self.shape = tiles, steps, blocks
        parts = (data, words.swapaxes(0, 1), groups.swapaxes(0, 1), self.row_scales)
        self.arrays = [aligned(np.ascontiguousarray(part)) for part in parts]
        self.form = form

    def given(self, sums: np.ndarray, *, band: int = 0, first: int = 0) -> Given:
        """For rows from the first on."""
        tiles, steps, blocks = self.shape
        data, words, groups, scales = (array.ctypes.data for array in self.arrays)
        places = (data, words + first * 64, groups + first * 16, scales + first * 4, sums.ctypes.data)
        return Given(self.form, band, ROWS, tiles, steps, 0, blocks, 0, *places)

    def of_prompts(self) -> np.ndarray:
        """The product (rows, outputs) as the kernels for prompts have it."""
        sums = aligned(np.full((ROWS, self.shape[0] * TILE), np.nan, np.float32))
        self.compiled.run_tiles(ctypes.byref(self.given(sums)))
        return sums

    def of_answers(self, band: int, first: int, *, backwards: bool) -> np.ndarray:
        """The product (band, outputs) of rows from the first on, parts added as their consumers do."""
        tiles, steps, blocks = self.shape
        parts = aligned(np.full((tiles + blocks, ROWS, TILE), np.nan, np.float32))
        given = self.given(parts, band=band, first=first)
        self.compiled.run_shares(ctypes.byref(given), int(backwards))
        columns = []
        for tile in range(tiles):
            ends = (
                self.compiled.block_of(ctypes.byref(given), unit) for unit in (tile * steps, (tile + 1) * steps - 1)
            )
            low, high = ends
            sums = parts[self.compiled.slot_of(ctypes.byref(given), low, tile), :band].copy()
            for block in range(low + 1, high + 1):
                sums += parts[self.compiled.slot_of(ctypes.byref(given), block, tile), :band]
            columns.append(sums)
        return np.concatenate(columns, axis=1)

    def wanted(self) -> np.ndarray:
        """The product in float64."""
        tiles, steps, _ = self.shape
        weights = aligned(np.zeros((tiles * TILE, steps * 32), np.float32))
        self.compiled.weights_of(ctypes.byref(self.given(weights)))
        rows = self.whole * self.group_scales[..., None].astype(np.float64) * self.row_scales[:, None, None]
        return rows.reshape(ROWS, -1) @ weights.astype(np.float64).T


# Tiles, steps of a tile and blocks: a unit of each warp or none, tiles that several blocks share, blocks of several
# tiles, and of more tiles than there is room for sums of.
@pytest.mark.parametrize("shape", [(3, 9, 4), (2, 3, 6), (5, 5, 1), (1, 28, 4), (26, 2, 1)])
@pytest.mark.parametrize("kind", range(len(TYPES)))
def test_rows_of_answers_have_the_bits_of_prompts(kernels: Kernels, kind: int, shape: tuple[int, int, int]) -> None:
    product = Product(kernels, kind, *shape)
    sums = product.of_prompts()
    wanted = product.wanted()
    assert np.abs(sums - wanted).max() < 2e-6 * np.abs(wanted).max()
    for band, first in ((8, 40), (16, 16)):
        made = product.of_answers(band, first, backwards=bool(kind % 2))
        np.testing.assert_array_equal(made.view(np.uint32), sums[first : first + band].view(np.uint32))


class Histories:
    """Random keys and values of rows at these positions, and products of queries, keys and values in parts.

    Args:
        kernels: of a model.
        places: of the rows.
        chains: the rows follow each other in one history; else each has its own.
    """

    paths: list[list[int]] | None = None  # of rows of a tree: the rows from its root to each

    def __init__(self, kernels: Kernels, places: list[int], *, chains: bool) -> None:
        self.chains = chains
        self.compiled, self.places, self.config = kernels.compiled, places, kernels.prompts.config
        c, rng, rows = self.config, np.random.default_rng(0), len(places)
        self.cache = rng.standard_normal((rows, 2, 2, c.num_kv_heads, 512, c.head_dim)).astype(np.float16)
        self.parts = rng.standard_normal((self.compiled.slots(), ROWS, TILE)).astype(np.float32)
        self.angles = rng.uniform(-1, 1, (512, c.head_dim)).astype(np.float32)
        self.bias = rng.standard_normal((c.num_heads + 2 * c.num_kv_heads) * c.head_dim).astype(np.float32)

    @classmethod
    def tree(cls, kernels: Kernels, root: int, parents: list[int]) -> Histories:
        """Rows of a tree whose root is at this position; rows are in slots one after the other."""
        paths: list[list[int]] = []
        for row, parent in enumerate(parents):
            paths.append([*(paths[parent] if row else []), row])
        made = cls(kernels, [root + len(path) - 1 for path in paths], chains=True)
        made.paths = paths
        return made

    def alone(self, row: int) -> Histories:
        """A row of a tree as the last of a chain: with the rows of its path only."""
        assert self.paths is not None
        path, made = self.paths[row], copy.copy(self)
        made.parts, made.places, made.paths = self.parts.copy(), [self.places[one] for one in path], None
        made.parts[:, : len(path)] = self.parts[:, path]
        return made

    def run(self, chunks: int, *, window: int, splits: int, mixes: bool) -> dict[str, np.ndarray]:
        """What attention leaves, by kernels for prompts where `chunks` is 0."""
        c, rows = self.config, len(self.places)
        cache, (about, tiles) = aligned(self.cache), aligned(np.zeros((2, rows, 8), np.int32))
        paths = np.full((rows, 4 * PATH_WORDS), 255, np.uint8)
        for row, place in enumerate(self.places):
            address = np.array([cache[0 if self.chains else row].ctypes.data], np.int64).view(np.int32)
            about[row, 1:3], about[row, 4:6], about[row, 6:] = (place, 512), address, (place, TREELESS)
            tiles[row, :4], tiles[row, 4:6] = (row, 1, place, 512), address
            if self.paths is not None:
                paths[row, : len(self.paths[row])] = self.paths[row]
                about[row, 6:] = self.places[0] + row, self.places[0]
        made = {"sums": (ROWS, self.compiled.columns()), "queries": (rows, c.num_heads, c.head_dim)}
        made |= {"splits": (rows, c.num_heads, splits, c.head_dim + 4), "scales": (ROWS,)}
        made |= {
            "words": (c.num_heads * c.head_dim // 32 + 4, ROWS, 16),
            "groups": (c.num_heads * c.head_dim // 32 + 4, ROWS, 4),
        }
        arrays = {name: aligned(np.zeros(shape, np.float32)) for name, shape in made.items()}
        given = {"parts": aligned(self.parts), "about": about, "tiles": tiles, "angles": aligned(self.angles)}
        arrays |= given | {"bias": aligned(self.bias), "norms": aligned(self.bias)}
        numbers = (rows, ROWS, made["sums"][1], 1, window, splits, int(mixes), int(self.chains))
        names = [name for name, kind in Attention._fields_ if kind is ctypes.c_void_p][:-1]
        places = (arrays[name].ctypes.data for name in names)
        asked = Attention(*places, None if self.paths is None else paths.ctypes.data, *numbers)
        if chunks:
            self.compiled.run_attention(ctypes.byref(asked), c.num_kv_heads * chunks)
        else:
            self.compiled.run_prompt_attention(ctypes.byref(asked))
        found = {"cache": cache.view(np.uint16)}
        if mixes:
            used = c.num_heads * c.head_dim // 32
            found |= {name: arrays[name][:used, :rows].view(np.uint32) for name in ("words", "groups")}
            return found | {"scales": arrays["scales"].view(np.uint32)}
        for row, place in enumerate(self.places):  # splits that a row does not see are not written
            found[f"row {row}"] = arrays["splits"][row, :, : place // 256 + 1, : c.head_dim + 2].view(np.uint32)
        return found


@pytest.mark.parametrize("window", [1 << 40, 100])
@pytest.mark.parametrize("places", [[0, 5, 255], [5, 255, 300, 256], [9, 10, 11], [254, 255, 256]])
def test_attention_of_single_rows_has_the_bits_of_prompts(both: Kernels, places: list[int], window: int) -> None:
    histories, c = Histories(both, places, chains=places[2] - places[0] == 2), both.prompts.config
    splits = max(places) // 256 + 1
    least = -(-c.num_heads // c.num_kv_heads // (8 if c.head_dim <= 64 else 4))
    for mixes in (False, True)[: 1 if splits > 1 else 2]:
        wanted = histories.run(0, window=window, splits=splits, mixes=mixes)
        assert (wanted["cache"] != histories.cache.view(np.uint16)).any()
        assert any(found.any() for name, found in wanted.items() if name != "cache")
        for chunks in range(least, 4):
            found = histories.run(chunks, window=window, splits=splits, mixes=mixes)
            for name, one in wanted.items():
                np.testing.assert_array_equal(found[name], one, err_msg=f"{name}, {chunks} parts of a group")


# Rows of the upper half follow rows far from them, so positions and slots are in different splits around 256.
TREE = [-1, 0, 0, 1, 2, 1, 4, 4, 3, 5, 7, 10, 11, 12, 13, 6]


@pytest.mark.parametrize("window", [1 << 40, 100, 3])
@pytest.mark.parametrize(("root", "count"), [(0, 7), (37, 16), (250, 16), (255, 9), (256, 16)])
def test_rows_of_a_tree_see_what_they_would_see_alone(both: Kernels, root: int, count: int, window: int) -> None:
    histories, c = Histories.tree(both, root, TREE[:count]), both.prompts.config
    splits = max(histories.places) // 256 + 1
    least = -(-c.num_heads // c.num_kv_heads // (8 if c.head_dim <= 64 else 4))
    for mixes in (False, True)[: 1 if splits > 1 else 2]:
        found = histories.run(least, window=window, splits=splits, mixes=mixes)
        for row, place in enumerate(histories.places):
            alone = histories.alone(row)
            wanted, last = alone.run(least + 1, window=window, splits=splits, mixes=mixes), len(alone.places) - 1
            message = f"row {row}"
            fresh = wanted["cache"][0, 1, ..., place, :]  # of the second layer
            np.testing.assert_array_equal(found["cache"][0, 1, ..., root + row, :], fresh, err_msg=message)
            if mixes:
                for name in ("words", "groups"):
                    np.testing.assert_array_equal(found[name][:, row], wanted[name][:, last], err_msg=message)
            else:
                np.testing.assert_array_equal(found[message], wanted[f"row {last}"], err_msg=message)
        before = histories.cache.view(np.uint16)[:1]
        for name in ("past", "rest"):
            kept = slice(0, root) if name == "past" else slice(root + count, None)
            np.testing.assert_array_equal(found["cache"][:1, ..., kept, :], before[..., kept, :], err_msg=name)
