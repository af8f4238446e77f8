"""Loading a part of the weights: which tiers and planes are left out, what is read, what stands in their place, and the
label."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import quantised_config, quantised_source, synthetic_source, tiny_config

import specdec
from specdec.errors import InvalidArgumentError, StoreError
from specdec.lab.eval.passages import run_passage, score_passage
from specdec.lab.text import split_passages
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import forward_one
from specdec.runtimes.choose import best_runtime, create_runtime
from specdec.store import BucketLayout, Store, convert
from specdec.store.partial import (
    PartialMatrix,
    loaded_share,
    parts_to_load,
    plane_parts,
    rest_worth,
    tier_parts,
)
from specdec.store.plan import EXACT_FILE
from specdec.store.tensorfile import read_layout
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import to_float32
from specdec.weights.nested import NestedMatrix
from specdec.weights.quantised import QuantisedMatrix, UpperMatrix, quantised_type, quantised_types

LAYOUTS = [BucketLayout(), BucketLayout(64, (8, 8, 16, 32)), BucketLayout(8, (8,)), BucketLayout(16, (2, 14))]
FULL = EffortSchedule(1.0)
RUNTIMES = ["reference"] + ["native"] * (best_runtime() == "native")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(hidden_size=64, intermediate_size=160, vocab_size=95)
    return convert(synthetic_source(config), tmp_path_factory.mktemp("stores") / "store")


@pytest.mark.filterwarnings("ignore:load_share=.* leaves nothing out")
@given(data=st.data(), share=st.floats(0.3, 1.0))
@settings(max_examples=40, deadline=None)
def test_the_share_is_reached_with_the_fewest_tiers(data: st.DataObject, share: float) -> None:
    layout = data.draw(st.sampled_from(LAYOUTS))
    least = layout.tier_sizes[0] / layout.bucket_size
    share = max(share, least)
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    shapes = {f"m{n}": (int(random.integers(8, 99)), int(random.integers(3, 40))) for n in range(9)}
    scores = {
        name: -np.sort(-random.random((inputs, layout.num_tiers), np.float32), axis=1)
        for name, (_, inputs) in shapes.items()
    }
    parts = {name: tier_parts(scores[name], shape, layout) for name, shape in shapes.items()}
    kept = parts_to_load(parts, share=share)
    assert all(1 <= n <= layout.num_tiers for n in kept.values())
    assert loaded_share(kept, parts) >= share - 1e-9
    # Less is never kept for a larger share, and everything for all.
    more = parts_to_load(parts, share=min(1.0, share + 0.1))
    assert all(more[name] >= n for name, n in kept.items())
    assert set(parts_to_load(parts, share=1.0).values()) == {layout.num_tiers}


def test_the_least_important_tiers_go_first() -> None:
    layout = BucketLayout(16, (8, 8))
    flat, steep = np.full((4, 2), 1, np.float32), np.tile(np.array([[5, 0.1]], np.float32), (4, 1))
    parts = {name: tier_parts(scores, (16, 4), layout) for name, scores in (("flat", flat), ("steep", steep))}
    assert parts_to_load(parts, share=0.75) == {"flat": 2, "steep": 1}


def test_a_share_that_messages_show_can_be_asked_for() -> None:
    parts = {"small": plane_parts("q4_1", (700, 32), 0.0), "large": plane_parts("q8_0", (100, 32), 0.5)}
    with pytest.raises(InvalidArgumentError, match=r"load_share must be a number from 0.888 \(the upper"):
        parts_to_load(parts, share=0.5)
    assert parts_to_load(parts, share=0.888) == {"small": 1, "large": 1}  # 8 of 9 bits
    with pytest.warns(UserWarning, match=r"load_share=0.95 leaves nothing out of this model, 0.888 would"):
        assert parts_to_load(parts, share=0.95) == {"small": 1, "large": 2}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_left_out_is_zero(tmp_path: Path, layout: BucketLayout, dtype: str) -> None:
    source = synthetic_source(tiny_config(), dtype=dtype)
    convert(source, tmp_path / "s", layout=layout)
    whole = Store.open(tmp_path / "s")
    for share in {layout.tier_sizes[0] / layout.bucket_size, 0.6, 0.9} - {0.6 * (layout.tier_sizes[0] > 9)}:
        part = Store.open(tmp_path / "s", load_share=max(share, layout.tier_sizes[0] / layout.bucket_size))
        assert share - 1e-9 <= part.loaded_share <= 1
        for name in ("layers.0.attn.q", "layers.1.mlp.down", "head"):
            exact, found = whole.bucketed(name), part.bucketed(name)
            loaded = found.loaded if isinstance(found, PartialMatrix) else layout.num_tiers
            assert loaded == layout.num_tiers or isinstance(found, PartialMatrix)
            seen = loaded > exact.tier_of_weight()[:, : exact.shape[0]].T
            assert np.array_equal(found.dequantise(), np.where(seen, exact.dequantise(), 0))
            # A valid matrix in every respect: every output in exactly one tier.
            sizes = np.array(layout.tier_sizes)
            tiers = found.tier_of_weight().reshape(found.shape[1], -1, layout.bucket_size)
            assert all((np.count_nonzero(tiers == k, axis=-1) == size).all() for k, size in enumerate(sizes))
            assert np.array_equal(found.scores[:, :loaded], exact.scores[:, :loaded])
            assert (found.scores[:, loaded:] == 0).all()


def test_what_is_left_out_is_not_read(path: Path, tmp_path: Path) -> None:
    """Damage in a tier that is left out goes unnoticed, as nothing looks at it."""
    whole = Store.open(path)
    raw = bytearray((path / "exact.safetensors").read_bytes())
    at = bytes(raw).rindex(whole.bucketed("head").values[3].tobytes())
    raw[at] ^= 1
    (tmp_path / "s").mkdir()
    for file in path.rglob("*"):
        if file.is_file():
            (tmp_path / "s" / file.relative_to(path)).write_bytes(file.read_bytes())
    (tmp_path / "s" / "exact.safetensors").write_bytes(raw)
    with pytest.raises(StoreError, match=r"'head.tier3.values' .* was altered"):
        Store.open(tmp_path / "s")
    part = Store.open(tmp_path / "s", load_share=0.5)
    matrix = part.bucketed("head")
    assert isinstance(matrix, PartialMatrix)
    assert matrix.nbytes < 0.6 * whole.bucketed("head").nbytes
    everything = np.full(matrix.shape[1], 4, np.uint8)
    assert matrix.bytes_read(everything) < whole.bucketed("head").bytes_read(everything)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_multiply_what_is_loaded(path: Path, runtime: str, tmp_path: Path) -> None:
    """A store of the weights with zeros in place, converted whole, gives the same bits."""
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    part = Store.open(path, load_share=0.6)
    source = synthetic_source(part.config)
    zeroed = {name: part.bucketed(name).dense_bits() for name in part.config.matrices()}
    source.matrix = lambda name: zeroed[name] if name in zeroed else synthetic_source(part.config).matrix(name)  # type: ignore[method-assign]
    convert(source, tmp_path / "zeroed")
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    logits, drafts = [], []
    for store in (part, Store.open(tmp_path / "zeroed")):
        made = create_runtime(runtime, store)
        logits.append(forward_one(made, tokens, made.new_cache(8), effort=FULL).logits)
        views = ("int4", "bucket8")  # made of the weights, whatever their tiers
        drafts.append([forward_one(made, tokens, made.new_cache(8), effort=FULL, view=view).logits for view in views])
        other = forward_one(made, tokens, made.new_cache(8), effort=specdec.EffortSchedule(0.3), view="bucket").logits
        assert np.isfinite(other).all()
    assert np.array_equal(*logits)
    assert np.array_equal(*drafts)


@pytest.mark.skipif("native" not in RUNTIMES, reason="the native runtime is not built")
@pytest.mark.parametrize("layout", [*LAYOUTS, BucketLayout(32, (5, 3, 24))], ids=str)
def test_tiers_that_are_left_out_take_no_memory_natively(tmp_path: Path, layout: BucketLayout) -> None:
    """A bit a weight says which are there; buckets that do not divide 32 outputs keep zeros."""
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    path = convert(synthetic_source(tiny_config()), tmp_path / "s", layout=layout)
    whole, part = Store.open(path), Store.open(path, load_share=max(0.55, layout.tier_sizes[0] / layout.bucket_size))
    saved = 0
    for name, (outputs, inputs) in part.config.matrices().items():
        tiers = part.loaded_tiers(name)
        if tiers < layout.num_tiers and 32 % layout.bucket_size == 0:
            line = 32 * sum(layout.tier_sizes[:tiers]) // layout.bucket_size + 2
            saved += -(-outputs // 32) * inputs * (32 - line) * 2 - 64
    made = create_runtime("native", part)
    exact = [runtime.memory["exact"] for runtime in (create_runtime("native", whole), made)]  # type: ignore[attr-defined]
    assert exact[0] - exact[1] == saved
    assert (saved > 0) == (layout.num_tiers > 1 and 32 % layout.bucket_size == 0)
    tokens, reference = [3, 1, 4, 1, 5, 9, 2, 6], create_runtime("reference", part)
    found, wanted = (forward_one(one, tokens, one.new_cache(8), effort=FULL).logits for one in (made, reference))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-3)  # the native cache is float16


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_are_those_of_the_part_and_say_so(path: Path, runtime: str) -> None:
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    model = specdec.load(path, runtime=runtime, load_share=0.8)
    assert model.store is not None
    for view in ("bucket", "int4"):
        options = {"max_tokens": 12, "draft_view": view, "draft_effort": 0.5, "temperature": 0.8, "seed": 0}
        fast = specdec.generate(model, [1, 2, 3], **options)
        assert (
            fast.tokens
            == specdec.generate(model, [1, 2, 3], speculate=False, max_tokens=12, temperature=0.8, seed=0).tokens
        )
        assert fast.identical_to == f"dense at {model.store.loaded_share:.3f} of the weights"
    whole = specdec.load(path, runtime=runtime)
    assert specdec.generate(whole, [1, 2, 3], max_tokens=2).identical_to == "dense"


def test_the_command_line(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", "--model", text_model, "--prompt", "a", "--max-tokens", 4, "--raw", "--check")
    ran = run(capsys, *arguments, "--load-share", 0.5, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["identical_to"].startswith("dense at 0.5")
    assert "lossy: not all weights are loaded" in run(capsys, *arguments, "--load-share", 0.5).err
    for share in ("0.1", "1.5", "nan"):
        ran = run(capsys, *arguments, "--load-share", share)
        assert ran.code == 2
        assert "--load-share must be a number from 0.25 (the first tiers) to 1" in ran.err


def test_eval_compares_a_part_with_the_whole(
    text_model: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some text that is long enough for a passage of tokens.", encoding="utf-8")
    measure = ("--measure", "text", "--text", text, "--passages", 1, "--passage-tokens", 12, "--effort", 1)
    ran = run(capsys, "eval", text_model, *measure, "--load-share", 0.75, 0.3, "--json", tmp_path / "found.json")
    assert ran.code == 0
    assert [line.split()[:3] for line in ran.out.splitlines()] == [
        ["view", "effort", "loaded"], ["exact", "1", "1"], ["exact", "1", "0.75"], ["exact", "1", "0.3"],
    ]  # fmt: skip
    whole, *parts = json.loads((tmp_path / "found.json").read_text())["results"]["rows"]
    assert "load_share" not in whole
    assert whole["text"]["kl"] == 0
    for part in parts:
        model, dense = specdec.load(text_model, load_share=part["load_share"]), specdec.load(text_model)
        assert model.tokenizer is not None
        ids = split_passages(text.read_text(), model.tokenizer, count=1, length=12)[0]
        found, wanted = (run_passage(one.runtime, ids, view="exact", effort=1.0) for one in (model, dense))
        assert part["text"]["kl"] == pytest.approx(score_passage(ids, wanted, found).kl / (len(ids) - 1))
    assert 0 < parts[0]["text"]["kl"] < parts[1]["text"]["kl"]
    ran = run(capsys, "eval", text_model, *measure, "--load-share", 0.01)
    assert ran.code == 2
    assert "--load-share must be a number from 0.25" in ran.err


def quantised_store(path: Path, *types: str) -> Path:
    dtype = "bfloat16" if "bf16" in types[0] else "float16"
    source = quantised_source(quantised_config(), *types, dtype=dtype)
    return convert(source, path, quantised="keep", selection="tiers")


@pytest.mark.parametrize("kind", quantised_types())
def test_the_rest_of_codes_is_left_out_and_counts_as_half(tmp_path: Path, kind: str) -> None:
    path = quantised_store(tmp_path / "s", kind)
    if quantised_type(kind).bits == 4:
        with pytest.raises(InvalidArgumentError, match=r"load_share must be 1, not 0.8: the codes .* four bits"):
            Store.open(path, load_share=0.8)
        return
    least = 4 / quantised_type(kind).bits
    whole, part = Store.open(path), Store.open(path, load_share=least)
    assert part.loaded_share == pytest.approx(least)
    assert part.hides_bits
    assert not whole.hides_bits
    for name in whole.config.matrices():
        exact, found = whole.exact(name), part.exact(name)
        assert isinstance(exact, QuantisedMatrix)
        assert isinstance(found, UpperMatrix)
        weights = NestedMatrix(exact).dequantise()
        assert np.array_equal(found.dequantise(), weights)
        assert np.array_equal(found.rows([5, 0]), weights[[5, 0]])
        assert np.array_equal(found.inputs_float32(32, 96), weights[:, 32:96].T)
        assert np.array_equal(found.inputs(0, found.kind.block).dequantise(), weights[:, : found.kind.block])
        # A draft sees the same of it as of the whole.
        assert np.array_equal(NestedMatrix(found).dequantise(), weights)
        everything = np.ones(found.shape[1], np.uint8)
        rest = exact.shape[0] * exact.shape[1] * (exact.kind.bits - 4) // 8
        assert exact.nbytes - found.nbytes == rest
        assert exact.bytes_read(everything) - found.bytes_read(everything) == rest
    tables = whole.config.tables()
    assert all(np.array_equal(part.table_rows(name), whole.table_rows(name)) for name in tables)
    with pytest.raises(InvalidArgumentError, match=rf"from {np.floor(least * 1000) / 1000:g} \(the upper four bits"):
        Store.open(path, load_share=least - 0.1)


def resident(path: Path) -> np.ndarray:
    """Which pages of a file the system has in memory, bool (pages,)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        flags = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        system = ctypes.CDLL(None, use_errno=True)
        failed = system.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), flags)
        del start  # or the map cannot be closed
    assert not failed
    return np.frombuffer(flags, np.uint8) & 1 == 1


