"""A server in a thread of the test's own process, on a free port of this machine, and clients of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

import specdec
from specdec.model.loaded import Model
from specdec.server.run import Server, make_server, open_socket
from specdec.server.settings import ServerSettings

NAME = "tiny"


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        url: of it, without a slash at the end.
        server: uvicorn's.
        batch: of its model.
        model: that answers.
    """

    url: str
    server: Server
    batch: specdec.Batch
    model: Model

    def client(self, **options: Any) -> httpx.Client:
        """A client that sends to this server."""
        return httpx.Client(base_url=self.url, timeout=600, trust_env=False, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """One request; a body of bytes goes as it is."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.client() as client:
            return client.post(path, content=content, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """One request."""
        with self.client() as client:
            return client.get(path, **options)

    def chat(self, text: str = "Hello", **fields: Any) -> httpx.Response:
        """A chat of one message."""
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"specdec:{name}{{") and all(label in line for label in wanted):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name} {labels}")


@contextlib.contextmanager
def serving(model: Model, *, batch: dict[str, Any] | None = None, **settings: Any) -> Iterator[Running]:
    """A server of a model; `batch` are arguments of `specdec.Batch`, the others of `ServerSettings`."""
    told = ServerSettings(**{"name": NAME, "port": 0, **settings})
    listener = open_socket(told)
    with specdec.Batch(model, **(batch or {})) as answers:
        server = make_server(model, answers, told, log_level="error")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", server, answers, model)
        finally:
            server.stop()
            server.force_exit = True
            thread.join(30)
            listener.close()
            assert not thread.is_alive()


def until(holds: Any, *, most_s: float = 20) -> None:
    """Wait until `holds()` is true."""
    end = time.monotonic() + most_s
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def events(response: httpx.Response) -> list[Any]:
    """The events of a stream of OpenAI's, which must be in its exact form and end as it ends."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert lines.pop() == "data: [DONE]"
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]
