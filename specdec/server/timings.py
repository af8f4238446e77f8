"""What an answer did, in the names of other servers: `Timings` (llama-server's), speculative decoding (vLLM's)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.engine.stats import Stats
from specdec.server.events import Usage


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of an answer on the wall clock; others that share its passes count in.

    Attributes:
        prompt_s: from the request to the first token.
        predicted_s: from the first token to the last.
    """

    prompt_s: float
    predicted_s: float


def usage_of(stats: Stats, *, reasoning_tokens: int = 0) -> Usage:
    """Tokens of an answer."""
    return Usage(stats.prompt_tokens, stats.emitted, stats.cached_prompt_tokens, reasoning_tokens)


def timings_of(stats: Stats, clock: Clock, *, first_tokens: int) -> dict[str, Any]:
    """`timings` as llama-server names them.

    Args:
        stats: of the answer.
        clock: of the answer.
        first_tokens: tokens that came with the first piece; those after it took `clock.predicted_s`.
    """
    read = stats.prompt_tokens - stats.cached_prompt_tokens
    # Tokens of the first piece came with the end of the prompt: the others tell the speed.
    later = stats.emitted - first_tokens
    return {
        "cache_n": stats.cached_prompt_tokens,
        "prompt_n": read,
        "prompt_ms": _ms(clock.prompt_s),
        **_rates("prompt", read, clock.prompt_s),
        "predicted_n": stats.emitted,
        "predicted_ms": _ms(clock.predicted_s),
        **_rates("predicted", later, clock.predicted_s),
        "draft_n": stats.drafted,
        "draft_n_accepted": stats.accepted,
    }


def speculative_decoding(stats: Stats) -> dict[str, Any]:
    """An answer's speculation in the names of vLLM's `metrics.speculative_decoding`, without plain rounds."""
    histogram = list(stats.rounds_by_accepted)
    if histogram:
        histogram[0] -= stats.plain_rounds
    while histogram and not histogram[-1]:
        histogram.pop()
    return _speculation(stats.accepted, stats.drafted, histogram, len(stats.drafted_per_position))


def plain_decoding(stats: Stats, *, first_tokens: int) -> dict[str, Any]:
    """What the tokens after the first piece would have taken without drafts, in passes alone; an estimate from what the
    policy knows of plain steps, None where it knows nothing."""
    step_s = stats.policy.get("plain_step_s") or 0.0
    known = isinstance(step_s, (int, float)) and step_s > 0
    return {"estimated_ms": _ms(step_s * (stats.emitted - first_tokens)) if known else None}


def merged_speculation(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same of several answers together."""
    longest = max((len(part["acceptance_histogram"]) for part in parts), default=0)
    histogram = [
        sum(part["acceptance_histogram"][n] for part in parts if n < len(part["acceptance_histogram"]))
        for n in range(longest)
    ]
    return _speculation(
        sum(part["num_accepted_draft_tokens"] for part in parts),
        sum(part["num_draft_tokens"] for part in parts),
        histogram,
        max((part["num_spec_tokens"] for part in parts), default=0),
    )


def merged_timings(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Timings of several answers to one prompt: counts and times are summed, rates are means by time."""
    if len(parts) == 1:
        return dict(parts[0])
    total = {name: sum(part[name] for part in parts) for name in parts[0] if "_per_" not in name}
    later = sum(part["predicted_per_second"] * part["predicted_ms"] / 1000 for part in parts)
    rates = {
        **_rates("prompt", total["prompt_n"], total["prompt_ms"] / 1000),
        **_rates("predicted", later, total["predicted_ms"] / 1000),
    }
    return {name: rates.get(name, total.get(name)) for name in parts[0]}


def merged_usage(parts: Iterable[Usage]) -> Usage:
    """Usage of several answers to one prompt, which counts once."""
    first, *others = parts
    return Usage(
        first.prompt_tokens,
        first.completion_tokens + sum(part.completion_tokens for part in others),
        first.cached_tokens,
        first.reasoning_tokens + sum(part.reasoning_tokens for part in others),
    )


def _speculation(accepted: int, drafted: int, histogram: list[int], longest: int) -> dict[str, Any]:
    steps = sum(histogram)
    return {
        "mean_acceptance_length": 1 + accepted / steps if steps else 0.0,
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": longest,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _rates(name: str, count: float, seconds: float) -> dict[str, float]:
    return {
        f"{name}_per_token_ms": round(seconds * 1000 / count, 4) if count else 0.0,
        f"{name}_per_second": round(count / seconds, 4) if seconds > 0 else 0.0,
    }
