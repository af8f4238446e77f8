"""Requests from many threads, Stop buttons, and streams that two threads read."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_runtime import ByteTokenizer, FakeRuntime, fake_model
from places import HELPERS

import specdec
from specdec.errors import InvalidArgumentError, SpecdecError
from specdec.model.loaded import Model

ENDLESS = ByteTokenizer(eos=frozenset())


class SlowRuntime(FakeRuntime):
    """Passes that take a while, so that other threads get their turn in the middle of one."""

    pause_s = 0.002

    def forward(self, batch, *, view="exact", states=False):
        time.sleep(self.pause_s)
        return super().forward(batch, view=view, states=states)


def slow_model(seed: int = 4) -> Model:
    return Model(SlowRuntime(seed=seed), ENDLESS)


def plain(model: Model, prompt, **options):
    return specdec.generate(model, prompt, speculate=False, **options).tokens


def in_threads(*jobs) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_requests_from_many_threads_get_their_own_answers():
    model, found = slow_model(), {}
    with specdec.Batch(model) as batch:

        def ask(number: int) -> None:
            options = {"max_tokens": 10 + number, "temperature": number % 2, "seed": number}
            generation = batch.submit([number, 1], **options)
            tokens = [token for piece in generation for token in piece.tokens]
            found[number] = tokens, generation.result(), options

        in_threads(*(lambda number=number: ask(number) for number in range(12)))
    for number, (tokens, result, options) in found.items():
        assert tokens == result.tokens == plain(model, [number, 1], **options)
        assert result.stopped_by == "max_tokens"


def test_an_answer_may_be_read_later_or_never():
    model = slow_model()
    with specdec.Batch(model) as batch:
        first, second = batch.submit([1], max_tokens=15), batch.submit([2], max_tokens=15)
        assert [token for piece in second for token in piece.tokens] == plain(model, [2], max_tokens=15)
        time.sleep(0.2)
        assert [token for piece in first for token in piece.tokens] == plain(model, [1], max_tokens=15)
        assert list(first) == []
        batch.submit([3], max_tokens=500)


def test_answers_can_be_awaited():
    model = slow_model()

    async def read(generation: specdec.Generation) -> list[int]:
        return [token async for piece in generation for token in piece.tokens]

    async def main(batch: specdec.Batch) -> list[list[int]]:
        asked = [batch.submit([number], max_tokens=20) for number in range(5)]
        stream = read(specdec.stream(model, [9], max_tokens=20))
        return await asyncio.gather(*(read(one) for one in asked), stream)

    with specdec.Batch(model) as batch:
        found = asyncio.run(main(batch))
    assert found == [plain(model, [number], max_tokens=20) for number in (0, 1, 2, 3, 4, 9)]


def test_more_requests_than_places_take_turns():
    model = slow_model()
    with specdec.Batch(model, max_sequences=2) as batch:
        asked = [batch.submit([number], max_tokens=8) for number in range(7)]
        results = [[token for piece in one for token in piece.tokens] for one in asked]
    assert results == [plain(model, [number], max_tokens=8) for number in range(7)]


def test_closing_one_answer_leaves_the_others():
    model = slow_model()
    with specdec.Batch(model) as batch:
        stopped, other = batch.submit([1], max_tokens=400), batch.submit([2], max_tokens=30)
        next(stopped)
        stopped.close()
        stopped.close()
        rest = [token for piece in stopped for token in piece.tokens]
        assert [token for piece in other for token in piece.tokens] == plain(model, [2], max_tokens=30)
        result = stopped.result()
        assert (result.stopped_by, result.finish_reason) == ("caller", "interrupted")
        assert len(result.tokens) < 400
        assert result.tokens == plain(model, [1], max_tokens=400)[: len(result.tokens)]
        assert rest == result.tokens[len(result.tokens) - len(rest) :]


def test_dropping_an_answer_ends_it():
    model = slow_model()
    with specdec.Batch(model) as batch:
        dropped = batch.submit([1], max_tokens=400)
        next(dropped)
        assert len(batch) == 1
        del dropped
        deadline_s = time.monotonic() + 20
        while len(batch) and time.monotonic() < deadline_s:
            time.sleep(0.005)
        assert len(batch) == 0
        assert max(start + rows for _, _, start, rows in model.runtime.passes) < 300


def test_a_process_with_an_open_batch_ends():
    """At exit the thread of the passes is stopped and waited for, closed or not."""
    text = """
