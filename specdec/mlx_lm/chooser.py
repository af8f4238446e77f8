"""A caller's sampler and logits processors in the engine: `CalledInOrder`.

They may keep state, as MLX's random numbers do. So they are asked about each token of the answer once, in order, and
never about a draft: the verifier's choices are those of plain decoding with the same functions, and a draft token is
kept where it is what they chose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from specdec.checks import is_integral
from specdec.engine.sampler import Sampler as EngineSampler
from specdec.engine.sampler import SamplingParams
from specdec.errors import PluginError
from specdec.mlx_lm.sample_utils import LogitsProcessor, Sampler, greedy_sampler


class RandomStream:
    """A part of MLX's random numbers of its own, so that one answer's draws do not depend on those of others.

    It begins with a number drawn from the global state.
    """

    def __init__(self) -> None:
        first: Any = mx.random.randint(0, 2**31 - 1).item()
        self._key = int(first)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """MLX draws from this stream in the block, and from where it was after it."""
        before = _key()
        mx.random.seed(self._key)
        try:
            yield
        finally:
            self._key = _key()
            mx.random.seed(before)


class CalledInOrder:
    """Chooses the tokens of one answer with a caller's functions. An engine's `Chooser`.

    Args:
        tokens: prompt and answer so far; the sequence's own list, which grows.
        sampler: `(logprobs (1, V)) -> token`; None takes the likeliest.
        processors: each `(tokens (T,), logits (1, V)) -> logits`.
        start: of the first token that processors see; those before are of a prompt cache.
        end_tokens: after which nothing is asked.
        stream: MLX stream that the functions run in; None for the current one.
        random: where draws come from; None for MLX's global state.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        sampler: Sampler | None,
        processors: Sequence[LogitsProcessor],
        *,
        start: int,
        end_tokens: Collection[int],
        stream: Any,
        random: RandomStream | None = None,
    ) -> None:
        self._tokens, self._sampler, self._processors = tokens, sampler, tuple(processors)
        self._start, self._end_tokens = start, frozenset(end_tokens)
        self._stream, self._random = stream, random
        self._is_greedy = sampler is None or sampler is greedy_sampler
        self._plain = EngineSampler(SamplingParams())
        self._history, self._known = np.empty(0, np.int32), 0  # and how much of it is filled in
        self._rows: dict[int, Any] = {}  # of tokens that were chosen and not yet taken, by position
        self._row: Any = None  # log-probabilities (1, V) of the place that `shape` was last asked about
        self._is_over = False

    def __call__(self, logits: np.ndarray, position: int, drafted: Sequence[int] = ()) -> int:
        """The token at `position`, which follows `drafted`."""
        return self.draw(self.shape(logits, drafted), position)

    def allows(self, logits: np.ndarray, token: int, drafted: Sequence[int]) -> bool:  # noqa: ARG002
        """Any token can come."""
        return True

    def shape(self, logits: np.ndarray, drafted: Sequence[int]) -> np.ndarray:
        """What the processors make of the logits of the place after `drafted`.

        Raises:
            PluginError: a processor returns no logits, or none from which a token can be taken.
        """
        self._is_over = any(token in self._end_tokens for token in drafted)
        position = len(self._tokens) + len(drafted)
        if self._is_over:
            return logits
        if not self._processors:
            self._rows[position] = logits
            return logits
        with self._streamed():
            shaped, history = mx.array(logits)[None], mx.array(self._seen(drafted))
            for processor in self._processors:
                answer = processor(history, shaped)
                if not isinstance(answer, mx.array) or answer.shape != shaped.shape:
                    raise PluginError(
                        "logits processor",
                        getattr(processor, "__name__", type(processor).__name__),
                        f"gave a wrong answer: it must return an array of shape {shaped.shape}, not "
                        f"{getattr(answer, 'shape', answer)!r}",
                    )
                shaped = answer
        found = np.array(shaped[0].astype(mx.float32))
        if not np.isfinite(highest := found.max()) and np.isfinite(logits.max()):
            names = ", ".join(getattr(one, "__name__", type(one).__name__) for one in self._processors)
            raise PluginError("logits processor", names, f"left no token: the largest logit is {highest}")
        self._rows[position] = found
        return found

    def draw(self, logits: np.ndarray, position: int) -> int:
        """The token that the sampler takes from what `shape` returned.

        Raises:
            ModelOutputError: the largest logit is not finite.
            PluginError: the sampler returns no token of the vocabulary.
        """
        if self._is_over:
            return int(logits.argmax())
        top = self._plain.draw(logits, position)
        if self._is_greedy or self._sampler is None:
            return top
        with self._streamed(), self._random.current() if self._random else contextlib.nullcontext():
            answer = self._sampler(logprobs_of(logits)[None])
            if isinstance(answer, mx.array):
                mx.eval(answer)
        return _token(self._sampler, answer, len(logits))

    def take_row(self, position: int) -> np.ndarray:
        """Logits, float32 (V,), that the token at `position` was drawn from; once."""
        row: np.ndarray = self._rows.pop(position)
        return row

    def forget(self) -> None:
        """Drop what was chosen and will not be taken."""
        self._rows.clear()

    def _streamed(self) -> contextlib.AbstractContextManager[Any]:
        stream: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if self._stream is None else mx.stream(self._stream)
        )
        return stream

    def _seen(self, drafted: Sequence[int]) -> np.ndarray:
        """int32 (T,): the tokens that processors see at the place after `drafted`."""
        start, known = self._start, len(self._tokens) - self._start
        if len(self._history) < known + len(drafted):
            self._history, self._known = np.empty(2 * (known + len(drafted)) + 64, np.int32), 0
        self._known = min(self._known, known)
        self._history[self._known : known] = self._tokens[start + self._known :]
        self._known = known
        self._history[known : known + len(drafted)] = drafted
        return self._history[: known + len(drafted)]


def logprobs_of(logits: np.ndarray) -> Any:
    """Log-probabilities of logits (V,), an MLX array that is computed when it is looked at."""
    row = mx.array(logits)
    return row - mx.logsumexp(row)


def _token(sampler: Sampler, answer: object, vocab_size: int) -> int:
    name = getattr(sampler, "__name__", type(sampler).__name__)
    value = answer.item() if isinstance(answer, (mx.array, np.ndarray)) and answer.size == 1 else answer
    if not is_integral(value) or not 0 <= int(value) < vocab_size:
        raise PluginError("sampler", name, f"gave a wrong answer: it must return one token id, not {answer!r}")
    return int(value)


def _key() -> int:
    """MLX's random state as the seed that sets it."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    return int(high) << 32 | int(low)
