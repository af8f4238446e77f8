"""A server under load: clients that go away, answers that fail, shutdown, and many requests at once."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the extra `test`")

from command_line import start  # noqa: E402
from fake_runtime import ByteTokenizer, FakeRuntime, fake_config  # noqa: E402
from http_server import Running, events, serving, until  # noqa: E402

import specdec  # noqa: E402
from specdec.model.loaded import Model  # noqa: E402

ENDLESS = ByteTokenizer(eos=frozenset(), has_chat_template=True)
LONG = 5000


class SlowRuntime(FakeRuntime):
    """Passes that take a while, so that something can happen between them."""

    pause_s = 0.005

    def forward(self, batch, *, view="exact", states=False):
        time.sleep(self.pause_s)
        return super().forward(batch, view=view, states=states)


def slow_model() -> Model:
    return Model(SlowRuntime(fake_config(max_context=2 * LONG), seed=3), ENDLESS)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(slow_model()) as running:
        yield running


def body(**fields: Any) -> bytes:
    """A chat whose answer takes long."""
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": LONG, "speculate": False, **fields}
    return json.dumps(asked).encode()


def sent(server: Running, content: bytes) -> socket.socket:
    """A connection that has sent a request."""
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    made.sendall(head.encode() + content)
    return made


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 3}, {"stream": True, "n": 3}], ids=str)
def test_a_closed_connection_ends_its_answers(server: Running, fields: dict[str, Any]) -> None:
    before = server.metric("request_success_total", finished_reason="abort")
    connection = sent(server, body(**fields))
    until(lambda: len(server.batch) == fields.get("n", 1))
    if "stream" in fields:
        received = b""
        while b"data: " not in received:
            received += connection.recv(10000)
    connection.close()
    until(lambda: len(server.batch) == 0)
    until(lambda: server.metric("request_success_total", finished_reason="abort") == before + fields.get("n", 1))
    assert server.chat(max_tokens=3).status_code == 200  # and others are answered


def test_an_answer_that_fails_after_its_stream_began() -> None:
    model = slow_model()
    with serving(model) as server:
        model.runtime.failure, model.runtime.fail_at_pass = ValueError("secret"), len(model.runtime.passes) + 5
        found = events(server.post("/v1/chat/completions", body(stream=True, max_tokens=50)))
        error = found[-1]["error"]
        assert error["type"] == "server_error"
        assert "secret" not in str(found)
        assert server.metric("request_success_total", finished_reason="error") == 1
        model.runtime.fail_at_pass = len(model.runtime.passes) + 5
        failed = server.post("/v1/chat/completions", body(max_tokens=50))
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "server_error"
        assert server.chat(max_tokens=3).status_code == 200


def test_many_clients_at_once_get_the_answers_of_plain_decoding(server: Running) -> None:
    found: dict[int, tuple[str, str]] = {}

    def ask(number: int) -> None:
        fields = {"max_tokens": 5 + number % 7, "temperature": number % 3 / 2, "seed": number}
        prompt = f"Question {number % 5}"
        if number % 2:
            parts = events(server.chat(prompt, stream=True, **fields))
            text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
        else:
            text = server.chat(prompt, **fields).json()["choices"][0]["message"]["content"]
        alone = specdec.generate(slow_model(), [{"role": "user", "content": prompt}], speculate=False, **fields)
        found[number] = text, alone.text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 16
    assert all(text == alone for text, alone in found.values())


def test_a_request_with_more_choices_than_run_at_once(server: Running) -> None:
    answer = server.post("/v1/completions", {"prompt": ["a"] * 40, "max_tokens": 2, "temperature": 0}).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(40))
    assert len({choice["text"] for choice in answer["choices"]}) == 1


def test_metrics_count_what_happened() -> None:
    with serving(slow_model()) as server:
        answers = [server.chat(max_tokens=12, temperature=0, policy="fixed", drafter="effort").json() for _ in range(2)]
        drafted = sum(answer["timings"]["draft_n"] for answer in answers)
        accepted = sum(answer["timings"]["draft_n_accepted"] for answer in answers)
        steps = sum(answer["metrics"]["speculative_decoding"]["num_spec_steps"] for answer in answers)
        assert drafted > 0
        assert server.metric("generation_tokens_total") == 24
        assert server.metric("prompt_tokens_total") == sum(answer["usage"]["prompt_tokens"] for answer in answers)
        assert server.metric("spec_decode_num_draft_tokens_total") == drafted
        assert server.metric("spec_decode_num_accepted_tokens_total") == accepted
        assert server.metric("spec_decode_num_drafts_total") == steps
        places = [server.metric("spec_decode_num_accepted_tokens_per_pos_total", position=str(n)) for n in range(4)]
        assert sum(places) == accepted
        assert places == sorted(places, reverse=True)
        assert server.metric("request_success_total", finished_reason="length") == 2
        assert server.metric("time_to_first_token_seconds_count") == 2
        first = answers[0]
        told = first["timings"]
        assert (told["prompt_n"], told["predicted_n"]) == (first["usage"]["prompt_tokens"], 12)


def test_no_request_is_taken_while_the_server_shuts_down(server: Running) -> None:
    server.server._site.answers.is_closing = True
    try:
        for response in (server.chat(max_tokens=1), server.get("/health")):
            assert response.status_code == 503
            assert "retry-after" in response.headers
    finally:
        server.server._site.answers.is_closing = False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_passes_have_ended_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(slow_model()) as server:
        assert server.get("/health").status_code == 200
        monkeypatch.setattr(server.batch._scheduler, "step", lambda: 1 / 0)
        assert server.chat(max_tokens=3).status_code == 500
        until(lambda: server.batch.failure is not None)
        for response in (server.get("/health"), server.chat(max_tokens=3)):
            assert response.status_code == 503
            assert "start it again" in response.json()["error"]["message"]


class Process:
    """`specdec serve` in a process of its own."""

    def __init__(self, model: Path, *arguments: object) -> None:
        self.process = start(
            "serve", model, "--port", 0, "--runtime", "reference", "--log-level", "warning", *arguments
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline().decode()
        assert "serving" in self.said, self.said + self.process.stderr.read().decode()
        self.url = self.said.split()[-1]

    def begin(self, **fields: Any) -> Any:
        """A stream that has begun."""
        client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        return client.stream("POST", "/v1/chat/completions", content=body(stream=True, temperature=0, **fields))

    def end(self) -> tuple[int, str]:
        """Exit code, and what was said on standard error."""
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_end(text_model: Path, number: int) -> None:
    server = Process(text_model, "--alias", "tiny")
    with server.begin(max_tokens=100) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        server.process.send_signal(number)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.end() == (0, "")


def read_while_signals_come(server: Process) -> None:
    """Read answers that take long, and end the server at once in the middle."""
    with server.begin(max_tokens=LONG, n=30) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        list(lines)


def test_a_second_signal_ends_at_once(text_model: Path) -> None:
    server = Process(text_model)
    with pytest.raises(httpx.HTTPError):  # the stream is torn
        read_while_signals_come(server)
    assert server.end() == (130, "")


def test_an_address_that_is_taken(text_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "specdec", "serve", str(text_model), "--port", str(port), "--runtime", "reference"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("specdec: error: cannot listen at 127.0.0.1")


def test_a_full_queue_says_when_to_ask_again() -> None:
    with serving(slow_model(), batch={"max_sequences": 1, "queue": 1}) as server:
        held = [sent(server, body())]
        until(lambda: server.batch.status().running == 1)
        held.append(sent(server, body()))
        until(lambda: server.batch.status().waiting == 1)
        assert server.metric("num_requests_running") == 1
        assert server.metric("num_requests_waiting") == 1
        for fields in ({}, {"stream": True}):
            refused = server.chat(max_tokens=1, **fields)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        for connection in held:
            connection.close()
        until(lambda: server.chat(max_tokens=1).status_code == 200)


def test_choices_of_one_request_wait_for_each_other_where_the_queue_is_short() -> None:
    with serving(slow_model(), batch={"max_sequences": 1, "queue": 0}) as server:
        answer = server.post("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "temperature": 0})
        assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2, 3]


def test_an_answer_ends_where_its_time_is_over() -> None:
    with serving(slow_model(), timeout_s=0.5) as server:
        answer = server.post("/v1/chat/completions", body(temperature=0)).json()
        text = answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 0 < answer["usage"]["completion_tokens"] < LONG
        whole = specdec.generate(
            slow_model(), [{"role": "user", "content": "Hi"}], max_tokens=answer["usage"]["completion_tokens"]
        )
        assert whole.text.startswith(text.rstrip("\ufffd"))
        parts = events(server.post("/v1/chat/completions", body(temperature=0, stream=True)))
        assert parts[-1]["choices"][0]["finish_reason"] == "length"


def test_prefixes_are_shared_within_one_key_only() -> None:
    with serving(slow_model(), api_keys=("one", "two")) as server:

        def cached(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            asked = {"messages": [{"role": "user", "content": "A long question, asked again and again"}]}
            answer = server.post("/v1/chat/completions", {**asked, "max_tokens": 2}, headers=headers).json()
            return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert cached("one") == 0
        assert cached("one") > 30
        assert cached("two") == 0
        assert cached("two") > 30


def test_a_context_that_fits_the_bytes_for_keys_and_values() -> None:
    model = slow_model()
    room = model.runtime.cache_bytes(200)
    with serving(model, batch={"cache_bytes": room}) as server:
        context = server.get("/v1/models").json()["data"][0]["max_model_len"]
        assert 200 <= context < 2 * LONG
        assert model.runtime.cache_bytes(context) <= room < model.runtime.cache_bytes(context + 1)
        answer = server.chat(temperature=0).json()
        assert answer["usage"]["total_tokens"] == context
        assert 0 < server.metric("kv_cache_usage_perc") <= 1