import sys; sys.path[:0] = {folders!r}
import specdec, test_batch
batch = specdec.Batch(test_batch.slow_model())
answers = [batch.submit([number], max_tokens=400) for number in range(3)]
print(len(next(answers[0]).tokens) > 0)
"""
    command = [sys.executable, "-c", text.format(folders=[str(HELPERS), str(Path(__file__).parent)])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_closing_a_batch_ends_its_answers():
    model = slow_model()
    batch = specdec.Batch(model)
    asked = [batch.submit([number], max_tokens=400) for number in range(3)]
    next(asked[0])
    batch.close()
    batch.close()
    for one in asked:
        list(one)
        assert one.result().stopped_by == "caller"
    with pytest.raises(SpecdecError, match="this batch is closed"):
        batch.submit([1])


def test_wrong_arguments_are_the_submitters():
    with specdec.Batch(fake_model()) as batch:
        with pytest.raises(InvalidArgumentError, match="max_tokens must be"):
            batch.submit([1], max_tokens=0)
        with pytest.raises(TypeError, match=r"submit\(\) has no option 'tokens'"):
            batch.submit([1], tokens=3)
    with pytest.raises(InvalidArgumentError, match="max_sequences must be"):
        specdec.Batch(fake_model(), max_sequences=0)


class Grumpy:
    """A policy with a bug."""

    def plan(self, state):
        if state.round_index == 2:
            raise RuntimeError("oh")
        return specdec.engine.policy.DraftPlan(num_draft_tokens=1, effort=0.5)

    def next_step(self, _signals):
        return None

    def observe(self, _outcome):
        pass


def test_an_error_reaches_the_reader_it_belongs_to():
    model = slow_model()
    with specdec.Batch(model) as batch:
        wrong, right = batch.submit([1], policy=Grumpy()), batch.submit([2], max_tokens=20)
        with pytest.raises(SpecdecError, match="'Grumpy' failed in plan: RuntimeError: oh"):
            list(wrong)
        assert list(wrong) == []
        assert [token for piece in right for token in piece.tokens] == plain(model, [2], max_tokens=20)


# --- streams and threads ---


@pytest.mark.parametrize("speculate", [True, False])
def test_a_stop_button_ends_the_answer_quietly_and_the_next_one_is_right(speculate):
    """An answer is closed from another thread in the middle of a pass, over and over, with a prompt cache."""
    model = slow_model()
    expected = plain(model, "tell me", max_tokens=30)
    model.prompt_cache = specdec.PromptCache()
    for turn in range(25):
        answer = specdec.stream(model, "tell me", max_tokens=400, speculate=speculate)
        ends: list[str] = []

        def read(answer=answer, ends=ends) -> None:
            for _ in answer:
                pass
            ends.append("quiet")

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.001 * (turn % 9))
        answer.close()
        assert specdec.generate(model, "tell me", max_tokens=30, speculate=speculate).tokens == expected
        reader.join(60)
        assert ends == ["quiet"]
        result = answer.result()
        assert result.stopped_by == "caller"
        assert result.tokens[:30] == expected[: len(result.tokens)]


def test_a_prompt_that_is_being_read_can_be_stopped():
    begun, closing = threading.Event(), threading.Event()

    class Gated(SlowRuntime):
        pause_s = 0.05  # from the call of `close` to the end of a pass

        def forward(self, batch, *, view="exact", states=False):
            begun.set()
            assert closing.wait(60)
            return super().forward(batch, view=view, states=states)

    model = Model(Gated(specdec_config(), seed=1), ENDLESS)
    answer = specdec.stream(model, [1] * 3000, max_tokens=5)
    reader = threading.Thread(target=lambda: list(answer))
    reader.start()
    assert begun.wait(60)
    closing.set()
    answer.close()
    reader.join(60)
    assert answer.result().tokens == []
    assert 1 <= len(model.runtime.passes) < 6


def specdec_config():
    from fake_runtime import fake_config

    return fake_config(max_context=4096)


def test_two_readers_of_one_stream_are_told():
    model = slow_model()
    model.runtime.pause_s = 0.02
    for answer in (specdec.stream(model, [1], max_tokens=400), specdec.Batch(model).submit([1], max_tokens=400)):
        first = threading.Thread(target=lambda answer=answer: list(answer))
        first.start()
        time.sleep(0.03)
        told: list[str] = []
        for _ in range(20):
            try:
                next(answer)
            except SpecdecError as error:
                told.append(str(error))
            time.sleep(0.003)
        assert len(told) > 5
        assert all("reading this answer" in sentence for sentence in told)
        answer.close()
        first.join(60)


def test_a_stream_can_be_handed_to_another_thread():
    model = slow_model()
    answer = specdec.stream(model, [1], max_tokens=30)
    tokens = list(next(answer).tokens)
    thread = threading.Thread(target=lambda: tokens.extend(token for piece in answer for token in piece.tokens))
    thread.start()
    thread.join(60)
    assert tokens == plain(model, [1], max_tokens=30)


def test_streams_in_several_threads_do_not_disturb_each_other():
    model, found = slow_model(), {}

    def read(number: int) -> None:
        found[number] = specdec.generate(model, [number], max_tokens=25, temperature=0.7, seed=number).tokens

    in_threads(*(lambda number=number: read(number) for number in range(6)))
    for number, tokens in found.items():
        assert tokens == plain(model, [number], max_tokens=25, temperature=0.7, seed=number)


def test_a_trace_may_close_the_stream_that_it_is_written_for(tmp_path):
    """Closing from within a round, in the reader's own thread, ends it after that round."""

    class Closing(Grumpy):
        stream = None

        def plan(self, state):
            if state.round_index == 1:
                self.stream.close()
            return specdec.engine.policy.DraftPlan(num_draft_tokens=0, effort=0.5)

    policy = Closing()
    policy.stream = specdec.stream(slow_model(), [1], max_tokens=30, policy=policy, trace=tmp_path / "trace")
    pieces = list(policy.stream)
    assert len(pieces) == 1
    assert policy.stream.result().stopped_by == "caller"
    assert len((tmp_path / "trace").read_text().splitlines()) == 1


