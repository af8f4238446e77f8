"""Statistics and traces: every number follows its definition."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_runtime import ByteTokenizer, FakeRuntime, fake_model
from hypothesis import given
from hypothesis import strategies as st

import specdec
from specdec.drafters.base import Draft
from specdec.engine.round import Round
from specdec.engine.stats import Stats
from specdec.errors import InvalidArgumentError


def round_of(drafted: int, accepted: int, **values) -> Round:
    draft = Draft(tokens=list(range(drafted)), bytes_read=values.pop("draft_bytes_read", 0))
    times = {"draft_s": 0.0, "verify_s": 0.0, "verify_bytes_read": 0, "round_s": 0.0} | values
    return Round(position=9, plan=None, draft=draft, kept=range(accepted), bonus_token=99, **times)


def test_known_rounds_give_known_numbers():
    stats = Stats()
    stats.add(round_of(4, 4, draft_s=0.5, verify_s=1.0, draft_bytes_read=3, verify_bytes_read=7), emitted=5, wall_s=2.0)
    stats.add(round_of(4, 1, draft_s=0.5, verify_s=1.0, draft_bytes_read=3, verify_bytes_read=7), emitted=2, wall_s=2.0)
    stats.add(round_of(0, 0, verify_s=1.0, verify_bytes_read=5), emitted=1, wall_s=1.5)
    stats.add(round_of(2, 2, verify_s=1.0), emitted=1, wall_s=1.5)  # an end token cut two tokens off
    assert (stats.rounds, stats.drafted, stats.accepted, stats.emitted, stats.cut) == (4, 10, 7, 9, 2)
    assert (stats.acceptance_rate, stats.mean_accepted_length) == (0.7, 1.75)
    assert stats.drafted_per_position == [3, 3, 2, 2]
    assert stats.accepted_per_position == [3, 2, 1, 1]
    assert stats.rounds_by_accepted == [1, 1, 1, 0, 1]
    assert (stats.draft_s, stats.verify_s, stats.overhead_s, stats.decode_s) == (1.0, 4.0, 2.0, 7.0)
    assert stats.tok_per_s == 9 / 7
    assert (stats.draft_bytes_read, stats.verify_bytes_read, stats.gb_per_s) == (6, 19, 25 / 5 / 1e9)


def test_nothing_done_divides_by_nothing():
    values = Stats().to_dict()
    assert all(values[name] == 0 for name in ("acceptance_rate", "mean_accepted_length", "tok_per_s", "gb_per_s"))


def test_json_holds_every_field_that_the_library_promises():
    values = specdec.generate(fake_model(), "hello", max_tokens=12, draft_effort=0.6).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert set(values) == {
        "text",
        "tokens",
        "finish_reason",
        "stopped_by",
        "stop_string",
        "identical_to",
        "seed",
        "stats",
    }
    promised = (
        "rounds drafted accepted emitted acceptance_rate mean_accepted_length draft_view accepted_per_position "
        "prefill_s draft_s verify_s overhead_s tok_per_s draft_bytes_read verify_bytes_read"
    )
    assert set(promised.split()) <= set(values["stats"])


@pytest.mark.parametrize("draft_len", [1, 4, 8])
def test_counts_agree_with_each_other_and_with_the_passes(draft_len):
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    stats = specdec.generate(
        model, [1, 2, 3], max_tokens=50, draft_len=draft_len, draft_effort=0.6, policy="fixed"
    ).stats
    assert 0 < stats.accepted < stats.drafted
    assert (stats.emitted, stats.cut) == (50, 0)
    assert stats.emitted == stats.accepted + stats.rounds
    assert sum(stats.drafted_per_position) == stats.drafted
    assert sum(stats.accepted_per_position) == stats.accepted
    assert sum(stats.rounds_by_accepted) == stats.rounds
    assert sum(n * count for n, count in enumerate(stats.rounds_by_accepted)) == stats.accepted
    passes = model.runtime.passes
    assert stats.draft_bytes_read == sum(1000 * rows + 3 for view, _, _, rows in passes if view == "int4")
    assert stats.verify_bytes_read == sum(1000 * rows + 7 for view, _, _, rows in passes[1:] if view == "exact")
    assert stats.prefill_bytes_read == 2007
    assert (stats.prompt_tokens, stats.draft_view) == (3, "int4")


@pytest.mark.parametrize("drafter", ["effort", "ngram"])
def test_steps_are_counted_by_kind_and_place(drafter):
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    prompt = [1, 2, 3] * 6
    stats = specdec.generate(
        model, prompt, max_tokens=50, draft_len=4, draft_effort=0.6, policy="fixed", drafter=drafter
    ).stats
    kind = "effort int4 0.6" if drafter == "effort" else "ngram"
    assert list(stats.by_step) == [kind]
    assert stats.by_step[kind]["drafted"] == stats.drafted_per_position
    assert stats.by_step[kind]["accepted"] == stats.accepted_per_position
    # A token is looked at when the one before it was kept; the first one always is.
    first, *others = stats.by_step[kind]["checked"]
    assert first == stats.drafted_per_position[0]
    pairs = zip(others, stats.accepted_per_position, stats.drafted_per_position[1:], strict=False)
    assert all(checked <= min(kept, drafted) for checked, kept, drafted in pairs)


def test_plain_decoding_counts_every_token_as_a_round():
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    stats = specdec.generate(model, [1], max_tokens=10, speculate=False).stats
    assert (stats.rounds, stats.emitted, stats.drafted, stats.accepted) == (10, 10, 0, 0)
    assert (stats.draft_view, stats.acceptance_rate, stats.draft_s, stats.draft_bytes_read) == (None, 0.0, 0.0, 0)
    assert stats.rounds_by_accepted == [10]


class SlowRuntime(FakeRuntime):
    """Takes 2 ms for a draft step and 6 ms for every other pass."""

    def forward(self, batch, *, view="exact", states=False):
        time.sleep(0.006 if view == "exact" else 0.002)
        return super().forward(batch, view=view, states=states)


def test_times_add_up():
    model = specdec.Model(SlowRuntime(), ByteTokenizer(eos=frozenset()))
    start_s = time.perf_counter()
    stats = specdec.generate(model, [1, 2], max_tokens=20, policy="fixed", draft_len=3, draft_effort=0.6).stats
    wall_s = time.perf_counter() - start_s
    # sleep() never returns early, so these are lower bounds on any machine.
    assert stats.prefill_s >= 0.006
    assert stats.draft_s >= 0.002 * stats.drafted
    assert stats.verify_s >= 0.006 * stats.rounds
    assert stats.overhead_s > 0
    assert stats.prefill_s + stats.decode_s <= wall_s
    assert stats.tok_per_s == 20 / (stats.draft_s + stats.verify_s + stats.overhead_s)


def test_time_between_pieces_is_not_counted(monkeypatch):
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 1e-6
        return now_s

    monkeypatch.setattr(time, "perf_counter", clock)
    stream = specdec.stream(fake_model(), [1], max_tokens=6)
    for _ in stream:
        now_s += 100.0
    assert 0 < stream.stats.decode_s < 1


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("options", [{}, {"policy": "fixed:length=3", "drafter": "effort"}], ids=["auto", "fixed"])
def test_trace_holds_a_line_for_every_round(tmp_path, options):
    path = tmp_path / "trace.jsonl"
    result = specdec.generate(
        fake_model(seed=4), [1, 2, 3], max_tokens=30, draft_effort=0.6, temperature=0.7, trace=path, **options
    )
    lines = read_lines(path)
    assert any(line["drafted"] for line in lines) or not options  # the default policy drafts if that pays
    assert [line["round"] for line in lines] == list(range(result.stats.rounds))
    position = 3
    tokens: list[int] = []
    for line in lines:
        assert line["position"] == position + len(tokens)
        shown = 0 if line["view"] is None else len(line["drafted"])  # a lookup has no distribution to show
        assert len(line["entropies"]) == len(line["efforts"]) == shown
        assert all(entropy >= 0 for entropy in line["entropies"])
        assert set(line["efforts"]) <= {0.6}
        tokens += [*line["drafted"][: line["accepted"]], line["bonus_token"]][: line["emitted"]]
    assert tokens == result.tokens
    assert sum(line["draft_s"] for line in lines) == pytest.approx(result.stats.draft_s, abs=1e-6)  # rounded to ns
    assert sum(line["verify_s"] for line in lines) == pytest.approx(result.stats.verify_s, abs=1e-6)


def test_trace_is_written_as_the_rounds_end(tmp_path):
    path = tmp_path / "trace.jsonl"
    stream = specdec.stream(fake_model(), [1], max_tokens=30, trace=path)
    for count in (1, 2, 3):
        next(stream)
        assert len(read_lines(path)) == count
    stream.close()
    assert len(read_lines(path)) == 3


def test_a_trace_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    model = fake_model()
    for path in (tmp_path / "missing" / "trace.jsonl", tmp_path):
        with pytest.raises(InvalidArgumentError, match="cannot write the trace"):
            specdec.stream(model, [1], trace=path)
    assert model.runtime.passes == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_ends_the_generation_with_one_sentence():
    stream = specdec.stream(fake_model(), [1], trace="/dev/full")
    with pytest.raises(InvalidArgumentError, match="cannot write the trace '/dev/full': No space left"):
        next(stream)
    assert next(stream, None) is None


@contextmanager
def most_bytes_of_a_file(limit: int) -> Iterator[None]:
    """The system refuses to write more, half-way, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("limit", [7, 1500])
