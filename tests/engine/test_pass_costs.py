"""How much of a prompt joins a pass: never more than two decoding passes or 250 ms, on machines of known costs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from fake_runtime import ByteTokenizer, FakeRuntime, fake_config
from scripted_model import Clock

import specdec
from specdec.engine.begin import begin
from specdec.engine.pass_costs import PassCosts
from specdec.engine.scheduler import Scheduler
from specdec.model.loaded import Model
from specdec.runtimes.base import MAX_PASS_ROWS

ENDLESS = ByteTokenizer(eos=frozenset())


@dataclass(frozen=True)
class Machine:
    """Seconds of a pass: for itself, each row, each row that shows logits, and each token that a row looks back on."""

    pass_s: float
    row_s: float
    logits_s: float = 0.0
    token_s: float = 0.0

    def seconds(self, batch) -> float:
        total = self.pass_s
        for rows in batch:
            count = len(rows.tokens)
            total += count * self.row_s + count * (rows.cache.length + count / 2) * self.token_s
            total += {"all": count, "last": 1, "none": 0}[rows.logits] * self.logits_s
        return total


FAST = Machine(pass_s=0.010, row_s=0.0005, logits_s=0.0002, token_s=1e-8)
SLOW = Machine(pass_s=0.200, row_s=0.004, logits_s=0.001, token_s=1e-7)
LONG = Machine(pass_s=0.020, row_s=0.0008, logits_s=0.0004, token_s=1e-6)  # attention is most of it after 800 tokens


class CostedRuntime(FakeRuntime):
    """Moves a clock by what passes cost on a machine, and notes what they were."""

    def __init__(self, machine: Machine, clock: Clock) -> None:
        super().__init__(fake_config(max_context=8192))
        self.machine, self.clock = machine, clock
        self.seen: list[tuple[float, float, int]] = []  # seconds, those of the decoding rows alone, rows of prompts

    def forward(self, batch, *, view="exact", states=False):
        seconds = self.machine.seconds(batch)
        decoding = [rows for rows in batch if rows.logits != "none"]
        prompt_rows = sum(len(rows.tokens) for rows in batch if rows.logits == "none")
        self.seen.append((seconds, self.machine.seconds(decoding) if decoding else 0.0, prompt_rows))
        self.clock.now_s += seconds
        return super().forward(batch, view=view, states=states)


def run(machine: Machine, clock: Clock, prompts: list[int], decoders: int = 4) -> tuple[CostedRuntime, list]:
    """Let sequences decode, and then read prompts of these lengths; answers in the order of `prompts`."""
    runtime = CostedRuntime(machine, clock)
    model = Model(runtime, ENDLESS)
    scheduler = Scheduler(runtime)
    plain = {"speculate": False, "max_tokens": 3000}
    for number in range(decoders):
        scheduler.add(begin(model, [number], plain, caller="test").sequence)
    for _ in range(6):
        scheduler.step()
    runtime.seen.clear()
    answers = [begin(model, [7] * length, plain, caller="test") for length in prompts]
    for answer in answers:
        scheduler.add(answer.sequence)
    ends = {}
    while len(ends) < len(answers):
        scheduler.step()
        for number, answer in enumerate(answers):
            if not answer.sequence.unread:
                ends.setdefault(number, clock.now_s)
    return runtime, [ends[number] for number in range(len(answers))]


@pytest.mark.parametrize("machine", [FAST, SLOW, LONG])
def test_a_mixed_pass_costs_two_decoding_passes_or_a_quarter_of_a_second(machine, clock):
    runtime, _ = run(machine, clock, [5000])
    mixed = [one for one in runtime.seen if one[2] and one[1]]
    assert len(mixed) > 4
    for number, (seconds, decoding_s, _) in enumerate(mixed):
        limit = max(2 * decoding_s, 0.25)
        assert seconds <= limit * (1.02 if number > 4 else 1.15)  # a first few to find out
        if 4 < number < len(mixed) - 1:
            assert seconds >= 0.85 * limit or seconds >= limit - machine.row_s - 5000 * machine.token_s


def test_prompts_alone_are_read_in_passes_that_end(clock):
    """Who comes meanwhile waits for a second, not for 512 rows."""
    runtime, _ = run(SLOW, clock, [4000], decoders=0)
    assert [one[2] for one in runtime.seen[:1]] == [MAX_PASS_ROWS]  # nothing was known
    for seconds, _, rows in runtime.seen[2:-1]:
        assert 0.8 < seconds <= 1.25
        assert rows > 100


def test_short_prompts_pass_a_long_one_that_does_not_stand_still(clock):
    runtime, ends = run(FAST, clock, [6000, 60, 60, 60])
    long_s, *short = ends
    assert max(short) < 0.2 * long_s
    alone, _ = run(FAST, clock, [6000])
    total = sum(seconds for seconds, _, _ in runtime.seen)
    assert total < 1.1 * sum(seconds for seconds, _, _ in alone.seen) + 1.0


def test_the_oldest_prompt_gets_half_of_every_pass(clock):
    """However many short ones come: a long prompt is read at half speed at least."""
    runtime = CostedRuntime(FAST, clock)
    model, plain = Model(runtime, ENDLESS), {"speculate": False, "max_tokens": 1}
    scheduler = Scheduler(runtime)
    long = begin(model, [7] * 4000, plain, caller="test")
    scheduler.add(long.sequence)
    for number in range(6):
        for _ in range(30):  # more than a pass has room for
            scheduler.add(begin(model, [9] * 50, plain, caller="test").sequence)
        before = long.sequence.unread
        scheduler.step()
        assert before - long.sequence.unread >= 0.45 * runtime.seen[-1][2], number


def test_the_room_of_a_pass():
    costs = PassCosts()
    assert costs.seconds(4) is None
    assert costs.room(1).fits(0, 100) == 32  # nothing is known
    assert costs.room(0).fits(0, 1000) == MAX_PASS_ROWS
    costs.observe(0.2, rows=1, prompts=[])
    costs.observe(0.2, rows=8, prompts=[])
    assert costs.seconds(5) == pytest.approx(0.2)
    costs.observe(0.36, rows=4, prompts=[(32, 0)])
    room = costs.room(4)
    assert room.fits(0, 1000) == 40  # 5 ms a row, and two decoding passes
    assert room.half().fits(0, 1000) == 20
    room.take(0, 30)
    assert room.fits(0, 1000) == 10
    room.take(0, 10)
    assert room.fits(0, 1000) == 0
    costs = PassCosts()
    costs.observe(0.2, rows=4, prompts=[])
    costs.observe(1.2, rows=4, prompts=[(1, 0)])  # a second a row
    assert [costs.room(4).fits(0, most) for most in (0, 1, 9)] == [0, 1, 1]  # the least
    costs = PassCosts()
    for _ in range(5):
        costs.observe(0.2, rows=4, prompts=[])
    costs.observe(0.36, rows=4, prompts=[(32, 0)])
    costs.observe(100.0, rows=4, prompts=[])  # a machine that stalls is not a cost
    assert costs.seconds(4) < 0.3
    costs.observe(100.0, rows=4, prompts=[(32, 0)])
    assert costs.room(4).fits(0, 1000) >= 13


def test_time_of_prompts_is_told_apart():
    costs = PassCosts()
    assert costs.share_of_prompts(4, [(12, 0)]) == 0.75  # by rows, while nothing is known
    costs.observe(0.1, rows=4, prompts=[])
    costs.observe(0.3, rows=4, prompts=[(40, 0)])
    assert costs.share_of_prompts(4, [(40, 0)]) == pytest.approx(2 / 3)
    assert costs.share_of_prompts(4, [(10, 0), (10, 0)]) == pytest.approx(0.5)


@pytest.mark.parametrize(("row_s", "least", "most"), [(0.00002, 400, 512), (0.002, 20, 125)])
def test_prompts_fill_passes_before_any_pass_was_one_of_decoding_alone(row_s: float, least: int, most: int) -> None:
    costs = PassCosts()
    costs.observe(512 * row_s, rows=0, prompts=[(128, 0)] * 4)
    assert least <= costs.room(12).fits(0, 512) <= most


def test_pieces_grow_where_answers_decode_beside_every_prompt() -> None:
    costs, rows = PassCosts(), []
    for _ in range(6):
        rows.append(costs.room(9).fits(0, 512))
        costs.observe(0.004 + 0.00002 * rows[-1], rows=9, prompts=[(rows[-1], 0)])
    assert rows == [32, 64, 128, 256, 512, 512]


def test_answers_of_one_model_share_what_is_known_of_passes() -> None:
    model = Model(FakeRuntime(seed=3), ByteTokenizer(eos=frozenset()))
    specdec.generate(model, [[1, 2, 3] * 9, [4, 5, 6] * 9], max_tokens=5, speculate=False)
    assert model.memory.passes.seconds(2)
    with specdec.Batch(model) as batch:
        assert batch._scheduler.costs is model.memory.passes
