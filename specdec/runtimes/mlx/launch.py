"""Launching a compiled CUDA kernel by the driver: `Launch`. It takes a few microseconds where a call by MLX takes many.

MLX knows nothing of such a launch. So what the kernel reads has to be evaluated before, and the caller waits for the
kernel before MLX touches what it has written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.runtimes.mlx.device import CudaDriver


class Launch:
    """A kernel on the GPU, all of whose blocks run at the same time.

    Args:
        driver: of the GPU.
        code: machine code.
        name: of the kernel in it.
        grid: blocks.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        pointers: parameters that are addresses, which come first.
        numbers: parameters that are whole numbers of 32 bits.

    Raises:
        OSError: the driver refuses.
    """

    def __init__(
        self, driver: CudaDriver, code: bytes, name: str, *, grid: int, threads: int, shared_bytes: int, pointers: int,
        numbers: int,
    ) -> None:  # fmt: skip
        self._driver = driver
        self._function = driver.function(code, name, shared_bytes=shared_bytes)
        self._shape = (grid, 1, 1, threads, 1, 1, shared_bytes)
        self._pointers, self._numbers = (ctypes.c_uint64 * pointers)(), (ctypes.c_int32 * numbers)()
        places = [ctypes.addressof(self._pointers) + 8 * number for number in range(pointers)]
        places += [ctypes.addressof(self._numbers) + 4 * number for number in range(numbers)]
        self._parameters = (ctypes.c_void_p * len(places))(*places)

    def __call__(self, addresses: Sequence[int], numbers: Sequence[int]) -> None:
        """Begin to run it; nothing is waited for.

        Raises:
            OSError: the driver refuses, for instance because the blocks do not all fit on the GPU.
        """
        self._pointers[:] = list(addresses)
        self._numbers[:] = list(numbers)
        self._driver.launch(self._function, self._shape, self._parameters)
