"""Drafts without a model, as a tree: the tokens after an earlier occurrence of the text's end, and likely successors.

The rule by which launches on a GPU draft for themselves (`kernels/cuda/step/step_recycle.cuh`). Sources: prompt lookup
decoding (Saxena 2023); token recycling (Luo et al. 2408.08696) for successors by the verifier's own logits; trees of
drafts (Miao et al. 2305.09781), grown by the likeliest row (as in EAGLE-2, Li et al. 2406.16858).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

TOP = 8  # successors noted for a token
LONGEST_MATCH = 24  # tokens of the text's end that are compared
MOST_ROWS = 16  # rows of a tree, the pending token's included
ONE = 1024  # a chance of 1
_CERTAIN = 1 << 20  # a row that is in the text for certain

# Chance that what followed a match of so many tokens follows again, close to what answers of small models show.
_BY_MATCH = (0, 205, 389, 512, 635, 717, 758, 799, 840, 881, 901, 922, 942)
MATCH_CHANCES = _BY_MATCH + (963,) * (LONGEST_MATCH + 1 - len(_BY_MATCH))
RANK_CHANCES = (205, 92, 61, 41, 31, 26, 20, 15)  # of the successor of each rank, where no match says otherwise
SECOND_CHANCE = 700  # of the best match that another token followed, as a share of what its length says


def longest_match(text: Sequence[int], *, besides: int = -1) -> tuple[int, int]:
    """Find the longest end of the text that occurred before; among several occurrences the latest.

    Args:
        text: tokens.
        besides: a token; occurrences that it followed are left out.

    Returns:
        Its length, at most `LONGEST_MATCH`, and the index of the token after it; (0, -1) where there is none.
    """
    best, place = 0, -1
    for at in range(1, len(text)):
        same = 0
        while same < min(LONGEST_MATCH, at) and text[at - 1 - same] == text[-1 - same]:
            same += 1
        if same and same >= best and text[at] != besides:
            best, place = same, at
    return best, place


@dataclass(slots=True)
class _Row:
    """A row of a tree that grows.

    Attributes:
        token: of the row.
        chance: that the text goes on to it, in parts of `_CERTAIN`.
        depth: tokens from the pending one to it.
        children: what may follow, in falling order of chance: the chance in parts of `ONE`, the token, and where a
            match goes on from there: its length and place in the text.
    """

    token: int
    chance: int
    depth: int
    children: list[tuple[int, int, tuple[int, int] | None]] = field(default_factory=list)


class Recycled:
    """The drafts of one text.

    Args:
        known: for tokens, their likely successors before the text has shown any; `TOP` at most.

    Attributes:
        successors: for tokens, the likeliest ones after them: from `known`, replaced by what the verifier shows.
    """

    def __init__(self, known: Mapping[int, Sequence[int]] | None = None) -> None:
        self.successors: dict[int, Sequence[int]] = dict(known or {})

    def draft(self, text: Sequence[int], rows: int, limit: int) -> tuple[list[int], list[int]]:
        """Draft a tree that continues the text: one row after the other, always the likeliest.

        Args:
            text: tokens so far, the pending one included.
            rows: rows of the tree, the pending token's included.
            limit: maximum number of tokens of the text after the turn.

        Returns:
            Tokens, and for each the index of its parent, -1 for the pending token. Siblings differ.
        """
        first = longest_match(text)
        second = longest_match(text, besides=text[first[1]]) if first[0] else (0, -1)
        tree, parents = [_Row(text[-1], _CERTAIN, 0)], list[int]()
        self._offer(tree[0], text, [one for one in (first, second) if one[0]], first)
        while len(tree) < rows:
            best, parent = -1, -1
            for number, row in enumerate(tree):
                if row.children and row.depth < limit - len(text) - 1:
                    chance = row.chance * row.children[0][0] // ONE
                    if chance > best:
                        best, parent = chance, number
            if parent < 0:
                break
            _, token, goes_on = tree[parent].children.pop(0)
            row = _Row(token, best, tree[parent].depth + 1)
            self._offer(row, text, [goes_on] if goes_on else [], first)
            tree.append(row)
            parents.append(parent - 1)
        return [row.token for row in tree[1:]], parents

    def _offer(
        self, row: _Row, text: Sequence[int], matches: Sequence[tuple[int, int]], first: tuple[int, int]
    ) -> None:
        """Find what may follow a row: what followed `matches` (length and place), then successors of its token.

        Where a match goes on to the end of the text, it goes on as if the text from the first match's place on were
        repeated.
        """
        left = ONE
        for number, (length, place) in enumerate(matches):
            if place >= len(text):
                place = first[1] + (place - first[1]) % (len(text) - first[1])
            chance = MATCH_CHANCES[min(length, LONGEST_MATCH)]
            chance = chance if number == 0 else chance * SECOND_CHANCE // ONE * left // ONE
            row.children.append((chance, text[place], (length + 1, place + 1)))
            left -= chance
        taken = [token for _, token, _ in row.children]
        for chance, token in zip(RANK_CHANCES, self.successors.get(row.token, ()), strict=False):
            if token not in taken:
                row.children.append((chance * left // ONE, token, None))
        row.children.sort(key=lambda child: -child[0])

    def learn(self, tokens: Iterable[int], likeliest: Iterable[Sequence[int]]) -> None:
        """Note the likeliest successors of tokens, by the verifier's logits of their rows."""
        self.successors.update(zip(tokens, likeliest, strict=True))
