"""Servers as processes, and clients of them: what the benchmarks of the server share."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from specdec.lab.bench.prompts import load_prompts

START_S = 900.0  # a first start converts the model
_LAST_WORDS = 2000


@dataclass
class Answer:
    """What a chat's answer was, and when it came.

    Attributes:
        content: text.
        calls: of tools, with "name" and "arguments".
        reason: why it ended; None for one that the client left.
        logprobs: (token, logprob) of its tokens, where they were asked for.
        prompt_tokens: read.
        tokens: written.
        first_s: from the request to the first text; None if there was none.
        seconds: from the request to the end.
    """

    content: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    reason: str | None = None
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    first_s: float | None = None
    seconds: float = 0.0

    def outcome(self) -> dict[str, Any]:
        """What two answers to one request have in common; ids of calls and times are their own."""
        names = ("content", "calls", "reason", "logprobs", "prompt_tokens", "tokens")
        return json.loads(json.dumps({name: getattr(self, name) for name in names}))


def packaged_prompts() -> list[str]:
    """The bundled prompts of all tasks, in a fixed order that mixes tasks."""
    by_task: dict[str, list[str]] = {}
    for prompt in load_prompts(["spec-bench", "humaneval"]):
        assert isinstance(prompt.content, str)
        by_task.setdefault(prompt.task, []).append(prompt.content)
    found = []
    while any(by_task.values()):
        found += [prompts.pop(0) for prompts in by_task.values() if prompts]
    return found


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def specdec_command(model: str, port: int, *options: object) -> list[str]:
    """The command line of our server."""
    words = [sys.executable, "-m", "specdec", "serve", model, "--port", port, "--log-level", "warning", *options]
    return [str(word) for word in words]


@contextmanager
def running(command: Sequence[str], port: int, *, cpus: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, ready when its `/health` says so.

    Args:
        command: that listens on `port` of 127.0.0.1.
        port: of it.
        cpus: processors that it may use, as for `taskset`; None leaves it all.

    Raises:
        SystemExit: it ended, or did not become ready; its last words say why.
    """
    if cpus is not None:
        if shutil.which("taskset") is None:
            sys.exit("--cpus needs the program taskset")
        command = ["taskset", "--cpu-list", cpus, *command]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a benchmark that is ended ends its servers
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_until_ready(process, port, log)
            yield process
        finally:
            end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    end_s, why = time.monotonic() + START_S, ""
    with client(f"http://127.0.0.1:{port}", timeout=10) as asking:
        while time.monotonic() < end_s and process.poll() is None:
            try:
                if asking.get("/health").status_code == 200:
                    return
            except httpx.TransportError as error:
                why = str(error)
            time.sleep(0.1)
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - _LAST_WORDS))
    said = log.read().decode(errors="replace").strip()
    sys.exit(f"the server did not start ({why or process.returncode}); its last words:\n{said}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, gently first."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)  # one that was stopped takes no other signal
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                continue


def client(url: str, *, timeout: float = 1800) -> httpx.Client:
    """A client of a server at an address without a path."""
    # A connection of its own for every request: servers that were stopped by a signal close idle ones when they go on.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=timeout, trust_env=False, limits=limits)


def metric(asking: httpx.Client, name: str) -> float:
    """A metric of our server, its labels added up."""
    lines = asking.get("/metrics").text.splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"specdec:{name}{{", f"{name} "))]
    if not values:
        raise SystemExit(f"the server has no metric {name}")
    return sum(values)


def chat(asking: httpx.Client, request: dict[str, Any]) -> Answer:
    """A whole answer.

    Raises:
        SystemExit: the server refused the request.
    """
    begun = time.perf_counter()
    response = asking.post("/v1/chat/completions", json=request)
    if response.status_code != 200:
        sys.exit(f"status {response.status_code}: {response.text[:500]} to {json.dumps(request)[:500]}")
    body = response.json()
    choice = body["choices"][0]
    message = choice["message"]
    return Answer(
        content=message["content"] or "",
        calls=[dict(call["function"]) for call in message.get("tool_calls") or ()],
        reason=choice["finish_reason"],
        logprobs=_logprobs(choice),
        prompt_tokens=body["usage"]["prompt_tokens"],
        tokens=body["usage"]["completion_tokens"],
        seconds=time.perf_counter() - begun,
    )


def stream_chat(asking: httpx.Client, request: dict[str, Any], *, leave_after: int | None = None) -> Answer:
    """The same as a stream; one that is left after some chunks has the text so far, and no reason.

    Raises:
        SystemExit: the server refused the request, or the stream broke off.
    """
    begun, found, chunks = time.perf_counter(), Answer(), 0
    body = {**request, "stream": True, "stream_options": {"include_usage": True}}
    with asking.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            sys.exit(f"status {response.status_code}: {response.read()[:500]!r} to {json.dumps(request)[:500]}")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            if chunks == leave_after:
                return found
            chunks += 1
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                sys.exit(f"a stream ended with the error {chunk['error']}")
            _add(found, chunk, time.perf_counter() - begun)
    if found.reason is None:
        sys.exit("a stream ended without a finish_reason")
    found.seconds = time.perf_counter() - begun
    return found


def _add(found: Answer, chunk: dict[str, Any], now_s: float) -> None:
    """Take a chunk of a stream."""
    usage = chunk.get("usage") or {}
    found.tokens = usage.get("completion_tokens", found.tokens)
    found.prompt_tokens = usage.get("prompt_tokens", found.prompt_tokens)
    for choice in chunk["choices"]:
        delta = choice["delta"]
        found.content += delta.get("content") or ""
        found.reason = choice["finish_reason"] or found.reason
        found.logprobs += _logprobs(choice)
        for call in delta.get("tool_calls") or ():
            if call["index"] == len(found.calls):
                found.calls.append({"name": "", "arguments": ""})
            kept = found.calls[call["index"]]
            kept["name"] += call["function"].get("name") or ""
            kept["arguments"] += call["function"]["arguments"]
        if found.first_s is None and (delta.get("content") or delta.get("tool_calls")):
            found.first_s = now_s


def _logprobs(choice: dict[str, Any]) -> list[tuple[str, float]]:
    listed = (choice.get("logprobs") or {}).get("content") or ()
    return [(one["token"], one["logprob"]) for one in listed]
