"""Steps of a 7B-shaped model with random weights on the GPU, in units of MLX's own dense step of the same model.

Every step is the whole model, attention over a short history and the logits layer included, and ends with a wait for
the result, as decoding does. MLX's step is its own matmul, norm, rotation and fused attention under `mx.compile`.

    python benchmarks/gpu_step.py --json results/gpu_step-DEVICE.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from threading import RLock
from typing import Any

import numpy as np
from common import add_json_option, print_table, write_json
from gpu_common import GPU, SHAPE_7B, TIERS, copy_bandwidth, device, mx, on_device, random_transformer, seconds
from specdec.kernels.reference.selection import weights_to_take

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.model import Kind, Transformer
from specdec.runtimes.mlx.ops import row_step
from specdec.runtimes.mlx.state import chain, show_choices, state_of
from specdec.runtimes.mlx.step import CHOICE_WORDS
from specdec.runtimes.mlx.step_sizes import MOST_CHOOSING

CONTEXT = 200


def mlx_step(
    config: ModelConfig, plain: list[dict[str, Any]], *, bits: int | None = None
) -> Callable[[Any, list[Any]], Any]:
    """MLX's own step: float16 activations (rows, hidden) and a cache to logits.

    Args:
        config: shape of the model.
        plain: its matrices by block, the logits layer last.
        bits: None for a matrix of float16 weights; else a matrix is what `mx.quantize` gives for groups of 64.
    """
    heads, kv, size = config.num_heads, config.num_kv_heads, config.head_dim
    ones = mx.ones((config.hidden_size,), dtype=mx.float16)

    def times(x: Any, matrix: Any) -> Any:
        return x @ matrix.T if bits is None else mx.quantized_matmul(x, *matrix, group_size=64, bits=bits)

    def step(x: Any, cache: list[Any]) -> Any:
        rows = x.shape[0]
        for weights, (keys, values) in zip(plain[:-1], cache, strict=True):
            normed = mx.fast.rms_norm(x, ones, config.norm_eps)
            qkv = times(normed, weights["qkv"]).reshape(1, rows, heads + 2 * kv, size).transpose(0, 2, 1, 3)
            turned = mx.fast.rope(
                qkv[:, : heads + kv], size, traditional=False, base=config.rope_theta, scale=1.0, offset=CONTEXT
            )
            k = mx.concatenate([keys, turned[:, heads:]], axis=2)
            v = mx.concatenate([values, qkv[:, heads + kv :]], axis=2)
            mask = "causal" if rows > 1 else None
            mixed = mx.fast.scaled_dot_product_attention(turned[:, :heads], k, v, scale=size**-0.5, mask=mask)
            x = x + times(mixed.transpose(0, 2, 1, 3).reshape(rows, heads * size), weights["o"])
            both = times(mx.fast.rms_norm(x, ones, config.norm_eps), weights["gate_up"])
            gate, up = mx.split(both, 2, axis=-1)
            x = x + times(gate * mx.sigmoid(gate) * up, weights["down"])
        return times(mx.fast.rms_norm(x, ones, config.norm_eps), plain[-1]["head"])

    compiled: Callable[[Any, list[Any]], Any] = mx.compile(step)
    return compiled


def asked_for(description: str) -> tuple[argparse.Namespace, ModelConfig]:
    """The options `repeat`, `layers` and `json`, and the 7B shape with that number of layers."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeat", type=int, default=30, help="steps of each kind (default %(default)s)")
    parser.add_argument("--layers", type=int, default=SHAPE_7B.num_layers, help="blocks (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    return arguments, replace(SHAPE_7B, layers=SHAPE_7B.layers[:1] * arguments.layers)


def random_history(config: ModelConfig) -> list[tuple[Any, Any]]:
    """Keys and values of CONTEXT positions for every block, float16 (1, KV heads, CONTEXT, D)."""
    shape = (1, config.num_kv_heads, CONTEXT, config.head_dim)
    history = [
        (mx.random.normal(shape).astype(mx.float16), mx.random.normal(shape).astype(mx.float16))
        for _ in range(config.num_layers)
    ]
    mx.eval(history)
    return history


class Steps:
    """Runs single steps of a transformer at `position`, as a runtime does: at first after CONTEXT tokens."""

    def __init__(self, transformer: Transformer) -> None:
        self.transformer, self.position = transformer, CONTEXT
        self.held = transformer.new_cache(2 * SPAN, RLock())
        self.held.reserve(2 * SPAN)
        self.cache = [mx.random.normal(array.shape).astype(mx.float16) for array in self.held.arrays]
        mx.eval(self.cache)
        self.moved()
        self._takes: dict[tuple[str, float], list[Any]] = {}

    def state(self, tokens: list[int]) -> np.ndarray:
        """The pass's state, from the host as in decoding."""
        return state_of([chain(tokens, self.position, wanted=len(tokens))], [2 * SPAN])

    def moved(self) -> None:
        """Tell that the arrays of `cache` are others."""
        self.held.arrays, self.held.address = self.cache, None

    def takes(self, mode: str, effort: float) -> list[Any]:
        """Weights to take of every multiplication."""
        if (mode, effort) not in self._takes:
            made = []
            for linear in self.transformer.linears:
                size = 1 if mode in ("inputs", "int4") else sum(TIERS)
                take = weights_to_take(effort, linear.inputs * size)
                made.append(on_device([[take] * (len(linear.names) if mode in ("inputs", "verify") else 1)]))
            if self.transformer.whole:
                made = [mx.concatenate(made, axis=1)[0]]
                mx.eval(made)
            self._takes[mode, effort] = made
        return self._takes[mode, effort]

    def __call__(self, mode: str, effort: float, tokens: list[int]) -> Any:
        """A step: what to wait for, or None where it has been waited for."""
        return self._run(mode, effort, tokens, self.state(tokens))

    def _run(self, mode: str, effort: float, tokens: list[int], state: np.ndarray) -> Any:
        selects = mode in ("inputs", "verify", "bucket") or effort < 1
        splits = 0 if self.transformer.whole else -(-(self.position + len(tokens)) // SPAN)
        kind = Kind(mode, selects, row_step(len(tokens)), splits, row_step(len(tokens)))
        takes = self.takes(mode, effort) if selects else []
        if self.transformer.launch(kind, state, [self.held], takes):
            GPU.driver.wait()
            return None
        return self.transformer.run(kind, state, [self.cache], takes)

    def chosen(self, mode: str, effort: float, tokens: list[int], ahead: int = 0) -> list[int]:
        """The best token after each of `tokens`; a single one goes on for `ahead` tokens. Steps are one kernel."""
        state = self.state(tokens)
        show_choices(state, ahead=ahead)
        mx.eval(self._run(mode, effort, tokens, state))
        found = self.transformer.choices(len(tokens), ahead).reshape(-1, CHOICE_WORDS)
        return [int(token) for token in found[:, 4].copy().view(np.int32)]

    def logits(self, mode: str, effort: float, tokens: list[int]) -> np.ndarray:
        """Logits of a step (tokens, V)."""
        out = self(mode, effort, tokens)
        mx.eval(out)
        return self.transformer.logits(out, len(tokens))


def check(steps: Steps, mlx: Callable[[Any, list[Any]], Any], cache: list[Any]) -> None:
    """Refuse to time steps that are wrong: rows alone and together, and against MLX."""
    tokens = list(range(5, 14))
    for mode, effort in (("dense", 1.0), ("inputs", 0.6), ("inputs", 0.25), ("verify", 0.6)):
        most = min(len(tokens), MOST_CHOOSING) if mode == "inputs" else len(tokens)
        together = steps.logits(mode, effort, tokens[:most])
        for count in (1, 5):
            some = steps.logits(mode, effort, tokens[:count])
            if not np.array_equal(some[:count], together[:count]):
                worst = np.abs(some[:count] - together[:count]).max()
                sys.exit(f"{mode}: rows of {count} and of {most} differ by {worst}: nothing was timed")
    for number, (keys, values) in enumerate(cache):
        layer = steps.cache[0][number] if steps.transformer.whole else steps.cache[number]
        layer[0, :, :CONTEXT] = keys[0]
        layer[1, :, :CONTEXT] = values[0]
        if steps.transformer.whole:
            steps.cache[0][number] = layer
    mx.eval(steps.cache)
    steps.moved()
    ours = steps.logits("dense", 1.0, tokens).astype(np.float64)
    table = steps.transformer.embeddings
    theirs = np.array(mlx(table[mx.array(tokens)], cache).astype(mx.float32)).astype(np.float64)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    print(f"dense against MLX's: relative difference {error:.2e}")
    # MLX's residual stream is float16: 2^-11 for each of 64 additions, in random directions, is about 4e-3.
    if not error < 2e-2:
        sys.exit("the dense step differs from MLX's: nothing was timed")
    for mode, effort in (
        ("int4", 1.0),
        ("int4", 0.5),
        ("bucket", 1.0),
        ("bucket", 0.25),
        ("inputs", 0.999999),
        ("verify", 0.999999),
    ):
        found = steps.logits(mode, effort, tokens[:1])[0].astype(np.float64)
        cosine = found @ ours[0] / np.linalg.norm(found) / np.linalg.norm(ours[0])
        print(f"{mode} at effort {effort}: cosine of the logits with dense {cosine:.4f}")


def main() -> None:
    """Check, measure, print."""
    arguments, config = asked_for(__doc__.splitlines()[0])
    transformer, plain, _ = random_transformer(config, views=("lines", "tiers", "int4", "bucket"))
    steps, mlx = Steps(transformer), mlx_step(config, plain)
    cache = random_history(config)
    check(steps, mlx, cache)
    inputs = {rows: transformer.embeddings[mx.array(list(range(rows)))] for rows in (1, 5, 9)}
    mx.eval(inputs)
    cases: list[tuple[str, float, int]] = [("MLX dense", 1.0, rows) for rows in (1, 5, 9)]
    cases += [("dense", 1.0, rows) for rows in (1, 2, 5, 9, 16)]
    cases += [("inputs", effort, rows) for effort in (0.9, 0.6, 0.5, 0.25) for rows in (1, 5)]
    cases += [("inputs", 0.6, 2), ("inputs", 0.6, MOST_CHOOSING), ("verify", 0.6, 1), ("verify", 0.6, 5)]
    cases += [("int4", effort, 1) for effort in (1.0, 0.5, 0.35)] + [("bucket", e, 1) for e in (0.15, 0.25, 0.4)]
    rows_of, base, single = [], 0.0, 0.0
    for mode, effort, rows in cases:
        tokens = list(range(rows))
        run = (
            (lambda r=rows: mlx(inputs[r], cache))
            if mode == "MLX dense"
            else (lambda m=mode, e=effort, t=tokens: steps(m, e, t))
        )
        middle, spread = seconds(run, repeat=arguments.repeat)
        base = base or middle
        single = middle if (mode, rows) == ("dense", 1) else single
        rows_of.append((mode, effort, rows, middle * 1e3, spread, middle / base, middle / (single or base)))
    print(
        f"{device()}, {arguments.layers} blocks, context {CONTEXT}, device copy {(copied := copy_bandwidth()):.0f} GB/s"
    )
    header = ("step", "effort", "rows", "ms", "spread", "of MLX's dense step", "of a row at effort 1")
    print_table(header, rows_of)
    results = {"steps": [dict(zip(header, row, strict=True)) for row in rows_of], "copy_gb_s": copied,
               "layers": arguments.layers, "context": CONTEXT, **device()}  # fmt: skip
    write_json(arguments.json, results, benchmark="gpu_step")


if __name__ == "__main__":
    main()
