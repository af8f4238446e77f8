"""Decoding many sequences together: `Scheduler`. One round of each is one pass over the weights.

A step of the scheduler drafts for every sequence, the passes that drafters ask for gathered into one at a time, and
then runs one pass in the exact view over the rows that each sequence wants verified. Pieces of the prompts of new
sequences share that pass, as far as its cost allows, so that no stream stalls. A row never sees what shares its
pass, so each sequence gets the tokens that it would get alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from specdec.drafters.base import Ask, Reply
from specdec.engine.ahead import Pace
from specdec.engine.limits import check_limits
from specdec.engine.pass_costs import PassCosts, Room
from specdec.engine.round import Round
from specdec.engine.sequence import Proposal, Sequence
from specdec.interrupts import is_from_signal_handler
from specdec.runtimes.base import EXACT, MAX_PASS_ROWS, MAX_SEQUENCES, Pass, Rows, Runtime

T = TypeVar("T")


class Event(NamedTuple):
    """What a step did for one sequence.

    Attributes:
        sequence: which one.
        done: the round that ended; None for a piece of the prompt or an error. The last piece may end the first round.
        error: what went wrong for this sequence alone; it is as before the step, and no longer scheduled.
        bytes_read: of a piece of the prompt.
        seconds: its share of the pass that read the piece; 0 where there was none.
    """

    sequence: Sequence
    done: Round | None = None
    error: Exception | None = None
    bytes_read: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Share:
    """The number of rows that a sequence asks for in a pass."""

    sequence: Sequence
    rows: Rows
    count: int
    is_prompt: bool


@dataclass(slots=True)
class _Measured:
    """Measurement of the current round.

    Attributes:
        began_s: time of its beginning.
        asked: policies were asked that may also wait.
        others: prompts were read, or something failed.
        turns: mean number of tokens of a sequence.
        sequences: number of them.
    """

    began_s: float = 0.0
    asked: bool = False
    others: bool = False
    turns: float = 0.0
    sequences: int = 0


class Scheduler:
    """Runs sequences of one runtime in lockstep. Sequences join and leave between steps.

    It belongs to one thread at a time.

    Args:
        runtime: of all sequences.
        max_sequences: most sequences that run; others wait for their turn, first come, first served.
        max_rows: most rows of a pass.
        costs: what is known of passes of this runtime, which the scheduler learns more of; None for nothing.

    Raises:
        InvalidArgumentError: a number is out of range.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        max_sequences: int = MAX_SEQUENCES,
        max_rows: int = MAX_PASS_ROWS,
        costs: PassCosts | None = None,
    ) -> None:
        check_limits(max_sequences=max_sequences, max_rows=max_rows)
        self._runtime, self._most, self._max_rows = runtime, max_sequences, max_rows
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._last_rows: dict[int, int] = {}  # rows of each sequence in the last verify pass, by id
        self.costs = PassCosts() if costs is None else costs
        self._pace = Pace(runtime.info.most_ahead)
        self._round = _Measured()
        self._has_begun = False  # the runtime works on the next tokens of the sequences of the last pass

    def add(self, sequence: Sequence) -> None:
        """Schedule a sequence from the next step on."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Schedule a sequence no longer; nothing happens to one that is not there."""
        for group in (self._running, self._waiting):
            if any(one is sequence for one in group):
                group[:] = [one for one in group if one is not sequence]
        self._last_rows.pop(id(sequence), None)

    def __len__(self) -> int:
        """Sequences that run or wait."""
        return len(self._running) + len(self._waiting)

    @property
    def waiting(self) -> int:
        """Sequences that wait for others to end."""
        return len(self._waiting)

    def step(self) -> list[Event]:
        """One round of every sequence that has read its prompt, and a piece of the prompts of others.

        When a pass fails, its sequences run one by one, so that only those that cause it fail. Interrupts take every
        round back that has not ended.
        """
        while self._waiting and len(self._running) < self._most:
            self._running.append(self._waiting.pop(0))
        if any(sequence.is_ahead for sequence in self._running):
            self._round.others = True
            return self._take_ahead()
        events: list[Event] = []
        self._measure()
        try:
            shares = self._propose(events)
            self._last_rows = {id(share.sequence): share.count for share in shares}
            if not (self._has_begun and shares):  # prompts come after what is under way, which would be lost
                shares += self._prompt_pieces(sum(self._last_rows.values()))
            self._has_begun = False
            for group in _cut(shares, [share.count for share in shares], self._max_rows):
                events += self._run(group)
        except BaseException:
            for sequence in self._running:
                sequence.rewind()
            raise
        return self._ended(events)

    def _measure(self) -> None:
        """End the measurement of the round before, where it was one of decoding alone, and begin the next one."""
        last, self._round = self._round, _Measured(time.perf_counter())
        if last.turns and not last.others:
            seconds = self._round.began_s - last.began_s
            self._pace.note(asked=last.asked, turns=last.turns, seconds=seconds, sequences=last.sequences)

    def _ended(self, events: list[Event]) -> list[Event]:
        """The events of a step; sequences with errors leave."""
        for event in events:
            if event.error is not None:
                self._round.others = True
                self.remove(event.sequence)
        if events and not self._round.others:
            self._round.sequences = len(events)
            self._round.turns = sum(len(event.done.tokens) for event in events if event.done) / len(events)
        return events

    def _take_ahead(self) -> list[Event]:
        """Rounds that a pass went ahead for and that were not taken with it. Other sequences wait for them."""
        events = []
        for sequence in self._running:
            if sequence.is_ahead:
                try:
                    events.append(Event(sequence, sequence.take_ahead()))
                except Exception as error:
                    events.append(_failed(sequence, _own(error)))
        return self._ended(events)

    def _propose(self, events: list[Event]) -> list[_Share]:
        """The verify rows of all sequences that have read their prompts; drafts of all go on side by side."""
        shares: list[_Share] = []
        open_proposals: list[tuple[Sequence, Proposal, Reply | None]] = []
        last = self._last_rows  # its sequences have read their prompts
        expected = [(one, last.get(id(one), 1)) for one in self._running if id(one) in last or not one.unread]
        total = sum(rows for _, rows in expected)
        for sequence, rows in expected:
            sequence.rows_beside = total - rows
            is_asked = len(expected) == 1 or not sequence.may_wait or (self._pace.asks and sequence.is_due)
            self._round.asked |= is_asked and sequence.may_wait
            open_proposals.append((sequence, sequence.propose(asks=is_asked), None))
        while open_proposals:
            asked: list[tuple[Sequence, Proposal, Ask]] = []
            for sequence, proposal, reply in open_proposals:
                try:
                    ask = next(proposal) if reply is None else proposal.send(reply)
                    asked.append((sequence, proposal, ask))
                except StopIteration as stop:
                    shares.append(_Share(sequence, stop.value, len(stop.value.tokens), is_prompt=False))
                except Exception as error:
                    events.append(_failed(sequence, _own(error)))
            open_proposals = list(self._answer(asked, events))
        return shares

    def _answer(
        self, asked: list[tuple[Sequence, Proposal, Ask]], events: list[Event]
    ) -> Iterator[tuple[Sequence, Proposal, Reply]]:
        """Run what drafters ask for, the same view of the same model in one pass."""
        groups: dict[tuple[int, str], list[tuple[Sequence, Proposal, Ask]]] = {}
        for one in asked:
            groups.setdefault((id(one[2].runtime), one[2].view), []).append(one)
        for members in groups.values():
            for part in _cut(members, [len(ask.rows.tokens) for _, _, ask in members], self._max_rows):
                runtime, view = part[0][2].runtime, part[0][2].view
                replies = _forward(runtime, [ask.rows for _, _, ask in part], view)
                for (sequence, proposal, _), reply in zip(part, replies, strict=True):
                    if isinstance(reply, Exception):
                        events.append(_failed(sequence, sequence.refused(reply)))
                    else:
                        yield sequence, proposal, reply

    def _prompt_pieces(self, decoding_rows: int) -> list[_Share]:
        """Pieces of prompts for what the pass has room for.

        The prompt that has waited longest gets half of the room at least, the others what is left, those with the least
        left to read first: a long prompt delays no other sequence, and no other sequence delays it.
        """
        reading = [one for one in self._running if id(one) not in self._last_rows and one.unread]
        if not reading:
            return []
        room = self.costs.room(decoding_rows)
        left = self._max_rows - decoding_rows
        room.rows = min(room.rows, left if left > 0 else self._max_rows)  # of a pass of their own, where all is taken
        oldest = reading[0]
        pieces = {id(oldest): self._piece(oldest, room.half() if len(reading) > 1 else room, 0)}
        room.take(oldest.cache.length, pieces[id(oldest)])
        for sequence in [*sorted(reading[1:], key=lambda one: one.rows_to_first), oldest]:
            already = pieces.get(id(sequence), 0)
            more = self._piece(sequence, room, already)
            room.take(sequence.cache.length + already, more)
            pieces[id(sequence)] = already + more
        shares = []
        for sequence in reading:
            if pieces[id(sequence)]:
                rows = sequence.prompt_rows(pieces[id(sequence)], begins=True)
                shares.append(_Share(sequence, rows, len(rows.tokens), is_prompt=True))
        return shares

    @staticmethod
    def _piece(sequence: Sequence, room: Room, already: int) -> int:
        """Rows that fit into the pass in addition to `already` of the same prompt."""
        return room.fits(sequence.cache.length + already, sequence.rows_to_first - already)

    def _run(self, shares: list[_Share]) -> list[Event]:
        """One pass in the exact view, and what it means for each sequence."""
        prompts = [share for share in shares if share.is_prompt]
        ahead = 0 if prompts else self._ahead(shares)
        further = self._further(shares, ahead) if ahead else 0
        start_s = time.perf_counter()
        batch = [share.sequence.going_ahead(share.rows, ahead, further) for share in shares]
        replies = _forward(self._runtime, batch, EXACT)
        pass_s = time.perf_counter() - start_s
        decoding = sum(share.count for share in shares) - sum(share.count for share in prompts)
        decoding_s = pass_s
        if not any(isinstance(reply, Exception) for reply in replies):
            decoding_s = pass_s if ahead else self._observe(decoding, prompts, pass_s)
        self._round.others |= bool(prompts) or len(shares) == 1
        events = []
        for share, reply in zip(shares, replies, strict=True):
            sequence = share.sequence
            if isinstance(reply, Exception):
                events.append(_failed(sequence, reply))
            elif share.is_prompt:
                events.append(_prompt_event(share, reply))
            else:
                self._has_begun |= reply.result.begun > 0
                try:
                    beside, own_s = decoding - share.count, min(reply.seconds, decoding_s)
                    done = sequence.settle_all(reply.result, seconds=own_s, pass_s=decoding_s, rows_beside=beside)
                    events.append(Event(sequence, done))
                except Exception as error:
                    events.append(_failed(sequence, _own(error)))
        return events

    def _ahead(self, shares: list[_Share]) -> int:
        """Tokens that all sequences of a pass go ahead for."""
        if len(shares) == 1:
            return shares[0].sequence.most_ahead(shares[0].rows)
        return self._pace.room(min(share.sequence.room_ahead(share.rows) for share in shares))

    def _further(self, shares: list[_Share], ahead: int) -> int:
        """Tokens that the next pass will ask for if it has the same sequences, as far as can be known."""
        asks = self._pace.asks_after(1 + ahead)
        reads = len(shares) < len(self._running)
        if reads or any(one.sequence.speculation and (asks or not one.sequence.may_wait) for one in shares):
            return 0
        return max(0, min(share.sequence.room_ahead(share.rows) for share in shares) - ahead)

    def _observe(self, decoding: int, prompts: list[_Share], pass_s: float) -> float:
        """Learn what a pass cost that has just run. Policies are told the part of it that pieces of prompts do not
        cause, in seconds."""
        pieces = [(share.count, share.rows.cache.length - share.count) for share in prompts]
        self.costs.observe(pass_s, rows=decoding, prompts=pieces)
        return pass_s * (1 - self.costs.share_of_prompts(decoding, pieces)) if pieces else pass_s


