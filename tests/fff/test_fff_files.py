"""Layers in files, layers of the fastfeedforward package, examples, training, and the command line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from fff_weights import certain_rows, random_weights
from safetensors.numpy import save_file
from specdec.kernels.reference import fff as reference

from specdec.errors import InvalidArgumentError, LayerFileError, ModelOutputError
from specdec.fff import from_fastfeedforward, load_layer, load_notes, save_layer, to_fastfeedforward
from specdec.fff.data import Examples, read_examples

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "golden_fff.npz")
CLOSE = 2e-6  # a few float32 roundings of sums of order 1


def state_of(depth: int) -> dict[str, np.ndarray]:
    return {name.split(".")[-1]: GOLDEN[name] for name in GOLDEN.files if name.startswith(f"{depth}.state.")}


@pytest.mark.parametrize(("depth", "activation"), [(1, "relu"), (4, "gelu")])
def test_layers_of_the_package_give_its_outputs(depth: int, activation: Any) -> None:
    state, x = state_of(depth), GOLDEN[f"{depth}.x"]
    weights = from_fastfeedforward(state, activation=activation)
    assert weights.depth == depth
    arrays = weights.arrays()
    assert np.abs(reference.forward(x, arrays, activation) - GOLDEN[f"{depth}.hard"]).max() < CLOSE
    assert np.abs(reference.forward(x, arrays, activation, soft=True) - GOLDEN[f"{depth}.soft"]).max() < CLOSE
    assert np.abs(reference.entropies(x, arrays)[0] - GOLDEN[f"{depth}.entropies"]).max() < CLOSE
    bare = from_fastfeedforward(state, activation=activation, output_bias=False)
    assert np.abs(reference.forward(x, bare.arrays(), activation) - GOLDEN[f"{depth}.eval"]).max() < CLOSE
    back = to_fastfeedforward(weights)
    assert sorted(back) == sorted(state)
    assert all(np.array_equal(back[name], array) for name, array in state.items())


def test_a_prefix_and_wrong_layers() -> None:
    state = {f"blocks.3.{name}": array for name, array in state_of(4).items()}
    assert from_fastfeedforward(state, prefix="blocks.3.").depth == 4
    with pytest.raises(InvalidArgumentError, match="there is no array 'node_weights'"):
        from_fastfeedforward(state)
    with pytest.raises(InvalidArgumentError, match="not the shapes of a layer"):
        from_fastfeedforward(state_of(4) | {"w1s": np.zeros((3, 3))})
    with pytest.raises(InvalidArgumentError, match="node_weight must have the shape"):
        from_fastfeedforward(state_of(4) | {"node_weights": np.zeros((14, 7))})
    with pytest.raises(InvalidArgumentError, match="has one tree"):
        to_fastfeedforward(random_weights(3, 2, depth=1, leaf_width=1, trees=2))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_saved_layer_is_the_same(tmp_path: Path, dtype: Any) -> None:
    weights = random_weights(9, 4, depth=3, leaf_width=2, trees=2, path=True, activation="silu", dtype=dtype)
    save_layer(tmp_path / "a", weights, notes={"classes": "1,2"})
    again = load_layer(tmp_path / "a")
    assert again.activation == "silu"
    assert load_notes(tmp_path / "a") == {"classes": "1,2"}
    assert list(again.arrays()) == list(weights.arrays())
    for name, array in again.arrays().items():
        assert array.dtype == dtype
        assert array.tobytes() == weights.arrays()[name].tobytes()
    with pytest.raises(InvalidArgumentError, match="a note cannot be called format"):
        save_layer(tmp_path / "a", weights, notes={"format": "x"})


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_layer(path, random_weights(5, 4, depth=2, leaf_width=2))
    content = path.read_bytes()
    for wrong in (b"", b"x", content[:-1], content[:40], content + b"x", b"\xff" * 64):
        path.write_bytes(wrong)
        with pytest.raises(LayerFileError, match="is not a safetensors file, or damaged"):
            load_layer(path)
    arrays = random_weights(5, 4, depth=2, leaf_width=2).arrays()
    good = {"format": "specdec-fff", "version": "1", "activation": "relu"}
    cases: list[tuple[dict[str, Any], dict[str, str], str]] = [
        (arrays, {}, "is not a layer that specdec wrote"),
        (arrays, good | {"version": "2"}, "has version 2"),
        (arrays, good | {"activation": "tanh"}, "activation must be one of"),
        (arrays | {"more": np.zeros(2)}, good, "holds an array that no layer has: more"),
        ({"node_bias": np.zeros((1, 3), np.float32)}, good, "lacks the array node_weight"),
        (arrays | {"node_bias": np.zeros((1, 2), np.float32)}, good, "node_bias must have the shape"),
    ]
    for tensors, metadata, message in cases:
        save_file(tensors, path, metadata)
        with pytest.raises(LayerFileError, match=message):
            load_layer(path)
    with pytest.raises(LayerFileError, match="does not exist"):
        load_layer(tmp_path / "none")
    with pytest.raises(LayerFileError, match="cannot be read"):
        load_layer(tmp_path)


def test_examples_of_files(tmp_path: Path) -> None:
    digits = read_examples("digits")
    assert digits.x.shape == (1797, 64)
    assert np.bincount(digits.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    x, y = np.arange(6.0).reshape(3, 2), np.array([3, 5, 3])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    (tmp_path / "a.csv").write_text("\ufeffone,two,y\n0,1,3\n2,3,5\n4,5,3\n", encoding="utf-8")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0,1,3\n2,3,5\n4,5,3"))
    for name in ("a.npz", "a.csv", "a.csv.gz"):
        found = read_examples(str(tmp_path / name))
        assert np.array_equal(found.x, x)
        assert np.array_equal(found.y, y)
        assert found.classifies
        assert read_examples(str(tmp_path / name), regress=True).y.shape == (3, 1)
    np.savez(tmp_path / "b.npz", x=x, y=y + 0.5)
    assert not read_examples(str(tmp_path / "b.npz")).classifies


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "must be digits, or a file that ends in"),
        ("a.csv", b"a,b\n1,x\n", "is not a table of numbers"),
        ("a.csv", b"1\n2\n", "needs two columns or more"),
        ("a.csv", b"1,nan\n2,3\n", "not finite"),
        ("a.csv", b"\xff\xfe1,2", "is not UTF-8 text"),
        ("a.csv.gz", b"1,2", "cannot be read"),
        ("a.npz", b"PK\x03\x04", "is not an .npz file of numbers, or damaged"),
        ("b.csv", None, "does not exist"),
    ],
)
def test_wrong_examples(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=message):
        read_examples(str(tmp_path / name))


def test_wrong_arrays(tmp_path: Path) -> None:
    for arrays, message in (
        ({"x": np.zeros((2, 2))}, "must hold the arrays x and y, and has x"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(3)}, r"must hold x \(n, in\)"),
        ({"x": np.zeros((2, 2)), "y": np.array(["a", "b"])}, "must hold real numbers"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, r"must hold x \(n, in\)"),
        ({"x": np.array([{}, {}], object), "y": np.zeros(2)}, "is not an .npz file of numbers"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InvalidArgumentError, match=message):
            read_examples(str(tmp_path / "a.npz"))


class TestTraining:
    """What `train` promises."""

    mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)

    def test_digits_are_learnt(self) -> None:
        from specdec.fff import TrainOptions, train

        result = train(read_examples("digits"), TrainOptions(epochs=12))
        assert result.classes == tuple(range(10))
        assert result.test_score is not None
        assert result.test_score > 0.9
        assert result.train_score > 0.95
        assert result.entropy < 0.3
        again = train(read_examples("digits"), TrainOptions(epochs=12))
        assert all(np.array_equal(a, b) for a, b in zip(result.weights.arrays().values(),
                                                        again.weights.arrays().values(), strict=True))  # fmt: skip

    def test_values_are_approximated_in_their_own_units(self) -> None:
        from specdec.fff import TrainOptions, train

        rng = np.random.default_rng(0)
        x = rng.uniform(-2, 2, size=(600, 2)).astype(np.float32) * [1, 100] + [5, 0]
        y = np.stack([1000 + 50 * np.abs(x[:, 0] - 5), x[:, 1] / 1e3], axis=1).astype(np.float32)
        examples = Examples(x.astype(np.float32), y)
        result = train(examples, TrainOptions(depth=2, trees=2, epochs=60, rate=1e-2, node_outputs=True))
        assert result.test_score is not None
        assert result.test_score > 0.95
        found = reference.forward(examples.x, result.weights.arrays(), "relu")
        assert np.abs(found - y).mean(axis=0)[0] < 8  # of 1000 to 1100
        assert np.abs(found - y).mean(axis=0)[1] < 0.02  # of -0.2 to 0.2

    def test_what_cannot_be_trained(self) -> None:
        from specdec.fff import TrainOptions, train

        x = np.ones((3, 2), np.float32)
        with pytest.raises(InvalidArgumentError, match="y must have 2 to 65536 classes, not 1"):
            train(Examples(x, np.zeros(3, np.int64)))
        with pytest.raises(InvalidArgumentError, match="training needs 2 rows or more, and 1 of 3"):
            train(Examples(x, np.arange(3)), TrainOptions(test=0.7))
        with pytest.raises(ModelOutputError, match="try a lower rate"):
            train(Examples(x * 1e30, np.array([[1.0], [2.0], [3e38]], np.float32)), TrainOptions(rate=1e30, test=0))
        with pytest.raises(InvalidArgumentError, match=r"must hold x \(n, in\) and y .*, not \(3, 2\) and \(2,\)"):
            train(Examples(x, np.arange(2)))
        with pytest.raises(InvalidArgumentError, match="examples holds values that are not finite"):
            train(Examples(x * np.nan, np.arange(3)))
        for wrong in (
            {"epochs": 0},
            {"test": 1.0},
            {"rate": -1},
            {"batch": 2.5},
            {"hardening": float("nan")},
            {"seed": 2**64},
        ):
            with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
                TrainOptions(**wrong)

    def test_lists_and_numbers_of_numpy(self) -> None:
        from specdec.fff import TrainOptions, train

        x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
        sizes = {"depth": 2, "leaf_width": 2, "epochs": 1, "batch": 8, "seed": 3}
        given = train(Examples(x.tolist(), y.tolist()), TrainOptions(**{k: np.int64(v) for k, v in sizes.items()}))
        same = train(Examples(x.astype(np.float32), y), TrainOptions(**sizes))
        assert np.array_equal(given.weights.hidden_weight, same.weights.hidden_weight)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")
    file, out = tmp_path / "a.safetensors", tmp_path / "a.npz"
    done = run(capsys, "fff", "train", "digits", "--out", file, "--epochs", "8", "--half", "--json", "-")
    assert done.code == 0
    report = json.loads(done.out)
    assert report["task"] == "classify"
    assert report["dtype"] == "float16"
    assert report["neurons_used"] == 8
    done = run(capsys, "fff", "eval", file, "digits", "--out", out)
    assert done.code == 0
    found = np.load(out)
    assert found["outputs"].shape == (1797, 10)
    right = (found["outputs"].argmax(axis=1) == read_examples("digits").y).mean()
    assert right > 0.9
    assert f"accuracy: {right:.4f} of 1797 rows" in done.out
    done = run(capsys, "fff", "info", file)
    assert "64 -> 10, 1 tree of depth 3 with leaves of 8 relu neurons" in done.out
    assert "trained_on: digits" in done.out


def test_a_layer_of_the_package_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")
    save_file({name: np.ascontiguousarray(array) for name, array in state_of(4).items()}, tmp_path / "theirs")
    done = run(capsys, "fff", "convert", tmp_path / "theirs", "--activation", "gelu", "--out", tmp_path / "a")
    assert done.code == 0, done.err
    np.savez(tmp_path / "x.npz", x=GOLDEN["4.x"], y=GOLDEN["4.hard"])
    done = run(capsys, "fff", "eval", tmp_path / "a", tmp_path / "x.npz", "--json", "-")
    assert done.code == 0
    assert json.loads(done.out)["score"] > 0.999999
    np.savez(tmp_path / "c.npz", x=GOLDEN["4.x"], y=GOLDEN["4.hard"].argmax(axis=1))
    assert "accuracy: 1.0000 of 11 rows" in run(capsys, "fff", "eval", tmp_path / "a", tmp_path / "c.npz").out


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_weights(3, 2, depth=1, leaf_width=1)
    save_layer(tmp_path / "a", weights, notes={"classes": "0,1"})
    x = certain_rows(weights, 4)
    np.savez(tmp_path / "good.npz", x=x, y=np.array([0, 1, 2, 0]))
    np.savez(tmp_path / "wide.npz", x=np.zeros((4, 5)), y=np.array([0, 1, 1, 0]))
    save_layer(tmp_path / "odd", weights, notes={"classes": "0,x"})
    np.savez(tmp_path / "real.npz", x=x, y=np.full((4, 2), 0.5))
    for words, message in (
        (("eval", tmp_path / "a", tmp_path / "wide.npz"), "takes rows of 3 numbers"),
        (("eval", tmp_path / "a", tmp_path / "good.npz"), "holds the class 2, which the layer was not trained on"),
        (("eval", tmp_path / "a", tmp_path / "real.npz"), "y must name classes"),
        (("eval", tmp_path / "odd", tmp_path / "good.npz"), "its classes are not 2 rising whole numbers"),
        (("eval", tmp_path / "b", "digits"), "does not exist"),
        (("train", "digits", "--out", tmp_path / "no" / "a"), "does not exist"),
        (("train", "digits", "--out", tmp_path / "c", "--depth", "30"), "depth must be a whole number from 0 to 20"),
        (("train", "digits", "--out", tmp_path / "c", "--json", tmp_path / "c"), "need different files"),
        (("convert", tmp_path / "a", "--out", tmp_path / "c"), "there is no array 'node_weights'"),
        (("info", tmp_path / "good.npz"), "is not a safetensors file"),
    ):
        done = run(capsys, "fff", *words)
        assert done.code == 2
        assert message in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "c").exists()
