"""Responses that are kept: continued, listed, deleted; of one owner only, and bounded in number and bytes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME  # noqa: E402
from responses_api import CALLING, WEATHER, end  # noqa: E402
from scripted_chat import Scripted, scripted  # noqa: E402

from specdec.server.errors import ApiError  # noqa: E402
from specdec.server.events import (  # noqa: E402
    TextDelta,
)
from specdec.server.responses.store import ResponseStore, StoredResponse  # noqa: E402


def test_a_response_goes_on_from_an_earlier_one(server: Scripted, client: Any) -> None:
    server.script.set(*CALLING[:7], end("tool_calls"))
    first = client.responses.create(model=NAME, input="Köln?", instructions="Be brief.", tools=[WEATHER])
    server.script.set(TextDelta("Rain."), end())
    second = client.responses.create(
        model=NAME,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": "call_abc", "output": "rain"}],
    )
    assert second.previous_response_id == first.id
    roles = [(message["role"], message.get("content")) for message in server.script.request.messages]
    expected = [("user", "Köln?"), ("assistant", "I look."), ("tool", "rain")]
    assert roles == expected  # instructions are not carried over
    assert server.script.request.messages[1]["tool_calls"][0]["id"] == "call_abc"
    assert server.script.request.messages[1]["reasoning_content"] == "I have to look."
    with client.responses.stream(model=NAME, previous_response_id=second.id, input="Thanks.") as stream:
        third = stream.get_final_response()
    roles = [(message["role"], message.get("content")) for message in server.script.request.messages]
    assert roles == [*expected, ("assistant", "Rain."), ("user", "Thanks.")]
    assert client.responses.retrieve(third.id).output_text == "Rain."


def test_output_may_be_sent_back_as_input(server: Scripted, client: Any) -> None:
    server.script.set(*CALLING, end("tool_calls"))
    first = client.responses.create(model=NAME, input="Köln?", tools=[WEATHER], store=False)
    client.responses.create(model=NAME, input=[{"role": "user", "content": "Köln?"}, *first.output])
    assistant = server.script.request.messages[1]
    assert assistant["content"] == "I look."
    assert assistant["reasoning_content"] == "I have to look."
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_abc", "call_def"]


def test_responses_are_kept_and_forgotten(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("a"), end())
    kept = client.responses.create(model=NAME, input="Hello")
    assert client.responses.retrieve(kept.id).to_dict() == kept.to_dict()
    page = client.responses.input_items.list(kept.id)
    assert [item.content[0].text for item in page.data] == ["Hello"]
    client.responses.delete(kept.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            ask(kept.id)
    loose = client.responses.create(model=NAME, input="Hello", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(loose.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=NAME, input="Hello", previous_response_id=loose.id)
    assert caught.value.code == "previous_response_not_found"


def test_items_of_a_response_come_in_pages(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("a"), end())
    texts = [str(number) for number in range(25)]
    kept = client.responses.create(model=NAME, input=[{"role": "user", "content": text} for text in texts])
    listed = [item.content[0].text for item in client.responses.input_items.list(kept.id, order="asc", limit=10)]
    assert listed == texts
    assert [item.content[0].text for item in client.responses.input_items.list(kept.id)] == texts[::-1]
    for query in ("limit=0", "limit=x", "order=up", "after=nobody"):
        response = server.running.get(f"/v1/responses/{kept.id}/input_items?{query}")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == query.partition("=")[0]
    assert server.running.get(f"/v1/responses/{kept.id}?stream=true").status_code == 400


def test_responses_belong_to_their_owner(tmp_path: Path) -> None:
    with scripted(tmp_path / "text", api_keys=("one", "two")) as server:
        server.script.set(TextDelta("a"), end())
        one, two = (openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in ("one", "two"))
        with one, two:
            kept = one.responses.create(model=NAME, input="Hello")
            for ask in (two.responses.retrieve, two.responses.delete):
                with pytest.raises(openai.NotFoundError):
                    ask(kept.id)
            with pytest.raises(openai.BadRequestError):
                two.responses.create(model=NAME, input="Hello", previous_response_id=kept.id)
            assert one.responses.retrieve(kept.id).id == kept.id


def test_the_store_is_bounded() -> None:
    def stored(name: str, text: str = "") -> StoredResponse:
        return StoredResponse({"id": name, "output": [], "text": text}, [])

    def names(store: ResponseStore, owner: str, among: str) -> str:
        found = ""
        for name in among:
            with contextlib.suppress(ApiError):
                found += store.get(owner, name).response["id"]
        return found

    store = ResponseStore(most=3, most_bytes=1000)
    for name in "abcd":
        store.keep("one", stored(name))
    store.keep("two", stored("a"))
    assert names(store, "one", "abcd") == "bcd"
    store.delete("one", "c")
    store.keep("one", stored("e", "x" * 900))
    assert names(store, "one", "abcde") == "de"
    store.keep("one", stored("f", "x" * 2000))
    assert names(store, "one", "abcdef") == ""
    store.keep("one", stored("g", "x" * 900))
    assert names(store, "one", "g") == "g"
    assert names(store, "two", "a") == "a"
