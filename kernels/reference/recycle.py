"""Drafts without a model, as a tree: the tokens after an earlier occurrence of the text's end, and likely successors.

The rule by which launches on a GPU draft for themselves (`kernels/cuda/step/step_recycle.cuh`), and the shapes of its
trees. Sources: prompt lookup decoding (Saxena 2023); token recycling (Luo et al. 2408.08696) for successors by the
verifier's own logits; trees of drafts (Miao et al. 2305.09781).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

TOP = 8  # successors noted for a token
LONGEST_MATCH = 24  # tokens of the text's end that are compared
MOST_ROWS = 16  # rows of a tree, the pending token's included
_NARROW = 4  # rows at least of a tree after a match of less than `_SHORT` tokens, which has half as many
_SHORT = 2

# The rows of a tree after the first, likeliest first, by the length of the match: 0, 1, 2, 3, 4 and 5, 6 to 8, and more
# tokens. A row is written as the way to it from the end of the text: "t" goes on along the trunk, with what followed
# the match; a digit with the token of that rank among the successors of the last one.
_TRUNK = tuple("t" * depth for depth in range(1, MOST_ROWS))
SHAPES: tuple[tuple[str, ...], ...] = (
    ("0", "1", "00", "2", "01", "10", "000", "3", "02", "11", "4", "20", "001", "100", "0000"),
    ("t", "tt", "0", "ttt", "1", "tttt", "ttttt", "00", "t0", "2", "tttttt", "3", "10", "01", "4"),
    (*_TRUNK[:5], "0", *_TRUNK[5:8], "t0", _TRUNK[8], "1", _TRUNK[9], "tt0", "2"),
    (*_TRUNK[:8], "0", *_TRUNK[8:10], "t0", *_TRUNK[10:12], "1"),
    (*_TRUNK[:13], "0", "t0"),
    _TRUNK,
    _TRUNK,
)


def shape_of(match: int) -> tuple[str, ...]:
    """The shape of the tree after a match of that many tokens."""
    return SHAPES[match if match < 4 else 4 if match < 6 else 5 if match < 9 else 6]


def longest_match(text: Sequence[int]) -> tuple[int, int]:
    """Find the longest end of the text that occurred before; among several occurrences the latest.

    Returns:
        Its length, at most `LONGEST_MATCH`, and the index of the token after it; (0, -1) where the last token is new.
    """
    best, place = 0, -1
    for at in range(1, len(text)):
        same = 0
        while same < min(LONGEST_MATCH, at) and text[at - 1 - same] == text[-1 - same]:
            same += 1
        if same and same >= best:
            best, place = same, at
    return best, place


class Recycled:
    """The drafts of one text.

    Attributes:
        successors: for tokens that the verifier has seen, the likeliest ones after them, `TOP` at most.
    """

    def __init__(self) -> None:
        self.successors: dict[int, Sequence[int]] = {}

    def draft(self, text: Sequence[int], rows: int, limit: int) -> tuple[list[int], list[int]]:
        """Draft a tree that continues the text.

        Args:
            text: tokens so far, the pending one included.
            rows: rows of the tree, the pending token's included. After a match of less than two tokens the tree has
                half of them, but at least 4.
            limit: maximum number of tokens of the text after the turn.

        Returns:
            Tokens, and for each the index of its parent, -1 for the pending token. Siblings differ.
        """
        match, place = longest_match(text)
        trunk = [text[place + step % (len(text) - place)] for step in range(MOST_ROWS)] if match else []
        known, tokens, parents = {"": (-1, text[-1])}, list[int](), list[int]()
        if match < _SHORT:
            rows = min(rows, max(_NARROW, rows // 2))
        for path in shape_of(match)[: rows - 1]:
            before, last = path[:-1], path[-1]
            if before not in known or len(path) > limit - len(text) - 1:
                continue
            number, token = known[before]
            if last == "t":
                found = trunk[len(before)]
            else:
                beside = trunk[len(before)] if match and before == "t" * len(before) else -1
                others = [one for one in self.successors.get(token, ()) if one != beside]
                if int(last) >= len(others):
                    continue
                found = others[int(last)]
            known[path] = len(tokens), found
            tokens.append(found)
            parents.append(number)
        return tokens, parents

    def learn(self, tokens: Iterable[int], likeliest: Iterable[Sequence[int]]) -> None:
        """Note the likeliest successors of tokens, by the verifier's logits of their rows."""
        self.successors.update(zip(tokens, likeliest, strict=True))
