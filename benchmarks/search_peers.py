"""The contenders of `benchmarks/search.py`: one class for each library, all searching inner products in one thread."""

# ruff: noqa: ARG002  # methods share an interface
from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

K = 10
Setting = dict[str, Any]


class Contender(Protocol):
    """An index of one library. `build` and `save` run once; `load` and `search` are timed later."""

    name: str

    def build(self, vectors: np.ndarray) -> None: ...
    def save(self, path: Path) -> None: ...
    def load(self, path: Path, vectors: np.ndarray) -> None: ...
    def settings(self) -> Iterable[Setting]: ...
    def searcher(self, setting: Setting) -> Callable[[np.ndarray], np.ndarray]: ...


class Specdec:
    name = "specdec"
    efforts = (0.02, 0.03, 0.05, 0.08, 0.12, 0.15, 0.2, 0.3, 0.5, 1.0)
    reranks = (50, 100, 300, 1000)

    def build(self, vectors: np.ndarray) -> None:
        from specdec.search import BucketIndex

        self.index = BucketIndex.build(vectors, metric="ip", threads=1)

    def save(self, path: Path) -> None:
        self.index.save(path)

    def load(self, path: Path, vectors: np.ndarray) -> None:
        from specdec.search import BucketIndex

        self.index = BucketIndex.load(path)

    def settings(self) -> Iterable[Setting]:
        for effort in self.efforts:
            for rerank in self.reranks if effort < 0.5 else self.reranks[:2] if effort < 1 else (None,):
                yield {"effort": effort, "rerank": rerank}

    def searcher(self, setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
        return lambda query: self.index.search(query, K, threads=1, **setting)[1]


class Faiss:
    """An index of faiss by its factory; `sweep` yields search parameters and what they are called."""

    key = "Flat"
    name = "faiss Flat"

    def build(self, vectors: np.ndarray) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        count, dims = vectors.shape
        self.index = faiss.index_factory(dims, self.factory(count, dims), faiss.METRIC_INNER_PRODUCT)
        self.prepare(faiss)
        if not self.index.is_trained:
            self.index.train(vectors[np.random.default_rng(0).permutation(count)[:60_000]])
        self.index.add(vectors)

    def factory(self, count: int, dims: int) -> str:
        return self.key

    def prepare(self, faiss: Any) -> None:
        pass

    def save(self, path: Path) -> None:
        import faiss

        faiss.write_index(self.index, str(path))

    def load(self, path: Path, vectors: np.ndarray) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(str(path))

    def settings(self) -> Iterable[Setting]:
        yield {}

    def searcher(self, setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
        return lambda query: self.index.search(query[None], K)[1][0]


class FaissHnsw(Faiss):
    key, name = "HNSW32", "faiss HNSW32"

    def prepare(self, faiss: Any) -> None:
        self.index.hnsw.efConstruction = 80

    def settings(self) -> Iterable[Setting]:
        return [{"efSearch": ef} for ef in (16, 32, 64, 128, 256, 512, 1024, 2048)]

    def searcher(self, setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
        import faiss

        parameters = faiss.SearchParametersHNSW(**setting)
        return lambda query: self.index.search(query[None], K, params=parameters)[1][0]


class FaissFastScan(Faiss):
    name = "faiss IVF-PQ fast scan, refined"

    def factory(self, count: int, dims: int) -> str:
        return f"IVF{int(2 * count**0.5)},PQ{dims // (2 if dims <= 384 else 4)}x4fs,RFlat"

    def settings(self) -> Iterable[Setting]:
        return [{"nprobe": n, "k_factor": f} for n in (4, 16, 64, 256) for f in (4, 16, 64)]

    def searcher(self, setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
        import faiss

        parameters = faiss.IndexRefineSearchParameters(
            k_factor=setting["k_factor"], base_index_params=faiss.SearchParametersIVF(nprobe=setting["nprobe"])
        )
        return lambda query: self.index.search(query[None], K, params=parameters)[1][0]


class Hnswlib:
    name = "hnswlib M16"

    def build(self, vectors: np.ndarray) -> None:
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        self.index.init_index(len(vectors), M=16, ef_construction=100, random_seed=1)
        self.index.set_num_threads(1)
        self.index.add_items(vectors)

    def save(self, path: Path) -> None:
        self.index.save_index(str(path))

    def load(self, path: Path, vectors: np.ndarray) -> None:
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        self.index.load_index(str(path))
        self.index.set_num_threads(1)

    def settings(self) -> Iterable[Setting]:
        return [{"ef": ef} for ef in (16, 32, 64, 128, 256, 512, 1024, 2048)]

    def searcher(self, setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
        def search(query: np.ndarray) -> np.ndarray:
            self.index.set_ef(setting["ef"])
            return self.index.knn_query(query, k=K)[0][0]

        return search


class Scann:
    """A partition of sqrt(n) leaves, products of 2 dimensions in 4 bits, exact scores of the best."""

    name = "ScaNN"

    def build(self, vectors: np.ndarray) -> None:
        import scann

        leaves = int(len(vectors) ** 0.5)
        builder = scann.scann_ops_pybind.builder(vectors, K, "dot_product").set_n_training_threads(1)
        tree = builder.tree(leaves, leaves // 10, training_sample_size=min(len(vectors), 100_000))
        self.index = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()

    def save(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.index.serialize(str(path))

    def load(self, path: Path, vectors: np.ndarray) -> None:
        import scann

        self.index = scann.scann_ops_pybind.load_searcher(str(path))

    def settings(self) -> Iterable[Setting]:
        return [
            {"leaves_to_search": n, "pre_reorder_num_neighbors": r} for n in (4, 16, 64, 256) for r in (50, 200, 800)
        ]

    def searcher(self, setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
        return lambda query: self.index.search(query, final_num_neighbors=K, **setting)[0]


class Turbovec:
    """4-bit codes of all vectors; no exact scores, so the best 100 are scored here, with NumPy."""

    name = "turbovec 4 bits, reranked"

    def build(self, vectors: np.ndarray) -> None:
        import turbovec

        padded = self._padded(vectors)
        self.index = turbovec.TurboQuantIndex(padded.shape[1], 4)
        self.index.add(padded)
        self.index.prepare()

    def save(self, path: Path) -> None:
        self.index.write(str(path))

    def load(self, path: Path, vectors: np.ndarray) -> None:
        import turbovec

        self.index = turbovec.TurboQuantIndex.load(str(path))
        self.vectors = vectors

    def settings(self) -> Iterable[Setting]:
        return [{"rerank": r} for r in (10, 50, 200)]

    @staticmethod
    def _padded(vectors: np.ndarray) -> np.ndarray:
        """With zeros up to a multiple of 8 dimensions, which it needs."""
        return np.pad(vectors, ((0, 0), (0, gap))) if (gap := -vectors.shape[1] % 8) else vectors

    def searcher(self, setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
        def search(query: np.ndarray) -> np.ndarray:
            ids = np.asarray(self.index.search(self._padded(query[None]), setting["rerank"])[1][0], np.int64)
            return ids[np.argsort(-(self.vectors[ids] @ query), kind="stable")[:K]]

        return search


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "specdec": Specdec,
    "flat": Faiss,
    "hnsw": FaissHnsw,
    "fastscan": FaissFastScan,
    "hnswlib": Hnswlib,
    "scann": Scann,
    "turbovec": Turbovec,
}
