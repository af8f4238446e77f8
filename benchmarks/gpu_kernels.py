"""Every kernel of the GPU runtime by shape, effort and rows, against MLX's dense matmul and against a device copy.

A time is that of one call in a chain of dependent calls under `mx.compile`, over weights of several matrices in turn,
far more bytes than a cache holds. GB/s counts the weights that the call has to read.

    python benchmarks/gpu_kernels.py --json results/gpu_kernels-DEVICE.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from common import add_json_option, print_table, write_json
from gpu_common import GPU, TIERS, copy_bandwidth, copy_of, device, linear_of, mx, on_device, random_weights, seconds
from specdec.kernels.reference.selection import weights_to_take

from specdec.model.layers import Attention
from specdec.runtimes.mlx import attention_ops
from specdec.runtimes.mlx.attention_ops import AttentionVectors
from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.ops import Ops, Selection, row_step
from specdec.runtimes.mlx.state import chain, state_of

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
DISTINCT, CHAIN = 4, 32
POSITION = 200


def chain_seconds(call: Callable[[int, Any], Any], first: Any, *, repeat: int) -> float:
    """Seconds of one of CHAIN calls `call(number, argument)`, each waiting for the one before."""

    def chain(argument: Any) -> Any:
        for number in range(CHAIN):
            argument = mx.depends(argument, call(number % DISTINCT, argument))
        return argument

    compiled = mx.compile(chain)
    return seconds(lambda: compiled(first), repeat=repeat)[0] / CHAIN


def state_at(position: int, rows: int, positions: int = SPAN) -> Any:
    """The state of a step of one sequence, on the device."""
    return on_device(state_of([chain([0] * rows, position)], [positions]).tolist())


class Case:
    """The kernels on one shape."""

    def __init__(self, name: str) -> None:
        self.outputs, self.inputs = SHAPES[name]
        self.ops = Ops(mx, GPU.backend, "float16")
        weights = random_weights(self.outputs, self.inputs, 1)
        linear = linear_of([weights], views=("tiers", "int4", "bucket"))
        self.plain = [weights + mx.zeros((), dtype=weights.dtype) for _ in range(DISTINCT)]
        self.linears = [copy_of(linear) for _ in range(DISTINCT)]
        mx.eval(self.plain)
        rows = mx.random.normal((16, self.inputs), key=mx.random.key(9))
        self.rows = rows + mx.zeros_like(rows)
        self.weight = mx.ones((self.inputs,))
        mx.eval(self.rows, self.weight)

    def state(self, rows: int) -> Any:
        """The pass's state on the device."""
        return state_at(POSITION, rows)

    def activation(self, rows: int, *, draft: bool = False, effort: float = 1.0, counts: bool = False) -> Any:
        """Activations (and counts) of the first `rows` rows, normed, selected at `effort` for a draft."""
        step, chosen = row_step(rows), None
        linear = self.linears[0]
        if draft and (counts or effort < 1):
            assert linear.int4 is not None
            assert linear.bucket is not None
            scores = linear.bucket.scores if counts else linear.int4.scores
            take = on_device([[weights_to_take(effort, self.inputs * (16 if counts else 1))]])
            chosen = Selection(scores, take, TIERS if counts else (1,), counts)
        made = self.ops.norm(self.rows[:step], self.weight, self.state(rows), eps=1e-5, draft=draft, selection=chosen)
        mx.eval([part for part in made if part is not None])
        return made

    def dense(self, rows: int, repeat: int) -> float:
        """Seconds of `dense`; exits if a row is wrong, or depends on the other rows of its pass."""
        _, activation, _ = self.activation(rows)
        state = self.state(rows)

        def call(number: int, argument: Any) -> Any:
            return self.ops.dense(self.linears[number].weights, argument, state, outputs=self.outputs)

        found = np.array(call(0, activation))[:rows]
        alone = np.array(
            self.ops.dense(self.linears[0].weights, self.activation(1)[1], self.state(1), outputs=self.outputs)
        )
        normed = self.rows[:rows] * mx.rsqrt(mx.mean(self.rows[:rows] ** 2, axis=1, keepdims=True) + 1e-5)
        wanted = np.array(normed.astype(mx.float16).astype(mx.float32) @ self.plain[0].astype(mx.float32).T)
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        if not np.array_equal(found[0], alone[0]) or not error < 1e-3:  # tf32 and float32 sums in another order
            sys.exit(f"dense {self.outputs}x{self.inputs} with {rows} rows is wrong by {error}: nothing was timed")
        return chain_seconds(call, activation, repeat=repeat)

    def verify(self, rows: int, effort: float, repeat: int) -> tuple[float, float]:
        """Seconds of `select` and of `verify`."""
        _, activation, _ = self.activation(rows)
        state, take = self.state(rows), on_device([[weights_to_take(effort, self.inputs * 16)]])

        def select(number: int, argument: Any) -> Any:
            tiers = self.linears[number].tiers
            assert tiers is not None
            return self.ops.select(argument, tiers.scores, take, state, TIERS, joined=tiers.scores.shape[0])

        prefix = select(0, activation)
        mx.eval(prefix)

        def verify(number: int, argument: Any) -> Any:
            linear = self.linears[number]
            assert linear.tiers is not None
            return self.ops.verify(
                linear.weights, linear.tiers.planes, argument, prefix, state, outputs=self.outputs, tiers=len(TIERS)
            )

        return chain_seconds(select, activation, repeat=repeat), chain_seconds(verify, activation, repeat=repeat)

    def int4(self, effort: float, repeat: int) -> tuple[float, float]:
        """Seconds of the norm that selects, and of `int4`."""
        _, activation, _ = self.activation(1, draft=True, effort=effort)

        def call(number: int, argument: Any) -> Any:
            packed = self.linears[number].int4
            assert packed is not None
            return self.ops.int4(packed.levels, packed.scales, argument, outputs=self.outputs)

        return self.norm(effort, repeat, counts=False), chain_seconds(call, activation, repeat=repeat)

    def bucket(self, effort: float, repeat: int) -> tuple[float, float]:
        """Seconds of the norm that selects, and of `bucket`."""
        _, activation, counts = self.activation(1, draft=True, effort=effort, counts=True)

        def call(number: int, argument: Any) -> Any:
            packed = self.linears[number].bucket
            assert packed is not None
            return self.ops.bucket(packed.records, argument, counts, outputs=self.outputs)

        return self.norm(effort, repeat, counts=True), chain_seconds(call, activation, repeat=repeat)

    def norm(self, effort: float, repeat: int, *, counts: bool) -> float:
        """Seconds of a norm of one row, with selection below effort 1 or when it counts runs."""
        take = on_device([[weights_to_take(effort, self.inputs * (16 if counts else 1))]])
        state, linear = self.state(1), self.linears[0]
        assert linear.int4 is not None
        assert linear.bucket is not None
        scores = linear.bucket.scores if counts else linear.int4.scores
        chosen = Selection(scores, take, TIERS if counts else (1,), counts) if counts or effort < 1 else None

        def call(_: int, argument: Any) -> Any:
            return self.ops.norm(argument, self.weight, state, eps=1e-5, draft=True, selection=chosen)[1]

        return chain_seconds(call, self.rows[:1] + 0.0, repeat=repeat)

    def mlx(self, rows: int, repeat: int) -> float:
        """Seconds of MLX's own matmul."""
        x = self.rows[:rows].astype(mx.float16)
        mx.eval(x)
        return chain_seconds(lambda number, argument: argument @ self.plain[number].T, x, repeat=repeat)


