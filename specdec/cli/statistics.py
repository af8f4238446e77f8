"""The statistics that end `specdec generate`: one line, or with `--stats` all. The numbers are the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from specdec.engine.result import Result
    from specdec.engine.stats import Stats


def summary(result: Result, options: Mapping[str, Any], stream: TextIO) -> None:
    """Print the statistics of an answer on one line: speed, drafts, what it is identical to, and how it ended.

    Args:
        result: the answer.
        options: the arguments that it was asked for with, by the library's names.
        stream: where to print.
    """
    stats = result.stats
    if not options.get("speculate", True):
        drafts = "no drafts (plain decoding)"
    elif not stats.drafted:
        drafts = "nothing was drafted"
    else:
        drafts = f"{stats.accepted} of {stats.drafted} drafted tokens accepted"
    seed = f"; seed {result.seed}" if result.seed is not None and options.get("temperature") else ""
    end = f"identical {_identity(result)}{seed}; ended by {result.stopped_by}"
    print(f"\n{_speed(stats)}; {drafts}; {end}", file=stream)
    if stats.advice:
        print(stats.advice, file=stream)


def report(result: Result, options: Mapping[str, Any], stream: TextIO) -> None:
    """Print all statistics of an answer.

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
    yield f"speed      {_speed(stats)}"
    if options.get("speculate", True):
        yield from _drafts(stats)
    else:
        yield "drafts     none (plain decoding)"
    if stats.decode_s:
        shares = (("draft", stats.draft_s), ("verify", stats.verify_s), ("overhead", stats.overhead_s))
        split = ", ".join(f"{name} {seconds / stats.decode_s:.0%}" for name, seconds in shares)
        yield f"time       {split}; {stats.gb_per_s:.2f} GB/s of weights and cache read"
    if stats.advice:
        yield f"note       {stats.advice}"
    yield f"identical  {_identity(result)}"
    if result.seed is not None and options.get("temperature"):
        yield f"seed       {result.seed}"
    yield f"ended by   {result.stopped_by}"


def _speed(stats: Stats) -> str:
    return (
        f"{stats.tok_per_s:.2f} tokens/s: {stats.emitted} tokens in {stats.decode_s:.2f} s, "
        f"after {stats.prompt_tokens} prompt tokens in {stats.prefill_s:.2f} s"
    )


def _identity(result: Result) -> str:
    if result.stats.trusted:
        return f"to {result.identical_to}"
    why = "not all weights are loaded" if "of the weights" in result.identical_to else "the verify effort is below 1"
    lossy = "" if result.identical_to == "dense" else f" (lossy: {why})"
    return f"to plain decoding, {result.identical_to}{lossy}"


def _drafts(stats: Stats) -> Iterator[str]:
    yield (
        f"drafts     {stats.accepted} of {stats.drafted} accepted ({stats.acceptance_rate:.0%}), "
        f"mean accepted length {stats.mean_accepted_length:.2f} over {stats.rounds} rounds, view {stats.draft_view}"
    )
    yield f"           acceptance by position: {_by_place(stats) or 'nothing was drafted'}"
    drafters = {name: one for name, one in stats.by_drafter.items() if one["drafted"]}
    if len(drafters) > 1:
        yield f"           by drafter: {_shares(drafters)}"
    if len(stats.by_effort) > 1:
        efforts = dict(sorted(stats.by_effort.items(), key=lambda item: float(item[0])))
        yield f"           by effort: {_shares(efforts)}"
    policy = stats.policy
    if "estimated_gain" in policy and policy["plain_step_s"]:
        timed = policy["plain_steps_timed"]
        times = "never" if not timed else "once" if timed == 1 else f"{timed} times"
        yield (
            f"policy     predicted {policy['predicted_gain']:.2f}x, estimated {policy['estimated_gain']:.2f}x of plain "
            f"decoding (plain step measured {times}); {stats.plain_rounds} of {stats.rounds} rounds without a draft, "
            f"{policy['trial_rounds']} trials"
        )
        if policy["parked"]:
            spell = max(policy["parked"], key=lambda one: int(one["rounds"]))
            yield (
                f"           skipped drafting in {policy['parked_rounds']} of {stats.rounds} rounds, longest from "
                f"round {spell['from_round']} ({spell['reason']})"
            )


def _shares(counts: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{name} {one['accepted']:.0f} of {one['drafted']:.0f}" for name, one in counts.items())


def _by_place(stats: Stats) -> str:
    places = zip(stats.accepted_per_position, stats.drafted_per_position, strict=True)
    return " ".join(f"{accepted / drafted:.2f}" for accepted, drafted in places if drafted)
