"""Stop strings in text that arrives in pieces: `StopStrings`. End tokens and budgets are the generation's business."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class StopStrings:
    """Finds the first stop string to be completed, and holds back text that may turn out to be the start of one.

    Of stop strings that are completed by the same character the longest counts. So the result depends on the text
    alone, not on how it was cut into pieces.

    Args:
        stops: non-empty strings that are looked for in the text; with none at all, text passes straight through.
        mixed: the same, looked for in the text with the names of the control tokens among it, which are not shown.
    """

    def __init__(self, stops: Iterable[str] = (), mixed: Iterable[str] = ()) -> None:
        self._stops, self._mixed = tuple(stops), tuple(mixed)
        # What is held back, and where in it the shown characters are.
        self._held = ""
        self._shown: list[int] = []
        self.found: str | None = None

    @property
    def watches(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._stops or self._mixed)

    def feed(self, text: str, *, control: str = "") -> str:
        """Text that is safe to show.

        Args:
            text: what has arrived; nothing of a stop string is shown, nor anything after it.
            control: name of the control token that has arrived after it, if that is what has.
        """
        if not self._stops and not self._mixed:
            return text
        if self.found is not None:
            return ""
        start = len(self._held)
        self._shown += range(start, start + len(text))
        self._held += text + (control if self._mixed else "")
        ends = [*self._matches(self._stops, self._text(), self._shown), *self._matches(self._mixed, self._held, None)]
        if ends:
            _, start, self.found = min(ends)
            return self._release(start, drop=True)
        possible = [
            self._start(self._stops, self._text(), self._shown),
            self._start(self._mixed, self._held, None),
        ]
        return self._release(min(possible))

    def flush(self) -> str:
        """The held text, at the end of a generation that met no stop string."""
        return self._release(len(self._held))

    def _text(self) -> str:
        """The held characters that are shown."""
        return "".join(self._held[position] for position in self._shown)

    def _release(self, stop: int, *, drop: bool = False) -> str:
        """The shown text before the position `stop`, which is held no longer; `drop` forgets what comes after it."""
        text = "".join(self._held[position] for position in self._shown if position < stop)
        self._held = "" if drop else self._held[stop:]
        self._shown = [] if drop else [position - stop for position in self._shown if position >= stop]
        return text

    @staticmethod
    def _matches(stops: Sequence[str], text: str, places: Sequence[int] | None) -> list[tuple[int, int, str]]:
        """(end, start, stop string) for the first match of each in `text`, by position in the held text; `places` are
        the positions of the characters of `text`, where they are not all."""
        found = [(text.find(stop), stop) for stop in stops]
        spans = [(start, start + len(stop) - 1, stop) for start, stop in found if start >= 0]
        if places is not None:
            spans = [(places[start], places[last], stop) for start, last, stop in spans]
        return [(last + 1, start, stop) for start, last, stop in spans]

    def _start(self, stops: Sequence[str], text: str, places: Sequence[int] | None) -> int:
        """Where in the held text the longest end of `text` begins that begins a stop string; its end, if none does."""
        longest = min(len(text), max((len(stop) for stop in stops), default=1) - 1)
        count = next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0)
        if count == 0:
            return len(self._held)
        return len(text) - count if places is None else places[len(text) - count]
