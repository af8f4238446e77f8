"""How close a multiplication stays to the dense one: cosine against effort, for real matrices of a model.

Three ways to leave products out are compared at the same number of multiplications: bucketMul, skipping whole inputs,
and static magnitude pruning (the largest weights of the matrix, whatever the activation). Activations are those that
enter the matrix in the dense model on the benchmark prompts ("captured"), and Gaussian ones.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from common import PROMPTS, add_json_option, print_machine, print_table, write_json
from specdec.kernels.reference.bucketmul import bucketmul
from specdec.kernels.reference.selection import select_tiers, weights_to_take
from specdec.kernels.reference.transformer import DenseTransformer

from specdec.catalogue import resolve_model
from specdec.store import Store
from specdec.tokenizers import load_tokenizer
from specdec.weights.bucket import BucketedMatrix

METHODS = ("bucketMul", "whole inputs", "static pruning")


@dataclass(frozen=True)
class Result:
    """Cosines of one matrix: (rows, efforts) for one method and kind of activation."""

    matrix: str
    activation: str
    method: str
    cosines: np.ndarray

    @property
    def kind(self) -> str:
        """Last part of the matrix's name: q, gate, head, …"""
        return self.matrix.rsplit(".", 1)[-1]


def captured_activations(store: Store, names: Sequence[str], rows: int) -> dict[str, np.ndarray]:
    """float32 (rows, in) inputs of each named matrix, at positions spread evenly over the prompts.

    The first token of a prompt is left out: models park attention there, and its activations are like no other's. An
    expert that fewer tokens reach gets fewer rows.
    """
    tokenizer = load_tokenizer(store.tokenizer_path)
    seen: dict[str, list[np.ndarray]] = defaultdict(list)

    def matrix(name: str) -> np.ndarray:
        return store.exact(name).dequantise() if name in store.config.matrices() else store.table_rows(name)

    def observe(name: str, values: np.ndarray) -> None:
        if name in names:
            seen[name].append(values[1:] if len(values) > 1 else values)

    model = DenseTransformer(store.config, matrix, store.vector, observe=observe)
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages) if tokenizer.has_chat_template else prompt
        model.logits(tokenizer.encode(text))
    found = {}
    for name, parts in seen.items():
        values = np.concatenate(parts)
        found[name] = values[np.linspace(0, len(values) - 1, min(rows, len(values))).astype(int)].astype(np.float32)
    return found


