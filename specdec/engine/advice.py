"""What the statistics say of a draft effort that the caller named and that hardly ever agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.engine.stats import Stats

_LEAST_CHECKED = 8
_POOR = 1 / 3  # of the checked tokens: below it a draft costs more than it brings, whatever it costs


def advice_on_effort(stats: Stats, effort: float, usual: tuple[str, float]) -> str:
    """A sentence that names a draft effort which cannot agree, and what would work; empty where nothing is wrong.

    Args:
        stats: of the answer.
        effort: mean draft effort that the caller named.
        usual: draft view and mean effort that the model drafts with where nobody names one.
    """
    steps = {name.split()[1]: one for name, one in stats.by_step.items() if name.startswith("effort ")}
    checked = sum(sum(one["checked"]) for one in steps.values())
    accepted = sum(sum(one["accepted"]) for one in steps.values())
    if checked < _LEAST_CHECKED or accepted >= _POOR * checked or effort >= usual[1]:
        return ""
    views = " and ".join(sorted(steps))
    return (
        f"draft effort {effort:g} in view {views} agreed at {accepted} of {checked} tokens, too few to gain from: "
        f"leave the draft effort out, or draft from view {usual[0]} at {usual[1]:g}"
    )
