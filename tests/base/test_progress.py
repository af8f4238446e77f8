"""What a person, and what a log, sees of long work."""

from __future__ import annotations

import io
import re

from specdec.progress import StreamProgress, readable_time


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def report(stream: io.StringIO, *, interval_s: float) -> str:
    progress = StreamProgress(stream, interval_s=interval_s)
    for stage in ("fetching", "converting"):
        for done in range(5):
            progress(stage, done, 4)
    progress("checking", 1, 4)
    progress.close()
    return stream.getvalue()


def test_a_log_gets_a_line_for_each_stage() -> None:
    assert report(io.StringIO(), interval_s=60.0) == "fetching …\nconverting …\nchecking …\n"


def test_a_log_of_long_work_gets_shares_too() -> None:
    lines = report(io.StringIO(), interval_s=0.0).splitlines()
    shares = [re.sub(r", \d+ s left$", "", line) for line in lines[:5]]
    assert shares == ["fetching …", "fetching: 25%", "fetching: 50%", "fetching: 75%", "converting …"]
    assert all(line.endswith(" left") for line in lines[1:4])


def test_time_left_goes_by_what_this_run_has_done(monkeypatch) -> None:
    now = iter((100.0, 110.0))
    monkeypatch.setattr("specdec.progress.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    progress = StreamProgress(stream, interval_s=0.0)
    progress("measuring", 40, 100)  # 40 were there when it began
    progress("measuring", 50, 100)  # 10 in 10 s: 50 more take 50 s
    assert stream.getvalue() == "measuring …\nmeasuring: 50%, 50 s left\n"


def test_readable_times() -> None:
    assert [readable_time(s) for s in (0.4, 99, 101, 3500, 5000)] == ["0 s", "99 s", "2 min", "58 min", "1 h 23 min"]


def test_a_terminal_gets_a_bar_that_ends_with_its_stage() -> None:
    shown = report(Terminal(), interval_s=60.0)
    lines = [line.split("\r")[-1] for line in shown.split("\n")]
    assert [line.split(":")[0] for line in lines] == ["fetching", "converting", "checking", ""]
    assert "100%" in lines[0]
    assert "25%" in lines[2]  # closed half-way: what is printed next starts on its own line
