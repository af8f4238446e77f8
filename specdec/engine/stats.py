"""What a generation did and what it cost: `Stats`, filled a round at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from specdec.runtimes.base import depths

if TYPE_CHECKING:
    from specdec.engine.round import Round


@dataclass(slots=True)
class _Count:
    """The entries of `Stats` that one kind of draft step counts in."""

    of_drafter: dict[str, float]
    of_effort: dict[str, int]
    by_place: dict[str, list[int]]

    def add(self, index: int, *, checked: bool, accepted: bool) -> None:
        """Count a token at place `index` of a draft."""
        places = self.by_place
        if index >= len(places["drafted"]):
            for counts in places.values():
                counts.extend([0] * (index + 1 - len(counts)))
        places["drafted"][index] += 1
        self.of_drafter["drafted"] += 1
        if self.of_effort:
            self.of_effort["drafted"] += 1
        if checked:
            places["checked"][index] += 1
        if accepted:
            places["accepted"][index] += 1
            self.of_drafter["accepted"] += 1
            if self.of_effort:
                self.of_effort["accepted"] += 1

    def add_draft(self, places: Sequence[int], checked: Sequence[int], accepted: int) -> None:
        """Count a whole draft without an effort: the place of each token, of each that was checked, and how many were
        kept, at the first places."""
        by_place = self.by_place
        if (missing := max(places) + 1 - len(by_place["drafted"])) > 0:
            for counts in by_place.values():
                counts.extend([0] * missing)
        for name, of_them in (("drafted", places), ("checked", checked), ("accepted", range(accepted))):
            counts = by_place[name]
            for place in of_them:
                counts[place] += 1
        self.of_drafter["drafted"] += len(places)
        self.of_drafter["accepted"] += accepted


@dataclass(slots=True)
class Stats:
    """Counts, times in seconds, and bytes.

    `accepted` and everything made from it counts what the verifier said. `emitted` counts what the caller got. They
    differ when an end token or a stop string cuts a round's tokens short, by `cut`:
    `emitted + cut == accepted + rounds`, always.

    Attributes:
        draft_view: view that the drafter reads; None without speculation, or for a drafter that reads no weights.
        seed: that tokens are drawn with; None for greedy decoding without one.
        prompt_tokens: tokens of the prompt.
        rounds: verify passes after the prompt; with speculation off, one for each token.
        drafted: tokens proposed.
        accepted: proposed tokens that the verifier kept, never counting its own token.
        emitted: tokens handed to the caller.
        cut: tokens that were produced after the end of the answer and dropped.
        drafted_per_position: element j counts the rounds that proposed a (j + 1)-th token, in trees any at that depth.
        accepted_per_position: element j counts the rounds whose (j + 1)-th proposed token was kept.
        rounds_by_accepted: element n counts the rounds that kept n proposed tokens.
        by_drafter: for every drafter that proposed tokens: `rounds` that it was asked in, their `draft_s`, tokens
            `drafted` by it and how many of them were `accepted`. In a chain, the tokens count for its links; those
            that a grammar left no choice about count for "grammar".
        by_effort: for every draft effort, as text: tokens `drafted` at it, and `accepted`.
        by_step: for every kind of draft step, as text (drafter, view and effort as far as they mean something:
            "effort int4 0.5", "ngram"): how many tokens were `drafted`, `checked` and `accepted`, each a list by place
            in the draft. A token is checked when all before it were kept: the others had no chance.
        plain_rounds: rounds without a draft.
        trusted: tokens kept without a check; in `accepted`, too.
        cached_prompt_tokens: tokens of the prompt that were not read, as the prompt cache held them.
        policy: what the policy has to say of the run; for "goodput" the gain that it predicted, its estimate of the
            real one, and when and why drafting was parked.
        advice: a sentence about a draft effort that the caller named and that hardly ever agreed; else empty.
        prefill_s: passes over the prompt.
        draft_s: drafting: passes, sampling, and the policy's steps in between.
        verify_s: verify passes.
        overhead_s: the rest of the rounds: policy, sampling from the verify pass, text, trace.
        prefill_bytes_read: bytes of weights and cache that the passes over the prompt had to read.
        draft_bytes_read: the same, of drafting.
        verify_bytes_read: the same, of the verify passes.
    """

    draft_view: str | None = None
    seed: int | None = None
    prompt_tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    cut: int = 0
    drafted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)
    rounds_by_accepted: list[int] = field(default_factory=list)
    by_drafter: dict[str, dict[str, float]] = field(default_factory=dict)
    by_effort: dict[str, dict[str, int]] = field(default_factory=dict)
    by_step: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    plain_rounds: int = 0
    trusted: int = 0
    cached_prompt_tokens: int = 0
    policy: dict[str, Any] = field(default_factory=dict)
    advice: str = ""
    prefill_s: float = 0.0
    draft_s: float = 0.0
    verify_s: float = 0.0
    overhead_s: float = 0.0
    prefill_bytes_read: int = 0
    draft_bytes_read: int = 0
    verify_bytes_read: int = 0
    _counts: dict[tuple[str, str | None, float | None], _Count] = field(default_factory=dict, repr=False)

    @property
    def acceptance_rate(self) -> float:
        """accepted / drafted; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted_length(self) -> float:
        """accepted / rounds; 0 before the first round."""
        return self.accepted / self.rounds if self.rounds else 0.0

    @property
    def decode_s(self) -> float:
        """Time of all rounds: drafting, verifying and the rest, without the passes over the prompt."""
        return self.draft_s + self.verify_s + self.overhead_s

    @property
    def tok_per_s(self) -> float:
        """emitted / decode_s: what the caller got, over all the time after the prompt had been read."""
        return self.emitted / self.decode_s if self.decode_s else 0.0

    @property
    def gb_per_s(self) -> float:
        """10^9 bytes of weights and cache read a second by draft and verify passes."""
        seconds = self.draft_s + self.verify_s
        return (self.draft_bytes_read + self.verify_bytes_read) / seconds / 1e9 if seconds else 0.0

    def add(self, done: Round, *, emitted: int, wall_s: float) -> None:
        """Count a finished round.

        Args:
            done: the round.
            emitted: how many of its tokens the caller gets.
            wall_s: its whole time, text and trace included.
        """
        drafted, accepted = len(done.draft.tokens), len(done.kept)
        further = max(0, min(len(done.further), emitted - accepted - 1))  # tokens after the end do not count as rounds
        self.rounds += 1 + further
        self.drafted += drafted
        self.accepted += accepted
        self.emitted += emitted
        self.cut += accepted + 1 + further - emitted
        if drafted >= len(self.rounds_by_accepted):
            self.rounds_by_accepted.extend([0] * (drafted + 1 - len(self.rounds_by_accepted)))
        self.rounds_by_accepted[accepted] += 1
        self.rounds_by_accepted[0] += further
        self.plain_rounds += further
        places: Sequence[int] = ()
        if drafted:
            parents = done.draft.parents
            places = range(drafted) if parents is None else depths(parents)
            deepest = max(places) + 1
            for counts, length in ((self.drafted_per_position, deepest), (self.accepted_per_position, accepted)):
                counts.extend([0] * (deepest - len(counts)))
                for position in range(length):
                    counts[position] += 1
            if done.trusted:
                self.trusted += sum(done.trusted[index] for index in done.kept)
        else:
            self.plain_rounds += 1
        if done.plan is not None or drafted:
            self._add_sources(done, places)
        self.draft_s += done.draft_s
        self.verify_s += done.verify_s
        self.overhead_s += wall_s - done.draft_s - done.verify_s
        self.draft_bytes_read += done.draft.bytes_read
        self.verify_bytes_read += done.verify_bytes_read

    def _add_sources(self, done: Round, places: Sequence[int]) -> None:
        """Count the tokens of a draft, which are at `places`, by what drafted them."""
        draft, kept, sources = done.draft, done.kept, done.draft.sources
        if done.plan is not None and done.plan.drafter is not None:
            asked = self._of_drafter(done.plan.drafter)
            asked["rounds"] += 1
            asked["draft_s"] += done.draft_s
        if not places or not sources:
            return
        parents = range(-1, len(places) - 1) if draft.parents is None else draft.parents
        if not draft.signals and len(sources) == len(places) and sources.count(sources[0]) == len(sources):
            on_path = {-1, *kept}
            checked = [place for place, parent in zip(places, parents, strict=True) if parent in on_path]
            self._count_of(sources[0], None, None).add_draft(places, checked, len(kept))
            return
        for index, (source, signals) in enumerate(zip(sources, draft.aligned, strict=False)):
            view, effort = (None, None) if signals is None else (signals.view, signals.effort)
            count, parent = self._count_of(source, view, effort), parents[index]
            count.add(places[index], checked=parent < 0 or parent in kept, accepted=index in kept)

    def _count_of(self, source: str, view: str | None, effort: float | None) -> _Count:
        return self._counts.get((source, view, effort)) or self._begin_count(source, view, effort)

    def _of_drafter(self, name: str) -> dict[str, float]:
        found = self.by_drafter.get(name)
        if found is None:
            found = self.by_drafter[name] = {"rounds": 0, "draft_s": 0.0, "drafted": 0, "accepted": 0}
        return found

    def _begin_count(self, source: str, view: str | None, effort: float | None) -> _Count:
        """The counter of one kind of draft step."""
        kind = source if effort is None else " ".join([source, *([view] if view else []), f"{effort:g}"])
        count = self._counts[source, view, effort] = _Count(
            self._of_drafter(source),
            {} if effort is None else self.by_effort.setdefault(f"{effort:g}", {"drafted": 0, "accepted": 0}),
            self.by_step.setdefault(kind, {"drafted": [], "checked": [], "accepted": []}),
        )
        return count

    def copied(self) -> Stats:
        """The numbers as they are now; nothing is to be counted in the copy."""
        found = Stats()
        for name in self.__slots__:
            if not name.startswith("_"):
                setattr(found, name, _copied(getattr(self, name)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, derived ones included."""
        derived = ("acceptance_rate", "mean_accepted_length", "decode_s", "tok_per_s", "gb_per_s")
        own = (name for name in self.__slots__ if not name.startswith("_"))
        return {name: getattr(self, name) for name in (*own, *derived)}


def _copied(value: Any) -> Any:
    """A copy of JSON values."""
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [*map(_copied, value)] if isinstance(value, list) else value
