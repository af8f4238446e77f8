"""What the operator of a server decides: `ServerSettings`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specdec.checks import as_number, is_unicode
from specdec.errors import InvalidArgumentError, OptionError
from specdec.model.checks import is_whole

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
        if not all(self.names):
            raise InvalidArgumentError("the model's name in requests must have at least one character")
        for name in self.names:
            if not is_unicode(name):
                raise InvalidArgumentError(f"the model's name {name!r} is not valid Unicode: give another with --alias")
        if not self.host:
            raise OptionError("host", "must be an address of this machine, such as 127.0.0.1; 0.0.0.0 is all of them")
        if not is_whole(self.port) or not 0 <= self.port <= 65535:
            raise OptionError("port", f"must be a whole number from 0 to 65535, not {self.port!r}")
        if not self.efforts:
            raise OptionError("efforts", "must hold at least one verify effort")
        for effort in self.efforts:
            if not 0 < as_number(effort) <= 1:
                raise OptionError("efforts", f"must be numbers above 0 and at most 1, not {effort!r}")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InvalidArgumentError("an API key must be printable ASCII characters without spaces")
        for origin in self.cors:
            if origin != "*" and not origin.lower().startswith(("http://", "https://")):
                raise InvalidArgumentError(f"a CORS origin must be * or begin with http:// or https://, not {origin!r}")
            if origin.rstrip("/").count("/") > 2:
                raise InvalidArgumentError(
                    f"a CORS origin is a scheme, a host and a port without a path, not {origin!r}"
                )
        if not is_whole(self.max_body_bytes) or not 1 <= self.max_body_bytes <= MOST_BODY_BYTES:
            raise OptionError(
                "max_body_bytes", f"must be a whole number from 1 to {MOST_BODY_BYTES}, not {self.max_body_bytes!r}"
            )
        if self.timeout_s is not None and not 0 < as_number(self.timeout_s) < math.inf:
            raise OptionError("timeout_s", f"must be a number of seconds above 0, not {self.timeout_s!r}")

    @property
    def default_effort(self) -> float:
        """The verify effort of requests that name none."""
        return 1.0 if 1.0 in self.efforts else max(self.efforts)

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins of `cors` as browsers send them."""
        return tuple(origin.lower().rstrip("/") for origin in self.cors)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may call the model."""
        return (self.name, *self.aliases)
