"""A model hub on the loopback address, as much of one as its client asks for: repositories, ranges, refusals."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

COMMITS = ("a" * 40, "b" * 40)


@dataclass
class StandIn:
    """What the hub has, and what it was asked.

    Attributes:
        repos: files of each repository by name.
        commit: what every branch is now.
        gated: repositories that answer 401, and those behind it.
        cut: file names whose next answer breaks off after so many bytes; the ones after it fail with 500.
        asked: (file, range header or None) of every download, in order.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMITS[0]
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)
    url: str = ""

    def files_asked(self) -> set[str]:
        """Names of the files that were downloaded."""
        return {name for name, _ in self.asked}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for `hub`, an attribute of the class."""

    hub: StandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.look_up(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(found[1], found[3])
        else:
            self.refuse(404, "EntryNotFound")

    def look_up(self, repo: str, revision: str | None) -> None:
        self.hub.looked_up.append(repo)
        if not self.may_read(repo):
            return
        if revision not in (None, "main", self.hub.commit, "v1"):
            self.refuse(404, "RevisionNotFound")
            return
        siblings = []
        for name, content in self.hub.repos[repo].items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content)}
            if name.endswith((".gguf", ".safetensors")):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": repo, "sha": self.hub.commit, "siblings": siblings, "tags": [], "private": False})
        self.answer(200, body.encode(), {"Content-Type": "application/json"})

    def send_file(self, repo: str, name: str) -> None:
        wanted = self.headers.get("Range")
        if self.command == "GET":
            self.hub.asked.append((name, wanted))
        if not self.may_read(repo):
            return
        if name in self.hub.broken:
            self.refuse(500, "")
            return
        content = self.hub.repos[repo].get(name)
        if content is None:
            self.refuse(404, "EntryNotFound")
            return
        if name in self.hub.wrong:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit,
            "Accept-Ranges": "bytes",
        }
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if wanted else 200, content[start:], headers, cut=self.hub.cut.pop(name, None))
        if self.close_connection:
            self.hub.broken.add(name)

    def may_read(self, repo: str) -> bool:
        if repo in self.hub.gated:
            self.refuse(401, "GatedRepo")
        elif repo not in self.hub.repos:
            self.refuse(404, "RepoNotFound")
        else:
            return True
        return False

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def start() -> tuple[StandIn, http.server.ThreadingHTTPServer]:
    """A running hub; the caller shuts it down."""
    hub = StandIn()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    return hub, server
