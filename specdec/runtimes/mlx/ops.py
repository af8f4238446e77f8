"""The GPU kernels as functions of `mx.array`s: shapes in, launch configuration and output shapes worked out here.

A launch configuration follows from the shape of the matrix alone, never from the number of rows in use: that is
what makes a row's bits independent of what shares its pass. Attention is in `attention_ops`, the choice of experts in
`mixture_ops`, quantised matrices in `quant_ops`; the kernels' texts are in `kernels`, the order of a step in `phases`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdec.runtimes.mlx.jobs import Jobs, job_constants, job_inputs
from specdec.runtimes.mlx.kernels import Constant, build, kernel_text, present
from specdec.runtimes.mlx.pack import BUCKET_TILE, INPUT_STEP, INT4_TILE, padded
from specdec.runtimes.mlx.state import MAX_ROWS, STATE_CONSTANTS

if TYPE_CHECKING:
    from specdec.model.layers import Activation

ROW_STEPS = (1, 8, MAX_ROWS)  # rows that a multi-row kernel is built for; a step of M rows takes the next one
CACHE_STEPS = (1, 4, MAX_ROWS)  # caches that attention is built for; a step of N sequences takes the next one
_MULTIPROCESSORS = 132  # what launch configurations are made for; another number costs speed only
_DENSE_WARPS = 8
# As the kernels number them.
ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1, "clamped_swiglu": 2}


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


def cache_step(caches: int) -> int:
    """The number of caches of the attention that runs a step of this number of sequences."""
    return next(step for step in CACHE_STEPS if caches <= step)


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

    def embed(self, table: Any, state: Any, *, rows: int, width: int, tied: bool, scale: float = 1.0) -> Any:
        """Embeddings (rows, width) float32, times `scale`."""
        constants: dict[str, Constant] = {"WIDTH": width, "PADDED": padded(width), "TIED": tied, "THREADS": 256}
        constants["SCALE"] = float(scale)
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
        bias: Any = None,
        post: Any = None,
        scale: float = 1.0,
        plain: bool = False,
        draft: bool = False,
        selection: Selection | None = None,
    ) -> tuple[Any, Any, Any, Any]:
        """Add what a part of a layer has returned to x, then norm: (x, activation, counts or None, plain or None).

        Args:
            x: float32 (rows, width).
            weight: float32 (width,), or None: the activation is the sum itself.
            state: the pass.
            eps: of the norms.
            parts: float32 (P, rows, width), to be added; None for nothing.
            bias: of the parts, float32 (width,) or None.
            post: of a norm of the parts, float32 (width,) or None.
            scale: multiplies the parts.
            plain: give the activation in float32, too, (rows, width).
            draft: the activation is for a draft.
            selection: how a draft chooses.
        """
        rows, width = x.shape
        inputs = present(x=x, parts=parts, bias=bias, post=post, weight=weight)
        wide = ((rows, width), self.mx.float32)
        outputs = ({} if parts is None else {"sum": wide}) | ({"plain": wide} if plain else {})
        constants: dict[str, Constant] = {"PARTS": 0 if parts is None else parts.shape[0], "EPSILON": float(eps)}
        constants |= {"BIAS": bias is not None, "POST": post is not None, "NORM": weight is not None}
        constants |= {"RESIDUAL": float(scale), "PLAIN": plain}
        made = self.make_rows("norm", constants, inputs, outputs, state, rows, width, draft=draft, selection=selection)
        return made.get("sum", x), made["activation"], made.get("counts"), made.get("plain")

    def gate(
        self,
        parts: Any,
        state: Any,
        *,
        width: int,
        draft: bool,
        selection: Selection | None = None,
        up_at: int = 0,
        activation: Activation = "silu",
        bias: Any = None,
        jobs: Jobs | None = None,
    ) -> tuple[Any, Any]:
        """The inner activation of a gated MLP from (P, rows or jobs, columns): (activation, counts or None).

        Columns are 16 gates and 16 ups in turn, or with `up_at` all gates and, from there on, all ups. `bias` is
        float32 (experts or 1, 2, width), of gates and of ups.
        """
        constants: dict[str, Constant] = {"PARTS": parts.shape[0], "COLUMNS": parts.shape[2], "UP_AT": up_at}
        constants |= {"ACTIVATION": ACTIVATIONS[activation], "BIAS": bias is not None}
        constants |= {"EACH": 1 if jobs is None else jobs.used, "EXPERTS": 0 if jobs is None else jobs.experts}
        inputs = {"parts": parts} | ({} if bias is None else {"bias": bias}) | job_inputs(jobs)
        rows = parts.shape[1]
        made = self.make_rows("gate", constants, inputs, {}, state, rows, width, draft=draft, selection=selection)
        return made["activation"], made.get("counts")

    def select(
        self,
        activation: Any,
        scores: Any,
        take: Any,
        state: Any,
        tier_sizes: tuple[int, ...],
        *,
        joined: int,
        jobs: Jobs | None = None,
    ) -> Any:
        """Tiers that each row, or job, takes of each input: float16 (joined, rows, padded in)."""
        return self._choose("prefix", activation, scores, take, state, tier_sizes, joined, jobs, self.mx.float16)[0]

    def choose(
        self,
        activation: Any,
        scores: Any,
        take: Any,
        state: Any,
        tier_sizes: tuple[int, ...] = (1,),
        *,
        joined: int,
        counts: bool = False,
        jobs: Jobs | None = None,
        dtype: Any = None,
    ) -> list[Any]:
        """What each matrix sees of the rows, or jobs: (joined, rows, padded in), with zeros for inputs not taken.

        Args:
            activation: (rows, 1, padded in).
            scores: float32 (experts * joined, in, tiers).
            take: int32 (lines, experts * joined): weights to take; the state says which line is a row's.
            state: the pass.
            tier_sizes: weights in each tier.
            joined: matrices side by side.
            counts: also give how many runs of each input are taken, uint8 (rows, padded in).
            jobs: of a mixture.
            dtype: of the result; None for the activation's.
        """
        dtype = dtype or activation.dtype
        return self._choose("masked", activation, scores, take, state, tier_sizes, joined, jobs, dtype, counts=counts)

    def _choose(
        self, made: str, activation: Any, scores: Any, take: Any, state: Any, tier_sizes: tuple[int, ...],
        joined: int, jobs: Jobs | None, dtype: Any, *, counts: bool = False,
    ) -> list[Any]:  # fmt: skip
        width, wide = scores.shape[1], activation.shape[2]
        rows = activation.shape[0] if jobs is None else jobs.count
        constants = self.row_constants(rows, width) | tier_constants(tier_sizes) | job_constants(jobs)
        constants |= {"JOINED": joined, "EACH": constants["USED"], "MASKED": made == "masked", "COUNTS": counts}
        inputs = {"activation": activation} | job_inputs(jobs) | {"scores": scores, "take": take, "state": state}
        if jobs is not None:
            inputs["kept"] = jobs.kept
        outputs: dict[str, tuple[tuple[int, ...], Any]] = {made: ((joined, rows, wide), dtype)}
        if counts:
            outputs["counts"] = ((rows, wide), self.mx.uint8)
        return self.run("select", constants, inputs, outputs, (rows, joined), 32 * int(constants["WARPS"]))

    def dense(
        self,
        weights: Any,
        activation: Any,
        state: Any,
        *,
        outputs: int,
        residual: Any = None,
        gated: int = 0,
        kind: Activation = "silu",
        jobs: Jobs | None = None,
    ) -> Any:
        """Rows times a matrix: (rows or jobs, outputs) float32; with `gated`, an activation of that width."""
        inputs = {"weights": weights, "activation": activation, "state": state}
        constants: dict[str, Constant] = {"ACTIVATION": ACTIVATIONS[kind]}
        return self._tiles("dense", inputs, constants, outputs, residual, gated, jobs=jobs)

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
        jobs: Jobs | None = None,
    ) -> Any:
        """Rows times a matrix of which each takes its own tiers: (rows or jobs, outputs) float32.

        Args:
            weights: as `dense` takes them.
            planes: from `pack_tiers`.
            activation: of the exact view.
            prefix: (joined, rows or jobs, padded in) from `select`.
            state: the pass.
            outputs: of the matrix.
            tiers: K.
            seams: where the second and third of three joined matrices start, in outputs.
            residual: (rows, outputs) to add.
            jobs: of a mixture.
        """
        joined = prefix.shape[0]
        constants = {"JOINED": joined, "SECOND_TILE": seams[0] // 16, "THIRD_TILE": seams[1] // 16, "TIERS": tiers}
        constants["ACTIVATION"] = 0
        inputs = {"weights": weights, "planes": planes, "activation": activation, "prefix": prefix, "state": state}
        return self._tiles("verify", inputs, constants, outputs, residual, 0, even=joined == 2, jobs=jobs)

    def int4(
        self, levels: Any, scales: Any, activation: Any, *, outputs: int, whole: int = 0, jobs: Jobs | None = None
    ) -> Any:
        """One row, or job each, times 4-bit weights: (P, 1 or jobs, outputs) float32, to be added by rising P, which
        follows from the outputs of all devices, `whole`."""
        wide, tile = activation.shape[-1], INT4_TILE[self.backend]
        tiles, steps = -(-outputs // tile), wide // INPUT_STEP
        count = shares(-(-(whole or outputs) // tile), steps, blocks=256, least=8) if self.backend == "cuda" else 1
        constants: dict[str, Constant] = {"PADDED": wide, "PARTS": count, "WARPS": 8, "OUTPUTS": outputs}
        constants |= {"GROUPS_AHEAD": 2, "STRIDE": _stride(levels, jobs)} | job_constants(jobs)
        inputs = {"q4": levels, "scales": scales, "activation": activation} | job_inputs(jobs)
        many = 1 if jobs is None else jobs.count
        made = {"y": ((count, many, outputs), self.mx.float32)}
        return self.run("int4", constants, inputs, made, (tiles, count * many), 256, fit=2)[0]

    def bucket(
        self, records: Any, activation: Any, counts: Any, *, outputs: int, whole: int = 0, jobs: Jobs | None = None
    ) -> Any:
        """bucketMul of one row, or job each: (P, 1 or jobs, outputs) float32, as `int4`."""
        wide, warps = activation.shape[-1], 16 if self.backend == "cuda" else 8
        tiles, steps = -(-outputs // BUCKET_TILE), wide // 32
        count = shares(-(-(whole or outputs) // BUCKET_TILE), steps, blocks=256, least=warps)
        constants: dict[str, Constant] = {"PADDED": wide, "PARTS": count, "WARPS": warps, "OUTPUTS": outputs}
        constants |= {"AHEAD": 4, "weight_t": self.weight_type}
        constants |= {"STRIDE": _stride(records, jobs)} | job_constants(jobs)
        inputs = {"records": records, "activation": activation, "counts": counts} | job_inputs(jobs)
        many = 1 if jobs is None else jobs.count
        made = {"y": ((count, many, outputs), self.mx.float32)}
        return self.run("bucket", constants, inputs, made, (tiles, count * many), 32 * warps, fit=2)[0]

    def logits(self, parts: Any, state: Any, *, scale: float = 1.0, cap: float | None = None) -> Any:
        """Parts (P, rows, V) of the logits layer put together, times `scale`, with a softcap: float32 (rows, V)."""
        count, rows, width = parts.shape
        constants: dict[str, Constant] = {"PARTS": count, "ROWS": rows, "WIDTH": width, "SCALE": float(scale)}
        constants |= {"SOFTCAP": cap is not None, "CAP": float(cap or 1), "THREADS": 256}
        inputs, made = {"parts": parts, "state": state}, {"y": ((rows, width), self.mx.float32)}
        return self.run("logits", constants, inputs, made, (-(-width // 256), rows), 256)[0]

    def row_constants(self, rows: int, width: int) -> dict[str, Constant]:
        """Sizes of a kernel with one row for each block."""
        most = 1024 if self.backend == "cuda" else 512
        wide = padded(width)
        threads = min(most, wide)
        own = -(-wide // threads)
        sizes: dict[str, Constant] = {"ROWS": rows, "WIDTH": width, "PADDED": wide, "OWN": own, "WARPS": threads // 32}
        return sizes | STATE_CONSTANTS

    def make_rows(
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
    ) -> dict[str, Any]:
        """Run a kernel that makes one row of activations a block: its own outputs, "activation", perhaps "counts"."""
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
        return dict(zip(made, found, strict=True))

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
        jobs: Jobs | None = None,
    ) -> Any:
        """Run `dense` or `verify`."""
        rows, split, wide = inputs["activation"].shape
        many = rows if jobs is None else jobs.count
        rows = rows if jobs is None else 1
        tiles = -(-outputs // 16)
        each = tiles_per_block(tiles, even=even or bool(gated))
        dtype, _ = self.exact
        made = ((many, split, padded(gated)), dtype) if gated else ((many, outputs), self.mx.float32)
        if residual is not None:
            inputs = inputs | {"residual": residual}
        inputs = inputs | job_inputs(jobs)
        ahead = {1: 8, 2: 4, 3: 2, 4: 2}[each] if name == "dense" else 2
        if rows > 8 or split > 1:
            ahead = max(1, ahead // 2)
        sizes: dict[str, Constant] = {"ROWS": rows, "PADDED": wide, "PER_BLOCK": each, "WARPS": _DENSE_WARPS}
        sizes |= {"UNROLL": ahead, "SPLIT": split, "OUTPUTS": outputs, "OUT_PADDED": padded(gated), **constants}
        sizes |= {"EPILOGUE": 2 if gated else int(residual is not None), "weight_t": self.weight_type}
        sizes |= {"PARTS": 1, "STRIDE": _stride(inputs["weights"], jobs)} | job_constants(jobs)
        sizes["OUT_STRIDE"] = split * padded(gated) if gated else outputs
        blocks = -(-tiles // each) if self.backend == "cuda" else -(-outputs // 32)
        grid = (blocks, 1 if jobs is None else jobs.count)
        return self.run(name, sizes, inputs, {"y": made}, grid, 32 * _DENSE_WARPS, fit=2)[0]

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
        types = [str(array.dtype) for array in inputs.values()] + [str(dtype) for _, dtype in outputs.values()]
        key = (name, *constants.items(), *inputs, *outputs, *types, threads, fit, *parts)
        if key not in self._built:
            text = kernel_text(
                self.backend,
                name,
                constants,
                inputs=list(inputs),
                outputs=list(outputs),
                bounds=(threads, fit),
                parts=parts,
                types=types,
            )
            self._built[key] = build(self.mx, self.backend, text)
        return self._built[key](
            inputs=list(inputs.values()),
            grid=(blocks[0] * threads, blocks[1], 1),
            threadgroup=(threads, 1, 1),
            output_shapes=[shape for shape, _ in outputs.values()],
            output_dtypes=[dtype for _, dtype in outputs.values()],
        )


def _stride(array: Any, jobs: Jobs | None) -> int:
    """Elements of an array of all experts that belong to each; 0 without a mixture."""
    return 0 if jobs is None else int(array.size) // jobs.experts


def tier_constants(sizes: tuple[int, ...]) -> dict[str, Constant]:
    """Tier sizes as the kernels take them: their number, and eight bits for each."""
    return {"TIERS": len(sizes), "SIZES": sum(size << (8 * k) for k, size in enumerate(sizes))}
