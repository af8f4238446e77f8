"""`/v1/completions`, `/tokenize`, `/detokenize` and `/v1/models`, asked for by OpenAI's own client and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME, Running, events, serving  # noqa: E402

import specdec  # noqa: E402
from specdec.server.sampling import seed_of_choice  # noqa: E402


@pytest.fixture(scope="module")
def server(text_model: Path) -> Iterator[Running]:
    with serving(specdec.load(text_model, runtime="reference"), aliases=("also",)) as running:
        yield running


def plain(server: Running, prompt: Any, **options: Any) -> specdec.Result:
    return specdec.generate(server.model, prompt, speculate=False, chat=False, **{"max_tokens": 8, **options})


def test_text_goes_on_without_a_template(server: Running, client: Any) -> None:
    expected = plain(server, "Once upon")
    answer = client.completions.create(model=NAME, prompt="Once upon", max_tokens=8, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, len(expected.tokens))
    ids = server.model.tokenizer.encode("Once upon")
    same = client.completions.create(model=NAME, prompt=ids, max_tokens=8, temperature=0)
    assert same.choices[0].text == expected.text


@pytest.mark.parametrize("stream", [False, True])
def test_lists_of_prompts_and_choices(server: Running, client: Any, stream: bool) -> None:
    prompts: list[Any] = ["One", "Two", "Three"]
    for given in (prompts, [server.model.tokenizer.encode(text) for text in prompts]):
        asked = client.completions.create(
            model=NAME, prompt=given, n=2, seed=9, max_tokens=8, temperature=1.0, stream=stream
        )
        texts = [""] * 6
        for part in asked if stream else [asked]:
            for choice in part.choices:
                texts[choice.index] += choice.text
        assert texts == [
            plain(server, prompt, temperature=1.0, seed=seed_of_choice(9, n)).text for prompt in prompts for n in (0, 1)
        ]


def test_usage_counts_each_prompt_once(server: Running) -> None:
    body = {"prompt": ["One", "Three"], "n": 2, "max_tokens": 3, "temperature": 0}
    usage = server.post("/v1/completions", body).json()["usage"]
    assert usage["prompt_tokens"] == len("OneThree")
    assert usage["completion_tokens"] <= 12
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    assert events(server.post("/v1/completions", body))[-1]["usage"]["prompt_tokens"] == len("OneThree")


@pytest.mark.parametrize("stream", [False, True])
def test_echo(server: Running, client: Any, stream: bool) -> None:
    expected = plain(server, "Once upon").text
    for max_tokens, text in ((8, f"Once upon{expected}"), (0, "Once upon")):
        asked = client.completions.create(
            model=NAME, prompt="Once upon", max_tokens=max_tokens, echo=True, temperature=0, stream=stream
        )
        parts = list(asked) if stream else [asked]
        assert "".join(choice.text for part in parts for choice in part.choices) == text
        if not stream and not max_tokens:
            assert asked.usage.completion_tokens == 0
            assert asked.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),  # this model has no token that begins a text
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, 10**9]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 2049}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_said(server: Running, fields: dict[str, Any], param: str) -> None:
    response = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_models(server: Running, client: Any) -> None:
    found = client.models.list().data
    assert [one.id for one in found] == [NAME, "also"]
    assert client.models.retrieve("also").max_model_len == server.model.config.max_context
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("none/such")
    assert caught.value.code == "model_not_found"
    answer = server.chat(model="also", max_tokens=1).json()
    assert answer["model"] == "also"


def test_tokens_as_vllm_gives_them(server: Running) -> None:
    text = "Grüße <|end|>"
    ids = server.model.tokenizer.encode(text)
    found = server.post("/tokenize", {"model": NAME, "prompt": text, "return_token_strs": True}).json()
    assert found["tokens"] == ids
    assert (found["count"], found["max_model_len"]) == (len(ids), 128)
    assert found["token_strs"][-1] == "<|end|>"
    assert server.post("/detokenize", {"model": NAME, "tokens": ids}).json()["prompt"] == text
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    counted = server.post("/tokenize", chat).json()
    assert counted["tokens"] == server.model.tokenizer.encode("<|user|>Hi<|end|><|assistant|>")
    assert counted["count"] == server.chat("Hi", max_tokens=1).json()["usage"]["prompt_tokens"]


def test_the_tokenizer_describes_itself(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = server.model.tokenizer
    info = server.get("/tokenizer_info").json()
    ends = server.post("/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False}).json()["tokens"]
    assert ends == [min(tokenizer.eos_ids)]
    begins = None if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id], continues=True)
    assert info["bos_token"] == begins
    named = {"eos_token": "<|user|>"}  # a model may have several end tokens; its files name one
    with monkeypatch.context() as patched:
        patched.setattr(type(tokenizer), "named_tokens", property(lambda _: named))
        assert server.get("/tokenizer_info").json()["eos_token"] == "<|user|>"
    assert info["chat_template"] == tokenizer.chat_template
    assert info["model_max_length"] == server.get("/v1/models").json()["data"][0]["max_model_len"]


def test_tokens_as_llama_server_gives_them(server: Running) -> None:
    found = server.post("/tokenize", {"content": "ü<|end|>", "with_pieces": True}).json()["tokens"]
    assert [token["piece"] for token in found] == [[0xC3], [0xBC], "<|end|>"]
    plain_text = server.post("/tokenize", {"content": "<|end|>", "parse_special": False}).json()["tokens"]
    assert len(plain_text) == len("<|end|>")
    assert server.post("/detokenize", {"tokens": plain_text}).json()["content"] == "<|end|>"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": 5}),
        ("/tokenize", {"prompt": ["a"]}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"prompt": "a", "other": 1}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": "abc"}),
    ],
)
def test_wrong_requests_for_tokens(server: Running, path: str, body: dict[str, Any]) -> None:
    response = server.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_paths_and_methods_that_there_are_not(server: Running) -> None:
    missing = server.get("/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "unknown_url"
    assert missing.json()["error"]["message"] == "Not Found: GET /v1/nothing"
    for path, meant in (
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/tokenize", "/tokenize"),
    ):
        message = server.post(path, {}).json()["error"]["message"]
        assert message == f"Not Found: POST {path}: the path is {meant}"
    assert server.get("/v1/chat/completions").status_code == 405
    assert "error" in server.get("/v1/chat/completions").json()
