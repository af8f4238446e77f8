"""Host side of launches that draft by themselves: `Recycler`, `Turning`. The kernel: `step_recycle.cuh`.

Each turn of such a launch verifies a tree by the rule of `kernels/reference/recycle.py`: the tokens after an earlier
occurrence of the text's end, and tokens that the verifier lately found likeliest after a token. So nothing waits for
the host between one turn and the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.kernels.reference.recycle import MOST_ROWS, SHAPES, TOP
from specdec.runtimes.base import Pass, Recycling, Rows, Turn
from specdec.runtimes.mlx import addresses
from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.chosen import choice_of
from specdec.runtimes.mlx.model import Kind, Transformer
from specdec.runtimes.mlx.state import (
    LOGITS_FROM,
    MAX_ROWS,
    MOST_AHEAD,
    RECYCLE,
    RECYCLE_SIZE,
    show_choices,
    state_of,
)

if TYPE_CHECKING:
    from specdec.model.effort import Efforts
    from specdec.runtimes.mlx.batch import Share
    from specdec.runtimes.mlx.device import CudaDriver

_USUALLY_KEPT = 4  # kept rows of a turn
TEXT_AT = 192  # word of the memory where the text begins, after the shapes and the plan of a turn
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
    """Memory of launches that draft. It holds the text of the last launch, and successors of tokens, which are cleared
    for another sequence, unless both have the same owner: nothing of a text reaches anyone else, not even as a draft.

    Args:
        driver: driver of the GPU.
        own: allocates an array of zeros in its own device memory.
        address: returns the address of such an array.
        vocab_size: vocabulary size of the model.
        most_tokens: most tokens of a text.
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
        self._place = 0  # its address on the device
        self._told = np.empty(0, np.int32)
        self._text: Sequence[int] = ()  # the text that the memory is about
        self._known = 0  # tokens of its text that the device has
        self._owner: str | None = None  # of the text

    def tell(self, state: np.ndarray, cache: GpuCache, wanted: Recycling) -> None:
        """Write the kernel's inputs into the state of a launch, and the text to the device; no step may be running.

        Args:
            state: int32 (STATE_SIZE,), state of a single row; changed.
            cache: cache of the sequence.
            wanted: the sequence's request.
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
        forgets = begins and (wanted.owner is None or wanted.owner != self._owner)
        self._text, self._known, self._owner = text, 0 if begins else min(self._known, len(text)), wanted.owner
        first = TEXT_AT + self._known
        fresh = self._told[first : TEXT_AT + len(text)]
        fresh[:] = text[self._known :]
        self._driver.send(self._place + 4 * first, fresh)
        self._known = len(text)
        state[LOGITS_FROM] = 0
        state[RECYCLE : RECYCLE + RECYCLE_SIZE] = (
            wanted.rows, len(text), 0, 0, forgets, cache.positions, min(wanted.limit, self._room), self._room,
        )  # fmt: skip
        state[RECYCLE + 2 : RECYCLE + 4] = np.array([self._place], np.int64).view(np.int32)


def turns_of(found: np.ndarray) -> list[Turn]:
    """The turns of a launch, from its output.

    Args:
        found: output of the launch, float32 (turns, rows, CHOICE_WORDS): a row's choice, and the bits of its own
            token, of its parent row, and of the number of rows.
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


class Turning:
    """Passes that draft and verify turn after turn, in one launch each.

    Args:
        mx: MLX.
        transformer: the model's transformer.
        mode: `Kind.mode` of the exact view at an effort of 1.
        weight_bytes: `(mode, efforts)` to the bytes of a step's weights.

    Attributes:
        most_rows: most rows of a turn; 0 where steps are not launched.
    """

    def __init__(
        self, mx: Any, transformer: Transformer, mode: str, weight_bytes: Callable[[str, Efforts], int]
    ) -> None:
        self._transformer, self._mode, self._weight_bytes = transformer, mode, weight_bytes
        whole, config = transformer.whole, transformer.config
        rows = 0 if whole is None else min(MAX_ROWS, transformer.most_rows)
        self.most_rows = rows if whole is not None and rows > 1 and whole.has_code(self.kind(rows)) else 0
        self._history = 4 * sum(layer.attention.kv_width for layer in config.layers)
        self._no_logits = np.empty((0, config.vocab_size), np.float32)
        if whole is not None:
            self._recycler = Recycler(
                whole.driver,
                lambda count: whole.own((count,), mx.int32),
                lambda array: addresses.addresses_of(mx, [array])[0],
                vocab_size=config.vocab_size,
                most_tokens=config.max_context,
            )

    def kind(self, rows: int) -> Kind:
        """The kind of step for a turn of `rows` rows."""
        built = self._transformer.row_step(rows)
        return Kind(self._mode, False, built, 0, built, tree=True)

    def takes(self, rows: Rows, share: Share) -> bool:
        """Whether a pass over these rows alone runs as turns."""
        return rows.recycling is not None and self.most_rows > 0 and not share.selects and share.cache.length > 0

    def run(self, rows: Rows, share: Share) -> Pass:
        """Run a pass as turns."""
        whole, asked, cache = self._transformer.whole, rows.recycling, share.cache
        assert whole is not None  # `takes`
        assert asked is not None
        wanted = replace(asked, rows=min(asked.rows, self.most_rows))
        kind, ahead = self.kind(wanted.rows), min(rows.ahead, MOST_AHEAD)
        # Room for the rows of a turn, and for the rows that turns usually keep: the launch ends when it is full.
        cache.reserve(min(cache.capacity, cache.length + wanted.rows + _USUALLY_KEPT * (1 + ahead)))
        state = state_of([share.piece(0, 1, 0)], [cache.positions])
        show_choices(state, ahead=ahead, ends=rows.ends)
        self._recycler.tell(state, cache, wanted)
        self._transformer.launch(kind, state, [cache], [])
        turns = turns_of(whole.choices(kind.rows, ahead))
        read = self._weight_bytes(share.mode, rows.efforts) + self._history * cache.length
        cache.advance(sum(1 + len(turn.kept) for turn in turns))
        return Pass(self._no_logits, read * len(turns), turns=turns)
