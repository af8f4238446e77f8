"""The GPU kernels of quantised matrices as functions of `mx.array`s. Layouts are in `quant`, others in `ops`.

As there, launch configurations follow from the shapes of the matrices alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specdec.runtimes.mlx.jobs import Jobs, job_constants, job_inputs
from specdec.runtimes.mlx.kernels import Constant
from specdec.runtimes.mlx.ops import Ops, shares
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.quant import PackedQuant, QuantForm

_WARPS = {"metal": 4, "cuda": 8}  # that share the inputs; twice as many for 16 rows
_BAND = 8  # rows that one of them adds up
_BLOCKS = 256  # that a launch should have, where a matrix has too few tiles
_MOST_PARTS = 4  # the consumer reads all of them again
_OWN = {"": 0, "six_bit": 1, "int8": 2}
_TILES = {"metal": "quant_tile.metal", "cuda": "quant_tile.cuh"}
# Inputs whose weights are asked for before any is used, for one row and for several.
_AHEAD = {"metal": (8, 2), "cuda": (16, 4)}


def multiply(
    ops: Ops,
    matrices: Sequence[PackedQuant],
    activation: Any,
    state: Any,
    *,
    nested: bool = False,
    chosen: bool = False,
    jobs: Jobs | None = None,
    whole: Sequence[int] = (),
) -> Any:
    """Rows times matrices side by side: (P, rows or jobs, all outputs) float32, to be added by rising P.

    Args:
        ops: runs kernels.
        matrices: one to three of as many inputs; of a mixture, with the data of all experts.
        activation: float32 (rows, 1, padded in); where `chosen`, (matrices, rows, padded in) from `Ops.choose`.
        state: the pass.
        nested: see only the upper four bits of codes.
        chosen: every matrix has an activation of its own, with zeros for inputs that are not taken.
        jobs: of a mixture.
        whole: outputs of the matrices on all devices that divide them, which decide P; empty where these are all.
    """
    rows = activation.shape[1 if chosen else 0] if jobs is None else 1
    many = 1 if jobs is None else jobs.count
    tiles = sum(matrix.tiles for matrix in matrices)
    warps = _WARPS[ops.backend]
    of_all = (
        sum(replace(matrix, outputs=n).tiles for matrix, n in zip(matrices, whole, strict=True)) if whole else tiles
    )
    parts = min(_MOST_PARTS, shares(of_all, matrices[0].groups, blocks=_BLOCKS, least=2 * warps))
    columns = sum(matrix.outputs for matrix in matrices)
    sizes = _sizes(ops, matrices[0], rows) | {"NESTED": nested, "SELECTS": chosen, "CHOSEN": chosen, "PARTS": parts}
    sizes |= {"WARPS": warps, "COLUMNS": columns, "MATRICES": len(matrices)} | job_constants(jobs)
    for number, matrix in enumerate(matrices):
        sizes |= {f"FORM{number}": _form(matrix.form), f"TILES{number}": matrix.tiles}
        sizes[f"OUTPUTS{number}"] = matrix.outputs
        sizes[f"STRIDE{number}"] = 0 if jobs is None else int(matrix.data.size) // jobs.experts
    inputs = {f"data{number}": matrix.data for number, matrix in enumerate(matrices)}
    return ops.run(
        "quant",
        sizes,
        inputs | {"activation": activation} | job_inputs(jobs) | {"state": state},
        {"y": ((parts, rows * many, columns), ops.mx.float32)},
        (tiles, parts * many),
        32 * warps * (2 if rows > _BAND else 1),
        fit=1 if rows > _BAND else 2,
        parts=(_TILES[ops.backend],),
    )[0]


def embed(ops: Ops, table: PackedQuant, state: Any, *, rows: int, scale: float = 1.0) -> Any:
    """Embeddings (rows, in) float32 from a packed table or logits layer, times `scale`."""
    sizes = _sizes(ops, table, rows) | {"NESTED": False, "SELECTS": False, "THREADS": 256}
    sizes |= {"FORM0": _form(table.form), "TILES": table.tiles, "WIDTH": table.inputs, "WARPS": 1}
    sizes["SCALE"] = float(scale)
    made = {"x": ((rows, table.inputs), ops.mx.float32)}
    inputs = {"data": table.data, "state": state}
    return ops.run("quant_embed", sizes, inputs, made, (rows, 1), 256, parts=(_TILES[ops.backend],))[0]


def _sizes(ops: Ops, matrix: PackedQuant, rows: int) -> dict[str, Constant]:
    """What the functions for tiles need."""
    ahead = _AHEAD[ops.backend][0 if rows == 1 else 1]
    sizes: dict[str, Constant] = {"ROWS": rows, "BAND": min(rows, _BAND), "AHEAD": ahead}
    return sizes | {"GROUPS": matrix.groups, "PADDED": padded(matrix.inputs)}


def _form(form: QuantForm) -> str:
    """A form as both languages read it."""
    numbers = (form.bits, form.zero, form.span, int(form.offset), int(form.bfloat), _OWN[form.own], form.hidden)
    return f"Form<{', '.join(map(str, numbers))}>"
