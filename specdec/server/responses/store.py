"""Responses that later requests may refer to: `ResponseStore`. They are in memory only."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.server.errors import ApiError
from specdec.server.responses.items import Item

MOST_RESPONSES = 512
MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and the conversation that led to it.

    Attributes:
        response: as it was sent.
        input: items of its own request.
        before: items of the conversation that the request continued from.
    """

    response: dict[str, Any]
    input: Sequence[Item]
    before: Sequence[Item] = ()

    @property
    def items(self) -> list[Item]:
        """The whole conversation, the response's output last."""
        return [*self.before, *self.input, *self.response["output"]]


@dataclass
class _Shelf:
    """The responses of one owner, oldest first, and their sizes."""

    entries: OrderedDict[str, tuple[StoredResponse, int]] = field(default_factory=OrderedDict)
    size: int = 0


class ResponseStore:
    """Keeps the latest responses of each owner; owners do not see each other's.

    Args:
        most: responses of an owner; the oldest go first.
        most_bytes: of an owner's responses and requests, as JSON.
    """

    def __init__(self, *, most: int = MOST_RESPONSES, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._shelves: dict[str, _Shelf] = {}

    def keep(self, owner: str, stored: StoredResponse) -> None:
        """Keep a response, and forget the oldest of its owner where there are too many."""
        shelf = self._shelves.setdefault(owner, _Shelf())
        size = len(json.dumps([stored.response, list(stored.input)]))
        shelf.entries[stored.response["id"]] = (stored, size)
        shelf.size += size
        while shelf.entries and (len(shelf.entries) > self._most or shelf.size > self._most_bytes):
            _, (_, gone) = shelf.entries.popitem(last=False)
            shelf.size -= gone

    def get(self, owner: str, name: str) -> StoredResponse:
        """The response of that id.

        Raises:
            ApiError: with status 404, this owner has none.
        """
        found = self._find(owner, name)
        if found is None:
            raise ApiError(404, f"Response with id '{name[:80]}' not found.", param="response_id")
        return found

    def previous(self, owner: str, name: str) -> StoredResponse:
        """The response that a request continues from.

        Raises:
            ApiError: this owner has none of that id.
        """
        found = self._find(owner, name)
        if found is None:
            message = f"Previous response with id '{name[:80]}' not found: this server keeps the latest in memory only."
            raise ApiError(400, message, param="previous_response_id", code="previous_response_not_found")
        return found

    def delete(self, owner: str, name: str) -> None:
        """Forget a response.

        Raises:
            ApiError: with status 404, this owner has none of that id.
        """
        self.get(owner, name)
        shelf = self._shelves[owner]
        shelf.size -= shelf.entries.pop(name)[1]

    def _find(self, owner: str, name: str) -> StoredResponse | None:
        shelf = self._shelves.get(owner)
        entry = None if shelf is None else shelf.entries.get(name)
        return None if entry is None else entry[0]
