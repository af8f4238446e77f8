"""`BucketIndex`: an index of vectors, built, changed, searched and kept. Reading files of vectors is `vector_files`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specdec.checks import check_count, check_effort
from specdec.errors import InvalidArgumentError
from specdec.search.chunk import CHUNK, FORMS, LARGEST, METRICS, Chunk, Space, encode, factors_of
from specdec.search.index_file import read_index, write_index
from specdec.search.native import instruction_set, kernels, thread_count

DEFAULT_EFFORT = 0.15
_RERANK = 300
_MOST_DIMS = 65536
_MOST_VECTORS = 2**30
_LEAST_SPREAD = 1e-6


class BucketIndex:
    """Vectors that can be searched at an effort: the share of (plane, dimension) products that a search carries out.

    A query's own largest products are taken, so what is left out differs from query to query. The best vectors by these
    products are then scored exactly. At effort 1 the result is exact.

    Vectors have ids 0, 1, 2, … in the order in which they are added. Several threads may search at once, also while
    another changes the index.
    """

    def __init__(self, space: Space, chunks: Iterable[Chunk] = ()) -> None:
        """An index of chunks that are there already; `build` and `load` make new ones."""
        self._space = space
        self._chunks = list(chunks)
        self._lock = threading.Lock()
        self._native: Any = None

    @classmethod
    def build(
        cls, vectors: ArrayLike, *, metric: str = "ip", form: str = "float16", threads: int | None = None
    ) -> BucketIndex:
        """Index vectors.

        Args:
            vectors: (n, d) numbers, n at least 1; may be memory-mapped.
            metric: "ip" (inner product), "cosine" or "l2" (squared distance).
            form: what is kept: "float32" or "float16" vectors beside their codes, or only codes of 8 bits ("int8") or 4
                ("int4"), which are then all that a search knows.
            threads: to compute with; None for all cores.

        Raises:
            InvalidArgumentError: an argument is out of range, or a value is not finite or too large.
        """
        if metric not in METRICS:
            raise InvalidArgumentError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
        if form not in FORMS:
            raise InvalidArgumentError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
        array = _matrix("vectors", vectors)
        if len(array) == 0:
            raise InvalidArgumentError("vectors must hold at least one, not none")
        index = cls(Space(metric, form, *_moments(array, metric)))
        index.add(array, threads=threads)
        return index

    def add(self, vectors: ArrayLike, *, threads: int | None = None) -> NDArray[np.int64]:
        """Add vectors (m, d); returns their ids, int64 (m,).

        Adding copies the last chunk, up to 8,192 vectors, so add many at once. Either all are added or none.

        Raises:
            InvalidArgumentError: the shape does not fit, or a value is not finite, too large, or far outside those that
                the index was built of.
        """
        array, threads = _matrix("vectors", vectors, self.dims), thread_count(threads)
        with self._lock:
            start = self._positions()
            if start + len(array) > _MOST_VECTORS:
                raise InvalidArgumentError(f"an index holds at most {_MOST_VECTORS} vectors")
            chunks, done = list(self._chunks), 0
            while done < len(array):
                first = (start + done) % CHUNK
                part = _finite("vectors", array[done : done + CHUNK - first])
                made = encode(self._space, part, first=first, threads=threads)
                if first:
                    made = chunks.pop().grown(made)
                chunks.append(made)
                done += len(part)
            self._chunks, self._native = chunks, None
        return np.arange(start, start + len(array))

    def remove(self, ids: ArrayLike) -> int:
        """Remove vectors by id; returns how many were there. Ids of others stay; memory is not given back.

        Raises:
            InvalidArgumentError: `ids` are not whole numbers, or one was never given.
        """
        wanted = np.unique(np.asarray(ids).reshape(-1))
        if wanted.size == 0:
            return 0
        if wanted.dtype.kind not in "iu":
            raise InvalidArgumentError(f"ids must be whole numbers, not {wanted.dtype}")
        with self._lock:
            if not 0 <= int(wanted[0]) <= int(wanted[-1]) < self._positions():
                wrong = int(wanted[0] if wanted[0] < 0 else wanted[-1])
                raise InvalidArgumentError(f"ids must be 0 to {self._positions() - 1}, not {wrong}")
            chunks, removed = list(self._chunks), 0
            for number in np.unique(wanted // CHUNK).astype(int):
                places = (wanted[wanted // CHUNK == number] % CHUNK).astype(np.int64)
                removed += int((~chunks[number].removed[places]).sum())
                chunks[number] = chunks[number].without(places)
            self._chunks, self._native = chunks, None
        return removed

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        effort: float = DEFAULT_EFFORT,
        rerank: int | None = None,
        threads: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best vectors of each query.

        Args:
            queries: (m, d) numbers, or one query (d,).
            k: vectors to return for each.
            effort: share of the products that choose candidates, in (0, 1]; 1 is exact, ties going to the lower id.
            rerank: candidates that are scored exactly, at least k; None for max(300, 4 k). Effort 1 takes as many as it
                needs.
            threads: to compute with; None for all cores. The result does not depend on it.

        Returns:
            Scores float32 (m, k) and ids int64 (m, k), best first; (k,) each for one query. Scores are inner products,
            cosines or squared distances in double precision, rounded once. Where there are fewer vectors, ids are -1
            and scores -inf (inf for distances). A query's result does not depend on the others.

        Raises:
            InvalidArgumentError: an argument is out of range, or a value is not finite or too large.
        """
        scores, ids, _ = self.search_counted(queries, k, effort=effort, rerank=rerank, threads=threads)
        return scores, ids

    def search_counted(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        effort: float = DEFAULT_EFFORT,
        rerank: int | None = None,
        threads: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """`search`, and how many vectors were scored exactly for each query, int64 (m,)."""
        k, effort = check_count("k", k), check_effort(effort)
        rerank = max(_RERANK, 4 * k) if rerank is None else max(check_count("rerank", rerank), k)
        array = np.asarray(queries)
        single = array.ndim == 1
        asked = _finite("queries", _matrix("queries", array[None] if single else array, self.dims))
        shape = (len(asked), k)
        try:
            scores, ids = np.empty(shape, np.float32), np.empty(shape, np.int64)
        except (MemoryError, ValueError):
            raise InvalidArgumentError(f"k is too large for {len(asked)} queries: {k}") from None
        candidates = np.empty(len(asked), np.int64)
        found = self._searcher()
        most = max(self._positions(), 1)  # more candidates than vectors are never needed
        wide = k > most
        inner = (
            (scores, ids)
            if not wide
            else (np.empty((len(asked), most), np.float32), np.empty((len(asked), most), np.int64))
        )
        found.search(asked, min(rerank, most), float(effort), thread_count(threads), *inner, candidates)
        if wide:
            scores[:, :most], ids[:, :most] = inner
            scores[:, most:], ids[:, most:] = (np.inf if self.metric == "l2" else -np.inf), -1
        return (scores[0], ids[0], candidates) if single else (scores, ids, candidates)

    def save(self, path: str | Path) -> None:
        """Write the index to a file, which appears whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            chunks = list(self._chunks)
        write_index(Path(path), self._space, chunks)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> BucketIndex:
        """Open a saved index. Its arrays are memory-mapped; changes stay in memory.

        Args:
            path: the file.
            verify: compare the checksum of all its bytes; False reads only its description.

        Raises:
            IndexFileError: it is missing, truncated, damaged, or of another version.
        """
        return cls(*read_index(Path(path), verify=verify))

    def __len__(self) -> int:
        return sum(len(chunk) - int(chunk.removed.sum()) for chunk in self._chunks)

    def __repr__(self) -> str:
        return f"BucketIndex({len(self)} vectors, d={self.dims}, metric={self.metric!r}, form={self.form!r})"

    @property
    def dims(self) -> int:
        """Dimensions d of a vector."""
        return self._space.dims

    @property
    def metric(self) -> str:
        """ "ip", "cosine" or "l2"."""
        return self._space.metric

    @property
    def form(self) -> str:
        """ "float32", "float16", "int8" or "int4"."""
        return self._space.form

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, memory-mapped ones included."""
        return self._space.centre.nbytes + self._space.spread.nbytes + sum(chunk.nbytes for chunk in self._chunks)

    def _positions(self) -> int:
        return sum(len(chunk) for chunk in self._chunks)

    def _searcher(self) -> Any:
        """The native view of the chunks as they are now; a change under way does not make a search wait."""
        if (native := self._native) is not None:
            return native
        with self._lock:
            if self._native is None:
                space = self._space
                made = kernels().Searcher(
                    instruction_set(), space.planes, METRICS.index(space.metric), space.centre, space.spread
                )
                for chunk in self._chunks:
                    floats = chunk.rows if space.form == "float32" else None
                    halves = chunk.rows.view(np.uint16) if chunk.rows is not None and floats is None else None
                    made.append(chunk.codes, chunk.numbers, floats, halves, chunk.factors)
                self._native = made
            return self._native


def _matrix(name: str, value: ArrayLike, dims: int | None = None) -> NDArray[Any]:
    """`value` as an array (n, d) of real numbers, not copied where it is one.

    Raises:
        InvalidArgumentError: it is something else.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise InvalidArgumentError(
            f"{name} must be an array of numbers with two axes, not rows of unequal length"
        ) from None
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not 1 <= array.shape[1] <= _MOST_DIMS:
        raise InvalidArgumentError(
            f"{name} must be numbers of shape (n, d) with d from 1 to {_MOST_DIMS}, not {array.dtype} of {array.shape}"
        )
    if dims is not None and array.shape[1] != dims:
        raise InvalidArgumentError(f"{name} must have the index's {dims} dimensions, not {array.shape[1]}")
    return array


def _finite(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Values as float32.

    Raises:
        InvalidArgumentError: one is not finite, or too large to be squared and added up.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(array, np.float32)
        good = bool((np.abs(values) <= LARGEST).all())
    if not good:
        raise InvalidArgumentError(f"{name} must be finite and at most {LARGEST:g} in size")
    return values


def _pieces(array: NDArray[Any], metric: str) -> Iterator[NDArray[np.float64]]:
    for first in range(0, len(array), CHUNK):
        values = _finite("vectors", array[first : first + CHUNK])
        yield values * factors_of(values)[:, None] if metric == "cosine" else values.astype(np.float64)


def _moments(array: NDArray[Any], metric: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each dimension, float32 (d,) each; none of the latter is 0."""
    total = np.zeros(array.shape[1])
    for piece in _pieces(array, metric):
        total += piece.sum(axis=0)
    centre = (total / len(array)).astype(np.float32)
    square = np.zeros(array.shape[1])
    for piece in _pieces(array, metric):
        square += np.square(piece - centre).sum(axis=0)
    spread = np.sqrt(square / len(array))
    least = spread.max() * _LEAST_SPREAD
    return centre, np.maximum(spread, least if least > 1e-30 else 1.0).astype(np.float32)
