"""What the GPU benchmarks share: the device, a dependent chain's time, and random models of a given shape."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import fields, replace
from threading import RLock
from typing import Any

import numpy as np

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.device import find_gpu
from specdec.runtimes.mlx.layers import Layer, Mlp
from specdec.runtimes.mlx.model import Transformer
from specdec.runtimes.mlx.ops import Ops
from specdec.runtimes.mlx.pack import BUCKET, RUN, pack_bucket, pack_dense, pack_int4, pack_tiers
from specdec.runtimes.mlx.step import WholeStep, fits
from specdec.runtimes.mlx.weights import Linear, PackedBucket, PackedTiers, lines_of

GPU = find_gpu()
mx = GPU.mx
TIERS = (4, 4, 4, 4)
# The shape of Llama-3-8B and its kin without their long vocabulary: what the targets are stated for.
SHAPE_7B = ModelConfig.uniform(
    family="llama",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    rope_theta=10000.0,
    max_context=4096,
)


def device() -> dict[str, str]:
    """The GPU, for the results."""
    return {"gpu": GPU.name, "backend": GPU.backend, "mlx": GPU.version}


def seconds(run: Callable[[], Any], *, repeat: int, warm_up: int = 3) -> tuple[float, float]:
    """Median and spread (largest less smallest, of the median) of `run`, which returns what to wait for."""
    taken = []
    for turn in range(warm_up + repeat):
        start = time.perf_counter()
        mx.eval(run())
        if turn >= warm_up:
            taken.append(time.perf_counter() - start)
    middle = statistics.median(taken)
    return middle, (max(taken) - min(taken)) / middle


def copy_bandwidth() -> float:
    """GB/s of a device copy, reading and writing counted, of 4 GB."""
    big = mx.zeros((1 << 30,), dtype=mx.float32)
    mx.eval(big)
    took, _ = seconds(lambda: big + 1.0, repeat=5)
    return 2 * big.nbytes / took / 1e9


def random_weights(outputs: int, inputs: int, seed: int) -> Any:
    """Gaussian float16 (out, in), of standard deviation 1 / sqrt(in)."""
    key = mx.random.key(seed)
    return (mx.random.normal((outputs, inputs), key=key) * inputs**-0.5).astype(mx.float16)


def _slots(size: Any) -> Any:
    """Where each of 16 weights of size (..., 16) lies among the runs of its bucket: 4 * run + place, int32.

    By counting: a sort of millions of short rows is more than one launch of MLX's takes.
    """
    number = mx.arange(BUCKET)
    rank = mx.zeros(size.shape, dtype=mx.int32)
    for i in range(BUCKET):
        other = size[..., i : i + 1]
        rank = rank + ((other > size) | ((other == size) & (number > i))).astype(mx.int32)
    run = rank // RUN
    place = mx.zeros(size.shape, dtype=mx.int32)
    for i in range(BUCKET):
        place = place + ((run[..., i : i + 1] == run) & (number > i)).astype(mx.int32)
    return run * RUN + place


def buckets_of(weights: Any) -> tuple[Any, Any, Any]:
    """Runs of (out, in) weights in buckets of 16: values, positions as `mlx_pack.bucket_parts`, scores (in, 4)."""
    outputs, inputs = weights.shape
    wide = -(-outputs // BUCKET) * BUCKET
    columns = mx.pad(weights, [(0, wide - outputs), (0, 0)]).T.reshape(inputs, wide // BUCKET, BUCKET)
    slots, number = _slots(mx.abs(columns)), mx.arange(BUCKET)
    values = mx.zeros_like(columns)
    order = mx.zeros(columns.shape, dtype=mx.uint16)
    for j in range(BUCKET):
        here = slots[..., j : j + 1] == number
        values = mx.where(here, columns[..., j : j + 1], values)
        order = mx.where(here, mx.array(j, mx.uint16), order)
    values = values.reshape(inputs, -1, BUCKET // RUN, RUN)
    four = order.reshape(values.shape)
    scores = mx.mean(mx.abs(values).astype(mx.float32), axis=(1, 3))
    places = four[..., 0] | (four[..., 1] << 4) | (four[..., 2] << 8) | (four[..., 3] << 12)
    return mx.contiguous(values.transpose(2, 0, 1, 3)).view(mx.uint16), places.transpose(2, 0, 1), scores


def tiers_of(weights: Any) -> Any:
    """Tier of every weight, uint8 (out, in); `out` is a multiple of 16."""
    outputs, inputs = weights.shape
    columns = weights.T.reshape(inputs, outputs // BUCKET, BUCKET)
    return (_slots(mx.abs(columns)) // RUN).astype(mx.uint8).reshape(inputs, outputs).T


def int4_of(weights: Any) -> tuple[Any, Any, Any]:
    """Levels, scales and scores as `mlx_pack.pack_int4` takes them; one candidate scale a group."""
    outputs, inputs = weights.shape
    groups = weights.T.astype(mx.float32).reshape(inputs // 32, 32, outputs)
    scale = (mx.max(mx.abs(groups), axis=1) / 7.5).astype(mx.float16)
    exact = mx.where(scale == 0, 1.0, scale.astype(mx.float32))[:, None]
    levels = mx.clip(mx.round(groups / exact), -8, 7)
    scores = mx.mean(mx.abs(levels * exact).reshape(inputs, outputs), axis=1)[:, None]
    return (levels + 8).astype(mx.uint8).reshape(inputs, outputs), scale, scores


def linear_of(weights: list[Any], *, paired: bool = False, views: tuple[str, ...] = ()) -> Linear:
    """A multiplication by matrices on the device, joined, with what `views` names of "lines", "tiers", "int4" and
    "bucket"."""
    sizes = tuple(part.shape[0] for part in weights)
    linear = Linear(tuple(str(i) for i in range(len(weights))), sizes, weights[0].shape[1], paired)
    joined = linear.join(mx, weights)
    linear.weights = pack_dense(mx, GPU.backend, joined, linear.rows)
    mx.eval(linear.weights)
    if "lines" in views:
        linear.lines = lines_of(mx, linear)
        scores = mx.stack([mx.mean(mx.abs(part.astype(mx.float32)), axis=0)[:, None] for part in weights])
        linear.scores = scores + mx.zeros_like(scores)
        mx.eval(linear.scores)
    if "tiers" in views:
        planes = pack_tiers(mx, GPU.backend, linear.join(mx, [tiers_of(part) for part in weights]), linear.rows)
        linear.tiers = PackedTiers(planes, mx.stack([buckets_of(part)[2] for part in weights]))
        mx.eval(planes, linear.tiers.scores)
    if "int4" in views:
        linear.int4 = pack_int4(mx, GPU.backend, *int4_of(joined))
        mx.eval(linear.int4.levels, linear.int4.scales, linear.int4.scores)
    if "bucket" in views:
        values, places, scores = buckets_of(joined)
        linear.bucket = PackedBucket(pack_bucket(mx, values, places), scores)
        mx.eval(linear.bucket.records, linear.bucket.scores)
    return linear


def cache_arrays(transformer: Transformer, positions: int) -> list[Any]:
    """The arrays of a cache of one sequence, with memory for this number of positions."""
    cache = transformer.new_cache(positions, RLock())
    cache.reserve(positions)
    return cache.arrays


def random_transformer(
    config: ModelConfig, *, views: tuple[str, ...], distinct: int = 4
) -> tuple[Transformer, list[dict[str, Any]], Ops]:
    """A model of random weights, and its plain matrices by block.

    Args:
        config: its shape.
        views: what to pack in addition to the dense weights.
        distinct: blocks with memory of their own (of the same numbers: bucketing them takes long); the others repeat
            them, far more bytes later than a cache holds.
    """
    ops, c = Ops(mx, GPU.backend, "float16"), config
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes = {"q": (q, c.hidden_size), "k": (kv, c.hidden_size), "v": (kv, c.hidden_size), "o": (c.hidden_size, q)}
    shapes |= {"gate": (c.intermediate_size, c.hidden_size), "up": (c.intermediate_size, c.hidden_size)}
    shapes["down"] = (c.hidden_size, c.intermediate_size)
    ones = mx.ones((c.hidden_size,))
    w = {name: random_weights(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    first = {
        "qkv": linear_of([w["q"], w["k"], w["v"]], views=views),
        "o": linear_of([w["o"]], views=views),
        "gate_up": linear_of([w["gate"], w["up"]], paired=True, views=views),
        "down": linear_of([w["down"]], views=views),
    }
    joined = {"qkv": mx.concatenate([w["q"], w["k"], w["v"]]), "o": w["o"], "down": w["down"]}
    joined["gate_up"] = mx.concatenate([w["gate"], w["up"]])
    layers, plain = [], []
    for _ in range(distinct):
        made = {name: copy_of(linear) for name, linear in first.items()}
        mlp = Mlp(c.intermediate_size, made["gate_up"], made["down"])
        layers.append(Layer(c.layers[0], made["qkv"], made["o"], mlp, attn_norm=ones, mlp_norm=ones))
        plain.append({name: _copy(weights) for name, weights in joined.items()})
    mx.eval(plain)
    table = random_weights(c.vocab_size, c.hidden_size, 7) * 64
    head = linear_of([table], views=views)
    order = [layers[i % distinct] for i in range(c.num_layers)]
    whole = None
    if GPU.driver is not None and fits(c, GPU.driver):
        whole = WholeStep(mx, c, dtype="float16", tier_sizes=TIERS, driver=GPU.driver)
    transformer = Transformer(
        mx, ops, c, layers=order, final_norm=ones, head=head, embeddings=table, tier_sizes=TIERS, whole=whole
    )
    return transformer, [*(plain[i % distinct] for i in range(c.num_layers)), {"head": table}], ops


def _copy(array: Any) -> Any:
    """The same numbers in other memory; None stays."""
    return None if array is None else array + mx.zeros((), dtype=array.dtype)


def copy_of(linear: Linear) -> Linear:
    """The same multiplication in other memory."""

    def copied(packed: Any) -> Any:
        if packed is None:
            return None
        return replace(packed, **{field.name: _copy(getattr(packed, field.name)) for field in fields(packed)})

    made = replace(
        linear,
        weights=_copy(linear.weights),
        lines=None if linear.lines is None else _copy(linear.lines),
        tiers=copied(linear.tiers),
        int4=copied(linear.int4),
        bucket=copied(linear.bucket),
    )
    mx.eval([array for array in (made.weights, made.lines) if array is not None])
    for packed in (made.tiers, made.int4, made.bucket):
        if packed is not None:
            mx.eval([getattr(packed, field.name) for field in fields(packed)])
    return made


def on_device(values: list[Any]) -> Any:
    """A small int32 array that the device made, of numbers or of lines of numbers."""
    given = mx.array(np.array(values, np.int32))
    array = given + mx.zeros_like(given)
    mx.eval(array)
    return array
