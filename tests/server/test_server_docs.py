"""The examples of docs/server.md run against a server, and its options and metrics exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from places import ROOT

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("anthropic", reason="needs the extra `test`")

from http_server import Running, serving
from text_model import text_store

import specdec
from specdec.catalogue import DEFAULT_MODEL
from specdec.cli.main import build_parser

PAGE = ROOT / "docs" / "server.md"
ADDRESS = "http://127.0.0.1:8080"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="needs the source tree")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = text_store(tmp_path_factory.mktemp("stores") / "roomy", max_context=512)
    with serving(specdec.load(store, runtime="reference"), name=DEFAULT_MODEL) as running:
        yield running


def python_examples() -> list[str]:
    return blocks("python") if PAGE.exists() else []


@pytest.mark.parametrize("code", python_examples(), ids=lambda code: code.split()[1])
def test_python_examples_run(server: Running, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ADDRESS in code
    exec(compile(code.replace(ADDRESS, server.url), PAGE.name, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


def test_curl_examples_run(server: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    examples = blocks("bash")
    assert examples
    for code in examples:
        command = code.replace(ADDRESS, server.url).replace("curl ", "curl --silent --show-error --noproxy '*' ", 1)
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
        assert answer["usage"]["completion_tokens"] > 0, (done.stdout, done.stderr)


def test_answers_say_what_the_page_says(server: Running) -> None:
    """The JSON example names fields of an answer, and no others."""
    [shown] = [json.loads(code) for code in blocks("json")]
    answer = server.chat(max_tokens=3).json()
    assert set(shown["timings"]) < set(answer["timings"])
    assert set(shown["metrics"]["speculative_decoding"]) == set(answer["metrics"]["speculative_decoding"])
    assert {"timings", "metrics"} == set(shown) < set(answer)


def test_metrics_that_the_page_names_are_there(server: Running) -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Metrics")[1]
    names = set(re.findall(r"`(\w+_\w+)`", section)) - {"finished_reason"}
    server.chat(max_tokens=8, policy="fixed", drafter="effort")
    told = server.get("/metrics").text
    assert len(names) >= 14
    for name in names:
        assert re.search(rf"^specdec:{name}(_bucket)?{{", told, re.M), name


def test_options_that_the_page_names_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    known = {f"--{name.replace('_', '-')}" for name in vars(build_parser().parse_args(["serve"]))}
    named = set(re.findall(r"`(--[a-z-]+)", text))
    assert named
    assert named <= known, named - known


def test_statuses_that_the_page_names_are_answered(server: Running) -> None:
    """And in OpenAI's form; others are in the tests of access and load."""
    assert server.chat(max_tokens=0).status_code == 400
    assert server.chat(model="other").status_code == 404
    assert server.get("/health", headers={"host": "evil.example"}).status_code == 403