def _own(error: Exception) -> Exception:
    """The error, which is that of a sequence or a pass; one of a caller's signal handler ends the step instead."""
    if is_from_signal_handler(error):
        raise error
    return error


def _prompt_event(share: _Share, reply: Reply) -> Event:
    """What a piece of a prompt came to: at its end, the first token."""
    sequence, result = share.sequence, reply.result
    if share.rows.logits != "last":
        sequence.note_prompt(result)
        return Event(sequence, bytes_read=result.bytes_read, seconds=reply.seconds)
    own = Pass(result.logits, result.bytes_read // share.count)  # the first round's part
    seconds = reply.seconds / share.count
    try:
        done = sequence.settle(own, seconds=seconds)
    except Exception as error:
        return _failed(sequence, error)
    return Event(sequence, done, bytes_read=result.bytes_read - own.bytes_read, seconds=reply.seconds - seconds)


def _failed(sequence: Sequence, error: Exception) -> Event:
    sequence.rewind()
    return Event(sequence, error=error)


def _forward(runtime: Runtime, batch: list[Rows], view: str) -> list[Reply | Exception]:
    """A pass, or where it fails its parts one by one: a reply or an error for each."""
    start_s = time.perf_counter()
    try:
        results = runtime.forward(batch, view=view)
    except Exception as error:
        _own(error)
        if len(batch) == 1:
            return [error]
        return [_forward(runtime, [rows], view)[0] for rows in batch]
    return list(_shared(batch, results, time.perf_counter() - start_s))


def _shared(batch: list[Rows], results: list[Pass], seconds: float) -> Iterator[Reply]:
    """Replies with the pass's time shared out by rows."""
    total = sum(len(rows.tokens) for rows in batch)
    for rows, result in zip(batch, results, strict=True):
        yield Reply(result, seconds * len(rows.tokens) / total, seconds)


def _cut(members: list[T], rows: list[int], most: int) -> Iterator[list[T]]:
    """Members in groups of at most `MAX_SEQUENCES` that have at most `most` rows together, or are one with more."""
    group: list[T] = []
    count = 0
    for one, own in zip(members, rows, strict=True):
        if group and (count + own > most or len(group) == MAX_SEQUENCES):
            yield group
            group, count = [], 0
        group.append(one)
        count += own
    if group:
        yield group
