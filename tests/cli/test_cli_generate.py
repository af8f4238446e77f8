"""`specdec generate`: what it prints where, and that it says what the library says."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, start

import specdec
import specdec.engine.sequence as sequence_module
from specdec.engine.accept import Verdict

QUICK = ("--max-tokens", "12", "--draft-effort", "0.8")


def result_of(text_model: Path, prompt: str = "hello", **options: object) -> specdec.Result:
    """What the library says to the same question."""
    model = specdec.load(text_model)
    return specdec.generate(model, prompt, **{"max_tokens": 12, "draft_effort": 0.8, **options})


def test_text_goes_to_standard_output_and_statistics_to_standard_error(
    text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK)
    assert ran.code == 0
    expected = result_of(text_model)
    assert ran.out == expected.text + ("" if expected.text.endswith("\n") else "\n")
    blank, line = ran.err.splitlines()  # one line
    assert blank == ""
    # How many are drafted is the policy's choice, which times steer.
    assert re.search(r"; \d+ of \d+ drafted tokens accepted; ", line)
    assert "tokens/s: 12 tokens in" in line
    assert "; identical to plain decoding, dense; ended by max_tokens" in line
    full = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK, "--stats")
    assert full.out == ran.out
    assert re.search(r"drafts     \d+ of \d+ accepted", full.err)
    assert "tokens/s: 12 tokens in" in full.err
    assert "to plain decoding, dense\n" in full.err
    assert "GB/s" in full.err


def test_json_is_the_librarys_result(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK, "--json")
    said, expected = json.loads(ran.out), result_of(text_model).to_dict()
    assert ran.out.count("\n") == 1
    assert said.keys() == expected.keys()
    assert said["stats"].keys() == expected["stats"].keys()
    assert {key: said[key] for key in said if key != "stats"} == {key: expected[key] for key in said if key != "stats"}
    assert ran.err == ""


def test_sampling_options_reach_the_library(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = {"temperature": 0.9, "top_k": 30, "top_p": 0.8, "min_p": 0.01, "seed": 5}
    flags = [part for name, value in sampling.items() for part in ("--" + name.replace("_", "-"), str(value))]
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK, *flags, "--json")
    assert json.loads(ran.out)["tokens"] == result_of(text_model, **sampling).tokens
    assert json.loads(ran.out)["tokens"] != result_of(text_model).tokens


def test_speculation_options_reach_the_library(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--draft-view", "int4", "--verify-effort", "0.9", "--draft-len", "2", "--policy", "fixed")
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK, *flags, "--json")
    said = json.loads(ran.out)
    expected = result_of(text_model, draft_view="int4", verify_effort=0.9, draft_len=2, policy="fixed")
    assert said["tokens"] == expected.tokens
    assert said["identical_to"] == "effort 0.9 by inputs"
    assert said["stats"]["drafted"] == expected.stats.drafted
    assert len(said["stats"]["drafted_per_position"]) == 2


def test_a_lossy_effort_is_labelled(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(
        capsys, "generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "4", "--verify-effort", "0.5"
    )
    assert "effort 0.5 by inputs (lossy" in ran.err


def test_plain_decoding_drafts_nothing(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", "--max-tokens", 12, "--plain")
    assert ran.out.rstrip("\n") == result_of(text_model).text.rstrip("\n")
    assert "; no drafts (plain decoding); " in ran.err


def test_the_check_passes(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK, "--check")
    assert ran.code == 0
    assert re.search(r"identical to plain decoding \(12 tokens; plain [0-9.]+ tokens/s; measured [0-9.]+x\)", ran.err)


def accept_everything(drafted: list[int], logits: np.ndarray, sampler: object, **_options: object) -> Verdict:
    """What a broken engine would do."""
    return Verdict(kept=range(len(drafted)), bonus_token=65, logits=logits[-1])


def test_the_check_fails_loudly(
    text_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence_module, "accept", accept_everything)
    command = ("generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "12", "--draft-effort", "0.1")
    command += ("--policy", "fixed")
    ran = run(capsys, *command, "--check")
    assert ran.code == 1
    assert "CHECK FAILED: token " in ran.err
    said = json.loads(run(capsys, *command, "--check", "--json").out)
    check, plain = said["check"], [65] * 12  # plain decoding takes the broken engine's own token every time
    assert not check["identical"]
    position = check["position"]
    assert said["tokens"][:position] == plain[:position]
    assert check["speculative"]["id"] == said["tokens"][position] != 65
    assert check["plain"]["id"] == 65


def test_the_trace_holds_every_round(text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    ran = run(
        capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK, "--json", "--trace", trace, "--check"
    )
    rounds = [json.loads(line) for line in trace.read_text().splitlines()]
    stats = json.loads(ran.out)["stats"]
    assert len(rounds) == stats["rounds"]
    assert sum(line["accepted"] for line in rounds) == stats["accepted"]
    assert sum(line["emitted"] for line in rounds) == 12
    assert {"position", "drafted", "entropies", "efforts", "accepted", "draft_s", "verify_s"} <= rounds[0].keys()


def test_prompts_from_files_and_standard_input(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "héllo\nworld"
    expected = result_of(text_model, text).tokens
    file = tmp_path / "prompt.txt"
    file.write_text(text + "\n", encoding="utf-8")  # the last line's end is not a part of the prompt
    # Standard input is read where it is a pipe and no prompt is named, and by "-".
    for source in (("--prompt", text), ("--prompt-file", file), (), ("--prompt-file", "-")):
        if source in ((), ("--prompt-file", "-")):
            content = io.BytesIO(text.encode("utf-8"))
        else:
            content = io.BytesIO(b"another prompt")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content, encoding="ascii"))
        ran = run(capsys, "generate", "--model", text_model, *source, *QUICK, "--json")
        assert json.loads(ran.out)["tokens"] == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"first\r\nsecond\r\n", "first\r\nsecond"),
        (b"\xef\xbb\xbfHello\n", "Hello"),
        (b"Hello\n\n", "Hello\n"),
        (b"Hello\r", "Hello\r"),
    ],
)
def test_prompt_files_of_other_editors(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, text: str
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    ran = run(capsys, "generate", "--model", text_model, "--prompt-file", file, *QUICK, "--json")
    assert json.loads(ran.out)["tokens"] == result_of(text_model, text).tokens


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("x=false", False), ("x=False", False), ("x=3", 3), ("x=None", None), ("x=null", None), ("x=a b", "a b"),
        ('x={"a": [1]}', {"a": [1]}), ("x==", "="), ("x=", ""),
    ],
)  # fmt: skip
def test_variables_of_the_chat_template(
    text_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argument: str, value: object
) -> None:
    seen: list[object] = []
    stream = specdec.stream
    monkeypatch.setattr(specdec, "stream", lambda *given, **options: seen.append(options) or stream(*given, **options))
    flags = ("--template-arg", argument, "--template-arg", "y=1")
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hi", *flags, "--markup", "--max-tokens", "1")
    assert ran.code == 0
    assert seen[0]["chat_template_kwargs"] == {"x": value, "y": 1}  # type: ignore[index]
    assert seen[0]["literal"] is False  # type: ignore[index]


def test_a_variable_without_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "generate", "--prompt", "x", "--template-arg", "enable_thinking")
    assert ran.code == 2
    assert "must be KEY=VALUE, not 'enable_thinking'" in ran.err


def test_control_tokens_spelled_in_a_prompt_are_text(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def prompt_tokens(*flags: str) -> int:
        ran = run(
            capsys, "generate", "--model", text_model, "--prompt", "a<|end|>", "--max-tokens", "1", "--json", *flags
        )
        return int(json.loads(ran.out)["stats"]["prompt_tokens"])

    assert prompt_tokens() == 1 + len("<|end|>") + 3
    assert prompt_tokens("--markup") == 1 + 1 + 3
    assert prompt_tokens("--raw") == 1 + 1


def test_raw_and_system_prompts(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def prompt_tokens(*flags: str) -> int:
        ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "1", "--json", *flags)
        return int(json.loads(ran.out)["stats"]["prompt_tokens"])

    assert prompt_tokens("--raw") == 5
    assert prompt_tokens() == 5 + 3  # <|user|> … <|end|><|assistant|>
    assert prompt_tokens("--system", "be brief") == 5 + 3 + 8 + 2


def test_stop_texts_can_be_repeated(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = result_of(text_model, "hello", temperature=1.0, seed=2, max_tokens=40).text
    stop = next(c for i, c in enumerate(whole) if i > 3 and c != "�" and c not in whole[:i])
    ran = run(
        capsys, "generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "40", "--draft-effort", "0.8",
        "--temperature", "1", "--seed", "2", "--stop", "never to be seen", "--stop", stop, "--json",
    )  # fmt: skip
    said = json.loads(ran.out)
    assert (said["text"], said["stopped_by"]) == (whole[: whole.index(stop)], "stop string")


def test_schedules_by_preset_and_by_file(text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("effort: 0.5\nrules:\n  head: 1.0\n")
    schedule = specdec.EffortSchedule(0.5, {"head": 1.0})
    command = ("generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "12", "--json")
    fixed: Any = {"policy": "fixed"}  # the default's choices follow the clock
    said = json.loads(run(capsys, *command, "--policy", "fixed", "--draft-schedule", file).out)
    assert said["stats"]["accepted"] == result_of(text_model, draft_effort=schedule, **fixed).stats.accepted
    scaled = schedule.scaled_to(0.9, specdec.load(text_model).config)
    said = json.loads(run(capsys, *command, "--policy", "fixed", "--draft-schedule", file, "--draft-effort", "0.9").out)
    assert (
        said["stats"]["draft_bytes_read"] == result_of(text_model, draft_effort=scaled, **fixed).stats.draft_bytes_read
    )
    said = json.loads(run(capsys, *command, "--verify-schedule", "uniform").out)
    assert said["identical_to"] == "effort 0.25 by inputs"


def test_drafting_above_the_verify_effort_is_allowed_and_warned(
    text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(
        capsys, "generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "4",
        "--draft-effort", "0.9", "--verify-effort", "0.5", "--check",
    )  # fmt: skip
    assert ran.code == 0
    assert ran.err.count("specdec: warning: draft effort 0.9 is above verify effort 0.5") == 1
    assert ".py" not in ran.err


def test_text_is_utf8_in_any_locale(text_model: Path) -> None:
    expected = result_of(text_model, "hello", temperature=1.0, seed=4, max_tokens=30, draft_effort=0.15).text
    assert not expected.isascii()
    process = start(
        "generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "30", "--temperature", "1",
        "--seed", "4", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="",
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert out.decode("utf-8").removesuffix("\n") == expected.removesuffix("\n")


@pytest.mark.parametrize("options", [(), ("--draft-view", "auto")])
def test_what_was_left_open_is_what_the_runtime_drafts_fastest_with(
    text_model: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    model = specdec.load(text_model, runtime="reference")
    view, effort = model.runtime.info.auto_draft
    wanted = specdec.generate(model, "Hello", max_tokens=6, draft_view=view, draft_effort=effort, policy="fixed")
    generate = ("generate", "--model", text_model, "--prompt", "Hello", "--max-tokens", 6, "--json")
    ran = run(capsys, *generate, "--runtime", "reference", "--policy", "fixed", *options)
    stats = json.loads(ran.out)["stats"]
    assert stats["draft_view"] == view
    assert (stats["drafted"], stats["accepted"]) == (wanted.stats.drafted, wanted.stats.accepted)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def explained(text_model: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, str]:
    """What a terminal gets, and what standard error does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal := Terminal())
        patch.setenv("TERM", "xterm")
        ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK, "--explain", *flags)
    assert ran.code == 0
    return terminal.getvalue(), ran.err


