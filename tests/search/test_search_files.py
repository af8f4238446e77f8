"""Files of vector search: indexes that are saved, mapped, damaged or hostile; files of vectors; the command line."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run

pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")

from specdec.errors import IndexFileError, InvalidArgumentError
from specdec.search import BucketIndex
from specdec.search.index_file import MAGIC
from specdec.search.vector_files import read_vectors

PREFIX = struct.Struct("<16sII32s")


def vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("form", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_a_saved_index_is_the_same(tmp_path: Path, form: str, metric: str) -> None:
    index, queries = BucketIndex.build(vectors(8300, 9), metric=metric, form=form), vectors(5, 9, seed=1)
    index.remove([3, 8200])
    index.save(tmp_path / "a.index")
    again = BucketIndex.load(tmp_path / "a.index")
    assert repr(again) == repr(index)
    assert len(again) == 8298
    for effort in (0.2, 1.0):
        for mine, other in zip(again.search(queries, effort=effort), index.search(queries, effort=effort), strict=True):
            assert mine.tobytes() == other.tobytes()


def test_changes_of_a_mapped_index_stay_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    BucketIndex.build(vectors(200, 4)).save(path)
    before = path.read_bytes()
    index = BucketIndex.load(path)
    index.remove([0])
    index.add(vectors(300, 4, seed=2))
    assert path.read_bytes() == before
    index.save(path)  # over the file that it is mapped from
    assert len(BucketIndex.load(path)) == 499
    assert len(index.search(vectors(1, 4), 5)[1]) == 1


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.index"
    index = BucketIndex.build(vectors(200, 4))
    index.save(path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="full"):
        BucketIndex.build(vectors(300, 4)).save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.index"]


def described(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file whose description is another, with a right checksum."""
    magic, version, length, _ = PREFIX.unpack(data[: PREFIX.size])
    value = json.loads(data[PREFIX.size : PREFIX.size + length])
    text = json.dumps(change(value) or value).encode()
    head = PREFIX.pack(magic, version, len(text), hashlib.sha256(text).digest()) + text
    return head + bytes(-len(head) % 4096) + data[4096:]


def field(name: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda data: described(data, lambda found: found.update({name: value}))


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda data: (
        data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] if place >= 0 else data[:place] + b"\1"
    )


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "not a search index"),
    "other file": (lambda data: b"GGUF" + data[4:], "not a search index"),
    "ends in magic": (lambda data: data[:9], "ends in its header"),
    "ends in prefix": (lambda data: data[:50], "ends in its header"),
    "ends in description": (lambda data: data[:100], "description is not whole"),
    "ends in payload": (lambda data: data[:-1], "not whole"),
    "too long": (lambda data: data + b"\0", "not whole"),
    "version": (lambda data: MAGIC + struct.pack("<I", 2) + data[20:], "version 2"),
    "length": (lambda data: data[:20] + struct.pack("<I", 2**32 - 1) + data[24:], "description is not whole"),
    "description": (flipped(70), "description is not whole"),
    "payload": (flipped(4096 + 17), "checksum"),
    "last byte": (flipped(-1), "checksum"),
    "metric": (field("metric", "dot"), "no metric"),
    "form": (field("form", ["int4"]), "description says"),
    "vectors": (field("vectors", 10**9), "contradict"),
    "vectors type": (field("vectors", "200"), "vectors '200'"),
    "no vectors": (field("vectors", 0), "vectors 0"),
    "dims": (field("dims", 4000), "contradict"),
    "bool": (field("dims", True), "dims True"),
    "payload bytes": (field("payload_bytes", 2**70), "payload_bytes|damaged"),
    "checksum type": (field("payload_sha256", 7), "no checksum"),
    "list": (lambda data: described(data, lambda _: [1]), "no metric"),
    "deep": (lambda data: described(data, lambda _: json.loads("[" * 80 + "]" * 80)), "description says"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, said = HOSTILE[name]
    path = tmp_path / "a.index"
    BucketIndex.build(vectors(200, 4)).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IndexFileError, match=said):
        BucketIndex.load(path)
    np.save(tmp_path / "q.npy", vectors(2, 4))
    done = run(capsys, "search", "query", str(path), str(tmp_path / "q.npy"))
    assert done.code == 2
    assert done.err.startswith("specdec: error: ")
    assert done.err.count("\n") == 1


