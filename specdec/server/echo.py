"""The prompt's own text before an answer, as completions may ask for it: `Echo`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specdec.engine.logprobs import TokenLogprob as Found
from specdec.server.events import TextDelta
from specdec.server.logprobs import describer, first_of_prompt
from specdec.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Echo:
    """The text of a prompt.

    Attributes:
        text: as the caller sent it, or what its token ids stand for.
        ids: its tokens.
        tokenizer: of the model.
        has_logprobs: log-probabilities of its tokens are wanted.
    """

    text: str
    ids: Sequence[int]
    tokenizer: Tokenizer | None
    has_logprobs: bool

    def event(self, logprobs: Sequence[Found | None] | None) -> TextDelta:
        """The event that comes before the answer's.

        Args:
            logprobs: of the prompt's tokens, None for the first one.
        """
        if logprobs is None:
            return TextDelta(self.text)
        describe = describer(self.tokenizer)
        entries = [
            first_of_prompt(self.tokenizer, token) if found is None else describe(found)
            for token, found in zip(self.ids, logprobs, strict=True)
        ]
        return TextDelta(self.text, tuple(entries))