def test_explain_colours_tokens_by_who_produced_them(
    text_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown, err = explained(text_model, capsys, "--policy", "fixed", "--drafter", "effort", "--trust", "50")
    expected = result_of(text_model, policy="fixed", drafter="effort", trust=50.0)
    assert "\x1b[36m\x1b[4m" in shown  # effort 0.8, trusted
    assert re.sub(r"\x1b\[\d+m", "", shown).rstrip("\n") == expected.text.rstrip("\n")
    assert "tokens by  " in err
    assert "effort@0.8! " in err
    assert f"; identical to nothing (trusted {expected.stats.trusted} tokens)" in err


def test_explain_respects_those_who_want_no_colours(
    text_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown, err = explained(text_model, capsys)
    assert "\x1b" not in shown + err
    assert "tokens by  " in err


def test_explain_writes_no_colours_into_a_file(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *QUICK, "--explain")
    assert "\x1b" not in ran.out + ran.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--trust", "1", "--check"), "--trust gives up what --check looks for: give one of the two"),
        (("--explain", "--json"), "--explain colours the text, which --json leaves out"),
        (("--trust", "0"), "--trust must be an entropy above 0 nats, not 0.0"),
        (("--policy", "goodput:magic=1"), "policy 'goodput' has no parameter 'magic'"),
        (("--drafter", "effort;effort"), "drafter 'effort' is asked for twice"),
    ],
)
def test_what_contradicts_itself_is_refused(
    text_model: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", *flags)
    assert ran.code == 2
    assert message in ran.err


def test_several_drafters_and_views(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--drafter", "ngram;effort", "--draft-view", "int4,bucket", "--check", "--json")
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "ab ab ab ab", *QUICK, *flags)
    assert ran.code == 0
    assert json.loads(ran.out)["check"]["identical"]


def test_statistics_tell_what_the_policy_made_of_it(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", "--max-tokens", "40", "--stats")
    assert "x of plain decoding (plain step measured " in ran.err
    assert "rounds without a draft, " in ran.err