@pytest.mark.skipif(platform.system() != "Linux", reason="needs Linux: what is in memory is asked for, and thrown out")
@pytest.mark.parametrize("types", [("16",), ("q8_0", "16", "q5_k")], ids=" ".join)
def test_pages_of_what_is_left_out_are_not_read(tmp_path: Path, types: tuple[str, ...]) -> None:
    """However much the system likes to read ahead."""
    path = quantised_store(tmp_path / "s", *types) / EXACT_FILE
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path).any():
        pytest.skip("needs a file system that lets go of pages")
    part = Store.open(path.parent, load_share=0.7)
    pages, left_out = resident(path), 0
    for name, placed in read_layout(path).tensors.items():
        first, last = -(-placed.offset // mmap.PAGESIZE), (placed.offset + placed.spec.nbytes) // mmap.PAGESIZE
        if not part._is_loaded(name):
            assert not pages[first:last].any(), name
            left_out += max(0, last - first)
    assert left_out > 0.15 * len(pages)
    assert pages.mean() > 0.4


def test_matrices_that_lose_least_go_without_the_rest(tmp_path: Path) -> None:
    """8-bit, 5-bit and 16-bit matrices in one store: fifth bits are worth least, and tiers most."""
    path = quantised_store(tmp_path / "s", "q8_0", "q5_1", "16")
    whole = Store.open(path)
    changes = {}
    for name, kind in whole.types.items():
        if name in whole.config.matrices():
            exact = whole.exact(name)
            assert isinstance(exact, QuantisedMatrix)
            # All outputs here; `rest_worth` looks at some.
            off = np.abs(NestedMatrix(exact).dequantise() - exact.dequantise()).mean()
            changes[name] = off / np.abs(exact.dequantise()).mean()
            assert rest_worth(exact) == pytest.approx(changes[name], rel=0.05)
            rest = (4 if kind == "q8_0" else 1) * exact.shape[0] * exact.shape[1]
            assert plane_parts(kind, exact.shape, 0.1).bits == (4 * exact.shape[0] * exact.shape[1], rest)
    for share in (0.97, 0.9, 0.8):
        part = Store.open(path, load_share=share)
        assert share <= part.loaded_share < share + 0.1
        out = {name for name in changes if isinstance(part.exact(name), UpperMatrix)}
        assert out
        # Worth is measured on some of the outputs.
        assert all(changes[a] < changes[b] * 1.1 for a in out for b in set(changes) - out)
        tiers = {name for name in whole.config.matrices() if isinstance(part.exact(name), PartialMatrix)}
        assert not tiers or len(out) == len(changes)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("types", [("q8_0",), ("q6_k", "q5_k", "q4_k"), ("affine8-g64-bf16", "16"), ("q5_1", "q5_0")])
def test_runtimes_multiply_upper_bits(runtime: str, types: tuple[str, ...], tmp_path: Path) -> None:
    """Logits are those of the weights that are left, in float64, and rows do not depend on their company."""
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    path = quantised_store(tmp_path / "s", *types)
    whole, part = Store.open(path), Store.open(path, load_share=least_share(path))
    made, tokens = create_runtime(runtime, part), [3, 1, 4, 1, 5, 9, 2, 6]
    names = part.config.matrices() | part.config.tables()
    weights = {n: part.exact(n).dequantise() if n in part.config.matrices() else part.table_rows(n) for n in names}
    wanted = DenseTransformer(part.config, weights.__getitem__, part.vector).logits(tokens)
    logits = forward_one(made, tokens, made.new_cache(8), effort=specdec.EffortSchedule(1.0)).logits
    # As for whole quantised matrices: the native runtime rounds activations to 16 bits, and its cache is float16.
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=4e-5 if runtime == "reference" else 5e-3)
    for view in ("exact", "own", "nested", "int4"):
        for effort in (1.0, 0.4):
            schedule, cache = specdec.EffortSchedule(effort), made.new_cache(8)
            rows = forward_one(made, tokens, made.new_cache(8), effort=schedule, view=view).logits
            alone = [forward_one(made, [token], cache, effort=schedule, view=view).logits[0] for token in tokens]
            assert np.array_equal(rows, np.array(alone))
    all_of_it = create_runtime(runtime, whole)
    assert not np.array_equal(logits, forward_one(all_of_it, tokens, all_of_it.new_cache(8), effort=FULL).logits)
    if runtime == "native":
        saved = sum(whole.exact(n).nbytes - part.exact(n).nbytes for n in part.types if n in part.config.matrices())
        assert all_of_it.memory["exact"] - made.memory["exact"] >= 0.95 * saved > 0  # type: ignore[attr-defined]


