"""Steps of quantised 7B-shaped models with random weights on the GPU, in units of MLX's dense step of that shape.

4-bit and 8-bit weights in groups of 64, as `mx.quantize` makes them. MLX's own steps are `mx.quantized_matmul` in the
same graph as its dense step. Every step is the whole model and is waited for.

    python benchmarks/gpu_quantised.py --json results/gpu_quantised-DEVICE.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from common import print_table, write_json
from gpu_common import GPU, cache_arrays, copy_bandwidth, device, mx, on_device, random_weights, seconds
from gpu_step import CONTEXT, asked_for, mlx_step, random_history
from specdec.kernels.reference.selection import weights_to_take

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.layers import Layer, Mlp
from specdec.runtimes.mlx.model import Kind, Transformer
from specdec.runtimes.mlx.ops import Ops
from specdec.runtimes.mlx.quant import PackedQuant, pack_quant
from specdec.runtimes.mlx.state import chain, state_of
from specdec.runtimes.mlx.step import fits
from specdec.runtimes.mlx.step_quant import QuantStep
from specdec.runtimes.mlx.weights import Linear
from specdec.weights.quantised import QuantisedTable

GROUP, DISTINCT = 64, 4
CASES = {
    4: (("quant", 1.0, 1), ("quant", 1.0, 2), ("quant", 1.0, 4), ("quant", 1.0, 5), ("quant", 1.0, 8),
        ("quant", 0.6, 1), ("quant", 0.5, 1), ("quant", 0.25, 1), ("quant", 0.6, 5)),
    8: (("quant", 1.0, 1), ("quant", 1.0, 5), ("nested", 1.0, 1)),
}  # fmt: skip


class Quantised:
    """Matrices of one block of a random model: MLX's arrays, and specdec's.

    Args:
        shapes: (out, in) by name.
        bits: 4 or 8.
        seed: of the weights.
    """

    def __init__(self, shapes: dict[str, tuple[int, int]], bits: int, seed: int) -> None:
        self.plain: dict[str, tuple[Any, Any, Any]] = {}
        self.packed: dict[str, PackedQuant] = {}
        for number, (name, shape) in enumerate(shapes.items()):
            weights = random_weights(*shape, seed + number)
            scores = mx.mean(mx.abs(weights).astype(mx.float32), axis=0)[:, None]
            scores = scores + mx.zeros_like(scores)
            codes, scales, biases = mx.quantize(weights, group_size=GROUP, bits=bits)
            arrays = {"weight": np.array(codes)}
            arrays |= {key: np.array(part).view(np.uint16) for key, part in (("scales", scales), ("biases", biases))}
            table = QuantisedTable(f"affine{bits}-g{GROUP}", shape, arrays)
            self.plain[name] = codes, scales, biases
            self.packed[name] = pack_quant(mx, table, scores)
        mx.eval(self.plain)

    def joined(self, *names: str) -> tuple[Any, ...]:
        """MLX's arrays of matrices as one."""
        parts = [self.plain[name] for name in names]
        made = tuple(mx.concatenate(which, axis=0) for which in zip(*parts, strict=True))
        mx.eval(made)
        return made

    def linear(self, *names: str, paired: bool = False) -> Linear:
        """One of our multiplications."""
        packed = tuple(self.packed[name] for name in names)
        made = Linear(names, tuple(part.outputs for part in packed), packed[0].inputs, paired, quant=packed)
        made.scores = mx.stack([part.scores for part in packed])
        return made


