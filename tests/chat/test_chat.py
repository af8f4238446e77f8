"""`specdec chat`: conversations that read nothing twice, commands, files, a pipe, and a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import specdec
from specdec.chat.commands import Commands
from specdec.chat.conversation import Conversation, Turn
from specdec.chat.reader import TerminalReader, history_file, plain_lines
from specdec.chat.session import Session
from specdec.cli import chat
from specdec.errors import InvalidArgumentError, UnknownNameError

MOST = 12


def quiet(_: Any) -> None:
    """Show nothing."""


@pytest.fixture(scope="module")
def model(text_model: Path) -> specdec.Model:
    return specdec.load(text_model, runtime="reference")


@pytest.fixture
def session(model: specdec.Model) -> Session:
    model.prompt_cache = None
    return Session(model, {"max_tokens": MOST, "temperature": 0.9, "seed": 4})


@pytest.fixture
def commands(session: Session) -> Commands:
    return Commands(session, load=lambda _: session.model, report=lambda *_: None, out=io.StringIO(), name="tiny")


def said(commands: Commands) -> str:
    text = commands.out.getvalue()
    commands.out.seek(0)
    commands.out.truncate()
    return text


def test_a_conversation_reads_nothing_twice(session: Session) -> None:
    shown: list[str] = []
    first = session.answer("Name a river.", lambda event: shown.append(event.text))
    assert "".join(shown) == session.conversation.turns[0].answer == first.text
    known = len(session.conversation.turns[0].prompt_ids) + len(first.tokens)
    for question in ("And a longer one?", "Another."):
        result = session.answer(question, quiet)
        # The last token of an answer was never read: it has no keys yet.
        assert result.stats.cached_prompt_tokens >= known - 2
        known = result.stats.prompt_tokens + len(result.tokens)


def test_answers_are_those_of_the_library(session: Session, model: specdec.Model) -> None:
    answers = [session.answer(question, quiet) for question in ("One?", "Two?")]
    for turn, answer in zip(session.conversation.turns, answers, strict=True):
        alone = specdec.generate(model, turn.prompt_ids, max_tokens=MOST, temperature=0.9, seed=4, speculate=False)
        assert alone.tokens == answer.tokens


def test_retry_gives_the_same_answer_for_the_same_seed(session: Session, commands: Commands) -> None:
    with pytest.raises(InvalidArgumentError, match="no question"):
        commands.run("/retry")
    first = session.answer("Name a river.", quiet)
    commands.run("/retry")
    assert commands.take_again() == "Name a river."
    assert commands.take_again() is None
    again = session.answer("Name a river.", quiet)
    assert again.tokens == first.tokens
    assert again.stats.cached_prompt_tokens == again.stats.prompt_tokens - 1
    assert len(session.conversation.turns) == 1


def test_a_retry_that_fails_keeps_the_turn(session: Session, commands: Commands) -> None:
    session.answer("Name a river.", quiet)
    before = list(session.conversation.turns)

    def interrupted(_: Any) -> None:
        raise InvalidArgumentError("no")

    for show, options in ((quiet, {"max_tokens": -1}), (interrupted, session.options)):
        commands.run("/retry")
        question = commands.take_again()
        assert question is not None
        good, session.options = session.options, options
        with pytest.raises(InvalidArgumentError):
            session.answer(question, show)
        session.options = good
        assert session.conversation.turns == before
    session.answer("Another.", quiet)
    assert [turn.question for turn in session.conversation.turns] == ["Name a river.", "Another."]


def test_undo_system_and_clear(session: Session, commands: Commands) -> None:
    session.answer("Name a river.", quiet)
    commands.run("/undo")
    assert said(commands) == "taken back: Name a river.\n"
    commands.run("/undo")
    assert said(commands) == "nothing to take back\n"
    commands.run("/system Be brief.")
    assert session.conversation.messages("Q")[0] == {"role": "system", "content": "Be brief."}
    commands.run("/system -")
    assert session.conversation.messages("Q") == [{"role": "user", "content": "Q"}]
    session.answer("Q", quiet)
    commands.run("/clear")
    assert session.conversation.turns == []


def test_set_checks_names_and_values(session: Session, commands: Commands) -> None:
    commands.run("/set effort 0.5")
    assert session.options["verify_effort"] == 0.5
    commands.run("/set temperature default")
    assert "temperature" not in session.options
    before = dict(session.options)
    for line in ("/set nonsense 1", "/set temperature hot", "/set top_p 7", "/set verify_effort 0"):
        with pytest.raises(InvalidArgumentError):
            commands.run(line)
    for line in ("/set policy nonsense", "/set drafter nonsense:3", "/set draft_view nonsense"):
        with pytest.raises(UnknownNameError, match=r"unknown .* 'nonsense': choose from"):
            commands.run(line)
    assert session.options == before
    with pytest.raises(InvalidArgumentError, match="seed must be a whole number from 0"):
        commands.run(f"/set seed {'9' * 400}")
    with pytest.raises(InvalidArgumentError, match="temperature must be"):
        commands.run(f"/set temperature {'9' * 400}")
    for seed in (2**53 + 1, 2**64 - 1):
        commands.run(f"/set seed {seed}")
        assert session.options["seed"] == seed
    commands.run("/set max_tokens 12.0")
    assert session.options["max_tokens"] == MOST
    said(commands)
    commands.run("/set")
    assert "verify_effort 0.5" in said(commands)


def test_unknown_commands_and_help(commands: Commands) -> None:
    with pytest.raises(InvalidArgumentError, match="/help"):
        commands.run("/frobnicate")
    commands.run("/help")
    text = said(commands)
    assert all(name in text for name in commands.names if name != "/quit")
    commands.run("/exit")
    assert commands.is_over


def test_a_saved_conversation_goes_on(session: Session, commands: Commands, tmp_path: Path) -> None:
    session.conversation.system = "Be brief."
    session.answer("Name a river.", quiet)
    path = tmp_path / "talk.json"
    commands.run(f"/save {path}")
    kept = session.conversation.messages("next")
    commands.run("/clear")
    commands.run(f"/load {path}")
    assert commands.session.conversation.messages("next") == kept
    commands.run(f"/save {path}")  # over a saved chat


@pytest.mark.parametrize(
    "content",
    ["hello", "[]", "{}", '{"format": "specdec chat", "version": 1}', '{"format": "specdec chat", "version": 9}',
     '{"format": "specdec chat", "version": 1, "system": "", "turns": [{"question": 3}]}',
     '{"format": "specdec chat", "version": 1, "system": "", "turns": [{"question": " ", "answer": "", "reasoning": ""}'
     "]}",
     "[" * 100_000],
)  # fmt: skip
def test_other_files_are_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.json"
    path.write_text(content)
    with pytest.raises(InvalidArgumentError):
        Conversation.load(path)
    if '"format"' not in content:
        with pytest.raises(InvalidArgumentError, match="holds no saved chat"):
            Conversation(turns=[Turn("q", "a")]).save(path)
    assert path.read_text() == content
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        Conversation.load(tmp_path / "missing")
    with pytest.raises(InvalidArgumentError, match="cannot write"):
        Conversation().save(tmp_path / "no" / "folder.json")


def test_an_interrupted_answer_stays_as_far_as_it_came(session: Session) -> None:
    def interrupt(event: Any) -> None:
        if event.text:
            raise KeyboardInterrupt

    result = session.answer("Name a river.", interrupt)
    assert result.stopped_by == "caller"
    assert session.conversation.turns[0].answer
    again = session.answer("Go on.", quiet)
    assert again.stats.cached_prompt_tokens > 0


def test_a_model_without_a_template_is_refused(model: specdec.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.tokenizer), "has_chat_template", False)
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        Session(model, {})


def test_lines_of_a_pipe() -> None:
    assert list(plain_lines(io.BytesIO("a\r\nü\n\nlast".encode()))) == ["a", "ü", "", "last"]
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        list(plain_lines(io.BytesIO(b"\xff\n")))


def test_history_is_private_small_and_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path / "home"))
    path = history_file()
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("\n# then\n+line\n" * 100_000)
    assert history_file() == path
    assert path.stat().st_size < 1 << 20
    assert path.read_text().startswith("# then\n")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert history_file() is None
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_gets_an_answer_a_line(text_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "specdec", "chat", str(text_model), "--runtime", "reference"]
    options = ["--max-tokens", "5", "--load", str(tmp_path / "talk.json")]
    Conversation("Be brief.", [Turn("Hi", "Ho")]).save(tmp_path / "talk.json")
    done = subprocess.run(
        [*command, *options], input=f"Name a river.\n/save {tmp_path / 'new.json'}\n", capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    turns = json.loads((tmp_path / "new.json").read_text())["turns"]
    assert [turn["question"] for turn in turns] == ["Hi", "Name a river."]
    assert done.stdout.startswith(turns[1]["answer"])
    refused = subprocess.run([*command, "--max-tokens", "0"], input="", capture_output=True, text=True)
    assert refused.returncode == 2


def test_a_terminal_asks_answers_and_survives_ctrl_c(text_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("prompt_toolkit", reason="needs the extra `chat`")
    master, slave = pty.openpty()
    environment = os.environ | {"SPECDEC_HOME": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "specdec", "chat", str(text_model), "--runtime", "reference", "--max-tokens", "4"],
        stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    seen = b""

    def until(wanted: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while wanted not in seen:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 65536)
        seen = seen.partition(wanted)[2]

    try:
        until(b"\x1b[?2004h")  # the prompt is there
        os.write(master, b"Name a river.\\\r")
        os.write(master, b"In Asia.\r")
        until(b"In Asia.")
        until(b"\x1b[?2004h")  # the prompt is there
        os.write(master, b"\x03")
        until(b"Ctrl-C again")
        until(b"\x1b[?2004h")  # the prompt is there
        os.write(master, f"/save {tmp_path / 'talk.json'}\r".encode())
        until(b"saved 1 turn\r")
        until(b"\x1b[?2004h")
        os.write(master, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    (turn,) = Conversation.load(tmp_path / "talk.json").turns
    assert turn.question == "Name a river.\nIn Asia."


def test_asking_leaves_signals_as_they_were(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    pytest.importorskip("prompt_toolkit", reason="needs the extra `chat`")
    reader = TerminalReader(["/help"])

    def prompt(_: str) -> str:  # as the session's event loop does
        signal.set_wakeup_fd(-1)
        return "hello"

    monkeypatch.setattr(reader._session, "prompt", prompt)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before = signal.set_wakeup_fd(theirs)
    try:
        assert reader.ask() == "hello"
        assert signal.set_wakeup_fd(-1) == theirs
    finally:
        signal.set_wakeup_fd(before)
        os.close(ours)
        os.close(theirs)


def test_files_that_cannot_be_named_are_refused(commands: Commands) -> None:
    for line in ("/save a\0b", "/load a\0b"):
        with pytest.raises(InvalidArgumentError, match="zero byte"):
            commands.run(line)
    for line in ("/save ~no-such-user/chat.json", "/load ~no-such-user/chat.json"):
        with pytest.raises(InvalidArgumentError, match=r"cannot (read|write) ~no-such-user/chat.json: No such file"):
            commands.run(line)


def test_a_model_that_is_too_large_ends_no_conversation(
    session: Session, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(_: str) -> specdec.Model:
        raise MemoryError

    commands.load = load
    lines = iter(["Name a river.", "/model large", "/exit"])
    chat._converse(chat._Talk(commands, has_colours=False, has_stats=False), lambda: next(lines))
    assert "specdec: not enough memory for that" in capsys.readouterr().err
    assert commands.is_over
    assert len(session.conversation.turns) == 1
