"""Where arrays lie on the GPU: `addresses_of`. MLX does not tell, so a kernel is asked, which is given them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from specdec.runtimes.mlx.kernels import Compiled, KernelText, Typed, build

_AT_ONCE = 192  # arrays that a kernel takes


def addresses_of(mx: Any, arrays: Sequence[Any]) -> list[int]:
    """Addresses of arrays, which must be kept alive; they are evaluated.

    Args:
        mx: MLX.
        arrays: of any type.
    """
    mx.eval(list(arrays))
    found = []
    for first in range(0, len(arrays), _AT_ONCE):
        piece = list(arrays[first : first + _AT_ONCE])
        # Kernels for two numbers of arrays do: each has to be compiled.
        count = 1 if len(piece) == 1 else _AT_ONCE
        made = _ask(mx, piece + piece[:1] * (count - len(piece)))
        found.append((made, len(piece)))
    mx.eval([made for made, _ in found])
    return [address for made, count in found for address in made.tolist()[:count]]


def table_of(mx: Any, entries: Sequence[Any]) -> Any:
    """Addresses of arrays as an array of the device, int64; whole numbers stay as they are, None is 0."""
    arrays = [entry for entry in entries if entry is not None and not isinstance(entry, int)]
    places = iter(addresses_of(mx, arrays))
    found = [entry or 0 if entry is None or isinstance(entry, int) else next(places) for entry in entries]
    table = mx.array(np.array(found, np.int64)) + mx.zeros((), dtype=mx.int64)
    mx.eval(table)
    return table


def _ask(mx: Any, arrays: list[Any]) -> Any:
    names = tuple(f"a{number}" for number in range(len(arrays)))
    lines = [f"found[{number}] = (long long){name};" for number, name in enumerate(names)]
    source = "if (threadIdx.x) return;\n" + "\n".join(lines)
    types = hashlib.sha256(repr([array.dtype for array in arrays]).encode()).hexdigest()[:16]  # MLX goes by the name
    kernel = build(mx, "cuda", KernelText(f"specdec_addresses_{types}", "", source, names, ("found",)))
    typed = {}
    if isinstance(kernel, Compiled):
        # What is behind an address is not looked at: one kernel does for arrays of all types.
        kernel.name = f"custom_kernel_specdec_addresses_{len(arrays)}"
        typed = {"typed": [Typed(mx.uint8, 1)] * len(arrays)}
    shapes, dtypes = [(len(arrays),)], [mx.int64]
    made: Any = kernel(
        inputs=arrays, grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=shapes, output_dtypes=dtypes, **typed
    )
    return made[0]
