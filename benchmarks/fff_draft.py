"""SmolLM2 (or another Llama) with its MLPs replaced by fast feedforward layers that are fitted to its activations.

Two stages. `fit`: every layer learns what the MLP of the same layer answers to the model's own activations, with soft
choices. `distil`: all together learn the exact model's next-token distribution, with hard choices whose gradient is
that of soft ones. Reported for a text that was not trained on, with hard choices, as a draft would run: how often the
most likely token is the exact model's, and the KL divergence. Text: the Python library of this installation.

    python benchmarks/fff_draft.py model.gguf --depth 6 --leaf-width 64 --fit-s 60 --distil-s 60
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn

from specdec.fff.module import FastFeedforward, hardening_loss
from specdec.formats import open_source
from specdec.tokenizers import load_tokenizer
from specdec.weights.dtypes import to_float32

Mlp = Callable[[int, mx.array], mx.array]
LENGTH = 256  # tokens of a sequence


class Llama:
    """The exact model in float32: rows of token ids to logits, with any function in place of its MLPs."""

    def __init__(self, path: Path) -> None:
        source = open_source(path)
        self.config = config = source.config
        self.w = {n: mx.array(to_float32(source.matrix(n), source.dtype)) for n in config.matrices()}
        self.v = {name: mx.array(source.vector(name)) for name in config.vectors()}
        with tempfile.TemporaryDirectory() as folder:
            for name, content in source.tokenizer_files.items():
                (Path(folder) / name).write_bytes(content)
            self.tokenizer = load_tokenizer(Path(folder))
        mx.eval(self.w, self.v)

    def mlp(self, layer: int, x: mx.array) -> mx.array:
        """The exact MLP of a layer."""
        gate, up = (x @ self.w[f"layers.{layer}.mlp.{name}"].T for name in ("gate", "up"))
        return (nn.silu(gate) * up) @ self.w[f"layers.{layer}.mlp.down"].T

    def logits(self, tokens: mx.array, mlp: Mlp) -> mx.array:
        """Logits (B, T, V) of ids (B, T)."""
        x = self.w["head" if self.config.tied else "embed"][tokens]
        for layer in range(len(self.config.layers)):
            x = x + self.attention(layer, self.norm(f"layers.{layer}.attn_norm", x))
            x = x + mlp(layer, self.norm(f"layers.{layer}.mlp_norm", x))
        return self.norm("final_norm", x) @ self.w["head"].T

    def norm(self, name: str, x: mx.array) -> mx.array:
        """RMS norm."""
        return mx.fast.rms_norm(x, self.v[name], self.config.eps)

    def attention(self, layer: int, x: mx.array) -> mx.array:
        """Causal attention over the sequence."""
        a = self.config.layers[layer].attention
        batch, length, _ = x.shape

        def heads(name: str, count: int) -> mx.array:
            return (
                (x @ self.w[f"layers.{layer}.attn.{name}"].T).reshape(batch, length, count, a.head_dim).swapaxes(1, 2)
            )

        turn = partial(mx.fast.rope, dims=a.head_dim, traditional=False, base=a.rope.theta, scale=1.0, offset=0)
        q, k, v = turn(heads("q", a.heads)), turn(heads("k", a.kv_heads)), heads("v", a.kv_heads)
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=a.head_dim**-0.5, mask="causal")
        return mixed.swapaxes(1, 2).reshape(batch, length, -1) @ self.w[f"layers.{layer}.attn.o"].T


def texts(most_bytes: int) -> tuple[list[str], list[str]]:
    """Files of Python's library, shuffled: for training, and every tenth for the test."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path for path in folder.rglob("*.py") if "site-packages" not in path.parts and "test" not in path.parts
    )
    random.Random(0).shuffle(files)
    train, test, size = list[str](), list[str](), 0
    for number, path in enumerate(files):
        text = path.read_text(encoding="utf-8", errors="ignore")
        (test if number % 10 == 9 else train).append(text)
        size += len(text)
        if size >= most_bytes:
            break
    return train, test