def cosines(results: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Cosine of every row of results (efforts, rows, out) with dense (rows, out): (rows, efforts)."""
    norms = np.linalg.norm(results, axis=-1) * np.linalg.norm(dense, axis=-1)
    return (np.einsum("ero,ro->er", results, dense) / np.where(norms > 0, norms, 1)).T


def tiered_products(
    rows: np.ndarray, prefixes: np.ndarray, weights: np.ndarray, tiers: np.ndarray, num_tiers: int
) -> np.ndarray:
    """bucketMul of every row at every effort, a dense product for each tier.

    Args:
        rows: float32 (rows, in).
        prefixes: uint8 (efforts, rows, in).
        weights: float32 (in, out).
        tiers: uint8 (in, out).
        num_tiers: K.

    Returns:
        float32 (efforts, rows, out).
    """
    total = np.zeros((*prefixes.shape[:2], weights.shape[1]), np.float32)
    for k in range(num_tiers):
        total += (rows * (prefixes > k)) @ np.where(tiers == k, weights, np.float32(0))
    return total


def pruned_products(rows: np.ndarray, weights: np.ndarray, efforts: Sequence[float]) -> np.ndarray:
    """The same with the largest weights of the matrix alone: (efforts, rows, out)."""
    sizes = np.abs(weights).ravel()
    results = []
    for effort in efforts:
        count = weights_to_take(effort, weights.size)
        kept = np.zeros_like(sizes)
        # Positions, not a threshold: weights of a quantised model tie by the thousand.
        largest = np.argpartition(sizes, weights.size - count)[weights.size - count :]
        kept[largest] = weights.ravel()[largest]
        results.append(rows @ kept.reshape(weights.shape))
    return np.stack(results)


def measure(
    name: str, matrix: BucketedMatrix, rows: np.ndarray, activation: str, efforts: Sequence[float]
) -> list[Result]:
    """All three methods on one matrix."""
    weights = np.ascontiguousarray(matrix.dequantise().T)
    tiers = matrix.tier_of_weight()[:, : weights.shape[1]]
    dense = rows @ weights
    shares = np.array(matrix.tier_sizes) / sum(matrix.tier_sizes)
    whole = (matrix.scores @ shares).astype(np.float32)[:, None]

    def prefixes(scores: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
        return np.stack([[select_tiers(row, scores, sizes, effort=effort) for row in rows] for effort in efforts])

    tiered = prefixes(matrix.scores, matrix.tier_sizes)
    products = {
        "bucketMul": tiered_products(rows, tiered, weights, tiers, len(matrix.tier_sizes)),
        "whole inputs": (rows * prefixes(whole, (1,))) @ weights,
        "static pruning": pruned_products(rows, weights, efforts),
    }
    # The product by tiers must be bucketMul: up to float32 rounding of a sum of n terms.
    check = bucketmul(rows[0], weights, tiers, tiered[0, 0])
    bound = (len(weights) + 1) * np.finfo(np.float32).eps * (np.abs(rows[0]) @ np.abs(weights)).max()
    if np.abs(products["bucketMul"][0, 0] - check).max() > bound:
        raise SystemExit(f"{name}: the product by tiers differs from the reference bucketMul")
    return [Result(name, activation, method, cosines(products[method], dense)) for method in METHODS]


def chosen_matrices(store: Store, layers: Sequence[int] | None) -> list[str]:
    """Every matrix of the given layers (default: first, middle, last) and the logits layer."""
    count = store.config.num_layers
    picked = sorted({0, count // 2, count - 1} if layers is None else set(layers))
    if not all(0 <= layer < count for layer in picked):
        raise SystemExit(f"--layers must be 0 to {count - 1}, not {picked}")
    return [n for n in store.config.matrices() if n == "head" or any(n.startswith(f"layers.{i}.") for i in picked)]


def report(results: Sequence[Result], efforts: Sequence[float]) -> None:
    """A table per kind of activation: mean cosine over rows and layers, by kind of matrix and method."""
    header = ["matrix", "method", *(f"{effort:.1f}" for effort in efforts)]
    for activation in dict.fromkeys(result.activation for result in results):
        grouped: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        for result in results:
            if result.activation == activation:
                grouped[result.kind, result.method].append(result.cosines)
                if result.kind != "head":
                    grouped["all but head", result.method].append(result.cosines)
        kinds = [*dict.fromkeys(kind for kind, _ in grouped if kind != "all but head"), "all but head"]
        table = []
        for kind in kinds:
            for method in METHODS:
                values = np.concatenate(grouped[kind, method])
                table.append([kind, method, *(float(x) for x in values.mean(axis=0))])
                table.append(["", "  standard deviation", *(float(x) for x in values.std(axis=0))])
        print(f"\n{activation} activations, mean cosine with the dense product over rows and layers")
        print_table(header, table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="catalogue name, store, folder or .gguf")
    parser.add_argument("--layers", type=lambda s: [int(x) for x in s.split(",")], help="default: first, middle, last")
    parser.add_argument("--rows", type=int, default=16, help="activation rows per matrix")
    parser.add_argument("--seed", type=int, default=0, help="of the Gaussian activations")
    add_json_option(parser)
    args = parser.parse_args()
    print_machine()
    store = Store.open(resolve_model(args.model))
    names, efforts = chosen_matrices(store, args.layers), [n / 10 for n in range(1, 10)]
    rng = np.random.default_rng(args.seed)
    captured = captured_activations(store, names, args.rows)
    results = []
    for name in names:
        matrix = store.exact(name)
        if name in captured:
            results += measure(name, matrix, captured[name], "captured", efforts)
        gaussian = rng.standard_normal((args.rows, matrix.shape[1]), dtype=np.float32)
        results += measure(name, matrix, gaussian, "Gaussian", efforts)
    print(f"{args.model}, layout {store.layout}, dithered {store.dithered}, {args.rows} rows a matrix")
    report(results, efforts)
    write_json(
        args.json,
        {
            "settings": {"model": args.model, "layers": args.layers, "rows": args.rows, "seed": args.seed},
            "efforts": efforts,
            "matrices": [
                {
                    "matrix": r.matrix,
                    "activation": r.activation,
                    "method": r.method,
                    "mean": r.cosines.mean(axis=0).tolist(),
                    "standard_deviation": r.cosines.std(axis=0).tolist(),
                }
                for r in results
            ],
        },
        benchmark="cosine",
    )


if __name__ == "__main__":
    main()
