"""`/v1/chat/completions`: OpenAI's own client against a server of a tiny model; answers equal plain decoding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME, Running, events, serving  # noqa: E402

import specdec  # noqa: E402
from specdec.server.sampling import seed_of_choice  # noqa: E402

MESSAGES: list[Any] = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Name a river."}]


@pytest.fixture(scope="module")
def server(text_model: Path) -> Iterator[Running]:
    with serving(specdec.load(text_model, runtime="reference")) as running:
        yield running


def plain(server: Running, messages: Any = None, **options: Any) -> specdec.Result:
    return specdec.generate(server.model, messages or MESSAGES, speculate=False, **{"max_tokens": 20, **options})


def test_an_answer_is_that_of_plain_decoding(server: Running, client: Any) -> None:
    for options in ({"temperature": 0}, {"temperature": 0.8, "seed": 5}, {"temperature": 1.0, "seed": 7, "top_p": 0.9}):
        expected = plain(server, **options)
        answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=20, **options)
        assert answer.object == "chat.completion"
        assert answer.model == NAME
        assert [choice.index for choice in answer.choices] == [0]
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage.prompt_tokens == expected.stats.prompt_tokens
        assert answer.usage.completion_tokens == len(expected.tokens)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert cached == (0 if options["temperature"] == 0 else expected.stats.prompt_tokens - 1)
        assert (answer.timings["cache_n"], answer.timings["prompt_n"]) == (cached, answer.usage.prompt_tokens - cached)
        assert answer.choices[0].specdec["identical_to"] == "dense"


def test_every_drafter_that_a_request_may_name_can_draft(server: Running) -> None:
    told = server.chat(drafter="nosuch").json()["error"]["message"]
    names = re.findall(r"'([a-z-]+)'", told.removeprefix("'drafter' must be ").removesuffix(", not 'nosuch'"))
    assert names[:1] == ["auto"]
    expected = server.chat(temperature=0, max_tokens=8, speculate=False).json()["choices"][0]["message"]
    for name in names:
        answer = server.chat(temperature=0, max_tokens=8, drafter=name)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"] == expected


@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"top_p": 0}, {"top_k": 5}, {"min_p": 0.1}, {"top_k": -1}])
def test_filters_change_nothing_at_temperature_0(server: Running, filters: dict[str, float]) -> None:
    answer = server.chat(MESSAGES[-1]["content"], temperature=0, max_tokens=8, **filters)
    assert answer.status_code == 200, answer.text
    plainly = server.chat(MESSAGES[-1]["content"], temperature=0, max_tokens=8).json()
    assert answer.json()["choices"][0]["message"] == plainly["choices"][0]["message"]


def test_a_stream_holds_the_same_text(server: Running, client: Any) -> None:
    expected = plain(server, temperature=0.8, seed=5)
    stream = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=20, temperature=0.8, seed=5, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    *body, end, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in body] == [None] * len(body)
    assert end.choices[0].finish_reason == expected.finish_reason
    assert end.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage.completion_tokens == len(expected.tokens)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert end.timings["predicted_n"] == len(expected.tokens)


def test_usage_in_every_chunk(server: Running) -> None:
    """vLLM's option, which its benchmark GuideLLM sends."""
    for path, content in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "Name a river.", "echo": True}),
    ):
        body = {"model": NAME, **content, "max_tokens": 8, "ignore_eos": True, "n": 2, "stream": True}
        options = {"include_usage": True, "continuous_usage_stats": True}
        found = events(server.post(path, {**body, "stream_options": options}))
        prompt = found[-1]["usage"]["prompt_tokens"]
        for number in range(2):
            usages = [chunk["usage"] for chunk in found[:-1] if chunk["choices"][0]["index"] == number]
            if path == "/v1/chat/completions":
                assert usages.pop(0) is None  # the role comes before the answer
            counts = [usage["completion_tokens"] for usage in usages]
            assert counts == sorted(counts)
            assert 1 <= counts[0] <= counts[-1] == 8
            assert all(usage["prompt_tokens"] == prompt for usage in usages)
            assert all(usage["total_tokens"] == prompt + usage["completion_tokens"] for usage in usages)
        assert found[-1]["usage"]["completion_tokens"] == 16
        alone = events(server.post(path, {**body, "stream_options": {**options, "include_usage": False}}))
        assert all("usage" not in chunk for chunk in alone)  # as in vLLM