def sequences(model: Llama, parts: list[str]) -> np.ndarray:
    """Token ids (n, LENGTH) int32 of all texts, one after the other."""
    ids = [token for text in parts for token in model.tokenizer.encode(text, literal=True)]
    return np.array(ids[: len(ids) // LENGTH * LENGTH], np.int32).reshape(-1, LENGTH)


def batches(rows: np.ndarray, size: int, seconds: float) -> Iterator[tuple[float, mx.array]]:
    """Random batches until the time is over, with the share of it that has passed."""
    rng, start = np.random.default_rng(0), time.perf_counter()
    while (passed := (time.perf_counter() - start) / seconds) < 1:
        yield passed, mx.array(rows[rng.integers(len(rows), size=size)])


def set_rate(optimiser: Any, rate: float, passed: float) -> None:
    """A cosine over the time there is, after a short start."""
    optimiser.learning_rate = rate * min(1.0, passed / 0.02 + 0.01) * (0.5 + 0.5 * float(np.cos(np.pi * passed)))


def fit(model: Llama, trees: list[FastFeedforward], rows: np.ndarray, args: argparse.Namespace) -> list[float]:
    """Fit each layer to its MLP; returns the last share of variance that each does not explain."""
    optimisers = [optim.Adam(args.rate) for _ in trees]

    def loss(layer: FastFeedforward, x: mx.array, y: mx.array, h: float) -> tuple[mx.array, mx.array]:
        found, entropies = layer.mixed(x)
        error = ((found - y) ** 2).mean() / ((y - y.mean(axis=0)) ** 2).mean()
        return error + h * hardening_loss(entropies), error

    grads = nn.value_and_grad(trees[0], loss)
    step, errors = 0, list[float]()
    for passed, tokens in batches(rows, args.batch, args.fit_s):
        seen: list[tuple[mx.array, mx.array]] = []

        def observed(layer: int, x: mx.array, seen: Any = seen) -> mx.array:
            y = model.mlp(layer, x)
            seen.append((x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])))
            return y

        mx.eval(model.logits(tokens, observed)[0, 0, 0], seen)
        errors = []
        for number, (x, y) in enumerate(seen):
            set_rate(optimisers[number], args.rate, passed)
            grads = nn.value_and_grad(trees[number], loss)
            (_, error), grad = grads(trees[number], x, y, args.hardening * passed)
            optimisers[number].update(trees[number], grad)
            mx.eval(trees[number].parameters(), optimisers[number].state, error)
            errors.append(error.item())
        if step % 50 == 0:
            print(f"fit {step}: {passed:.2f} unexplained {np.mean(errors):.3f}", flush=True)
        step += 1
    print(f"fit: {step} steps of {args.batch * LENGTH} tokens, unexplained {np.round(errors, 2).tolist()}", flush=True)
    return errors


class Student(nn.Module):
    """The fitted layers, as one module."""

    def __init__(self, trees: list[FastFeedforward]) -> None:
        super().__init__()
        self.trees = trees


def distil(model: Llama, trees: list[FastFeedforward], rows: np.ndarray, args: argparse.Namespace) -> None:
    """Train all layers together for the exact model's distribution of the next token."""
    student, optimiser = Student(trees), optim.Adam(args.distil_rate)
    for layer in trees:
        layer.choices = "straight"

    def loss(student: Student, tokens: mx.array, target: mx.array) -> mx.array:
        found = model.logits(tokens, lambda layer, x: student.trees[layer].mixed(x)[0])
        found = found - mx.logsumexp(found, axis=-1, keepdims=True)
        return (mx.exp(target) * (target - found)).sum(axis=-1).mean()

    grads, step = nn.value_and_grad(student, loss), 0
    for passed, tokens in batches(rows, args.distil_batch, args.distil_s):
        target = model.logits(tokens, model.mlp)
        target = target - mx.logsumexp(target, axis=-1, keepdims=True)
        set_rate(optimiser, args.distil_rate, passed)
        value, grad = grads(student, tokens, target)
        grad, _ = optim.clip_grad_norm(grad, 1.0)
        optimiser.update(student, grad)
        mx.eval(student.parameters(), optimiser.state, value)
        if step % 25 == 0:
            print(f"distil {step}: {passed:.2f} KL {value.item():.3f}", flush=True)
        step += 1
    print(f"distil: {step} steps of {args.distil_batch * LENGTH} tokens", flush=True)


