"""The kernels of mixtures as functions of `mx.array`s: which experts a row uses, and what they return added up.

Every row is chosen for and added up by itself, experts by rising number. Multiplications by experts' matrices are in
`ops` and `quant_ops`.
"""

from __future__ import annotations

from typing import Any

from specdec.model.layers import Mlp
from specdec.runtimes.mlx.jobs import Jobs
from specdec.runtimes.mlx.kernels import Constant, present
from specdec.runtimes.mlx.ops import Ops
from specdec.runtimes.mlx.state import STATE_CONSTANTS

_WARPS = 8
_THREADS = 256


def route(
    ops: Ops, mlp: Mlp, plain: Any, table: Any, state: Any, *, bias: Any = None, keep: Any = None
) -> tuple[Jobs, Any]:
    """The experts of every row, by rising number, and the shares float32 (rows, used) of what they return.

    Args:
        ops: runs kernels.
        mlp: of the layer.
        plain: float32 (rows, hidden), what enters the experts.
        table: float32 (experts, hidden).
        state: the pass.
        bias: float32 (experts,) or None.
        keep: float32 (lines, 1): share of the squared weights that the kept experts must have; None keeps all.
    """
    (rows, width), used = plain.shape, mlp.experts_used
    shares_of_all = mlp.router == "softmax-then-top" and not mlp.renormalise
    constants: dict[str, Constant] = {"WIDTH": width, "EXPERTS": mlp.experts, "USED": used, "WARPS": _WARPS}
    constants |= {"ROUTER": int(shares_of_all), "BIAS": bias is not None, "KEEPS": keep is not None} | STATE_CONSTANTS
    inputs = present(plain=plain, table=table, bias=bias, keep=keep, state=state)
    made = {
        "chosen": ((rows * used,), ops.mx.int32),
        "shares": ((rows, used), ops.mx.float32),
        "kept": ((rows,), ops.mx.int32),
    }
    chosen, shares, kept = ops.run("router", constants, inputs, made, (rows, 1), 32 * _WARPS)
    return Jobs(chosen, kept, rows * used, used, mlp.experts), shares


def add_up(
    ops: Ops,
    jobs: Jobs,
    shares: Any,
    down: Any,
    state: Any,
    *,
    bias: Any = None,
    shared: Any = None,
    shared_bias: Any = None,
) -> Any:
    """What the experts and the shared MLP return for every row: (1, rows, hidden) float32.

    Args:
        ops: runs kernels.
        jobs: from `route`.
        shares: from `route`.
        down: float32 (P, jobs, hidden).
        state: the pass.
        bias: float32 (experts, hidden) or None.
        shared: float32 (P, rows, hidden), of the shared MLP, or None.
        shared_bias: float32 (hidden,) or None.
    """
    parts, _, width = down.shape
    rows = shares.shape[0]
    inputs = present(down=down, bias=bias, chosen=jobs.chosen, shares=shares, shared=shared, shared_bias=shared_bias)
    constants: dict[str, Constant] = {"PARTS": parts, "ROWS": rows, "WIDTH": width, "USED": jobs.used}
    constants |= {"BIAS": bias is not None, "SHARED_PARTS": 0 if shared is None else shared.shape[0]}
    constants |= {"SHARED_BIAS": shared_bias is not None, "THREADS": _THREADS}
    made = {"y": ((1, rows, width), ops.mx.float32)}
    return ops.run("mixture", constants, inputs | {"state": state}, made, (-(-width // _THREADS), rows), _THREADS)[0]
