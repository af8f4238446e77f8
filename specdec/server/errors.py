"""Errors of the HTTP interface: `ApiError`, and `api_error`, which makes one of whatever was raised.

An `ApiError` has the parts of OpenAI's error object; the endpoints write it in the form of their own interface.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from specdec.errors import ContextLengthError, InvalidArgumentError, OptionError, QueueFullError, SpecdecError

INVALID = "invalid_request_error"

logger = logging.getLogger("specdec.server")


class ApiError(Exception):
    """A request cannot be answered.

    Args:
        status: HTTP status.
        message: one sentence.
        kind: OpenAI's `type`.
        param: field of the request that is wrong.
        code: OpenAI's `code`.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    """An error of the request itself."""
    return ApiError(400, message, param=param, code=code)


def missing(field: str) -> ApiError:
    """The error of a request that lacks a field."""
    return bad_request(f"Missing required parameter: '{field}'.", field, code="missing_required_parameter")


def shutting_down() -> ApiError:
    """The server takes no further requests."""
    return ApiError(
        503,
        "the server is shutting down: ask again in a moment",
        kind="server_error",
        code="service_unavailable",
        headers={"Retry-After": "5"},
    )


def api_error(error: BaseException) -> ApiError:
    """What to answer when `error` was raised. An unexpected error is logged and not shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            str(error),
            kind="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(math.ceil(error.retry_after_s))},
        )
    if isinstance(error, ContextLengthError):
        return bad_request(str(error), code="context_length_exceeded")
    if isinstance(error, OptionError):
        return bad_request(str(error), error.option)
    if isinstance(error, InvalidArgumentError):
        return bad_request(str(error))
    if isinstance(error, MemoryError):
        return ApiError(503, "not enough memory for this request", kind="server_error", code="out_of_memory")
    if isinstance(error, SpecdecError):
        logger.error("%s", error)
        return ApiError(500, str(error), kind="server_error")
    logger.error("an answer failed", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why", kind="server_error")