def agreement(model: Llama, mlp: Mlp, rows: np.ndarray, size: int) -> dict[str, float]:
    """Share of positions whose most likely token is the exact model's, among its two, and the mean KL divergence."""
    same = second = divergence = count = 0.0
    for start in range(0, len(rows), size):
        tokens = mx.array(rows[start : start + size])
        exact, found = model.logits(tokens, model.mlp), model.logits(tokens, mlp)
        best, other = mx.argmax(exact, axis=-1), mx.argmax(found, axis=-1)
        p = exact - mx.logsumexp(exact, axis=-1, keepdims=True)
        q = found - mx.logsumexp(found, axis=-1, keepdims=True)
        above = (found > mx.take_along_axis(found, best[..., None], axis=-1)).sum(axis=-1)
        same += (best == other).sum().item()
        second += (above < 2).sum().item()
        divergence += (mx.exp(p) * (p - q)).sum().item()
        count += tokens.size
    return {"top1": same / count, "top2": second / count, "kl": divergence / count}


def main() -> None:
    """Fit, distil, and print what came of it; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--leaf-width", type=int, default=64)
    parser.add_argument("--trees", type=int, default=1)
    parser.add_argument("--fit-s", type=float, default=60)
    parser.add_argument("--distil-s", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--distil-rate", type=float, default=3e-4)
    parser.add_argument("--hardening", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--distil-batch", type=int, default=8)
    parser.add_argument("--text-bytes", type=int, default=6_000_000)
    parser.add_argument("--test-rows", type=int, default=64)
    args = parser.parse_args()
    mx.random.seed(0)
    start = time.perf_counter()
    model = Llama(args.model)
    train, test = (sequences(model, parts) for parts in texts(args.text_bytes))
    test = test[np.random.default_rng(1).permutation(len(test))[: args.test_rows]]
    print(f"{train.size} tokens to train on, {test.size} to test on, ready after {time.perf_counter() - start:.0f} s")
    hidden, width = model.config.hidden, model.config.layers[0].mlp.width
    sizes = {"depth": args.depth, "leaf_width": args.leaf_width, "trees": args.trees, "activation": "silu"}
    trees = [FastFeedforward(hidden, hidden, **sizes) for _ in model.config.layers]
    measure = partial(agreement, model, rows=test, size=4)
    report: dict[str, Any] = {**sizes, "none": measure(lambda _, x: mx.zeros_like(x))}
    print("no MLPs:", report["none"], flush=True)
    hard: Mlp = lambda layer, x: trees[layer].mixed(x)[0]  # noqa: E731
    for name, stage, seconds in (("fit", fit, args.fit_s), ("distil", distil, args.distil_s)):
        if not seconds:
            continue
        stage(model, trees, train, args)
        for layer in trees:
            layer.choices = "hard"
        report[name] = measure(hard)
        print(f"after {name}: {report[name]}", flush=True)
        for layer in trees:
            layer.choices = "soft"
    half = len(trees) // 2
    for name, mine in (("first half", lambda n: n < half), ("second half", lambda n: n >= half)):
        for layer in trees:
            layer.choices = "hard"
        report[name] = measure(lambda n, x, mine=mine: hard(n, x) if mine(n) else model.mlp(n, x))
        print(f"{name} of the layers replaced: {report[name]}", flush=True)
    report["multiplications"] = trees[0].harden().multiplications
    report["mlp_multiplications"] = 3 * hidden * width
    print(json.dumps(report))


if __name__ == "__main__":
    main()