def test_values_that_mean_nothing_do_no_harm(tmp_path: Path) -> None:
    """A file may carry any floats under a right checksum."""
    index = BucketIndex.build(vectors(500, 4), form="float32")
    for chunk in index._chunks:
        rng = np.random.default_rng(0)
        for array in (chunk.numbers, chunk.rows):
            assert array is not None
            places = rng.integers(0, array.size, array.size // 2)
            array.reshape(-1)[places] = rng.choice([np.nan, np.inf, -np.inf, 3e38], len(places))
    index.save(tmp_path / "a.index")
    loaded = BucketIndex.load(tmp_path / "a.index")
    for effort in (0.3, 1.0):
        ids = loaded.search(vectors(20, 4), 10, effort=effort)[1]
        assert ((ids >= -1) & (ids < 500)).all()


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    import os

    path = tmp_path / "a.index"
    if kind == "folder":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(IndexFileError, match=r"does not exist|cannot read"):
        BucketIndex.load(path)
    npy = path.rename(path.with_suffix(".npy")) if path.exists() else path.with_suffix(".npy")
    with pytest.raises(InvalidArgumentError, match=r"does not exist|cannot read"):
        read_vectors(npy)


def test_verify_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    BucketIndex.build(vectors(200, 4)).save(path)
    path.write_bytes(flipped(-1)(path.read_bytes()))
    assert len(BucketIndex.load(path, verify=False)) == 200


def write_fvecs(path: Path, data: np.ndarray) -> None:
    head = np.full((len(data), 1), data.shape[1], "<i4")
    path.write_bytes(np.concatenate([head.view("<f4"), data.astype("<f4")], axis=1).tobytes())


def test_files_of_vectors(tmp_path: Path) -> None:
    data = vectors(20, 6)
    np.save(tmp_path / "a.npy", data)
    write_fvecs(tmp_path / "a.fvecs", data)
    for name in ("a.npy", "a.fvecs"):
        assert np.array_equal(read_vectors(tmp_path / name), data)


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    data, path = vectors(20, 6), tmp_path / "a.parquet"
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(data.reshape(-1)), 6)
    for lists in (pa.array(list(data)), fixed):
        pq.write_table(pa.table({"name": ["x"] * 20, "vector": lists}), path, row_group_size=7)
        assert np.array_equal(read_vectors(path), data)
        assert np.array_equal(read_vectors(path, column="vector"), data)
    pq.write_table(pa.table({"a": fixed, "b": fixed}), path)
    with pytest.raises(InvalidArgumentError, match="2 columns"):
        read_vectors(path)
    with pytest.raises(InvalidArgumentError, match="no column 'c'"):
        read_vectors(path, column="c")
    for bad in ([[1.0], [1.0, 2.0]], [[1.0], None], [[1.0], [None]], [[], []]):
        pq.write_table(pa.table({"a": pa.array(bad, pa.list_(pa.float32()))}), path)
        with pytest.raises(InvalidArgumentError, match="one length"):
            read_vectors(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InvalidArgumentError, match="parquet"):
        read_vectors(path)


def test_hostile_files_of_vectors(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", vectors(20, 6))
    whole = (tmp_path / "a.npy").read_bytes()
    np.save(tmp_path / "o.npy", np.array([[{}]]), allow_pickle=True)
    np.savez(tmp_path / "z.npz", a=vectors(2, 2))
    np.save(tmp_path / "one.npy", np.ones(3))
    write_fvecs(tmp_path / "a.fvecs", vectors(20, 6))
    fvecs = (tmp_path / "a.fvecs").read_bytes()
    bad = {
        "short.npy": whole[:200],
        "head.npy": whole[:20],
        "empty.npy": b"",
        "object.npy": (tmp_path / "o.npy").read_bytes(),
        "archive.npy": (tmp_path / "z.npz").read_bytes(),
        "axis.npy": (tmp_path / "one.npy").read_bytes(),
        "short.fvecs": fvecs[:-1],
        "empty.fvecs": b"",
        "negative.fvecs": struct.pack("<i", -1) + fvecs[4:],
        "mixed.fvecs": fvecs[:28] + struct.pack("<i", 5) + fvecs[32:],
        "vectors.txt": b"1 2 3",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidArgumentError, match=name):
            read_vectors(tmp_path / name)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = vectors(500, 8)
    np.save(tmp_path / "v.npy", data)
    write_fvecs(tmp_path / "q.fvecs", data[:30])
    index, queries = str(tmp_path / "v.index"), str(tmp_path / "q.fvecs")
    done = run(capsys, "search", "build", str(tmp_path / "v.npy"), "--out", index, "--metric", "cosine", "--json")
    assert done.code == 0
    assert json.loads(done.out)["vectors"] == 500
    done = run(capsys, "search", "query", index, queries, "--k", "3", "--effort", "1", "--json")
    assert [ids[0] for ids in json.loads(done.out)["ids"]] == list(range(30))
    done = run(capsys, "search", "query", index, queries, "--k", "1", "--out", str(tmp_path / "r.npz"))
    assert "query 0: 0 (1)" in done.out
    assert "10 more queries" in done.out
    assert np.load(tmp_path / "r.npz")["ids"].shape == (30, 1)


@pytest.mark.parametrize(
    "words",
    [
        ("build", "missing.npy", "--out", "a.index"),
        ("build", "v.npy", "--out", "nowhere/a.index"),
        ("build", "v.npy", "--out", "a.index", "--metric", "dot"),
        ("build", "v.npy", "--out", "a.index", "--column", "x"),
        ("build", "v.npy"),
        ("query", "missing.index", "v.npy"),
        ("query", "v.npy", "v.npy"),
        ("query", "a.index", "v.npy", "--k", "0"),
        ("query", "a.index", "v.npy", "--effort", "2"),
        ("query", "a.index", "v.npy", "--rerank", "-1"),
        ("query", "a.index", "v.npy", "--out", "both", "--json", "./both"),
        (),
    ],
)
def test_mistakes_end_in_one_sentence(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", vectors(10, 3))
    BucketIndex.build(vectors(10, 3)).save("a.index")
    done = run(capsys, "search", *words)
    assert done.code == 2
    assert done.err.count("\n") == 1
