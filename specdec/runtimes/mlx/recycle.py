"""Host side of launches that draft by themselves: `Recycler`, `Turning`. The kernel: `step_recycle.cuh`.

Each turn of such a launch verifies a tree by the rule of `kernels/reference/recycle.py`: the tokens after an earlier
occurrence of the text's end, and likely successors of a token: the verifier's latest, or the survey's while the
verifier has not seen the token. So nothing waits for the host between one turn and the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specdec.kernels.reference.recycle import MATCH_CHANCES, RANK_CHANCES, SECOND_CHANCE, TOP
from specdec.model.effort import resolve_efforts
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
    chain,
    show_choices,
    state_of,
)

if TYPE_CHECKING:
    from specdec.model.effort import Efforts
    from specdec.runtimes.mlx.batch import Share
    from specdec.runtimes.mlx.device import CudaDriver
    from specdec.runtimes.mlx.turn_graphs import TurnGraphs

_USUALLY_KEPT = 4  # kept rows of a turn
# Most rows of a turn that takes less time in one kernel than as a graph, and bytes of a layer's weights up to which
# that is so: of larger models the kernel takes less time with as many rows as it has room for.
_KERNEL_ROWS, _SMALL_LAYER = 4, 64e6
TEXT_AT = 128  # word of the memory where the text begins, after the chances and the plan of a turn
RANKS_AT, SECOND_AT = 32, 40  # words of chances by rank, and of the second match
BEGINS, SURVEYS = 1, 2  # modes of a launch: another text begins; a survey


class Recycler:
    """Memory of launches that draft. It holds the text of the last launch, and successors of tokens. Another sequence
    begins with the successors from `know`, unless both have the same owner: nothing of a text reaches anyone else, not
    even as a draft.

    Args:
        driver: driver of the GPU.
        own: allocates an array of zeros in its own device memory.
        address: returns the address of such an array.
        vocab_size: vocabulary size of the model.
        most_tokens: most tokens of a text.

    Attributes:
        knows: `know` was called.
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
        most = max(most_tokens, MAX_ROWS * (1 + MOST_AHEAD))  # of a text, and of a launch of a survey
        self._room = -(-most // TOP) * TOP
        self._table = vocab_size * TOP
        self._memory: Any = None
        self._place = 0  # its address on the device
        self._told = self._known_at_first = np.empty(0, np.int32)
        self._text: Sequence[int] = ()  # the text that the memory is about
        self._known = 0  # tokens of its text that the device has
        self._owner: str | None = None  # of the text
        self.knows = False

    def know(self, tokens: NDArray[np.int32], successors: NDArray[np.int32]) -> None:
        """Begin texts from now on with these successors; no step may be running.

        Args:
            tokens: int32 (N,).
            successors: int32 (N, TOP), the likeliest tokens after each of them, the likeliest first.
        """
        self._allocate()
        table = self._known_at_first.reshape(-1, TOP)
        table[:] = -1
        table[tokens] = successors
        self._send_known()
        self.knows = True

    def tell(self, state: np.ndarray, cache: GpuCache, wanted: Recycling) -> None:
        """Write the kernel's inputs into the state of a launch, and the text to the device; no step may be running.

        Args:
            state: int32 (STATE_SIZE,), state of a single row; changed.
            cache: cache of the sequence.
            wanted: the sequence's request.
        """
        self._allocate()
        text, begins = wanted.text, wanted.text is not self._text
        forgets = begins and (wanted.owner is None or wanted.owner != self._owner)
        self._text, self._known, self._owner = text, 0 if begins else min(self._known, len(text)), wanted.owner
        self._send_text(text[self._known :])
        self._known = len(text)
        limit, mode = min(wanted.limit, self._room), BEGINS if forgets else 0
        self._put(state, wanted.rows, len(text), mode, cache.positions, limit)

    def tell_survey(self, state: np.ndarray, cache: GpuCache, tokens: Sequence[int], rows: int) -> None:
        """The same for a launch that finds the likeliest tokens after each of `tokens`, `rows` - 1 in a turn. The text
        of the last launch is forgotten."""
        self._allocate()
        self._text, self._known, self._owner = (), 0, None
        self._send_text(tokens)
        self._put(state, rows, len(tokens), SURVEYS, cache.positions, 0)

    def _put(self, state: np.ndarray, rows: int, length: int, mode: int, positions: int, limit: int) -> None:
        state[LOGITS_FROM] = 0
        state[RECYCLE : RECYCLE + RECYCLE_SIZE] = rows, length, 0, 0, mode, positions, limit, self._room
        state[RECYCLE + 2 : RECYCLE + 4] = np.array([self._place], np.int64).view(np.int32)

    def _send_text(self, tokens: Sequence[int]) -> None:
        """Send tokens of the text that follow the ones on the device."""
        first = TEXT_AT + self._known
        fresh = self._told[first : first + len(tokens)]
        fresh[:] = tokens
        self._driver.send(self._place + 4 * first, fresh)

    def _send_known(self) -> None:
        self._driver.send(self._place + 4 * (TEXT_AT + self._room + self._table), self._known_at_first)

    def _allocate(self) -> None:
        """Allocate memory, on first use, and send what does not change."""
        if self._memory is not None:
            return
        self._memory = self._own(TEXT_AT + self._room + 2 * self._table)
        self._place = self._address(self._memory)
        self._told = self._driver.pinned(4 * (TEXT_AT + self._room)).view(np.int32)
        chances = self._told[:TEXT_AT]
        chances[:] = 0
        chances[: len(MATCH_CHANCES)] = MATCH_CHANCES
        chances[RANKS_AT : RANKS_AT + TOP] = RANK_CHANCES
        chances[SECOND_AT] = SECOND_CHANCE
        self._driver.send(self._place, chances)
        self._known_at_first = self._driver.pinned(4 * self._table).view(np.int32)
        self._known_at_first[:] = -1
        self._send_known()


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
    """Passes that draft and verify turn after turn: in one launch each, or as graphs of launches.

    Args:
        mx: MLX.
        transformer: the model's transformer.
        mode: `Kind.mode` of the exact view at an effort of 1.
        weight_bytes: `(mode, efforts)` to the bytes of a step's weights.
        graphs: turns as graphs; None for turns in one launch.

    Attributes:
        most_rows: most rows of a turn; 0 where steps are not launched.
        recycler: memory of the launches; only where steps are launched.
    """

    def __init__(
        self,
        mx: Any,
        transformer: Transformer,
        mode: str,
        weight_bytes: Callable[[str, Efforts], int],
        graphs: TurnGraphs | None = None,
    ) -> None:
        self._transformer, self._mode, self._weight_bytes = transformer, mode, weight_bytes
        whole, config = transformer.whole, transformer.config
        rows = 0 if whole is None else min(MAX_ROWS, transformer.most_rows)
        self._step_rows = rows if whole is not None and rows > 1 and whole.has_code(self.kind(rows)) else 0
        self._graphs = graphs if self._step_rows else None
        self.most_rows = self._step_rows if self._graphs is None else self._graphs.most_rows
        layer_bytes = weight_bytes(mode, resolve_efforts(1.0, config)) / config.num_layers
        self._kernel_rows = min(self._step_rows, _KERNEL_ROWS) if layer_bytes <= _SMALL_LAYER else self._step_rows
        self._history = 4 * sum(layer.attention.kv_width for layer in config.layers)
        self._no_logits = np.empty((0, config.vocab_size), np.float32)
        if whole is not None:
            self.recycler = Recycler(
                whole.driver,
                lambda count: whole.own((count,), mx.int32),
                lambda array: addresses.addresses_of(mx, [array])[0],
                vocab_size=config.vocab_size,
                most_tokens=config.max_context,
            )

    def has_graphs(self, rows: int) -> bool:
        """Whether turns of `rows` rows run as graphs; else as steps of `kind`."""
        return self._graphs_for(rows) is not None

    def finish(self) -> None:
        """Wait for what turns have left under way, before other passes."""
        if self._graphs is not None:
            self._graphs.finish()

    def _graphs_for(self, rows: int) -> TurnGraphs | None:
        """The graphs, where they are the faster way for turns of `rows` rows."""
        return self._graphs if rows > self._kernel_rows else None

    def kind(self, rows: int) -> Kind:
        """The kind of step for a turn of `rows` rows."""
        built = self._transformer.row_step(rows)
        return Kind(self._mode, False, built, 0, built, tree=True)

    @property
    def kind_of_surveys(self) -> Kind:
        """The kind of step that `survey` launches."""
        return self.kind(self._step_rows)

    def takes(self, rows: Rows, share: Share) -> bool:
        """Whether a pass over these rows alone runs as turns."""
        return rows.recycling is not None and self.most_rows > 0 and not share.selects and share.cache.length > 0

    def run(self, rows: Rows, share: Share) -> Pass:
        """Run a pass as turns."""
        whole, asked, cache = self._transformer.whole, rows.recycling, share.cache
        assert whole is not None  # `takes`
        assert asked is not None
        wanted, ahead = replace(asked, rows=min(asked.rows, self.most_rows)), min(rows.ahead, MOST_AHEAD)
        # Room for the rows of a turn, and for the rows that turns usually keep: the launch ends when it is full.
        reach = min(cache.capacity, cache.length + wanted.rows + _USUALLY_KEPT * (1 + ahead))
        cache.reserve(reach)
        graphs = self._graphs_for(wanted.rows)
        state = state_of([share.piece(0, 1, 0)], [cache.positions], [] if graphs is None else [whole.address(cache)])
        show_choices(state, ahead=ahead, ends=rows.ends)
        self.recycler.tell(state, cache, wanted)
        if graphs is not None:
            turns = turns_of(graphs.run(state, cache, reach, self._transformer.angles(cache.positions)[0][0]))
        else:
            kind = self.kind(wanted.rows)
            self._transformer.launch(kind, state, [cache], [])
            turns = turns_of(whole.choices(kind.rows, ahead))
        read = self._weight_bytes(share.mode, rows.efforts) + self._history * cache.length
        cache.advance(sum(1 + len(turn.kept) for turn in turns))
        return Pass(self._no_logits, read * len(turns), turns=turns)

    def survey(self, cache: GpuCache, pending: int, tokens: Sequence[int]) -> NDArray[np.int32]:
        """Find the likeliest tokens after each of several tokens, alone after the same text.

        Args:
            cache: holds the text but for its last token; left as it is.
            pending: the text's last token.
            tokens: after the text, each in a row of its own.

        Returns:
            int32 (N, TOP), the likeliest first.
        """
        whole, rows = self._transformer.whole, self._step_rows
        assert whole is not None  # `most_rows` is 0
        kind, each, found = self.kind_of_surveys, rows - 1, []
        length = cache.length
        cache.reserve(length + rows)
        for first in range(0, len(tokens), each * (1 + MOST_AHEAD)):
            asked = tokens[first : first + each * (1 + MOST_AHEAD)]
            state = state_of([chain([pending], length, wanted=1)], [cache.positions])
            show_choices(state, ahead=MOST_AHEAD, ends=())
            self.recycler.tell_survey(state, cache, asked, rows)
            self._transformer.launch(kind, state, [cache], [])
            turns = whole.choices(kind.rows, MOST_AHEAD).view(np.int32)
            found.append(turns[:, 1:rows].reshape(-1, TOP)[: len(asked)])
        return np.concatenate(found)
