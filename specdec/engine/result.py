"""What a caller gets: `Piece`s while an answer grows, and its `Result`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from specdec.engine.logprobs import TokenLogprob
from specdec.engine.origin import Origin
from specdec.engine.stats import Stats


@dataclass(frozen=True, slots=True)
class Piece:
    """What one round added to the answer.

    Attributes:
        text: new text; may be empty while a character is incomplete or a stop string may have begun.
        tokens: new token ids.
        parts: for each token, the text that came out with it: `text` in as many pieces.
        origins: for each token, who produced it.
        logprobs: for each token, its log-probability, where that was asked for; else empty.
    """

    text: str
    tokens: list[int]
    parts: list[str] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An answer.

    Attributes:
        text: the text, without the stop string that ended it and anything after it.
        tokens: every token of the answer, the end token or those of the stop string included.
        finish_reason: "stop" (an end token, a stop string or the end of a grammar), "length" (max_tokens, the context
            or the time is used up), or "interrupted" (the caller stopped early).
        stopped_by: the same in detail: "end token", "stop string", "grammar", "max_tokens", "context", "deadline"
            (of a batch; its finish_reason is "length") or "caller".
        stop_string: the caller's stop string that ended the answer, if one did.
        stats: counts, times and bytes.
        identical_to: whose tokens these are: "dense" (plain decoding of the model itself), or plain decoding at a lower
            verify effort, as "effort 0.6", or with a part of the weights, as "dense at 0.800 of the weights"; "nothing
            (trusted 12 tokens)" when tokens were kept without a check.
        seed: that the tokens were drawn with; None for greedy decoding without one, which no seed changes.
        logprobs: for each token, its log-probability, where that was asked for; else None.
        prompt_logprobs: the same for each token of the prompt, None for the first one, which nothing comes before.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    stopped_by: str
    stats: Stats
    identical_to: str
    stop_string: str | None = None
    seed: int | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; log-probabilities only where they were asked for."""
        own = ("text", "tokens", "finish_reason", "stopped_by", "stop_string", "identical_to", "seed")
        found = {name: getattr(self, name) for name in own} | {"stats": self.stats.to_dict()}
        for name, logprobs in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if logprobs is not None:
                found[name] = [None if one is None else one.to_dict() for one in logprobs]
        return found
