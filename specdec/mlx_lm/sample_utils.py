"""mlx-lm's samplers and logits processors, as functions of MLX arrays.

A sampler takes log-probabilities (B, V) and returns token ids (B,); a logits processor takes the token ids so far (T,)
and logits (B, V) and returns logits. The engine calls them once for each token of an answer, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import mlx.core as mx

from specdec.checks import as_number, check_count, is_integral
from specdec.errors import InvalidArgumentError

Sampler: TypeAlias = Callable[[Any], Any]
LogitsProcessor: TypeAlias = Callable[[Any, Any], Any]


def make_sampler(
    temp: float = 0.0,
    top_p: float = 0.0,
    min_p: float = 0.0,
    min_tokens_to_keep: int = 1,
    top_k: int = 0,
    xtc_probability: float = 0.0,
    xtc_threshold: float = 0.1,
    xtc_special_tokens: list[int] | None = None,
) -> Sampler:
    """A sampler for `generate` and its kin.

    The filters apply in the order top-p, min-p, XTC, top-k, all at temperature 1; the temperature comes last. The draw
    uses MLX's global random state, so `mx.random.seed` makes it repeatable.

    Args:
        temp: 0 takes the likeliest token, whatever the other arguments say.
        top_p: keep the fewest likeliest tokens that hold this probability; 0 and 1 keep all.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        min_tokens_to_keep: likeliest tokens that min-p never drops.
        top_k: keep the k likeliest tokens; 0 keeps all.
        xtc_probability: chance with which a draw leaves out all likely tokens but the least likely of them.
        xtc_threshold: probability above which a token is likely, 0 to 0.5.
        xtc_special_tokens: tokens that XTC never leaves out.
    """
    if temp == 0:
        return greedy_sampler
    filters: list[Callable[[Any], Any]] = []
    if 0 < top_p < 1:
        filters.append(lambda logprobs: apply_top_p(logprobs, top_p))
    if min_p != 0:
        filters.append(lambda logprobs: apply_min_p(logprobs, min_p, min_tokens_to_keep))
    if xtc_probability > 0:
        spared = list(xtc_special_tokens or ())
        filters.append(lambda logprobs: apply_xtc(logprobs, xtc_probability, xtc_threshold, spared))
    if top_k > 0:
        filters.append(lambda logprobs: apply_top_k(logprobs, top_k))

    def sampler(logprobs: Any) -> Any:
        for one in filters:
            logprobs = one(logprobs)
        return categorical_sampling(logprobs, temp)

    return sampler


def make_logits_processors(
    logit_bias: dict[int, float] | None = None,
    repetition_penalty: float | None = None,
    repetition_context_size: int | None = 20,
    presence_penalty: float | None = None,
    presence_context_size: int | None = 20,
    frequency_penalty: float | None = None,
    frequency_context_size: int | None = 20,
) -> list[LogitsProcessor]:
    """Logits processors for `generate` and its kin, in the order bias, repetition, presence, frequency.

    Args:
        logit_bias: added to the logits of these token ids.
        repetition_penalty: positive logits of recent tokens are divided by it, negative ones multiplied with it.
        repetition_context_size: recent tokens that it looks at.
        presence_penalty: subtracted from the logits of recent tokens.
        presence_context_size: recent tokens that it looks at.
        frequency_penalty: subtracted as many times as a token occurs among the recent ones.
        frequency_context_size: recent tokens that it looks at.

    Raises:
        InvalidArgumentError: a bias is for a token id below 0; or, when it is called, above those that there are.
    """
    processors: list[LogitsProcessor] = []
    if logit_bias:
        numbers = [check_count("a token id of logit_bias", token, least=0) for token in logit_bias]
        ids, values = mx.array(numbers), mx.array([float(value) for value in logit_bias.values()])

        def logit_bias_processor(_: Any, logits: Any) -> Any:
            if max(numbers) >= (size := logits.shape[-1]):  # MLX does not check where it writes
                raise InvalidArgumentError(
                    f"logit_bias must have token ids from 0 to {size - 1} for this model, not {max(numbers)}"
                )
            return logits.at[:, ids].add(values)

        processors.append(logit_bias_processor)
    for make, penalty, size in (
        (make_repetition_penalty, repetition_penalty, repetition_context_size),
        (make_presence_penalty, presence_penalty, presence_context_size),
        (make_frequency_penalty, frequency_penalty, frequency_context_size),
    ):
        if penalty:
            processors.append(make(penalty, 20 if size is None else size))
    return processors


def greedy_sampler(logprobs: Any) -> Any:
    """The likeliest token; of equal ones, that of the lowest id."""
    return mx.argmax(logprobs, axis=-1)


def apply_top_k(logprobs: Any, top_k: int) -> Any:
    """-inf for all but the `top_k` likeliest tokens.

    Raises:
        InvalidArgumentError: `top_k` is not a whole number from 1 to V - 1.
    """
    size = logprobs.shape[-1]
    if not is_integral(top_k) or not 0 < top_k < size:
        raise InvalidArgumentError(f"top_k must be a whole number from 1 to {size - 1}, not {top_k!r}")
    dropped = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, dropped, mx.array(-math.inf, logprobs.dtype), axis=-1)


def apply_min_p(logprobs: Any, min_p: float, min_tokens_to_keep: int = 1) -> Any:
    """-inf for tokens less than `min_p` times as likely as the likeliest one (Nguyen et al., 2407.01082).

    Raises:
        InvalidArgumentError: an argument is out of range.
    """
    if not 0 <= min_p <= 1:
        raise InvalidArgumentError(f"min_p must be a number from 0 to 1, not {min_p!r}")
    if not is_integral(min_tokens_to_keep) or min_tokens_to_keep < 1:
        raise InvalidArgumentError(
            f"min_tokens_to_keep must be a whole number of at least 1, not {min_tokens_to_keep!r}"
        )
    lowest = mx.max(logprobs, axis=-1, keepdims=True) + (math.log(min_p) if min_p else -math.inf)
    drops = logprobs < lowest
    if min_tokens_to_keep > 1:
        kept = mx.argpartition(logprobs, kth=-min_tokens_to_keep, axis=-1)[..., -min_tokens_to_keep:]
        drops = mx.put_along_axis(drops, kept, mx.array(False), axis=-1)
    return mx.where(drops, -math.inf, logprobs)


def apply_top_p(logprobs: Any, top_p: float) -> Any:
    """-inf for all but the fewest likeliest tokens that hold `top_p` of the probability (Holtzman et al., 1904.09751).

    Equally likely tokens at the edge stay together.
    """
    ascending = mx.sort(logprobs, axis=-1)
    weights = mx.exp(ascending.astype(mx.float32))
    above = mx.cumsum(weights, axis=-1, reverse=True, inclusive=False)
    total = above[..., :1] + weights[..., :1]
    dropped = (above >= top_p * total).sum(axis=-1, keepdims=True)
    edge = mx.take_along_axis(ascending, dropped, axis=-1)
    return mx.where(logprobs < edge, -math.inf, logprobs)


def apply_xtc(logits: Any, xtc_probability: float, xtc_threshold: float, xtc_special_tokens: Sequence[int]) -> Any:
    """With a chance of `xtc_probability`, -inf for every token above the threshold but the least likely of them.

    Raises:
        InvalidArgumentError: an argument is out of range.
    """
    if not 0 <= xtc_threshold <= 0.5:
        raise InvalidArgumentError(f"xtc_threshold must be a number from 0 to 0.5, not {xtc_threshold!r}")
    if not 0 <= xtc_probability <= 1:
        raise InvalidArgumentError(f"xtc_probability must be a number from 0 to 1, not {xtc_probability!r}")
    probs = mx.softmax(logits, axis=-1)
    least = mx.where(probs > xtc_threshold, probs, math.inf).min(axis=-1, keepdims=True)
    drops = probs > least
    if len(xtc_special_tokens):
        drops[..., mx.array(list(xtc_special_tokens))] = False
    is_spared = mx.random.uniform(0, 1) > xtc_probability
    return mx.where(is_spared, logits, mx.where(drops, -math.inf, logits))


def categorical_sampling(logits: Any, temp: float) -> Any:
    """A draw from the softmax of `logits` at this temperature, by MLX's global random state."""
    return mx.random.categorical(logits * (1 / temp))


