"""What the benchmarks of the server call a difference or a fault; no server is needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs the extra `test`")
pytest.importorskip("jsonschema", reason="needs the extra `test`")

BENCHMARKS = ROOT / "benchmarks"
MODULES = ("serving", "serve_identity", "serve_schemas", "serve_throughput", "serve_lm_eval", "schema_sources")
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the source tree")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of the folder `benchmarks`, whose names do not stay around."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def test_an_answer_differs_in_any_part(script: Any) -> None:
    answer, difference = script("serving").Answer, script("serve_identity").difference
    whole = {"content": "ab", "calls": [], "reason": "stop", "logprobs": [("a", -1.0)], "prompt_tokens": 5, "tokens": 3}
    wanted = answer(**whole).outcome()
    assert difference("whole", answer(**whole), wanted) is None
    for change in (
        {"content": "ac"},
        {"calls": [{"name": "f", "arguments": "{}"}]},
        {"reason": "length"},
        {"logprobs": [("a", -1.0000000000000002)]},
        {"prompt_tokens": 6},
        {"tokens": 4},
    ):
        assert difference("stream", answer(**(whole | change)), wanted), change


def test_an_answer_that_was_left_is_a_beginning(script: Any) -> None:
    answer, difference = script("serving").Answer, script("serve_identity").difference
    calls = [{"name": "f", "arguments": '{"a": 1}'}, {"name": "g", "arguments": "{}"}]
    wanted = answer(content="abc", calls=calls, reason="tool_calls", tokens=9, prompt_tokens=4).outcome()
    for content, begun in (("", []), ("ab", []), ("abc", [{"name": "f", "arguments": '{"a'}]), ("abc", calls)):
        assert difference("left", answer(content=content, calls=begun), wanted) is None
    for content, begun in (("b", []), ("abc", [{"name": "f", "arguments": '{"b'}]), ("abc", [*calls, calls[0]])):
        assert difference("left", answer(content=content, calls=begun), wanted)
    assert difference("left", answer(content="abc", calls=calls, reason="tool_calls"), wanted) is None
    assert difference("left", answer(content="abc", calls=calls, reason="stop"), wanted)


def test_requests_are_of_every_kind_and_the_same_again(script: Any) -> None:
    identity = script("serve_identity")
    made = identity.make_requests(300, 1, 64)
    assert made == identity.make_requests(300, 1, 64)
    assert {kind for kind, _, _ in made} == set(identity.KINDS)
    assert {how for _, how, _ in made} == set(identity.HOWS)
    assert all("seed" in body for _, _, body in made)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": 200, "reason": "stop", "content": "3"}, "valid"),
        ({"status": 200, "reason": "stop", "content": "30"}, "invalid"),
        ({"status": 200, "reason": "stop", "content": ""}, "not JSON"),
        ({"status": 200, "reason": "length", "content": "3"}, "length"),
        ({"status": 400, "error": {"message": "the keyword 'maximum' is not supported"}}, "refused"),
        ({"status": 400, "error": {"message": "no"}}, "unnamed refusal"),
        ({"status": 500, "error": {"message": "maximum"}}, "status 500"),
    ],
)
def test_answers_to_a_schema_are_judged(script: Any, answer: dict[str, Any], told: str) -> None:
    assert script("serve_schemas").verdict({"type": "integer", "maximum": 9}, answer)[0] == told


def test_random_schemas_are_distinct_and_the_same_again(script: Any) -> None:
    source = script("schema_sources")
    found = source.random_schemas(40, 3)
    assert found == source.random_schemas(40, 3)
    assert all(one not in found[:number] for number, one in enumerate(found))


def test_rates_are_compared_round_by_round(script: Any) -> None:
    throughput = script("serve_throughput")
    tallies = {
        throughput.SPECULATING: throughput.Tally([30, 30], [1.0, 2.0], [0.1, 0.4]),
        throughput.PLAIN: throughput.Tally([30, 30], [2.0, 2.0], [0.1, 0.2]),
        throughput.LLAMA: throughput.Tally([10, 10], [1.0, 1.0], [0.3, 0.3]),
    }
    rows = {row["contender"]: row for row in throughput.rows_of(4, tallies)}
    assert rows[throughput.SPECULATING]["tok_per_s"] == 20
    assert rows[throughput.SPECULATING]["to_plain"] == 1.5
    assert rows[throughput.SPECULATING]["to_llama_range"] == [1.5, 3]
    assert "to_plain" not in rows[throughput.LLAMA]


def test_speculation_that_changes_an_answer_ends_the_measurement(script: Any) -> None:
    serving, throughput = script("serving"), script("serve_throughput")
    one, other = serving.Answer(content="a", tokens=1), serving.Answer(content="b", tokens=1)
    throughput.check_round({throughput.SPECULATING: [one], throughput.PLAIN: [one]})
    with pytest.raises(SystemExit, match="changed answer 0"):
        throughput.check_round({throughput.SPECULATING: [one], throughput.PLAIN: [other]})
    longer = serving.Answer(content="a", tokens=1, prompt_tokens=7)
    with pytest.raises(SystemExit, match="has 0 tokens with us, 7"):
        throughput.check_round({throughput.SPECULATING: [one], throughput.PLAIN: [one], throughput.LLAMA: [longer]})


def test_the_tasks_of_lm_eval_have_their_data(script: Any, tmp_path: Path) -> None:
    lm_eval = script("serve_lm_eval")
    lm_eval.prepare(tmp_path)
    assert {path.name for path in tmp_path.glob("*.yaml")} == {f"{task}.yaml" for task in lm_eval.TASKS}
    assert all(str(tmp_path) in path.read_text() for path in tmp_path.glob("*.yaml"))
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"quiz.jsonl", "basicq.jsonl"}
