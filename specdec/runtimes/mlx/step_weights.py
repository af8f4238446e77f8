"""What a step in one kernel takes of a multiplication's weights: `weights_of`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from specdec.runtimes.mlx.pack import pack_int4, pack_stream_int4, padded, unpack_int4, unpack_stream_int4

if TYPE_CHECKING:
    from specdec.runtimes.mlx.model import Kind
    from specdec.runtimes.mlx.weights import Linear


def weights_of(mx: Any, kind: Kind, linear: Linear, *, flows: bool) -> tuple[Any, Any, Any]:
    """Weights, their companions and scores, of a multiplication in a kind of step. With `flows`, 4-bit weights flow."""
    if kind.mode == "dense":
        return linear.weights, None, None
    if kind.mode == "inputs":
        assert linear.lines is not None
        return linear.lines, None, linear.scores
    if kind.mode == "verify":
        assert linear.tiers is not None
        return linear.weights, linear.tiers.planes, linear.tiers.scores
    if kind.mode == "int4":
        return _int4(mx, linear, flows=flows)
    assert linear.bucket is not None
    return linear.bucket.records, None, linear.bucket.scores


def _int4(mx: Any, linear: Linear, *, flows: bool) -> tuple[Any, Any, Any]:
    """4-bit weights; put in the order that the step takes where they are in the other one, and then kept in both."""
    packed, inputs = linear.int4, padded(linear.inputs)
    assert packed is not None
    if flows:
        if packed.stream is None:
            stream = pack_stream_int4(mx, *unpack_int4(mx, packed, inputs))
            mx.eval(stream)
            packed = linear.int4 = replace(packed, stream=stream)
        return packed.stream, None, None
    if packed.levels is None:
        levels, scales = unpack_stream_int4(mx, packed.stream, inputs)
        tiled = pack_int4(mx, "cuda", levels.T, scales, None)
        mx.eval(tiled.levels, tiled.scales)
        packed = linear.int4 = replace(packed, levels=tiled.levels, scales=tiled.scales)
    return packed.levels, packed.scales, packed.scores
