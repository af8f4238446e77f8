"""The GPU kernels as functions of `mx.array`s: shapes in, launch configuration and output shapes worked out here.

A launch configuration follows from the shape of the matrix alone, never from the number of rows in use: that is
what makes a row's bits independent of its company. The kernels' texts are in `kernels`, the model in `model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.kernels import Constant, build, kernel_text
from specdec.runtimes.mlx.pack import BUCKET_TILE, INPUT_STEP, INT4_TILE, padded
from specdec.runtimes.mlx.state import MAX_ROWS, STATE_CONSTANTS

ROW_STEPS = (1, 8, MAX_ROWS)  # rows that a multi-row kernel is built for; a step of M rows takes the next one
CACHE_STEPS = (1, 4, MAX_ROWS)  # caches that attention is built for; a step of N sequences takes the next one
_MULTIPROCESSORS = 132  # what launch configurations are made for; another number costs speed only
_DENSE_WARPS = 8


@dataclass(frozen=True, slots=True)
class Selection:
    """How a draft chooses inputs while it makes a row of activations.

    Attributes:
        scores: float32 (in, tiers).
        take: int32 (lines, 1): weights to take, relative to `tier_sizes`; the state says which line is a row's.
        tier_sizes: weights in each tier.
        counts: also say how many runs of each input are taken (bucketMul), not only which inputs.
    """

    scores: Any
    take: Any
    tier_sizes: tuple[int, ...]
    counts: bool


def row_step(rows: int) -> int:
    """The number of rows of the kernel that runs a pass of `rows`."""
    return next(step for step in ROW_STEPS if rows <= step)


def tiles_per_block(tiles: int, *, even: bool) -> int:
    """Tiles of 16 outputs for a block of `dense`: the fewest turns over the multiprocessors, from the shape alone."""

    def cost(each: int) -> int:
        return -(-tiles // (each * _MULTIPROCESSORS)) * each

    return min((2, 4) if even else (2, 3, 1, 4), key=cost)


def packed_rows(outputs: int, *, even: bool = False) -> int:
    """Outputs of a matrix with the padding that `dense` and `verify` need."""
    tiles = -(-outputs // 16)
    each = tiles_per_block(tiles, even=even)
    return padded(padded(tiles, each) * 16, 32)  # a Metal threadgroup makes 32


def shares(tiles: int, steps: int, *, blocks: int, least: int) -> int:
    """Parts into which a draft kernel splits the inputs: enough blocks, but `least` steps for each part."""
    return max(1, min(8, blocks // tiles, steps // least))


class Ops:
    """The kernels for one backend and one type of weights.

    Args:
        mx: MLX.
        backend: "metal" or "cuda".
        dtype: "float16" or "bfloat16", of the exact weights.
        quantised: the exact weights are quantised: activations of the exact view are float32.
    """

    def __init__(self, mx: Any, backend: str, dtype: str, *, quantised: bool = False) -> None:
        self.mx, self.backend = mx, backend
        self.weight_type = "half_t" if dtype == "float16" else "bfloat_t"
        narrow = backend == "cuda" and dtype == "bfloat16"
        plain = backend == "metal" or quantised
        # Activations in the exact view: (type, parts that add up to one).
        self.exact = (mx.float32, 1) if plain else (mx.bfloat16, 2) if narrow else (mx.float16, 1)
        self.draft = (mx.float16 if backend == "cuda" else mx.float32, 1)
        self._built: dict[tuple[Any, ...], Callable[..., list[Any]]] = {}

    def embed(self, table: Any, state: Any, *, rows: int, width: int, tied: bool) -> Any:
        """Embeddings (rows, width) float32."""
        constants: dict[str, Constant] = {"WIDTH": width, "PADDED": padded(width), "TIED": tied, "THREADS": 256}
        outputs = {"x": ((rows, width), self.mx.float32)}
        return self.run("embed", constants, {"table": table, "state": state}, outputs, (rows, 1), 256)[0]

    def norm(
        self,
        x: Any,
        weight: Any,
        state: Any,
        *,
        eps: float,
        parts: Any = None,
        draft: bool = False,
        selection: Selection | None = None,
    ) -> tuple[Any, Any, Any]:
        """Add `parts` (P, rows, width) to x (rows, width), then norm: (x, activation, counts or None)."""
        rows, width = x.shape
        inputs = {"x": x} | ({} if parts is None else {"parts": parts}) | {"weight": weight}
        outputs = {} if parts is None else {"sum": ((rows, width), self.mx.float32)}
        constants: dict[str, Constant] = {"PARTS": 0 if parts is None else parts.shape[0], "EPSILON": float(eps)}
        made = self._rows("norm", constants, inputs, outputs, state, rows, width, draft=draft, selection=selection)
        return (x, *made) if parts is None else made

    def gate(
        self, parts: Any, state: Any, *, width: int, draft: bool, selection: Selection | None = None, up_at: int = 0
    ) -> Any:
        """silu(gate) * up from (P, rows, columns): (activation, counts or None).

        Columns are 16 gates and 16 ups in turn, or with `up_at` all gates and, from there on, all ups.
        """
        constants: dict[str, Constant] = {"PARTS": parts.shape[0], "COLUMNS": parts.shape[2], "UP_AT": up_at}
        rows = parts.shape[1]
        return self._rows("gate", constants, {"parts": parts}, {}, state, rows, width, draft=draft, selection=selection)

    def attention_sum(
        self, splits: Any, state: Any, *, size: int, draft: bool = False, selection: Selection | None = None
    ) -> Any:
        """The splits (rows, heads, splits, size + 2) put together: (activation, counts or None)."""
        rows, heads, count, _ = splits.shape
        constants: dict[str, Constant] = {"HEADS": heads, "SIZE": size, "SPLITS": count, "SPAN": SPAN}
        inputs, width = {"splits": splits}, heads * size
        return self._rows("attention_sum", constants, inputs, {}, state, rows, width, draft=draft, selection=selection)

    def select(self, activation: Any, scores: Any, take: Any, state: Any, tier_sizes: tuple[int, ...]) -> Any:
        """Tiers that each row takes of each input: float16 (joined, rows, padded in)."""
        joined, width, _ = scores.shape
        rows, wide = activation.shape[0], activation.shape[2]
        constants = self.row_constants(rows, width) | tier_constants(tier_sizes) | {"JOINED": joined}
        inputs = {"activation": activation, "scores": scores, "take": take, "state": state}
        outputs = {"prefix": ((joined, rows, wide), self.mx.float16)}
        threads = 32 * int(constants["WARPS"])
        return self.run("select", constants, inputs, outputs, (rows, joined), threads)[0]

    def dense(
        self, weights: Any, activation: Any, state: Any, *, outputs: int, residual: Any = None, gated: int = 0
    ) -> Any:
        """Rows times a matrix: (rows, outputs) float32; with `gated`, an activation of that width."""
        inputs = {"weights": weights, "activation": activation, "state": state}
        return self._tiles("dense", inputs, {}, outputs, residual, gated)

    def verify(
        self,
        weights: Any,
        planes: Any,
        activation: Any,
        prefix: Any,
        state: Any,
        *,
        outputs: int,
        tiers: int,
        seams: tuple[int, int] = (0, 0),
        residual: Any = None,
    ) -> Any:
        """Rows times a matrix of which each takes its own tiers: (rows, outputs) float32.

        Args:
            weights: as `dense` takes them.
            planes: from `pack_tiers`.
            activation: of the exact view.
            prefix: (joined, rows, padded in) from `select`.
            state: the pass.
            outputs: of the matrix.
            tiers: K.
            seams: where the second and third of three joined matrices start, in outputs.
            residual: (rows, outputs) to add.
        """
        joined = prefix.shape[0]
        constants = {"JOINED": joined, "SECOND_TILE": seams[0] // 16, "THIRD_TILE": seams[1] // 16, "TIERS": tiers}
        inputs = {"weights": weights, "planes": planes, "activation": activation, "prefix": prefix, "state": state}
        return self._tiles("verify", inputs, constants, outputs, residual, 0, even=joined == 2)

    def int4(self, levels: Any, scales: Any, activation: Any, *, outputs: int) -> Any:
        """One row times 4-bit weights: (P, 1, outputs) float32, to be added by rising P."""
        wide, tile = activation.shape[-1], INT4_TILE[self.backend]
        tiles, steps = -(-outputs // tile), wide // INPUT_STEP
        count = shares(tiles, steps, blocks=256, least=8) if self.backend == "cuda" else 1
        constants: dict[str, Constant] = {"PADDED": wide, "PARTS": count, "WARPS": 8, "OUTPUTS": outputs}
        constants["GROUPS_AHEAD"] = 2
        inputs = {"q4": levels, "scales": scales, "activation": activation}
        made = {"y": ((count, 1, outputs), self.mx.float32)}
        return self.run("int4", constants, inputs, made, (tiles, count), 256, fit=2)[0]

    def bucket(self, records: Any, activation: Any, counts: Any, *, outputs: int) -> Any:
        """bucketMul of one row: (P, 1, outputs) float32, to be added by rising P."""
        wide, warps = activation.shape[-1], 16 if self.backend == "cuda" else 8
        tiles, steps = -(-outputs // BUCKET_TILE), wide // 32
        count = shares(tiles, steps, blocks=256, least=warps)
        constants: dict[str, Constant] = {"PADDED": wide, "PARTS": count, "WARPS": warps, "OUTPUTS": outputs}
        constants |= {"AHEAD": 4, "weight_t": self.weight_type}
        inputs = {"records": records, "activation": activation, "counts": counts}
        made = {"y": ((count, 1, outputs), self.mx.float32)}
        return self.run("bucket", constants, inputs, made, (tiles, count), 32 * warps, fit=2)[0]

    def attention(
        self,
        qkv: Any,
        caches: Sequence[Any],
        angles: Any,
        state: Any,
        *,
        heads: int,
        splits: int,
        window: int | None,
        eps: float,
        bias: Any = None,
        norms: Any = None,
        tree: bool = False,
    ) -> Any:
        """Rotate, put new keys and values into the caches in place, attend: (rows, heads, splits, size + 2) float32.

        Args:
            qkv: (P, rows, columns) float32, parts of the joined projections.
            caches: float16 (2, KV heads, positions, size) of each of the step's sequences, in the state's order;
                written.
            angles: float32 (positions, size / 2, 2), cosine and sine.
            state: the pass.
            heads: query heads.
            splits: splits that are computed at most; a power of two keeps the number of kernels small.
            window: positions that a query sees, or None.
            eps: of the norms.
            bias: float32 (columns,) or None.
            norms: float32 (2, size), of queries and keys, or None.
            tree: rows see their paths, as the state says.
        """
        (parts, rows, columns), (_, kv_heads, _, size) = qkv.shape, caches[0].shape
        count = next(step for step in CACHE_STEPS if len(caches) <= step)
        constants: dict[str, Constant] = {"HEADS": heads, "KV_HEADS": kv_heads, "SIZE": size, "SPLITS": splits}
        constants |= {"ROWS": rows, "SPAN": SPAN, "PARTS": parts, "COLUMNS": columns, "SCALE": size**-0.5}
        constants |= STATE_CONSTANTS | {"BIAS": bias is not None, "QK_NORM": norms is not None, "EPSILON": float(eps)}
        constants["WINDOW"] = 1 << 30 if window is None else window
        constants |= {"CACHES": count, "TREE": tree}
        inputs = {"qkv": qkv}
        # Those that are not used are the first again.
        inputs |= {f"cache{n}": caches[n if n < len(caches) else 0] for n in range(count)} | {"angles": angles}
        inputs |= ({} if bias is None else {"bias": bias}) | ({} if norms is None else {"norms": norms})
        made = {"splits": ((rows, heads, splits, size + 2), self.mx.float32)}
        return self.run("attention", constants, inputs | {"state": state}, made, (heads, splits * count), 256)[0]

    def row_constants(self, rows: int, width: int) -> dict[str, Constant]:
        """Sizes of a kernel with one row for each block."""
        most = 1024 if self.backend == "cuda" else 512
        wide = padded(width)
        threads = min(most, wide)
        own = -(-wide // threads)
        sizes: dict[str, Constant] = {"ROWS": rows, "WIDTH": width, "PADDED": wide, "OWN": own, "WARPS": threads // 32}
        return sizes | STATE_CONSTANTS

    def _rows(
        self,
        name: str,
        constants: Mapping[str, Constant],
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        state: Any,
        rows: int,
        width: int,
        *,
        draft: bool,
        selection: Selection | None,
    ) -> tuple[Any, ...]:
        """Run a kernel that makes one row of activations a block: (its own outputs, activation, counts or None)."""
        sizes = (
            self.row_constants(rows, width)
            | dict(constants)
            | tier_constants(selection.tier_sizes if selection else ())
        )
        sizes["COUNTS"] = bool(selection and selection.counts)
        chosen = {"scores": selection.scores, "take": selection.take} if selection else {}
        dtype, split = self.draft if draft else self.exact
        made = dict(outputs) | {"activation": ((rows, split, padded(width)), dtype)}
        if sizes["COUNTS"]:
            made["counts"] = ((padded(width),), self.mx.uint8)
        threads = 32 * int(sizes["WARPS"])
        found = self.run(name, sizes, {**inputs, **chosen, "state": state}, made, (rows, 1), threads)
        return tuple(found) if sizes["COUNTS"] else (*found, None)

    def _tiles(
        self,
        name: str,
        inputs: dict[str, Any],
        constants: Mapping[str, Constant],
        outputs: int,
        residual: Any,
        gated: int,
        *,
        even: bool = False,
    ) -> Any:
        """Run `dense` or `verify`."""
        rows, split, wide = inputs["activation"].shape
        tiles = -(-outputs // 16)
        each = tiles_per_block(tiles, even=even or bool(gated))
        dtype, _ = self.exact
        made = ((rows, split, padded(gated)), dtype) if gated else ((rows, outputs), self.mx.float32)
        if residual is not None:
            inputs = inputs | {"residual": residual}
        ahead = {1: 8, 2: 4, 3: 2, 4: 2}[each] if name == "dense" else 2
        if rows > 8 or split > 1:
            ahead = max(1, ahead // 2)
        sizes: dict[str, Constant] = {"ROWS": rows, "PADDED": wide, "PER_BLOCK": each, "WARPS": _DENSE_WARPS}
        sizes |= {"UNROLL": ahead, "SPLIT": split, "OUTPUTS": outputs, "OUT_PADDED": padded(gated), **constants}
        sizes |= {"EPILOGUE": 2 if gated else int(residual is not None), "weight_t": self.weight_type}
        blocks = -(-tiles // each) if self.backend == "cuda" else -(-outputs // 32)
        return self.run(name, sizes, inputs, {"y": made}, (blocks, 1), 32 * _DENSE_WARPS, fit=2)[0]

    def run(
        self,
        name: str,
        constants: Mapping[str, Constant],
        inputs: Mapping[str, Any],
        outputs: Mapping[str, tuple[tuple[int, ...], Any]],
        blocks: tuple[int, int],
        threads: int,
        *,
        fit: int = 1,
        parts: Sequence[str] = (),
    ) -> list[Any]:
        """Build a kernel unless it is there, and call it.

        Args:
            name: of its file.
            constants: sizes and types.
            inputs: by the names that the kernel knows.
            outputs: shape and type of each.
            blocks: of the grid, x and y.
            threads: of a block.
            fit: blocks that should fit on a multiprocessor together.
            parts: files of functions that it needs.
        """
        key = (name, *constants.items(), *inputs, *outputs, threads, fit, *parts)
        if key not in self._built:
            text = kernel_text(
                self.backend,
                name,
                constants,
                inputs=list(inputs),
                outputs=list(outputs),
                bounds=(threads, fit),
                parts=parts,
            )
            self._built[key] = build(self.mx, self.backend, text)
        return self._built[key](
            inputs=list(inputs.values()),
            grid=(blocks[0] * threads, blocks[1], 1),
            threadgroup=(threads, 1, 1),
            output_shapes=[shape for shape, _ in outputs.values()],
            output_dtypes=[dtype for _, dtype in outputs.values()],
        )


def tier_constants(sizes: tuple[int, ...]) -> dict[str, Constant]:
    """Tier sizes as the kernels take them: their number, and eight bits for each."""
    return {"TIERS": len(sizes), "SIZES": sum(size << (8 * k) for k, size in enumerate(sizes))}
