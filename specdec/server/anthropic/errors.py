"""Errors in the form of Anthropic's API."""

from __future__ import annotations

from typing import Any

from specdec.server.errors import ApiError

PATH = "/v1/messages"

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def error_dict(error: ApiError) -> dict[str, Any]:
    """An error's body."""
    default = "api_error" if error.status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": _KINDS.get(error.status, default), "message": error.message}}
