"""Every run of tokens of a text and what followed it: `SuffixIndex`, a suffix automaton. `ngram` drafts with it.

Sources: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"; as a drafter, SAM decoding (Hu
et al. 2411.10666).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

_ROOT = 0
_MOST_COUNTED = 16  # suffixes of a place whose occurrences are counted: text that repeats itself has as many as tokens


class Place(NamedTuple):
    """Where the end of a text occurs in an index.

    Attributes:
        state: of the automaton.
        length: tokens of the text's end that occur, 0 for none.
    """

    state: int
    length: int


NOWHERE = Place(_ROOT, 0)


class SuffixIndex:
    """The runs of tokens that occur in some texts, of any length, each with what followed it.

    A state represents the runs that occur at the same places; its link leads to the longest suffix of them that occurs
    elsewhere too. A token takes amortised constant time and at most two states of 20 bytes, and a dictionary where a
    second token follows the same run: about 60 to 120 bytes a token of text in all.

    Attributes:
        tokens: indexed so far.
        version: changes with every change; a `Place` in texts that have grown has to be looked up again.
    """

    __slots__ = ("_branches", "_count", "_end", "_latest", "_length", "_link", "_target", "_token", "tokens", "version")

    def __init__(self) -> None:
        # By state: tokens of its longest run, the state of that run's longest suffix elsewhere, how often its runs
        # occurred as something that follows, where last, and the first transition; further ones are in `_branches`.
        self._length, self._link = array("i", [0]), array("i", [-1])
        self._count, self._latest = array("i", [0]), array("i", [0])
        self._token, self._target = array("i", [-1]), array("i", [-1])
        self._branches: dict[int, dict[int, int]] = {}
        self._end = _ROOT  # state of the whole text so far
        self.tokens = self.version = 0

    def begin(self) -> None:
        """Another text begins: no run reaches back over this place."""
        self._end = _ROOT

    def follow(self, text: Sequence[int]) -> None:
        """Index what `text`, the only text of this index, holds beyond what it held at the last call."""
        if self.tokens < len(text):
            self.add(text, self.tokens)

    def add(self, text: Sequence[int], first: int = 0, *, counts: bool = True) -> None:
        """Index the tokens of a text from number `first` on, as a continuation of what was added since `begin`.

        Args:
            text: token ids.
            first: number of the first one to index.
            counts: offer these tokens as what follows; False for context that is not to be drafted.
        """
        link, count, latest, extend = self._link, self._count, self._latest, self._extend
        number = self.tokens
        for index in range(first, len(text)):
            extend(text[index])
            number += 1
            if counts:
                state, left = self._end, _MOST_COUNTED
                while state > _ROOT and left:
                    count[state] += 1
                    latest[state] = number
                    state = link[state]
                    left -= 1
        self.tokens, self.version = number, self.version + 1

    def end(self) -> Place:
        """The longest end of the text that occurred before, in the same text."""
        state = self._link[self._end]
        return NOWHERE if state <= _ROOT else Place(state, self._length[state])

    def advance(self, place: Place, token: int) -> Place:
        """Where the run at `place`, or the longest end of it that this is known of, continues with `token`."""
        state, length = place
        while True:
            target = self._follower(state, token)
            if target >= 0:
                return Place(target, length + 1)
            if state == _ROOT:
                return NOWHERE
            state = self._link[state]
            length = self._length[state]

    def shorten(self, place: Place, longest: int) -> Place:
        """The last `longest` tokens of the run at `place`, or all of a shorter one."""
        state, length = place
        if length <= longest:
            return place
        link, lengths = self._link, self._length
        while lengths[link[state]] >= longest:
            state = link[state]
        return Place(state, longest)

    def continuation(self, place: Place, shortest: int) -> tuple[int, int]:
        """What followed the run at `place` most often, and of equally frequent tokens last.

        Where nothing followed, its longest end of at least `shortest` tokens that something did follow decides.

        Returns:
            The token and the length of the run that it followed; (-1, 0) when there is none.
        """
        state, length = place
        while length >= shortest and state > _ROOT:
            token = self._best(state)
            if token >= 0:
                return token, length
            state = self._link[state]
            length = self._length[state]
        return -1, 0

    def _best(self, state: int) -> int:
        """The most frequent, then latest continuation of a state; -1 where nothing followed."""
        token, count = self._token[state], self._count
        if token < 0:
            return -1
        best = self._target[state]
        branches = self._branches.get(state)
        if branches is not None:
            latest = self._latest
            for other, target in branches.items():
                if (count[target], latest[target]) > (count[best], latest[best]):
                    token, best = other, target
        return token if count[best] else -1

    def _follower(self, state: int, token: int) -> int:
        """The state that `token` leads to; -1 for none."""
        if self._token[state] == token:
            return self._target[state]
        branches = self._branches.get(state)
        return -1 if branches is None else branches.get(token, -1)

    def _extend(self, token: int) -> None:
        """Add a token to the end of the text."""
        link, lengths, tokens, targets, branches = self._link, self._length, self._token, self._target, self._branches
        state, length = self._end, lengths[self._end] + 1
        known = self._follower(state, token)  # as after `begin`: the text so far has occurred in another one
        if known >= 0:
            self._end = known if lengths[known] == length else self._split(state, token, known)
            return
        new = self._end = self._new_state(length)
        while state >= 0:
            first = tokens[state]
            if first < 0:
                tokens[state], targets[state] = token, new
            elif first == token:
                break
            else:
                others = branches.get(state)
                if others is None:
                    branches[state] = {token: new}
                elif token in others:
                    break
                else:
                    others[token] = new
            state = link[state]
        if state < 0:
            link[new] = _ROOT
            return
        target = self._follower(state, token)
        is_longest = lengths[target] == lengths[state] + 1
        link[new] = target if is_longest else self._split(state, token, target)

    def _split(self, state: int, token: int, target: int) -> int:
        """Give the runs of `target` that end those of `state` and `token` a state of their own; returns it."""
        link, tokens, targets, branches = self._link, self._token, self._target, self._branches
        new = self._new_state(self._length[state] + 1)
        tokens[new], targets[new] = tokens[target], targets[target]
        if (others := branches.get(target)) is not None:
            branches[new] = dict(others)
        self._count[new], self._latest[new] = self._count[target], self._latest[target]
        link[new], link[target] = link[target], new
        while state >= 0:
            if tokens[state] == token:
                if targets[state] != target:
                    break
                targets[state] = new
            else:
                others = branches.get(state)
                if others is None or others.get(token) != target:
                    break
                others[token] = new
            state = link[state]
        return new

    def _new_state(self, length: int) -> int:
        self._length.append(length)
        self._link.append(_ROOT)
        self._count.append(0)
        self._latest.append(0)
        self._token.append(-1)
        self._target.append(-1)
        return len(self._length) - 1


class SuffixReader:
    """Follows a text in an index of other texts: where its end occurs there.

    Args:
        longest: most tokens of the end to compare.
    """

    __slots__ = ("_index", "_longest", "_place", "_read", "_version")

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._index: SuffixIndex | None = None
        self._version = self._read = 0
        self._place = NOWHERE

    def at(self, index: SuffixIndex, text: Sequence[int]) -> Place:
        """Where the end of `text` occurs in `index`. A text that only grows is read once."""
        if index is not self._index or index.version != self._version:
            self._index, self._version = index, index.version
            self._place, self._read = NOWHERE, max(0, len(text) - self._longest)
        place = self._place
        for token in text[self._read :]:
            place = index.shorten(index.advance(place, token), self._longest)
        self._place, self._read = place, len(text)
        return place
