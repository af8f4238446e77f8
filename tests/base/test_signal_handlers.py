"""Signal handlers of a program that uses the library: what they raise passes through as it is, and harms nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import fake_config, fake_model
from places import all_files
from synthetic import synthetic_source

import specdec
from specdec.errors import ModelFormatError, PluginError, StoreError
from specdec.interrupts import is_from_signal_handler, unless_signalled
from specdec.parse import foreign
from specdec.store import Store, convert
from specdec.store.staging import writing


class AlarmError(Exception):
    """What a caller's handler raises; no error of ours, and none of the system."""


Timer = Callable[[float, type[BaseException]], None]


@pytest.fixture
def alarm() -> Iterator[Timer]:
    """Has a handler raise an exception in this thread after so many seconds; 0 calls it off."""
    kind: list[type[BaseException]] = [AlarmError]

    def handle(*_: object) -> None:
        raise kind[0]("time is up")

    def set_timer(delay_s: float, error: type[BaseException]) -> None:
        kind[0] = error
        signal.setitimer(signal.ITIMER_REAL, delay_s)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        yield set_timer
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupted(alarm: Timer, work: Callable[[], object], check: Callable[[], None], *, turns: int = 24) -> int:
    """How often `work` was interrupted, in turns with delays from next to nothing to more than it takes. Whatever came
    out was the handler's own exception, and `check` holds after every turn."""
    start_s = time.perf_counter()
    work()
    took_s = time.perf_counter() - start_s
    check()
    count = 0
    for turn in range(turns):
        error = (AlarmError, TimeoutError, ValueError, OSError)[turn % 4]
        try:
            alarm(took_s * 1.5 * (turn + 0.5) / turns, error)
            work()
            alarm(0, error)
        except error as found:
            # Libraries may name a file in it, which changes its text.
            assert found.args == ("time is up",), repr(found)  # noqa: PT017  # any of four classes
            count += 1
        finally:
            alarm(0, error)
        check()
    return count


def test_a_handler_that_raises_while_loading(text_model: Path, alarm: Timer) -> None:
    expected = specdec.generate(specdec.load(text_model), "hello", max_tokens=4).tokens
    files = all_files(text_model)

    def check() -> None:
        assert all_files(text_model) == files

    assert interrupted(alarm, lambda: specdec.load(text_model), check) > 5
    assert specdec.generate(specdec.load(text_model), "hello", max_tokens=4).tokens == expected


def test_a_handler_that_raises_while_converting(tmp_path: Path, alarm: Timer) -> None:
    target = tmp_path / "store"
    wanted = Store.open(convert(synthetic_source(), target)).checksum

    def check() -> None:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
        assert Store.open(target).checksum == wanted

    assert interrupted(alarm, lambda: convert(synthetic_source(), target, overwrite=True), check) > 5


def test_a_handler_that_raises_while_generating(text_model: Path, alarm: Timer) -> None:
    model = specdec.load(text_model)
    options = {"max_tokens": 24, "draft_view": "int4"}
    expected = specdec.generate(model, "hello", **options).tokens

    def check() -> None:
        assert specdec.generate(model, "hello", **options).tokens == expected

    assert interrupted(alarm, lambda: specdec.generate(model, "hello", **options), check) > 5
    many = ["hello", "hello", "so much"]
    assert interrupted(alarm, lambda: specdec.generate(model, many, **options), check) > 5


def test_a_handler_in_a_pass_that_several_share_ends_all_of_them() -> None:
    model = fake_model(config=fake_config())
    runtime: Any = model.runtime
    forward = runtime.forward

    def handle(*_: object) -> None:
        raise TimeoutError("time is up")

    def interrupting(batch: Any, **options: Any) -> Any:
        if len(batch) == 2:
            signal.raise_signal(signal.SIGALRM)
        return forward(batch, **options)

    before = signal.signal(signal.SIGALRM, handle)
    runtime.forward = interrupting
    try:
        with pytest.raises(TimeoutError, match="time is up"):
            specdec.generate(model, [[1, 2], [3, 4]], max_tokens=4, speculate=False)
    finally:
        signal.signal(signal.SIGALRM, before)
        runtime.forward = forward
    assert len(specdec.generate(model, [1, 2], max_tokens=4).tokens) == 4


def raised_by_handler(error: Exception, within: Callable[[], Any]) -> None:
    """Run `within`, in which a handler raises `error`."""

    def handle(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        within()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_a_handler_raises_is_told_from_what_code_raises(tmp_path: Path) -> None:
    def in_foreign() -> None:
        with foreign("model.gguf"):
            signal.raise_signal(signal.SIGUSR1)

    def in_writing() -> None:
        with writing(tmp_path):
            signal.raise_signal(signal.SIGUSR1)

    def in_clause() -> None:
        try:
            signal.raise_signal(signal.SIGUSR1)
        except unless_signalled(OSError, ValueError):
            raise StoreError("theirs") from None

    places = {
        in_foreign: (ValueError, TimeoutError),
        in_writing: (TimeoutError,),
        in_clause: (ValueError, TimeoutError),
    }
    for within, kind in ((within, kind) for within, kinds in places.items() for kind in kinds):
        with pytest.raises(kind, match=r"^mine$") as caught:
            raised_by_handler(kind("mine"), within)
        assert type(caught.value) is kind
        assert is_from_signal_handler(caught.value)
    with pytest.raises(ModelFormatError, match=r"model\.gguf cannot be read: mine"), foreign("model.gguf"):
        raise ValueError("mine")
    with pytest.raises(StoreError, match="cannot write"), writing(tmp_path):
        raise TimeoutError("mine")


def test_policies_are_not_blamed_for_a_callers_handler() -> None:
    from specdec.policies.fixed import FixedPolicy

    class Slow(FixedPolicy):
        def plan(self, state: Any) -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return super().plan(state)

    class Broken(FixedPolicy):
        def plan(self, state: Any) -> Any:
            raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match=r"^mine$"):
        raised_by_handler(TimeoutError("mine"), lambda: specdec.generate(fake_model(), [1], policy=Slow()))
    with pytest.raises(PluginError, match="policy 'Broken' failed in plan: TimeoutError: mine"):
        specdec.generate(fake_model(), [1], policy=Broken())