def test_a_stream_without_options_has_no_usage(server: Running) -> None:
    found = events(server.chat(stream=True, max_tokens=4, temperature=0))
    assert all("usage" not in chunk for chunk in found)
    assert [bool(chunk["choices"][0]["finish_reason"]) for chunk in found] == [False] * (len(found) - 1) + [True]


def test_choices_have_seeds_of_their_own(server: Running, client: Any) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=12, temperature=1.0, seed=3, n=4, stream=False
    )
    texts = [choice.message.content for choice in answer.choices]
    expected = [plain(server, temperature=1.0, seed=seed_of_choice(3, n), max_tokens=12) for n in range(4)]
    assert texts == [one.text for one in expected]
    assert len(set(texts)) == 4
    assert expected[0].text == plain(server, temperature=1.0, seed=3, max_tokens=12).text
    assert answer.usage.completion_tokens == sum(len(one.tokens) for one in expected)
    assert answer.usage.prompt_tokens == expected[0].stats.prompt_tokens

    streamed: dict[int, str] = {}
    for chunk in client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=12, temperature=1.0, seed=3, n=4, stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert [streamed[n] for n in range(4)] == texts


def test_a_random_seed_is_told_and_repeats_the_answer(server: Running) -> None:
    first = server.chat(max_tokens=12).json()["choices"][0]
    again = server.chat(max_tokens=12, seed=first["specdec"]["seed"]).json()["choices"][0]
    assert again["message"] == first["message"]
    assert server.chat(max_tokens=12).json()["choices"][0]["specdec"]["seed"] != first["specdec"]["seed"]


def test_seed_minus_1_chooses_one(server: Running) -> None:
    """As for llama-server and vLLM. Other negative ones are seeds."""
    seeds = [server.chat(max_tokens=1, seed=seed).json()["choices"][0]["specdec"]["seed"] for seed in (-1, -1, -2)]
    assert seeds[0] != seeds[1]
    assert seeds[2] == 2**64 - 2


def test_stop_strings(server: Running, client: Any) -> None:
    whole = plain(server, temperature=0).text
    stop = whole[5:7]
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=20, temperature=0, stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_may_go_on_with_an_assistants_message(server: Running, client: Any) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "The Rhine"}]
    expected = plain(server, begun, temperature=0)
    for more in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        answer = client.chat.completions.create(
            model=NAME, messages=begun, max_tokens=20, temperature=0, extra_body=more
        )
        assert answer.choices[0].message.content == expected.text
        assert answer.usage.prompt_tokens == expected.stats.prompt_tokens
    apart = client.chat.completions.create(
        model=NAME, messages=begun, max_tokens=20, temperature=0, extra_body={"add_generation_prompt": True}
    )
    assert apart.usage.prompt_tokens == expected.stats.prompt_tokens + 2  # <|end|> and <|assistant|>


def test_a_prompt_may_lack_what_begins_an_answer(server: Running) -> None:
    chat = {"model": NAME, "messages": MESSAGES}
    whole = server.post("/tokenize", chat).json()["tokens"]
    plainly = server.post("/tokenize", {**chat, "add_generation_prompt": False}).json()["tokens"]
    assert plainly == whole[:-1]  # without <|assistant|>
    counts = [
        server.post("/v1/chat/completions", {**chat, "max_tokens": 1, "add_generation_prompt": asked}).json()["usage"]
        for asked in (True, False)
    ]
    assert [usage["prompt_tokens"] for usage in counts] == [len(whole), len(plainly)]


