"""Progress before an answer begins: draft views that are built, and the prompt as it is read."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import FakeRuntime, fake_config, fake_model
from text_model import text_store

import specdec
from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.model.loaded import Model
from specdec.progress import StreamProgress, Summed, reported

READING, BUILDING = "reading the prompt", "building draft view int4"


class Told:
    """Every call of a progress function."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))

    def of(self, stage: str) -> list[tuple[int, int]]:
        return [(done, total) for name, done, total in self.calls if name == stage]


def fake_model_of(config: ModelConfig) -> Model:
    return Model(FakeRuntime(config), None)


PROMPT = [1 + index % 200 for index in range(1200)]


def test_a_prompt_is_told_pass_by_pass() -> None:
    told, model = Told(), fake_model_of(fake_config(max_context=4096))
    specdec.generate(model, PROMPT, max_tokens=2, speculate=False, progress=told)
    assert told.calls == [(READING, done, 1199) for done in (0, 512, 1024, 1199)]


def test_a_prompt_of_one_token_and_one_that_is_known_are_not_told() -> None:
    model = fake_model_of(fake_config(max_context=4096))
    model.prompt_cache = specdec.PromptCache()
    told = Told()
    specdec.generate(model, [1], max_tokens=1, speculate=False, progress=told)
    specdec.generate(model, PROMPT, max_tokens=1, speculate=False)
    specdec.generate(model, PROMPT, max_tokens=1, speculate=False, progress=told)
    assert told.calls == []
    specdec.generate(model, [*PROMPT, 7, 8, 9], max_tokens=1, speculate=False, progress=told)
    assert told.of(READING) == [(1199, 1202), (1202, 1202)] or told.of(READING) == [(1200, 1202), (1202, 1202)]


def test_streams_and_batches_tell_too() -> None:
    model = fake_model_of(fake_config(max_context=4096))
    streamed, submitted = Told(), Told()
    generation = specdec.stream(model, PROMPT, max_tokens=2, speculate=False, progress=streamed)
    assert streamed.calls == [(READING, 0, 1199)]  # announced, and nothing read before the first piece is asked for
    next(generation)
    assert streamed.calls[-1] == (READING, 1199, 1199)
    with specdec.Batch(model) as batch:
        list(batch.submit(PROMPT, max_tokens=2, speculate=False, progress=submitted))
    assert submitted.calls == streamed.calls


def test_several_prompts_are_told_as_one() -> None:
    told, model = Told(), fake_model_of(fake_config(max_context=4096))
    specdec.generate(model, [PROMPT, PROMPT[:700]], max_tokens=2, speculate=False, progress=told)
    done, totals = zip(*told.of(READING), strict=True)
    assert list(done) == sorted(done)
    assert totals[-1] == done[-1] == 1199 + 699
    assert done.count(done[-1]) == 1


def test_views_are_told_as_they_are_built_and_once() -> None:
    told, model = Told(), fake_model()
    specdec.generate(model, [1, 2], max_tokens=2, progress=told)
    assert told.of(BUILDING) == [(done, 4) for done in range(5)]
    assert told.calls[0][0] == BUILDING
    again = Told()
    specdec.generate(model, [1, 2], max_tokens=2, progress=again)
    assert again.of(BUILDING) == []


@pytest.mark.parametrize("runtime", ["native", "reference"])
def test_runtimes_tell_which_view_they_build(text_model: Path, runtime: str) -> None:
    pytest.importorskip("specdec.kernels.cpu._native" if runtime == "native" else "mlx.core")
    model = specdec.load(text_model, runtime=runtime)
    for view in ("int4", "bucket"):
        told = Told()
        specdec.generate(model, "hello", max_tokens=1, draft_view=view, progress=told)
        parts = told.of(f"building draft view {view}")
        assert parts[0][0] == 0
        assert [done for done, _ in parts] == list(range(parts[-1][1] + 1))
        assert parts[-1][1] > 4


def test_what_the_function_raises_ends_the_answer_alone() -> None:
    class StopError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise StopError

    model = fake_model_of(fake_config(max_context=4096))
    with pytest.raises(StopError):
        specdec.generate(model, PROMPT, max_tokens=2, speculate=False, progress=stop)
    with specdec.Batch(model) as batch:
        other = batch.submit([1, 2, 3], max_tokens=20, speculate=False)
        with pytest.raises(StopError):
            list(batch.submit(PROMPT, max_tokens=2, speculate=False, progress=stop))
        assert len(list(other)) == 20