def make_repetition_penalty(penalty: float, context_size: int = 20) -> LogitsProcessor:
    """A processor that makes recent tokens less likely (Keskar et al., "CTRL", 1909.05858, section 4.1).

    Raises:
        InvalidArgumentError: the penalty is not a number of at least 0.
    """
    if not as_number(penalty) >= 0:
        raise InvalidArgumentError(f"the repetition penalty must be a number of at least 0, not {penalty!r}")

    def repetition_penalty_processor(tokens: Any, logits: Any) -> Any:
        if len(tokens) == 0:
            return logits
        recent = mx.array(tokens)[-context_size:]
        values = logits[:, recent]
        logits[:, recent] = mx.where(values < 0, values * penalty, values / penalty)
        return logits

    return repetition_penalty_processor


def make_presence_penalty(penalty: float, context_size: int = 20) -> LogitsProcessor:
    """A processor that subtracts `penalty` from the logit of every recent token."""

    def presence_penalty_processor(tokens: Any, logits: Any) -> Any:
        if len(tokens) == 0:
            return logits
        recent = mx.array(tokens)[-context_size:]
        logits[:, recent] = logits[:, recent] - penalty
        return logits

    return presence_penalty_processor


def make_frequency_penalty(penalty: float, context_size: int = 20) -> LogitsProcessor:
    """A processor that subtracts `penalty` from the logit of a recent token, as many times as the token occurs."""

    def frequency_penalty_processor(tokens: Any, logits: Any) -> Any:
        if len(tokens) == 0:
            return logits
        return logits.at[:, mx.array(tokens)[-context_size:]].subtract(penalty)

    return frequency_penalty_processor