def test_fields_of_ours(server: Running) -> None:
    expected = plain(server, [{"role": "user", "content": "Hello"}], temperature=0).text
    for fields in (
        {"speculate": False},
        {"policy": "fixed", "drafter": "ngram"},
        {"policy": "fixed", "drafter": "effort", "draft_effort": 0.4},
        {"verify_effort": 1.0},
    ):
        answer = server.chat(temperature=0, max_tokens=20, **fields).json()
        assert answer["choices"][0]["message"]["content"] == expected, fields
        drafted = answer["timings"]["draft_n"]
        assert drafted == 0 or "speculate" not in fields
        assert drafted > 0 or fields.get("drafter") != "effort"
        told = answer["metrics"]["speculative_decoding"]
        assert told["num_draft_tokens"] == drafted
        assert told["num_accepted_draft_tokens"] == answer["timings"]["draft_n_accepted"]
        assert sum(told["acceptance_histogram"]) == told["num_spec_steps"]


def test_who_produced_each_token(server: Running) -> None:
    fields = {"temperature": 0, "max_tokens": 20, "policy": "fixed", "drafter": "effort", "token_origins": True}
    whole = server.chat(**fields).json()["choices"][0]
    tokens = whole["specdec"]["tokens"]
    assert "".join(token["text"] for token in tokens) == whole["message"]["content"]
    assert {token["origin"] for token in tokens} == {"verifier", "effort"}
    streamed = [
        token
        for chunk in events(server.chat(stream=True, **fields))
        for token in chunk["choices"][0].get("specdec", {}).get("tokens", [])
    ]
    assert streamed == tokens


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"messages": None}, 400, "messages", "missing_required_parameter"),
        ({"messages": []}, 400, "messages", "invalid_value"),
        ({"messages": [{"content": "x"}]}, 400, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", None),
        ({"temperature": 3}, 400, "temperature", "invalid_value"),
        ({"temperature": "hot"}, 400, "temperature", "invalid_value"),
        ({"temperature": True}, 400, "temperature", "invalid_value"),
        ({"top_p": -0.1}, 400, "top_p", "invalid_value"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 1.5}, 400, "max_completion_tokens", "invalid_value"),
        ({"n": 0}, 400, "n", "invalid_value"),
        ({"stop": 5}, 400, "stop", "invalid_value"),
        ({"stop": ["a"] * 65}, 400, "stop", None),
        ({"seed": "x"}, 400, "seed", "invalid_value"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias", None),
        ({"logit_bias": {"1": 101}}, 400, "logit_bias", None),
        ({"top_logprobs": 3}, 400, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", None),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            400,
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        ({"tool_choice": "required"}, 400, "tool_choice", None),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "tools[0]", None),
        ({"functions": []}, 400, "functions", "unsupported_parameter"),
        ({"nonsense": 1}, 400, None, "unknown_parameter"),
        ({"verify_effort": 0.5}, 400, "verify_effort", "invalid_value"),
        ({"draft_effort": 0}, 400, "draft_effort", "invalid_value"),
        ({"repetition_penalty": 0}, 400, "repetition_penalty", "invalid_value"),
        ({"policy": "/etc/passwd.yaml"}, 400, "policy", "invalid_value"),
        ({"policy": "fixed:a=1"}, 400, "policy", "invalid_value"),
        ({"drafter": "ngram:/etc/passwd"}, 400, "drafter", "invalid_value"),
        ({"drafter": "model"}, 400, "drafter", "invalid_value"),
        ({"chat_template_kwargs": {"tools": []}}, 400, "chat_template_kwargs", None),
        ({"continue_final_message": True}, 400, "continue_final_message", None),
        ({"modalities": ["text", "audio"]}, 400, "modalities", "invalid_value"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_said_in_openais_form(
    server: Running, fields: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    request = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    response = server.post("/v1/chat/completions", {**request, **fields})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert error["message"]
    if "stream_options" not in fields:  # the same before a stream begins
        streamed = server.post("/v1/chat/completions", {**request, "stream": True, **fields})
        assert (streamed.status_code, streamed.json()) == (status, response.json())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_bans_every_token_is_at_fault(server: Running, stream: bool) -> None:
    size = server.get("/v1/models").json()["data"][0]["meta"]["n_vocab"]
    bans = {str(token): -100 for token in range(size)}
    response = server.chat(max_tokens=4, logit_bias=bans, stream=stream)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "no token can follow" in error["message"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"seed": 2**64}, "'seed' must be from -9223372036854775808 to 18446744073709551615, not 18446744073709551616"),
        ({"max_tokens": -1}, "'max_tokens' must be at least 1, not -1"),
        ({"top_p": 1.5}, "'top_p' must be from 0 to 1, not 1.5"),
        ({"repetition_penalty": 0}, "'repetition_penalty' must be above 0 and at most 10, not 0.0"),
        (
            {"repetition_penalty": 1e-300},
            "repetition_penalty must be a number from 0.000001 to 1000000, not 1e-300",
        ),
        ({"logit_bias": {"5": None}}, "'logit_bias' must hold numbers from -100 to 100, not null"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nosuch"}}}},
            'response_format has a schema that cannot be used because of "type": Invalid type: nosuch',
        ),
    ],
)
def test_what_is_wrong_is_said_in_the_requests_own_words(server: Running, fields: dict[str, Any], told: str) -> None:
    request = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], **fields}
    response = server.post("/v1/chat/completions", request)
    assert (response.status_code, response.json()["error"]["message"]) == (400, told)


