"""Passes over the next rows of many answers without a GPU: which passes they are, their launches, graphs and tables.

What they compute is in `test_gpu_decode.py`; that the kernels compile, in `test_mlx_prompts.py`.
"""

from __future__ import annotations

import itertools
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_mlx_prompts import Driver, dense, part, quantised, share

from specdec.runtimes.mlx.batch import decoded
from specdec.runtimes.mlx.decode import MOST_ROWS, Decoder
from specdec.runtimes.mlx.prompt import Prompts
from specdec.runtimes.mlx.prompt_work import Part
from specdec.runtimes.mlx.step import CHOICE_WORDS

SPARE = 99 << 33
MX: Any = SimpleNamespace(int32=0, float32=0)


class GraphDriver(Driver):
    """Notes graphs; what is read are the numbers of the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: dict[int, list[Any]] = {}
        self.replayed: list[int] = []

    def graph(self, launches: list[Any]) -> int:
        assert all(1 <= size <= 65535 for launch in launches for size in launch.grid[1:])
        number = len(self.graphs)
        self.graphs[number] = [(launch.given[0], launch.grid, launch._values) for launch in launches]
        return number

    def replay(self, graph: int) -> None:
        self.replayed.append(graph)

    def forget(self, graph: int) -> None:
        del self.graphs[graph]

    def read(self, _: int, array: np.ndarray) -> None:
        array[:] = np.arange(len(array))[:, None]


def decoder_of(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> tuple[Decoder, GraphDriver]:
    driver, numbers = GraphDriver(), itertools.count(1 << 40, 1 << 36)
    monkeypatch.setattr(prompts._step, "driver", driver)
    # Launches take numbers: entries of the table are told apart by them.
    monkeypatch.setattr(prompts._step, "addresses", lambda entries: [next(numbers) for _ in entries])
    monkeypatch.setattr(prompts._step, "address", lambda cache: cache.address)
    spare: Any = SimpleNamespace(positions=256, address=SPARE, arrays=[], reserve=lambda _: None)
    return Decoder(MX, prompts, spare), driver


def wanted(count: int, place: int, number: int) -> Any:
    return part(count, place, (1 + number) << 33, count)


def choosing(*counts: int, **options: Any) -> list[Any]:
    shares = [share(count, count, **options) for count in counts]
    for one in shares:
        one.chooses = True
    return shares


def test_passes_of_choices_with_enough_rows_are_decoded() -> None:
    assert decoded(choosing(*[1] * 9), 8, MOST_ROWS)
    assert decoded(choosing(*[1] * 8, 5), 8, MOST_ROWS)
    assert decoded(choosing(*[1] * 64, mode="quant"), 8, MOST_ROWS)
    assert not decoded(choosing(*[1] * 8), 8, MOST_ROWS)
    assert not decoded(choosing(*[1] * 65), 8, MOST_ROWS)
    assert not decoded([*choosing(*[1] * 20), share(1, 1)], 8, MOST_ROWS)  # logits
    assert not decoded([*choosing(*[1] * 20), *choosing(4, tree=True)], 8, MOST_ROWS)
    assert not decoded([*choosing(*[1] * 20), *choosing(1, mode="verify", selects=True)], 8, MOST_ROWS)
    assert not decoded(choosing(*[1] * 20, mode="nested"), 8, MOST_ROWS)


@pytest.mark.parametrize("kind", ["dense", "quantised"])
@pytest.mark.parametrize("count", [2, 9, 16, 20, 33, 64])
def test_a_pass_is_a_graph_of_all_layers_that_ends_with_choices(
    monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    prompts = dense() if kind == "dense" else quantised("q4_k", "q6_k")
    decoder, driver = decoder_of(prompts, monkeypatch)
    found = decoder.run([wanted(1, 10 * number, number) for number in range(count)], object(), 3)
    assert found.shape == (4, count, CHOICE_WORDS)
    rows = next(rows for rows in (2, 12, 16, 24, 32, 48, 64) if rows >= count)
    assert found[:, :, 0].tolist() == [[turn * rows + row for row in range(count)] for turn in range(4)]
    (graph,) = driver.graphs.values()
    assert driver.replayed == [0] * 4
    assert not driver.launches  # nothing runs but by the graph
    names = [name.split("_")[1] for name, *_ in graph]
    mixes = kind == "quantised" and count <= 26  # attention does it where no history has more than one split
    layer = ["norm", "multiply", "attend", *([] if mixes else ["mix"]), "multiply"]
    layer += ["norm", "multiply", "gate", "multiply"]
    ends = ["norm", "multiply", "look", "choose"]
    assert names == ["embed", *layer * prompts.config.num_layers, *ends]
    grids = {name: grid for name, grid, _ in graph}
    c = prompts.config
    assert grids["decode_attend"][0] == rows
    chunks, splits = grids["decode_attend"][1] // c.num_kv_heads, 4 if count > 52 else 2 if count > 26 else 1
    assert grids["decode_attend"][1:] == (c.num_kv_heads * chunks, splits)
    assert -(-c.num_heads // c.num_kv_heads // chunks) <= (8 if c.head_dim <= 64 else 4)
    assert grids["decode_look" if kind == "dense" else "decode_look_parts"] == (132, rows, 1)
    assert grids["decode_choose"] == (rows, 1, 1)
    if kind == "quantised":
        blocks = [segment[3] for segment in prompts._step.segments]  # type: ignore[attr-defined]
        made = [(grid, int(name.rsplit("_", 1)[1])) for name, grid, _ in graph if name.startswith("decode_multiply")]
        sites = [sum(blocks[:3]), blocks[3], sum(blocks[4:6]), blocks[6]]
        assert [grid[1:] for grid, _ in made] == [(site, 1) for site in [*sites * c.num_layers, blocks[7]]]
        band = 8 if rows <= 8 else 16
        assert all((grid[0], each) == (-(-rows // band), band) for grid, each in made)


@pytest.mark.parametrize("first", [False, True])
def test_kernels_are_compiled_together_once(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    prompts, texts = quantised("q4_k"), []
    monkeypatch.setattr(prompts, "_compiler", SimpleNamespace(code=lambda text: texts.append(text) or b"code"))
    for decodes in (first, True):
        prompts.compile(decodes=decodes)
        assert sorted(texts) == sorted(prompts.text(decodes=which) for which in (False, True)[: 1 + decodes])
    decoder, _ = decoder_of(prompts, monkeypatch)
    for decodes in (False, True):
        decoder.run([wanted(1, 3, number) for number in range(9)], object(), 1)
        prompts.compile(decodes=decodes)
    assert len(texts) == 2


def test_graphs_are_kept_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, driver = decoder_of(dense(), monkeypatch)
    angles = object()
    # More splits take new memory.
    for count, place, graph in ((20, 5, 0), (23, 90, 0), (25, 5, 1), (20, 250, 2), (20, 30, 3), (24, 31, 3)):
        decoder.run([wanted(1, place, number) for number in range(count)], angles, 9)
        assert driver.replayed[-10:] == [graph] * 10
    assert decoder.run([wanted(3, 7, 0), *(wanted(1, 9, n) for n in range(1, 18))], angles, 0).shape[:2] == (1, 20)
    assert driver.replayed[-1] == 4  # three rows of one history
    for count in range(1, 64):
        decoder.run([wanted(1, 3, number) for number in range(count)], angles, 0)
    assert len(driver.graphs) <= 32


@pytest.mark.parametrize("kind", ["dense", "quantised"])
def test_rows_that_follow_each_other_are_put_into_the_cache_before_any_looks_back(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    prompts = dense() if kind == "dense" else quantised("q4_k")
    decoder, driver = decoder_of(prompts, monkeypatch)
    angles, singles = object(), [wanted(1, 9, number) for number in range(1, 17)]
    decoder.run(singles, angles, 0)
    decoder.run([wanted(3, 7, 0), *singles[:13]], angles, 0)
    alone, chains = ([name for name, *_ in graph] for graph in driver.graphs.values())
    turn = "prompt_turn" if kind == "dense" else "decode_turn"
    assert turn not in alone
    places = [number for number, name in enumerate(chains) if name == turn]
    assert [chains[number + 1] for number in places] == ["decode_attend"] * prompts.config.num_layers


def test_every_pass_begins_with_its_own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, driver = decoder_of(dense(), monkeypatch)
    for place in (40, 41):
        decoder.run([wanted(1, place + number, number) for number in range(17)], object(), 1)
        table = driver.written[-1]
        rows = table[: 24 * 8].reshape(24, 8)
        assert rows[:, 0].tolist() == [100] * 17 + [0] * 7
        assert rows[:, 1].tolist() == [*range(place, place + 17), *[0] * 7]
        addresses = np.ascontiguousarray(rows[:, 4:6]).view(np.int64)[:, 0].tolist()
        assert addresses == [*[(1 + number) << 33 for number in range(17)], *[SPARE] * 7]
        assert not rows[:, 3].any()


def further(parts: list[Any], found: np.ndarray) -> list[Any]:
    """What follows passes over these parts."""
    tokens = found[-1, :, 4].copy().view(np.int32).tolist()
    return [Part(one.cache, [token], one.place + len(found), 1) for one, token in zip(parts, tokens, strict=True)]


def test_what_is_begun_is_taken_by_those_who_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, driver = decoder_of(dense(), monkeypatch)
    angles, parts = object(), [wanted(1, 40 + number, number) for number in range(20)]
    found = decoder.run(parts, angles, 3, 5)
    assert len(driver.replayed) == 4 + 5
    next_parts = further(parts, found)
    about = driver.written[-1][: 20 * 8].reshape(20, 8)
    assert about[:, 0].tolist() == [one.tokens[0] for one in next_parts]
    assert about[:, 1].tolist() == [44 + number for number in range(20)]
    decoder.finish()
    some = [next_parts[number] for number in (17, 2, 5, 9, 1, 0, 19, 3, 4)]  # others have ended
    taken = decoder.run(some, angles, 15, 0)
    assert len(driver.replayed) == 4 + 5
    assert taken[:, :, 0].tolist() == [[24 * turn + row for row in (17, 2, 5, 9, 1, 0, 19, 3, 4)] for turn in range(5)]
    decoder.run(further(some, taken), angles, 2)  # nothing is under way any more
    assert len(driver.replayed) == 4 + 5 + 3


def test_fewer_tokens_than_were_begun_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = decoder_of(dense(), monkeypatch)
    angles, parts = object(), [wanted(1, 40, number) for number in range(20)]
    parts = further(parts, decoder.run(parts, angles, 3, 4))
    decoder.finish()
    found = decoder.run(parts, angles, 1, 2)
    assert len(found) == 2
    parts = further(parts, found)
    decoder.finish()
    assert len(decoder.run(parts, angles, 9)) == 2


@pytest.mark.parametrize("change", ["token", "place", "cache", "rows", "forgotten"])
def test_what_is_begun_is_lost_to_other_passes(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    decoder, driver = decoder_of(dense(), monkeypatch)
    angles, parts = object(), [wanted(1, 40, number) for number in range(20)]
    parts = further(parts, decoder.run(parts, angles, 3, 4))
    decoder.finish()
    one = parts[7]
    if change == "forgotten":
        decoder.forget()
    else:
        parts[7] = {
            "token": Part(one.cache, [one.tokens[0] + 1], one.place, 1),
            "place": Part(one.cache, one.tokens, one.place - 1, 1),
            "cache": Part(wanted(1, 40, 30).cache, one.tokens, one.place, 1),
            "rows": Part(one.cache, [*one.tokens, 5], one.place, 2),
        }[change]
    assert len(decoder.run(parts, angles, 0)) == 1
    assert len(driver.replayed) == 4 + 4 + 1


def test_a_model_that_is_dropped_waits_for_what_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, driver = decoder_of(dense(), monkeypatch)
    decoder.run([wanted(1, 40, number) for number in range(20)], object(), 3, 4)
    waited: list[int] = []
    monkeypatch.setattr(driver, "wait", lambda: waited.append(len(driver.graphs)))
    del decoder
    assert waited == [1]
    assert not driver.graphs


def test_memory_of_passes_under_way_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Array:
        """Stands for keys and values."""

    decoder, _ = decoder_of(dense(), monkeypatch)
    parts = [wanted(1, 40, number) for number in range(20)]
    parts[3].cache.arrays = [Array()]
    alive = weakref.ref(parts[3].cache.arrays[0])
    decoder.run(parts, object(), 3, 4)
    parts[3].cache.arrays = []
    assert alive() is not None
    decoder.finish()
    decoder.forget()
    assert alive() is None
