"""Who may ask a server: API keys, names of a loopback server, pages of other origins, and sizes of bodies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs the extra `test`")

from fake_runtime import ByteTokenizer, fake_model
from http_server import Running, serving

from specdec.errors import InvalidArgumentError
from specdec.server.guard import is_loopback
from specdec.server.settings import ServerSettings

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = fake_model(tokenizer=ByteTokenizer(has_chat_template=True))
    with serving(
        model, api_keys=KEYS, cors=("https://page.example", "HTTP://Other.example:81/"), max_body_bytes=2000
    ) as running:
        yield running


def asked(server: Running, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return server.post("/v1/chat/completions", body, headers=named).status_code


def test_keys(server: Running) -> None:
    assert asked(server, authorization="Bearer first-key") == 200
    assert asked(server, authorization="bearer second-key") == 200
    assert asked(server, x_api_key="second-key") == 200
    for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "Basic first-key"}, {"x_api_key": ""}):
        assert asked(server, **headers) == 401
    refused = server.get("/v1/models")
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert server.get("/metrics").status_code == 401
    assert server.get("/health").json() == {"status": "ok"}


def test_a_loopback_server_answers_to_loopback_names_only(server: Running) -> None:
    key = {"authorization": "Bearer first-key"}
    for host in ("localhost", "localhost:9999", "127.0.0.1", "[::1]:80", "a.localhost", "LOCALHOST."):
        assert asked(server, host=host, **key) == 200, host
    for host in ("evil.example", "evil.example:8080", "192.168.1.5", "localhost.evil.example", "[", ""):
        assert asked(server, host=host, **key) in (400, 403), host
    assert server.get("/health", headers={"host": "evil.example"}).json()["error"]["code"] == "host_not_allowed"


def test_pages_of_other_origins(server: Running) -> None:
    key = {"authorization": "Bearer first-key"}
    port = server.url.rsplit(":", 1)[1]
    assert asked(server, origin=server.url, **key) == 200
    assert asked(server, origin="https://page.example", **key) == 200
    for origin in ("https://evil.example", "null", "http://localhost:1", f"http://127.0.0.1.evil:{port}", "http://["):
        assert asked(server, origin=origin, **key) == 403, origin
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    with server.client() as client:
        allowed = client.options("/v1/models", headers={"origin": "https://page.example", **ask})
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        assert "DELETE" in allowed.headers["access-control-allow-methods"]
        allowed = client.options("/v1/models", headers={"origin": "http://other.example:81", **ask})
        assert allowed.headers["access-control-allow-origin"] == "http://other.example:81"
        told = client.get("/health", headers={"origin": "null"}).json()["error"]["message"]
        assert told.endswith("start it with --cors '*'")
        refused = client.options("/v1/models", headers={"origin": "https://evil.example", **ask})
        assert "access-control-allow-origin" not in refused.headers


def test_bodies_that_are_too_large(server: Running) -> None:
    key = {"authorization": "Bearer first-key"}
    body = b'{"messages": [{"role": "user", "content": "' + b"x" * 3000 + b'"}]}'
    refused = server.post("/v1/chat/completions", body, headers=key)
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "request_too_large"
    with server.client() as client:  # in chunks, without a length
        parts = (body[start : start + 500] for start in range(0, len(body), 500))
        assert client.post("/v1/chat/completions", content=parts, headers=key).status_code == 413


def test_answers_carry_the_requests_id(server: Running) -> None:
    assert server.get("/health").headers["x-request-id"].startswith("req_")
    assert server.get("/health", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert server.get("/health", headers={"x-request-id": "x" * 99}).headers["x-request-id"].startswith("req_")


def test_a_server_for_everybody_does_not_look_at_names() -> None:
    with serving(fake_model(), host="0.0.0.0") as running:
        assert running.get("/health", headers={"host": "any.example"}).status_code == 200
        assert running.get("/v1/models", headers={"host": "a.example", "origin": "http://b.example"}).status_code == 403
        assert running.get("/v1/models", headers={"host": "a.example", "origin": "http://a.example"}).status_code == 200


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_names(name: str, expected: bool) -> None:
    assert is_loopback(name) == expected


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"port": 70000}, "port must be a whole number from 0 to 65535, not 70000"),
        ({"port": 80.5}, "port must be a whole number"),
        ({"host": ""}, "host must be an address"),
        ({"efforts": ()}, "at least one"),
        ({"efforts": (0.5, 2)}, "efforts must be numbers above 0 and at most 1, not 2"),
        ({"api_keys": ("a b",)}, "API key"),
        ({"cors": ("page.example",)}, "begin with http"),
        ({"cors": ("http://page.example/chat",)}, "without a path, not 'http://page.example/chat'"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds above 0, not 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be a number of seconds above 0, not nan"),
        ({"name": ""}, "name"),
        ({"aliases": ("a", "")}, "name in requests must have at least one character"),
        ({"name": "\udcff"}, r"the model's name '\\udcff' is not valid Unicode: give another with --alias"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        ServerSettings(**{"name": "tiny", **settings})