ASKED = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@pytest.mark.parametrize(
    ("path", "content", "tool", "field"),
    [
        ("/v1/messages", ASKED, {"name": "a b", "input_schema": {}}, "tools.0.name"),
        ("/v1/responses", {"input": "Hi"}, {"type": "function", "name": "a b"}, "tools[0].name"),
        ("/v1/chat/completions", ASKED, {"type": "function", "function": {"name": "a b"}}, "tools[0].function.name"),
    ],
)
def test_a_tools_name_is_named_as_the_interface_does(
    server: Running, path: str, content: dict[str, Any], tool: dict[str, Any], field: str
) -> None:
    response = server.post(path, {"model": NAME, **content, "tools": [tool]})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(f"'{field}' must be 1 to 128 letters")


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        ("/v1/messages", {"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ],
)
def test_a_schema_is_named_as_the_interface_does(
    server: Running, path: str, fields: dict[str, dict[str, Any]], field: str
) -> None:
    next(iter(fields.values()))["format"]["schema"] = {"type": "nosuch"}
    content = (
        {"input": "Hi"}
        if path == "/v1/responses"
        else {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    )
    response = server.post(path, {"model": NAME, **content, **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(f"{field} has a schema that cannot be used because of")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": []}, "at least one message, not []"),
        ({"stop": ["a", 1]}, 'an array of strings, not ["a", 1]'),
        ({"stop": [1] * 9}, "an array of strings, not an array of 9 items"),
        ({"tools": [{"type": "web_search"}]}, """an object 'function', not {"type": "web_search"}"""),
        ({"stream": {str(i): i for i in range(9)}}, "true or false, not an object of 9 fields"),
        ({"n": True}, "a whole number, not true"),
        ({"n": ["x" * 100]}, f'a whole number, not ["{"x" * 55}...'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_show_what_came(server: Running, fields: dict[str, Any], told: str) -> None:
    response = server.post("/v1/chat/completions", {"model": NAME, "messages": MESSAGES, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["message"].endswith(told)


def test_a_prompt_beyond_the_context(server: Running, client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x" * 200}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "However, your prompt has 2" in str(caught.value)


def test_a_prompt_far_beyond_the_context_is_not_encoded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_encode", "_encode_parts"):
        monkeypatch.setattr(type(server.model.tokenizer), name, None)
    long = "x " * 50_000
    for path, fields in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long}),
        ("/v1/responses", {"input": long}),
    ):
        response = server.post(path, {"model": NAME, **fields})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert response.json()["error"]["param"] in fields
        assert "However, your prompt has at least " in response.json()["error"]["message"]


def test_an_answer_ends_with_the_context(server: Running) -> None:
    answer = server.chat("x" * 100, temperature=0, max_tokens=1000, logit_bias=None).json()
    context = server.model.config.max_context
    usage = answer["usage"]
    if answer["choices"][0]["finish_reason"] == "length":
        assert usage["total_tokens"] == context
    assert usage["total_tokens"] <= context