def least_share(path: Path) -> float:
    """What has to be loaded of a store at least, in hundredths, as the refusal of less says; more than half."""
    with pytest.raises(InvalidArgumentError, match="load_share must be a number from") as refusal:
        Store.open(path, load_share=0.01)
    words = str(refusal.value).split()
    return max(0.55, float(np.ceil(float(words[words.index("from") + 1]) * 100) / 100))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_of_a_quantised_part_are_its_own(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    model = specdec.load(quantised_store(tmp_path / "s", "q8_0"), runtime=runtime, load_share=0.6)
    assert model.store is not None
    for view in ("own", "nested", "int4"):
        options = {"max_tokens": 12, "draft_view": view, "draft_effort": 0.5, "temperature": 0.8, "seed": 0}
        fast = specdec.generate(model, [1, 2, 3], **options)
        assert (
            fast.tokens
            == specdec.generate(model, [1, 2, 3], speculate=False, max_tokens=12, temperature=0.8, seed=0).tokens
        )
        assert fast.identical_to == f"dense at {model.store.loaded_share:.3f} of the weights"


def test_weights_that_stay_are_the_larger_ones(path: Path) -> None:
    """Half of the weights hold far more than half of what they weigh."""
    whole, part = Store.open(path), Store.open(path, load_share=0.5)
    for name in ("layers.0.attn.q", "head"):
        dense, found = whole.bucketed(name), part.bucketed(name)
        assert isinstance(dense, BucketedMatrix)
        energy = [float(np.square(to_float32(m.dense_bits(), "float16")).sum()) for m in (found, dense)]
        assert energy[0] > 0.8 * energy[1]


def test_models_without_a_store_are_whole() -> None:
    from fake_runtime import fake_model

    model: Model = fake_model()
    assert specdec.generate(model, [1], max_tokens=1).identical_to == "dense"