def test_a_trace_on_a_full_disk_has_whole_lines_or_is_not_there(tmp_path, exists, limit):
    path = tmp_path / "trace.jsonl"
    if exists:
        path.write_text("before")
    with most_bytes_of_a_file(limit), pytest.raises(InvalidArgumentError, match="cannot write the trace"):
        specdec.generate(fake_model(seed=4), [1, 2, 3], max_tokens=100, trace=path)
    if limit == 7:
        assert path.read_text() == "" if exists else not path.exists()
        return
    assert path.read_text().endswith("}\n")
    assert [line["round"] for line in read_lines(path)] == list(range(len(read_lines(path))))


def test_counts_by_drafter_and_effort_add_up():
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    stats = specdec.generate(model, [1, 2, 1, 2], max_tokens=120, drafter="ngram:min=1;effort").stats
    assert sum(one["drafted"] for one in stats.by_drafter.values()) == stats.drafted
    assert sum(one["accepted"] for one in stats.by_drafter.values()) == stats.accepted
    by_model = stats.by_drafter["effort"]
    assert sum(one["drafted"] for one in stats.by_effort.values()) == by_model["drafted"]
    assert sum(one["accepted"] for one in stats.by_effort.values()) == by_model["accepted"]
    assert stats.plain_rounds == stats.rounds - stats.drafted_per_position[0]
    assert stats.policy["estimated_gain"] > 0


