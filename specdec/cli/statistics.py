"""The block of statistics that ends `specdec generate`. The numbers themselves are the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from specdec.engine.result import Result
    from specdec.engine.stats import Stats


def report(result: Result, options: Mapping[str, Any], stream: TextIO) -> None:
    """Print the statistics of an answer.

    Args:
        result: the answer.
        options: the arguments that it was asked for with, by the library's names.
        stream: where to print.
    """
    print(file=stream)
    for line in _lines(result, options):
        print(line, file=stream)


def _lines(result: Result, options: Mapping[str, Any]) -> Iterator[str]:
    stats = result.stats
    yield (
        f"speed      {stats.tok_per_s:.2f} tokens/s: {stats.emitted} tokens in {stats.decode_s:.2f} s, "
        f"after {stats.prompt_tokens} prompt tokens in {stats.prefill_s:.2f} s"
    )
    if options.get("speculate", True):
        yield (
            f"drafts     {stats.accepted} of {stats.drafted} accepted ({stats.acceptance_rate:.0%}), "
            f"mean accepted length {stats.mean_accepted_length:.2f} over {stats.rounds} rounds, view {stats.draft_view}"
        )
        yield f"           accepted by place in the draft: {_by_place(stats) or 'nothing was drafted'}"
    else:
        yield "drafts     none (plain decoding)"
    if stats.decode_s:
        shares = (("draft", stats.draft_s), ("verify", stats.verify_s), ("overhead", stats.overhead_s))
        split = ", ".join(f"{name} {seconds / stats.decode_s:.0%}" for name, seconds in shares)
        yield f"time       {split}; {stats.gb_per_s:.2f} GB/s of weights and cache read"
    lossy = "" if result.identical_to == "dense" else " (lossy: the verify effort is below 1)"
    yield f"identical  to plain decoding, {result.identical_to}{lossy}"
    yield f"ended by   {result.stopped_by}"


def _by_place(stats: Stats) -> str:
    places = zip(stats.accepted_per_position, stats.drafted_per_position, strict=True)
    return " ".join(f"{accepted / drafted:.2f}" for accepted, drafted in places if drafted)
