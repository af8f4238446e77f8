"""Stop strings in text that arrives in pieces: `StopStrings`. End tokens and budgets are the generation's business."""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Finds the first stop string to be completed, and holds back text that may turn out to be the start of one.

    Of stop strings that are completed by the same character the longest counts. So the result depends on the text
    alone, not on how it was cut into pieces.

    Args:
        stops: non-empty strings; with none of them, text passes straight through.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Text that is safe to show after `text` has arrived; none of a stop string, nor anything behind it."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        text = self._held + text
        matches = [(text.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start, stop) for start, stop in matches if start >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        cut = len(text) - self._length_of_possible_start(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The held text, at the end of a generation that met no stop string."""
        text, self._held = self._held, ""
        return text

    def _length_of_possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max((len(stop) for stop in self._stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0)
