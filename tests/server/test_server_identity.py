"""Many clients at once, of every kind: each gets the answer that its request gets alone, without speculation, from a
server in another process. Those who leave have got a beginning of it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("llguidance", reason="needs the extra `grammar`")
httpx = pytest.importorskip("httpx", reason="needs the extra `test`")

from http_requests import asked, other_process, outcome, requests  # noqa: E402
from http_server import serving  # noqa: E402
from text_model import text_store  # noqa: E402

import specdec  # noqa: E402


def alone(client: httpx.Client, request: dict[str, Any]) -> dict[str, Any]:
    """Plain decoding of a request, with nothing beside it."""
    response = client.post("/v1/chat/completions", json={**request, "speculate": False})
    assert response.status_code == 200, response.text
    return outcome(response.json())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_store(tmp_path_factory.mktemp("stores") / "roomy", max_context=2048)


@pytest.mark.parametrize(
    ("count", "clients", "fresh"), [(36, 8, 1), pytest.param(2000, 32, 30, marks=pytest.mark.slow)]
)
def test_company_changes_no_answer(store: Path, count: int, clients: int, fresh: int) -> None:
    made = requests(count, count)
    hows = random.Random(count).choices(("whole", "stream", "left"), (4, 4, 2), k=count)
    with serving(specdec.load(store), batch={"queue": 2 * clients}) as server, ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda both: asked(server.url, *both), zip(made, hows, strict=True)))
        assert server.metric("request_success_total", finished_reason="error") == 0
        drafted = server.metric("spec_decode_num_draft_tokens_total")
    expected: list[dict[str, Any]] = []
    with other_process(store) as other:
        expected += [alone(other.client, request) for request in made[fresh:]]
    for request in made[:fresh]:
        with other_process(store) as other:
            expected.insert(made.index(request), alone(other.client, request))
    assert drafted > count  # speculation was on
    assert sum(one["reason"] == "tool_calls" for one in expected) > count // 20
    for number, (how, got, wanted) in enumerate(zip(hows, found, expected, strict=True)):
        if how == "left":
            text = got if isinstance(got, str) else got["content"]
            assert wanted["content"] is None or wanted["content"].startswith(text), (number, made[number])
            continue
        assert isinstance(got, dict)
        if how == "stream" and got["content"] == "" and wanted["content"] is None:
            got["content"] = None
        assert got == wanted, (number, how, made[number])