def attention(rows: int, history: int, repeat: int) -> tuple[float, float]:
    """Seconds of `rotate` with `attention`, and of `attention_sum`: 32 query heads and 8 key-value heads of 128."""
    heads, vectors = Attention(heads=32, kv_heads=8, head_dim=128), AttentionVectors()
    ops, step = Ops(mx, GPU.backend, "float16"), row_step(rows)
    cache = mx.random.normal((2, 8, -(-(history + rows) // SPAN) * SPAN, 128)).astype(mx.float16)
    qkv, angles = mx.random.normal((1, step, 6144)), mx.ones((history + rows, 64, 2)) + 0.0
    state = state_at(history, rows, cache.shape[2])
    splits = -(-(history + rows) // SPAN)
    mx.eval(cache, qkv, angles)

    def attend(_: int, argument: Any) -> Any:
        queries = attention_ops.rotate(ops, heads, vectors, argument, [cache], angles, None, state, eps=1e-5)
        return attention_ops.attend(ops, heads, queries, [cache], state, splits=splits)

    made = attend(0, qkv)
    mx.eval(made)
    summed = chain_seconds(lambda _, a: attention_ops.combine(ops, heads, vectors, a, state)[0], made, repeat=repeat)
    return chain_seconds(attend, qkv, repeat=repeat), summed


def launch(repeat: int) -> float:
    """Seconds of a call that does next to nothing."""
    ops, table = Ops(mx, GPU.backend, "float16"), random_weights(16, 128, 1)
    state = state_at(0, 1)

    def call(_: int, argument: Any) -> Any:
        return ops.embed(table, argument, rows=1, width=128, tied=False)

    return chain_seconds(call, state, repeat=repeat)


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=10, help="chains of each kind (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    repeat, rows_of = arguments.repeat, []

    def add(kernel: str, shape: str, effort: float, rows: int, took: float, nbytes: float, base: float) -> None:
        rows_of.append((kernel, shape, effort, rows, took * 1e6, nbytes / took / 1e9, took / base))

    for name, (outputs, inputs) in SHAPES.items():
        case, shape, size = Case(name), f"{outputs}x{inputs}", outputs * inputs
        base = case.mlx(1, repeat)
        for rows in (1, 5, 9):
            add("MLX matmul", shape, 1.0, rows, base if rows == 1 else case.mlx(rows, repeat), 2 * size, base)
        for rows in (1, 5, 9, 16):
            add("dense", shape, 1.0, rows, case.dense(rows, repeat), 2 * size, base)
        for rows in (1, 5):
            select, verify = case.verify(rows, 0.6, repeat)
            add("select", shape, 0.6, rows, select, 4 * inputs * len(TIERS), base)
            add("verify", shape, 0.6, rows, verify, 2.25 * size, base)
        for effort in (1.0, 0.5):
            norm, multiply = case.int4(effort, repeat)
            add("norm for int4", shape, effort, 1, norm, 4 * inputs, base)
            add("int4", shape, effort, 1, multiply, (0.5 * effort + 0.0625) * size, base)
        for effort in (0.15, 0.25):
            norm, multiply = case.bucket(effort, repeat)
            add("norm for bucket", shape, effort, 1, norm, 4 * inputs * (1 + len(TIERS)), base)
            add("bucket", shape, effort, 1, multiply, 2.5 * effort * size, base)
        del case
    smallest = launch(repeat)
    add("smallest call", "embedding of 128", 1.0, 1, smallest, 256, smallest)
    for rows, history in ((1, 200), (5, 200), (1, 2000)):
        attend, summed = attention(rows, history, repeat)
        for kernel, took in (("attention", attend), ("attention_sum", summed)):
            add(kernel, f"history {history}", 1.0, rows, took, 4 * 1024 * history, took)
    copied = copy_bandwidth()
    print(f"{device()}, chains of {CHAIN} over {DISTINCT} matrices, device copy {copied:.0f} GB/s")
    header = ("kernel", "shape", "effort", "rows", "us", "GB/s", "of MLX's matmul, 1 row")
    print_table(header, rows_of)
    results = {"kernels": [dict(zip(header, row, strict=True)) for row in rows_of], "copy_gb_s": copied, **device()}
    write_json(arguments.json, results, benchmark="gpu_kernels")


if __name__ == "__main__":
    main()
