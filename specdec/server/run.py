"""Run a server until it is asked to stop: `serve`."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from specdec.engine.batch import Batch
from specdec.errors import InvalidArgumentError
from specdec.message_stream import StandardStream
from specdec.model.loaded import Model
from specdec.server.app import create_app
from specdec.server.settings import ServerSettings
from specdec.server.site import Site

BACKLOG = 2048
_END_S = 5.0  # for answers whose connections were closed to end at a pass boundary
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server(uvicorn.Server):
    """Ends at the first signal when all answers have, and at the second one at once.

    Args:
        config: of uvicorn.
        site: takes no further requests from the first signal on.
    """

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and wait for the answers; at the second signal for what ends them."""
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_END_S)
        self._site.answers.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Take a signal."""
        if not self.should_exit:
            self.stop()
        elif not self.force_exit:
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._hang_up)

    def _hang_up(self) -> None:
        """Close all connections, which ends the answers that they wait for."""
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()

    def stop(self) -> None:
        """Take no further requests, and end when all answers have; may be called from any thread."""
        self._site.answers.is_closing = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs, except ignored ones (`nohup`, a background command of a shell). Unlike
        uvicorn's, this one does not raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_server(model: Model, batch: Batch, settings: ServerSettings, *, log_level: str = "warning") -> Server:
    """A server that has not begun to run.

    Args:
        model: from `specdec.load`.
        batch: of the model; the caller closes it.
        settings: names, limits and access.
        log_level: of uvicorn: "info" logs every request.
    """
    app = create_app(model, batch, settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="h11",
        ws="none",
        lifespan="off",
        log_level=log_level,
        log_config=_log_config(),
        backlog=BACKLOG,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    return Server(config, app.state.site)


def _log_config() -> dict[str, Any]:
    """uvicorn's, with streams that may be full or closed: the server goes on without them."""
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = StandardStream(sys.stdout)
    config["handlers"]["default"]["stream"] = StandardStream(sys.stderr)
    return config


def open_socket(settings: ServerSettings) -> socket.socket:
    """A socket at the address of the settings, which does not listen yet.

    Raises:
        InvalidArgumentError: the address is not this machine's, or its port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise InvalidArgumentError(
            f"cannot listen at {place} ({error.strerror or error}): choose another --host or --port"
        ) from None
    return made


def serve(
    model: Model,
    batch: Batch,
    settings: ServerSettings,
    listener: socket.socket,
    *,
    log_level: str,
    started: Callable[[str], None],
) -> bool:
    """Serve until a signal, then let the answers end.

    Args:
        model: from `specdec.load`.
        batch: of the model; the caller closes it.
        settings: names, limits and access.
        listener: from `open_socket`; closed at the end.
        log_level: of uvicorn.
        started: is called with the server's address once it listens.

    Returns:
        Whether the answers under way came to their ends.
    """
    with listener:
        server = make_server(model, batch, settings, log_level=log_level)
        host, port = listener.getsockname()[:2]
        listener.listen(BACKLOG)
        with server.capture_signals():  # whoever knows the address may send one
            started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            server.run(sockets=[listener])
    return not server.force_exit