def random_models(config: ModelConfig, bits: int) -> tuple[Transformer, list[dict[str, Any]]]:
    """Our model, and MLX's arrays of its matrices by block and of the logits layer."""
    c = config
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes = {"q": (q, c.hidden_size), "k": (kv, c.hidden_size), "v": (kv, c.hidden_size), "o": (c.hidden_size, q)}
    shapes |= {"gate": (c.intermediate_size, c.hidden_size), "up": (c.intermediate_size, c.hidden_size)}
    shapes["down"] = (c.hidden_size, c.intermediate_size)
    ones = mx.ones((c.hidden_size,)) + mx.zeros((c.hidden_size,))
    layers, plain = [], []
    for number in range(DISTINCT):
        made = Quantised(shapes, bits, 100 * number)
        mlp = Mlp(c.intermediate_size, made.linear("gate", "up", paired=True), made.linear("down"))
        qkv, o = made.linear("q", "k", "v"), made.linear("o")
        layers.append(Layer(c.layers[0], qkv, o, mlp, attn_norm=ones, mlp_norm=ones))
        plain.append({"qkv": made.joined("q", "k", "v"), "o": made.plain["o"], "down": made.plain["down"]})
        plain[-1]["gate_up"] = made.joined("gate", "up")
    last = Quantised({"head": (c.vocab_size, c.hidden_size)}, bits, 7)
    head, table = last.linear("head"), random_weights(c.vocab_size, c.hidden_size, 8) * 64
    order = [layers[number % DISTINCT] for number in range(c.num_layers)]
    whole = None
    if GPU.driver is not None and fits(c, GPU.driver):
        whole = QuantStep(mx, c, dtype="float16", layers=order, head=head, embeddings=table, driver=GPU.driver)
    transformer = Transformer(
        mx, Ops(mx, GPU.backend, "float16", quantised=True), c, layers=order, final_norm=ones, head=head,
        embeddings=table, tier_sizes=(1,), whole=whole,
    )  # fmt: skip
    return transformer, [*(plain[number % DISTINCT] for number in range(c.num_layers)), {"head": last.plain["head"]}]