@pytest.mark.parametrize("progress", [3, "yes", True])
def test_what_cannot_be_called_is_refused(progress: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="progress must be a function of stage, done and total"):
        specdec.generate(fake_model(), [1], progress=progress)
    with pytest.raises(InvalidArgumentError, match="progress must be a function of stage, done and total"):
        specdec.generate(fake_model(), [[1], [2]], progress=progress)


def test_reported_and_summed() -> None:
    counts: list[tuple[int, int]] = []
    assert list(reported("ab", lambda *one: counts.append(one))) == ["a", "b"]
    assert counts == [(0, 2), (1, 2), (2, 2)]
    assert list(reported([], lambda *_: 1 / 0)) == []
    told = Told()
    summed = Summed(told)
    first, second = summed.part(), summed.part()
    first("x", 1, 4)
    second("x", 2, 6)
    first("x", 4, 4)
    second("y", 1, 1)
    assert told.calls == [("x", 1, 4), ("x", 3, 10), ("x", 6, 10), ("y", 1, 1)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_only_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    quick, slow, log = Terminal(), Terminal(), io.StringIO()
    for stream, passes_s in ((quick, 0.2), (slow, 2.0), (log, 2.0)):
        progress = StreamProgress(stream, delay_s=1.0, lines=False)
        for done in (0, 512, 1024, 1199):
            progress(READING, done, 1199)
            now[0] += passes_s
    assert quick.getvalue() == log.getvalue() == ""
    assert re.search(r"reading the prompt: +43%\|.*512/1199", slow.getvalue())
    assert slow.getvalue().endswith("\r")  # the line goes away
    assert StreamProgress(None, lines=False)("x", 1, 2) is None


def test_progress_goes_to_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    """A process whose standard error is a terminal; its clock moves two seconds whenever it is read."""
    store = text_store(tmp_path / "store", max_context=2048)
    script = (
        "import itertools, sys\n"
        "import tqdm.std\n"
        "tqdm.std.time = itertools.count(1.0, 2.0).__next__\n"
        "from specdec.cli.main import main\n"
        "sys.exit(main())\n"
    )
    ask = ["generate", "--model", str(store), "--prompt", "ab " * 500, "--max-tokens", "4"]
    command = [sys.executable, "-c", script, *ask]
    controller, terminal = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, stdin=subprocess.DEVNULL) as process:
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(controller, 1 << 16):
                shown += chunk
        except OSError:  # how a terminal ends on Linux
            pass
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(controller)
    assert process.returncode == 0, shown
    assert b"reading the prompt" in shown
    ran = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=True)
    assert ran.stdout == out
    assert b"reading" not in ran.stderr


def test_a_model_says_what_it_is(text_model: Path) -> None:
    model = specdec.load(text_model, runtime="reference")
    assert model.name == text_model.name
    assert repr(model) == (
        f"<specdec.Model text: llama, {model.parameters / 1000:.3g} k parameters, float16, "
        f"context of {model.config.max_context} tokens, runtime reference>"
    )
    shares = specdec.load(text_model, load_share=0.6)
    assert re.search(r"float16, 0\.\d{3} of the weights loaded, context", repr(shares))
    assert repr(fake_model_of(fake_config())) == (
        "<specdec.Model without a name: llama, 3.26 k parameters, context of 512 tokens, runtime fake, no tokenizer>"
    )


def ending(stage: str, done: int, total: int) -> None:
    """A function that asks an iterator of its own for more than it has."""
    if done:
        next(iter(()))


@pytest.mark.parametrize("way", ["generate", "stream", "batch"])
def test_a_stop_iteration_of_progress_is_no_end_of_the_answer(way: str) -> None:
    model = fake_model_of(fake_config(max_context=4096))
    with specdec.Batch(model) as batch:
        ways = {
            "generate": lambda **options: specdec.generate(model, PROMPT, **options),
            "stream": lambda **options: list(specdec.stream(model, PROMPT, **options)),
            "batch": lambda **options: list(batch.submit(PROMPT, **options)),
        }
        with pytest.raises(RuntimeError, match="progress raised StopIteration"):
            ways[way](max_tokens=2, progress=ending)


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError])
def test_an_exception_while_a_view_is_built_is_the_callers(kind: type[Exception]) -> None:
    """It is no fault of the drafter that needs the view, and the view is built later."""
    model = fake_model_of(fake_config(max_context=4096))

    def failing(stage: str, done: int, total: int) -> None:
        raise kind("mine")

    with pytest.raises(kind, match=r"^'?mine'?$"):
        specdec.generate(model, [1], max_tokens=4, policy="fixed", draft_view="int4", progress=failing)
    assert specdec.generate(model, [1], max_tokens=4, policy="fixed", draft_view="int4").tokens
