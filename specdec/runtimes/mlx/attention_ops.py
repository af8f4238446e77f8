"""The kernels of attention as functions of `mx.array`s: rotation, attention over the cache, joining its splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specdec.model.layers import Attention
from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.kernels import Constant, present
from specdec.runtimes.mlx.ops import Ops, Selection, cache_step
from specdec.runtimes.mlx.state import STATE_CONSTANTS

WINDOWLESS = 1 << 30
_QK_NORMS = {"none": 0, "head": 1, "full": 2}
_LANES = 32
_THREADS = 256


@dataclass(frozen=True, slots=True)
class AttentionVectors:
    """Float32 vectors of a layer's attention; None for those that it has not.

    Attributes:
        bias: (columns,), of queries, keys and values.
        norms: of queries, then keys: (2, size) by head, else (heads + KV heads, size).
        sinks: (heads,).
    """

    bias: Any = None
    norms: Any = None
    sinks: Any = None


def rotate(
    ops: Ops,
    attention: Attention,
    vectors: AttentionVectors,
    qkv: Any,
    caches: Sequence[Any],
    angles: Any,
    growth: Any,
    state: Any,
    *,
    eps: float,
) -> Any:
    """Queries float32 (rows, heads, size) as attention takes them; new keys and values go into the caches, in place.

    Args:
        ops: runs kernels.
        attention: of the layer.
        vectors: of the layer.
        qkv: (P, rows, columns) float32, parts of the joined projections.
        caches: float16 (2, KV heads, positions, size) of each of the step's sequences, in the state's order; written.
        angles: float32 (positions, turned / 2, 2), cosine and sine; None where nothing turns.
        growth: float32 (positions,), what multiplies queries beside the scale of scores; None for nothing.
        state: the pass.
        eps: of the norms.
    """
    parts, rows, columns = qkv.shape
    constants, given = _sizes(attention, caches, rows)
    size, dims = attention.head_dim, attention.turned
    constants |= {"PARTS": parts, "COLUMNS": columns, "SCALE": float(attention.score_scale)}
    constants |= {"EPSILON": float(eps), "TURNED": dims, "GROWTH": growth is not None}
    constants |= {"INTERLEAVED": attention.rope.kind == "interleaved", "BIAS": vectors.bias is not None}
    constants["QK_NORM"] = _QK_NORMS[attention.qk_norm]
    inputs = {"qkv": qkv} | given | ({"angles": angles} if dims else {})
    inputs |= present(growth=growth, bias=vectors.bias, norms=vectors.norms)
    made = {"queries": ((rows, attention.heads, size), ops.mx.float32)}
    grid = (attention.heads + 2 * attention.kv_heads, rows)
    return ops.run("rotate", constants, inputs | {"state": state}, made, grid, _LANES)[0]


def attend(
    ops: Ops, attention: Attention, queries: Any, caches: Sequence[Any], state: Any, *, splits: int, tree: bool = False
) -> Any:
    """Attention over the caches: splits float32 (rows, heads, splits, size + 2), for `combine`.

    Args:
        ops: runs kernels.
        attention: of the layer.
        queries: from `rotate`, which has written the caches.
        caches: as `rotate` takes them.
        state: the pass.
        splits: that are computed at most; a power of two keeps the number of kernels small.
        tree: rows see their paths, as the state says.
    """
    rows, heads, size = queries.shape
    constants, given = _sizes(attention, caches, rows)
    constants |= {"SPLITS": splits, "SPAN": SPAN, "TREE": tree, "WINDOW": _window(attention)}
    constants |= {"SOFTCAP": attention.softcap is not None, "CAP": float(attention.softcap or 1)}
    made = {"splits": ((rows, heads, splits, size + 2), ops.mx.float32)}
    inputs = {"queries": queries} | given | {"state": state}
    grid = (heads, splits * int(constants["CACHES"]))
    return ops.run("attention", constants, inputs, made, grid, _THREADS)[0]


def combine(
    ops: Ops,
    attention: Attention,
    vectors: AttentionVectors,
    splits: Any,
    state: Any,
    *,
    gates: Any = None,
    draft: bool = False,
    selection: Selection | None = None,
) -> tuple[Any, Any]:
    """The splits put together, with sinks and gates: (activation, counts or None).

    `gates` is float32 (P, rows, heads * size), the parts of a projection.
    """
    rows, heads, count, _ = splits.shape
    constants: dict[str, Constant] = {"HEADS": heads, "SIZE": attention.head_dim, "SPLITS": count, "SPAN": SPAN}
    constants |= {"WINDOW": _window(attention), "SINKS": vectors.sinks is not None}
    constants["GATES"] = 0 if gates is None else gates.shape[0]
    inputs, width = present(splits=splits, sinks=vectors.sinks, gates=gates), attention.query_width
    made = ops.make_rows("attention_sum", constants, inputs, {}, state, rows, width, draft=draft, selection=selection)
    return made["activation"], made.get("counts")


def _window(attention: Attention) -> int:
    return WINDOWLESS if attention.window is None else attention.window


def _sizes(attention: Attention, caches: Sequence[Any], rows: int) -> tuple[dict[str, Constant], dict[str, Any]]:
    """Constants of the heads and caches, and the caches by name: those that are not used are the first again."""
    count = cache_step(len(caches))
    constants: dict[str, Constant] = {"HEADS": attention.heads, "KV_HEADS": attention.kv_heads}
    constants |= {"SIZE": attention.head_dim, "ROWS": rows, "CACHES": count} | STATE_CONSTANTS
    return constants, {f"cache{n}": caches[n if n < len(caches) else 0] for n in range(count)}
