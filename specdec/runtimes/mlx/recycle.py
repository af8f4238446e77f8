"""Drafts that a launch makes of its own, seen from the host: `Recycler`. The kernel's part is in `step_recycle.cuh`.

Each turn of such a launch verifies a tree by the rule of `kernels/reference/recycle.py`: what followed the end of the
text when it occurred before, and tokens that the verifier found likeliest after a token lately. So nothing waits for
the host between one turn and the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.kernels.reference.recycle import MOST_ROWS, SHAPES, TOP
from specdec.runtimes.base import Recycling, Turn
from specdec.runtimes.mlx import addresses
from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.chosen import choice_of
from specdec.runtimes.mlx.state import LOGITS_FROM, RECYCLE, RECYCLE_SIZE

if TYPE_CHECKING:
    from specdec.model.architecture import ModelConfig
    from specdec.runtimes.mlx.device import CudaDriver
    from specdec.runtimes.mlx.step import WholeStep

TEXT_AT = 192  # of the memory: shapes and the plan of a turn come before the text
ON_TRUNK = 255


def shape_words(shape: tuple[str, ...]) -> list[int]:
    """A shape as the kernel reads it: a word for each row after the first; see `draft_rows`."""
    rows = {"": 0} | {path: row for row, path in enumerate(shape, 1)}
    words = []
    for path in shape:
        before, last = path[:-1], path[-1]
        rank = ON_TRUNK if last == "t" else int(last)
        follows_trunk = before == "t" * len(before)
        words.append(rows[before] | rank << 8 | len(path) << 16 | follows_trunk << 24)
    return words


class Recycler:
    """The memory of launches that draft, about the text of the last one: that of another sequence begins with nothing.

    Args:
        driver: of the GPU.
        own: makes zeros in device memory of their own.
        address: of such an array.
        vocab_size: of the model.
        most_tokens: of a text.
    """

    def __init__(
        self,
        driver: CudaDriver,
        own: Callable[[int], Any],
        address: Callable[[Any], int],
        *,
        vocab_size: int,
        most_tokens: int,
    ) -> None:
        self._driver, self._address, self._own = driver, address, own
        self._room = -(-most_tokens // TOP) * TOP  # tokens of a text
        self._words = TEXT_AT + self._room + vocab_size * TOP
        self._memory: Any = None
        self._place = 0  # of it on the device
        self._told = np.empty(0, np.int32)
        self._text: Sequence[int] = ()  # that the memory is about
        self._known = 0  # tokens of its text that the device has

    def tell(self, state: np.ndarray, cache: GpuCache, wanted: Recycling) -> None:
        """Put what the kernel needs into the state of a launch, and the text where it reads it; no step may be running.

        Args:
            state: int32 (STATE_SIZE,), of a single row; changed.
            cache: of the sequence.
            wanted: what it asks for.
        """
        if self._memory is None:
            self._memory = self._own(self._words)
            self._place = self._address(self._memory)
            self._told = self._driver.pinned(4 * (TEXT_AT + self._room)).view(np.int32)
            self._told[:TEXT_AT] = -1
            for number, shape in enumerate(SHAPES):
                words = shape_words(shape)
                self._told[number * MOST_ROWS + 1 : number * MOST_ROWS + 1 + len(words)] = words
            self._driver.send(self._place, self._told[:TEXT_AT])
        text, begins = wanted.text, wanted.text is not self._text
        self._text, self._known = text, 0 if begins else min(self._known, len(text))
        first = TEXT_AT + self._known
        fresh = self._told[first : TEXT_AT + len(text)]
        fresh[:] = text[self._known :]
        self._driver.send(self._place + 4 * first, fresh)
        self._known = len(text)
        state[LOGITS_FROM] = 0
        state[RECYCLE : RECYCLE + RECYCLE_SIZE] = (
            wanted.rows, len(text), 0, 0, begins, cache.positions, min(wanted.limit, self._room), self._room,
        )  # fmt: skip
        state[RECYCLE + 2 : RECYCLE + 4] = np.array([self._place], np.int64).view(np.int32)


def recycler_of(mx: Any, whole: WholeStep, config: ModelConfig) -> Recycler:
    """The memory for launches of a model's steps."""
    return Recycler(
        whole.driver,
        lambda count: whole.own((count,), mx.int32),
        lambda array: addresses.addresses_of(mx, [array])[0],
        vocab_size=config.vocab_size,
        most_tokens=config.max_context,
    )


def turns_of(found: np.ndarray) -> list[Turn]:
    """What the turns of a launch did.

    Args:
        found: what it wrote of each row, float32 (turns, rows, CHOICE_WORDS): its choice, and the bits of its own
            token, of the row that it follows, and of the number of rows.
    """
    # All at once: the host's time between launches counts, and a call on a small array is most of what it costs.
    words, numbers, turns = found[:, :, 4:].copy().view(np.int32).tolist(), found[:, :, :4].tolist(), list[Turn]()
    for rows, shapes in zip(words, numbers, strict=True):
        count, path, chosen = rows[0][3], [0], rows[0][0]
        for number, (choice, token, parent, _) in enumerate(rows[1:count], 1):
            if parent == path[-1] and token == chosen:
                path.append(number)
                chosen = choice
        turns.append(
            Turn(
                tokens=[row[1] for row in rows[1:count]],
                parents=[row[2] - 1 for row in rows[1:count]],
                kept=[number - 1 for number in path[1:]],
                choices=[choice_of(rows[number][0], *shapes[number]) for number in path],
            )
        )
    return turns