# --- several prompts ---


def test_what_is_one_prompt_and_what_are_several():
    model = fake_model(tokenizer=ByteTokenizer(has_chat_template=True))
    chat = [{"role": "user", "content": "hi"}]
    single = [specdec.generate(model, one, max_tokens=3) for one in ("hi", [104, 105], chat)]
    assert all(isinstance(one, specdec.Result) for one in single)
    several = specdec.generate(model, ["hi", [104, 105], chat], max_tokens=3)
    assert [one.tokens for one in several] == [one.tokens for one in single]
    assert specdec.generate(model, [chat], max_tokens=3)[0].tokens == single[2].tokens
    assert specdec.generate(model, ("hi",), max_tokens=3)[0].tokens == single[0].tokens
    with pytest.raises(InvalidArgumentError, match="prompt is empty"):
        specdec.generate(model, [])
    with pytest.raises(InvalidArgumentError, match="prompt is empty"):
        specdec.generate(model, ["a", ""])


def test_objects_serve_one_answer_only():
    """A policy or drafter that is an object has a state of its own: several prompts cannot share it."""
    for options in ({"policy": Grumpy()}, {"drafter": specdec.drafters.registry.create("ngram", None)}):
        with pytest.raises(InvalidArgumentError, match="serves one answer: give its name"):
            specdec.generate(fake_model(), [[1], [2]], **options)
    with pytest.raises(InvalidArgumentError, match="a trace is for one prompt"):
        specdec.generate(fake_model(), [[1], [2]], trace="x")


def test_what_a_pass_calls_cannot_read_its_own_answer():
    held, caught = [], []

    def processor(tokens, logits):
        with pytest.raises(SpecdecError, match="this answer is being read") as error:
            next(held[0])
        caught.append(error)
        return logits

    model = fake_model()
    held.append(specdec.stream(model, [1, 2], max_tokens=4, logits_processors=[processor]))
    tokens = [token for piece in held[0] for token in piece.tokens]
    assert caught
    assert tokens == plain(model, [1, 2], max_tokens=4)


def test_what_the_thread_of_a_batch_calls_cannot_read_answers_of_it():
    caught = []
    with specdec.Batch(fake_model()) as batch:

        def processor(tokens, logits):
            with pytest.raises(SpecdecError, match="the thread of a batch runs its passes") as error:
                next(batch.submit([1], max_tokens=1))
            caught.append(error)
            return logits

        tokens = [
            token
            for piece in batch.submit([1, 2], max_tokens=4, logits_processors=[processor])
            for token in piece.tokens
        ]
    assert caught
    assert tokens == plain(fake_model(), [1, 2], max_tokens=4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_told_that_the_thread_is_elsewhere():
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from fake_runtime import fake_model
import specdec
from specdec.errors import SpecdecError
batch = specdec.Batch(fake_model())
reading = batch.submit([1, 2], max_tokens=400)
next(reading)
child = os.fork()
if child == 0:
    found = 0
    for use in (lambda: batch.submit([1]), lambda: list(reading)):
        try:
            use()
        except SpecdecError as error:
            found += "before this process was forked" in str(error)
    os._exit(5 + found)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
batch.close()
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code, str(HELPERS)], timeout=60, check=False)
    assert done.returncode == 7
