"""What the operator of a server decides: `ServerSettings`."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.checks import check_effort, check_number
from specdec.errors import InvalidArgumentError

DEFAULT_PORT = 8080
DEFAULT_BODY_BYTES = 16 << 20
MOST_BODY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Names, limits and access.

    Attributes:
        name: of the model in requests and answers.
        aliases: other names that requests may call it.
        host: address that the server listens on.
        port: TCP port; 0 takes a free one.
        api_keys: a request has to carry one of them; with none, everybody may ask.
        efforts: verify efforts that requests may ask for; the default is 1.0 if it is among them, else the highest.
        cors: origins whose pages may ask; "*" for all.
        max_body_bytes: largest body of a request.
        timeout_s: seconds after which an answer ends where it is; None for no limit.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    name: str
    aliases: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: tuple[str, ...] = ()
    efforts: tuple[float, ...] = (1.0,)
    cors: tuple[str, ...] = ()
    max_body_bytes: int = DEFAULT_BODY_BYTES
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidArgumentError("the model's name in requests must have at least one character")
        check_number("port", self.port, 0, 65535)
        if not self.efforts:
            raise InvalidArgumentError("efforts must hold at least one verify effort")
        for effort in self.efforts:
            check_effort(effort, "each of efforts")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InvalidArgumentError("an API key must be printable ASCII characters without spaces")
        for origin in self.cors:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise InvalidArgumentError(f"a CORS origin must be * or begin with http:// or https://, not {origin!r}")
        check_number("max_body_bytes", self.max_body_bytes, 1, MOST_BODY_BYTES)
        if self.timeout_s is not None and not 0 < check_number("timeout_s", self.timeout_s, 0) < float("inf"):
            raise InvalidArgumentError(f"timeout_s must be a number of seconds above 0, not {self.timeout_s!r}")

    @property
    def default_effort(self) -> float:
        """The verify effort of requests that name none."""
        return 1.0 if 1.0 in self.efforts else max(self.efforts)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may call the model."""
        return (self.name, *self.aliases)
