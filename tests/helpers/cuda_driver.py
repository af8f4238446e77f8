"""A CUDA driver without a GPU: it notes what it is asked to do, and gives what the test wants read.

For tests of all that the runtime does around a step as one kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specdec.runtimes.mlx import addresses, device, runtime, step
from specdec.runtimes.mlx.kernels import Compiled, KernelText
from specdec.runtimes.mlx.recycle import SURVEYS
from specdec.runtimes.mlx.state import AHEAD, LOGITS_FROM, RECYCLE, STATE_SIZE


@dataclass
class FakeDriver:
    """See the module.

    Attributes:
        tokens: that the launches choose, in order; 7 once there are none.
        launched: of each launch the kernel's name, its addresses and its numbers.
        told: the state of each.
        shortened: turns that a launch makes at most, as it does after an end token.
        trees: of each turn of a launch that drafts: its rows' tokens, the rows that they follow, and what each chose.
        surveyed: of each survey's launches what they find, (turns, rows, 8).
        sent: everything that was sent to the device, by address; the state of a launch is in `told` as well.
    """

    multiprocessors = 132
    generation = 9
    shared_bytes = 227 * 1024
    bytes_per_s = 4.8e12
    tokens: list[int] = field(default_factory=list)
    launched: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    told: list[np.ndarray] = field(default_factory=list)
    shortened: int = 99
    trees: list[tuple[list[int], list[int], list[int]]] = field(default_factory=list)
    surveyed: list[np.ndarray] = field(default_factory=list)
    sent: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def send(self, address: int, array: np.ndarray) -> None:
        self.sent.append((address, array.copy()))
        if len(array) == STATE_SIZE:
            self.told.append(array.copy())

    def function(self, code: bytes, name: str, *, shared_bytes: int) -> str:
        return name

    def launch(self, function: str, shape: Sequence[int], parameters: Any) -> None:
        held = [ctypes.cast(place, ctypes.POINTER(ctypes.c_int64))[0] for place in parameters[:10]]
        sizes = [ctypes.cast(place, ctypes.POINTER(ctypes.c_int32))[0] for place in parameters[10:]]
        self.launched.append((function, held, sizes))

    def wait(self) -> None:
        pass

    def read(self, address: int, array: np.ndarray) -> None:
        """Choices in rows of eight words after a head; anything else are logits, which rise."""
        if array.shape[1] != step.CHOICE_WORDS:
            array[:] = np.arange(array.shape[1], dtype=np.float32)
            return
        state = self.told[-1]
        if state[RECYCLE]:
            self._turns(array)
            return
        rows = int(state[1] - state[LOGITS_FROM])
        turns = min(1 + int(state[AHEAD]), self.shortened)
        array[0].view(np.int32)[0] = turns
        for row in array[1 : 1 + turns * rows]:
            row[:4] = 3.0, 1.0, 2.0, -0.5
            row.view(np.int32)[4] = self.tokens.pop(0) if self.tokens else 7

    def _turns(self, array: np.ndarray) -> None:
        """What a launch that drafts writes: a turn for each of `trees`."""
        each = (len(array) - 1) // (1 + int(self.told[-1][AHEAD]))
        if self.told[-1][RECYCLE + 4] == SURVEYS:
            found = self.surveyed.pop(0)
            array[0].view(np.int32)[0] = len(found)
            array[1 : 1 + len(found) * each].view(np.int32).reshape(len(found), each, -1)[:, : found.shape[1]] = found
            return
        array[0].view(np.int32)[0] = len(self.trees)
        for number, (tokens, parents, chosen) in enumerate(self.trees):
            for place, row in enumerate(zip(chosen, tokens, parents, strict=True)):
                words = array[1 + number * each + place]
                words[:4] = 3.0, 1.0, 2.0, -0.5
                words.view(np.int32)[4:8] = *row, len(tokens)


class _Compiler:
    def code(self, text: str) -> bytes:
        return text.encode()[:8]


def use_fake_driver(monkeypatch: Any) -> FakeDriver:
    """Make the GPU runtime launch its steps by a driver without a GPU."""
    import mlx.core as mx

    driver, places = FakeDriver(), {}

    def addresses_of(_: Any, arrays: Sequence[Any]) -> list[int]:
        mx.eval(list(arrays))
        return [places.setdefault(id(array), (4096 * (len(places) + 1), array))[0] for array in arrays]

    def build(_: Any, backend: str, text: KernelText, *, shared_bytes: int = 0) -> Compiled:
        assert backend == "cuda"
        compiler: Any = _Compiler()
        return Compiled(mx, text, compiler, shared_bytes)

    gpu = device.Gpu(mx, "cuda", "driver", "0", driver)  # type: ignore[arg-type]
    for module in (device, runtime):
        monkeypatch.setattr(module, "find_gpu", lambda: gpu)
    for module in (addresses, step):
        monkeypatch.setattr(module, "addresses_of", addresses_of)
    monkeypatch.setattr(step, "build", build)
    return driver
