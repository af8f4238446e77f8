"""Draft heads of the native runtime: `Heads` makes them, a `NativeHead` is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import DraftHead
from specdec.runtimes.checks import head_tokens
from specdec.runtimes.memory import available_bytes, check_room

OWN_TOKENS = 4096  # that a head has room for beside those that it shares


class NativeHead:
    """The tokens that the drafts of one sequence score. A `DraftHead`.

    Args:
        handle: `_native.DraftHead`.
        vocab_size: of the model.
    """

    def __init__(self, handle: Any, vocab_size: int) -> None:
        self.handle, self._vocab_size = handle, vocab_size

    def add(self, tokens: Sequence[int]) -> None:
        """Score these tokens, too.

        Raises:
            InvalidArgumentError: one is outside the vocabulary.
        """
        self.handle.add(head_tokens(tokens, self._vocab_size))

    @property
    def tokens(self) -> list[int]:
        """What it scores."""
        return list(self.handle.tokens)

    @staticmethod
    def handle_of(head: DraftHead | None) -> Any:
        """What C++ takes.

        Raises:
            InvalidArgumentError: it is a head of another runtime.
        """
        if head is None:
            return None
        if not isinstance(head, NativeHead):
            raise InvalidArgumentError("a draft head must come from draft_head of this runtime")
        return head.handle


class Heads:
    """Makes the heads of a model. Those that begin with equal tokens share their rows.

    Args:
        module: the extension module.
        model: its `Model`.
        config: of the model.
    """

    def __init__(self, module: Any, model: Any, config: ModelConfig) -> None:
        self._module, self._model, self._config = module, model, config
        self._shared: dict[tuple[int, ...], Any] = {}
        self._last: tuple[tuple[int, ...], Any] = (), None  # thousands of tokens take as long to hash as a short pass

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that heads share."""
        return sum(int(rows.nbytes) for rows in self._shared.values())

    def new(self, tokens: tuple[int, ...]) -> NativeHead:
        """A head that scores `tokens` to begin with.

        Raises:
            InvalidArgumentError: there is none, or one is outside the vocabulary.
            MemoryShortError: there is no memory for it.
        """
        rows = self._last[1] if tokens is self._last[0] else self._shared.get(tokens)
        if rows is None:
            if not tokens:
                raise InvalidArgumentError("a draft head needs at least one token")
            ids = head_tokens(tokens, self._config.vocab_size)
            check_room("a draft head", (len(ids) + OWN_TOKENS) * (self._config.hidden_size + 64), available_bytes())
            rows = self._shared[tokens] = self._module.head_rows(self._model, ids)
        self._last = tokens, rows
        return NativeHead(self._module.DraftHead(self._model, rows, OWN_TOKENS), self._config.vocab_size)