class Steps:
    """Runs single steps of a specdec model after a history of CONTEXT tokens."""

    def __init__(self, transformer: Transformer, history: list[tuple[Any, Any]]) -> None:
        self.transformer = transformer
        self.cache = cache_arrays(transformer, 2 * SPAN)
        for number, (keys, values) in enumerate(history):
            layer = self.cache[0][number] if transformer.whole else self.cache[number]
            layer[0, :, :CONTEXT], layer[1, :, :CONTEXT] = keys[0], values[0]
            if transformer.whole:
                self.cache[0][number] = layer
        mx.eval(self.cache)
        self._takes: dict[float, list[Any]] = {}

    def takes(self, effort: float) -> list[Any]:
        """Inputs to take of every matrix."""
        if effort not in self._takes:
            counts = [
                [weights_to_take(effort, linear.inputs)] * len(linear.names) for linear in self.transformer.linears
            ]
            flat = [count for group in counts for count in group]
            self._takes[effort] = [on_device(flat)] if self.transformer.whole else [on_device([g]) for g in counts]
        return self._takes[effort]

    def __call__(self, mode: str, effort: float, tokens: list[int]) -> Any:
        """A step, to be waited for."""
        state = state_of([chain(tokens, CONTEXT, wanted=len(tokens))], [2 * SPAN])
        rows = self.transformer.row_step(len(tokens))
        splits = 0 if self.transformer.whole else -(-(CONTEXT + len(tokens)) // SPAN)
        kind = Kind(mode, effort < 1, rows, splits, rows)
        return self.transformer.run(kind, state, [self.cache], self.takes(effort) if effort < 1 else [])

    def logits(self, mode: str, effort: float, tokens: list[int]) -> np.ndarray:
        """Logits of a step (tokens, V)."""
        out = self(mode, effort, tokens)
        mx.eval(out)
        return self.transformer.logits(out, len(tokens))


def check(steps: Steps, mlx: Callable[[Any, list[Any]], Any], cache: list[Any], bits: int) -> None:
    """Refuse to time steps that are wrong: rows alone and together, and against MLX."""
    name = f"{bits}-bit"
    tokens = list(range(5, 10))
    for effort in sorted({effort for mode, effort, _ in CASES[bits] if mode == "quant"}):
        together = steps.logits("quant", effort, tokens)
        for count in (1, 4):
            if not np.array_equal(steps.logits("quant", effort, tokens[:count]), together[:count]):
                sys.exit(f"{name}: rows of {count} and of {len(tokens)} differ at effort {effort}: nothing was timed")
    ours = steps.logits("quant", 1.0, tokens).astype(np.float64)
    table = steps.transformer.embeddings
    theirs = np.array(mlx(table[mx.array(tokens)], cache).astype(mx.float32)).astype(np.float64)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    print(f"{name} against MLX's: relative difference {error:.2e}")
    # As for the dense step: MLX's residual stream and activations are float16.
    if not error < 2e-2:
        sys.exit(f"the {name} step differs from MLX's: nothing was timed")


def dense_times(config: ModelConfig, cache: list[Any], repeat: int) -> dict[int, tuple[float, float]]:
    """Median and spread of MLX's dense step of that shape, by rows."""
    c = config
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes = {"qkv": (q + 2 * kv, c.hidden_size), "o": (c.hidden_size, q), "down": (c.hidden_size, c.intermediate_size)}
    shapes["gate_up"] = (2 * c.intermediate_size, c.hidden_size)
    plain = [
        {name: random_weights(*shape, 10 * number + at) for at, (name, shape) in enumerate(shapes.items())}
        for number in range(DISTINCT)
    ]
    head = {"head": random_weights(c.vocab_size, c.hidden_size, 7)}
    mx.eval(plain, head)
    step = mlx_step(config, [*(plain[number % DISTINCT] for number in range(c.num_layers)), head])
    found = {}
    for rows in (1, 5):
        x = random_weights(rows, c.hidden_size, rows)
        mx.eval(x)
        found[rows] = seconds(lambda x=x: step(x, cache), repeat=repeat)
    return found


def times_of(
    config: ModelConfig, bits: int, cache: list[Any], repeat: int
) -> list[tuple[str, float, int, float, float, float]]:
    """Name, effort, rows, median, spread and a single row's median of the steps of MLX and of specdec."""
    transformer, plain = random_models(config, bits)
    mlx, steps = mlx_step(config, plain, bits=bits), Steps(transformer, cache)
    check(steps, mlx, cache, bits)
    found, single = [], 0.0
    for rows in (1, 5):
        x = transformer.embeddings[mx.array(list(range(rows)))]
        mx.eval(x)
        middle, spread = seconds(lambda x=x: mlx(x, cache), repeat=repeat)
        single = single or middle
        found.append((f"MLX, {bits} bits", 1.0, rows, middle, spread, single))
    single = 0.0
    for mode, effort, rows in CASES[bits]:
        tokens = list(range(rows))
        middle, spread = seconds(lambda m=mode, e=effort, t=tokens: steps(m, e, t), repeat=repeat)
        single = single or middle
        name = f"{bits} bits" + (", upper four" if mode == "nested" else "")
        found.append((name, effort, rows, middle, spread, single))
    return found


def main() -> None:
    """Check, measure, print."""
    arguments, config = asked_for(__doc__.splitlines()[0])
    cache = random_history(config)
    rows_of: list[tuple[Any, ...]] = []
    dense = dense_times(config, cache, arguments.repeat)
    base = dense[1][0]
    for rows, (middle, spread) in dense.items():
        rows_of.append(("MLX, 16 bits", 1.0, rows, middle * 1e3, spread, middle / base, middle / base))
    mx.clear_cache()
    for bits in CASES:
        for name, effort, rows, middle, spread, single in times_of(config, bits, cache, arguments.repeat):
            rows_of.append((name, effort, rows, middle * 1e3, spread, middle / base, middle / single))
        mx.clear_cache()
    print(
        f"{device()}, {arguments.layers} blocks, context {CONTEXT}, device copy {(copied := copy_bandwidth()):.0f} GB/s"
    )
    header = ("step", "effort", "rows", "ms", "spread", "of MLX's dense step", "single rows")
    print_table(header, rows_of)
    results = {"steps": [dict(zip(header, row, strict=True)) for row in rows_of], "copy_gb_s": copied,
               "layers": arguments.layers, "context": CONTEXT, "group": GROUP, **device()}  # fmt: skip
    write_json(arguments.json, results, benchmark="gpu_quantised")


if __name__ == "__main__":
    main()