def test_the_trace_names_the_producer_of_every_token(tmp_path):
    path = tmp_path / "trace.jsonl"
    options = {"policy": "fixed", "drafter": "effort", "draft_effort": 0.6}
    result = specdec.generate(fake_model(seed=4), "hello", max_tokens=30, trace=path, **options)
    for line in read_lines(path):
        assert len(line["producers"]) == len(line["parts"]) == line["emitted"]
        assert set(line["producers"]) <= {"effort@0.6", "bonus"}
        assert line["drafter"] in ("effort", None)
    assert "".join(part for line in read_lines(path) for part in line["parts"]) == result.text


@given(st.data())
def test_a_draft_of_one_source_counts_as_its_tokens_one_by_one(data) -> None:
    """A chain or a tree, of which a path from the root was kept."""
    count = data.draw(st.integers(1, 12))
    is_tree = data.draw(st.booleans())
    parents = [data.draw(st.integers(-1, row - 1)) if is_tree else row - 1 for row in range(count)]
    path: list[int] = []
    while following := [row for row, parent in enumerate(parents) if parent == (path[-1] if path else -1)]:
        if data.draw(st.booleans()):
            break
        path.append(data.draw(st.sampled_from(following)))
    one, other = Stats(), Stats()
    for stats, sources in ((one, ["ngram"] * count), (other, ["ngram"] * (count - 1) + ["other"])):
        draft = Draft(list(range(count)), sources=sources, parents=parents if is_tree else None)
        done = Round(
            position=5, plan=None, draft=draft, kept=path, bonus_token=1, draft_s=0.1, verify_s=0.2, round_s=0.4,
            verify_bytes_read=7,
        )  # fmt: skip
        stats.add(done, emitted=len(path) + 1, wall_s=0.4)
    summed = {name: list(counts) for name, counts in other.by_step.get("ngram", {}).items()}
    for name, counts in other.by_step["other"].items():
        known = summed.setdefault(name, [])
        known.extend([0] * (len(counts) - len(known)))
        for place, number in enumerate(counts):
            known[place] += number
    assert one.by_step["ngram"] == summed
    assert one.by_drafter["ngram"]["accepted"] == len(path) == sum(summed["accepted"])
    assert one.by_drafter["ngram"]["drafted"] == count == sum(summed["drafted"])
    assert one.drafted_per_position == other.drafted_per_position


def test_a_result_keeps_the_numbers_of_its_moment():
    stats = Stats(draft_view="int4", policy={"parked": [{"rounds": 3}]})
    stats.add(round_of(4, 2), emitted=3, wall_s=1.0)
    copied, wanted = stats.copied(), json.dumps(stats.to_dict())
    stats.add(round_of(6, 1), emitted=2, wall_s=1.0)
    stats.policy["parked"][0]["rounds"] = 4
    assert json.dumps(copied.to_dict()) == wanted != json.dumps(stats.to_dict())
