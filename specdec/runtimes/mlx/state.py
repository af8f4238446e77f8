"""The state of a step: one small int32 array that tells every kernel which rows it runs, and what it is made of.

A step runs up to `MAX_ROWS` rows. The rows of one sequence lie side by side: a `Piece`. Kernels know the layout by the
constants of `STATE_CONSTANTS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from specdec.runtimes.base import MAX_TREE_ROWS

MAX_ROWS = 16  # of a step
RECYCLE_SIZE = 8
LOGITS_FROM = 2 + MAX_ROWS  # the first row whose logits are wanted
CHOICES = LOGITS_FROM + 1  # for each row, which line of the numbers of weights to take is its own
PLACES = CHOICES + MAX_ROWS  # for each row, its position
WANTED = PLACES + MAX_ROWS  # the rows whose logits are wanted, in order
PIECES = WANTED + MAX_ROWS  # for each sequence: first row, rows, slot of the first, root; its cache: positions, address
PIECE_SIZE = 7
PATH_WORDS = MAX_TREE_ROWS // 4
SHOWS = PIECES + MAX_ROWS * PIECE_SIZE  # of the wanted rows 0: logits, 1: choices, 2: both
AHEAD = SHOWS + 1  # tokens that every row goes on for, each with its own choice
ENDS = AHEAD + 1  # 1 more than tokens that nothing follows, 0 for none
MOST_ENDS = 8
MARGIN = ENDS + MOST_ENDS  # float32: what a choice is ahead of the next one at least, where a row goes on
RECYCLE = MARGIN + 1  # the launch's own drafts: see `recycle`
PATHS = RECYCLE + RECYCLE_SIZE  # for each row, a byte for each position from the root on: a row's number
STATE_SIZE = PATHS + MAX_ROWS * PATH_WORDS  # before `LOGITS_FROM`: slot of the first row, rows, tokens
MOST_AHEAD = 15

STATE_CONSTANTS: dict[str, int] = {"STATE_PLACES": PLACES, "STATE_PIECES": PIECES, "PIECE_SIZE": PIECE_SIZE}
STATE_CONSTANTS |= {"MOST_PIECES": MAX_ROWS, "STATE_PATHS": PATHS, "PATH_WORDS": PATH_WORDS, "STATE_CHOICES": CHOICES}
CHOOSING_CONSTANTS: dict[str, int] = {"STATE_SHOWS": SHOWS, "STATE_AHEAD": AHEAD, "STATE_ENDS": ENDS}
CHOOSING_CONSTANTS |= {
    "STATE_MARGIN": MARGIN,
    "MOST_ENDS": MOST_ENDS,
    "STATE_SIZE": STATE_SIZE,
    "STATE_RECYCLE": RECYCLE,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one sequence in a step.

    Attributes:
        tokens: of the rows.
        slot: of the cache, where the first row's keys and values go; the others' go to those after it.
        root: the position of a tree's first row; for a chain, `slot`.
        places: position of each row.
        paths: of each row of a tree, the numbers of the rows on its path, itself included; None for a chain. The row in
            slot s of the cache has number s - root.
        choice: the line of the numbers of weights to take.
        wanted: rows at the end whose logits are wanted.
    """

    tokens: Sequence[int]
    slot: int
    root: int
    places: Sequence[int]
    paths: Sequence[Sequence[int]] | None = None
    choice: int = 0
    wanted: int = 0


def chain(tokens: Sequence[int], slot: int, *, choice: int = 0, wanted: int = 0) -> Piece:
    """Rows that follow one another from position `slot` on."""
    return Piece(tokens, slot, slot, range(slot, slot + len(tokens)), None, choice, wanted)


def state_of(pieces: Sequence[Piece], capacities: Sequence[int], addresses: Sequence[int] = ()) -> np.ndarray:
    """The state of a step, int32 (STATE_SIZE,).

    Args:
        pieces: the step's rows, `MAX_ROWS` together at most.
        capacities: positions that each piece's cache has memory for.
        addresses: of each piece's cache, where a step of several pieces is one kernel.
    """
    state, front, wanted = np.zeros(STATE_SIZE, np.int32), 0, 0
    with_paths = bool(addresses) or any(piece.paths is not None for piece in pieces)
    for number, (piece, capacity) in enumerate(zip(pieces, capacities, strict=True)):
        count = len(piece.tokens)
        state[2 + front : 2 + front + count] = piece.tokens
        state[CHOICES + front : CHOICES + front + count] = piece.choice
        state[PLACES + front : PLACES + front + count] = piece.places
        place = PIECES + number * PIECE_SIZE
        state[place : place + 5] = front, count, piece.slot, piece.root, capacity
        if addresses:
            state[place + 5 : place + 7] = np.array([addresses[number]], np.int64).view(np.int32)
        last = front + count
        state[WANTED + wanted : WANTED + wanted + piece.wanted] = range(last - piece.wanted, last)
        if with_paths:
            paths = state[PATHS:].view(np.uint8).reshape(MAX_ROWS, 4 * PATH_WORDS)
            for row in range(count):
                path = range(row + 1) if piece.paths is None else piece.paths[row]
                paths[front + row, : len(path)] = path
        front, wanted = last, wanted + piece.wanted
    state[0], state[1] = pieces[0].slot, front
    state[LOGITS_FROM] = state[WANTED] if wanted else front
    return state


def show_choices(
    state: np.ndarray, *, logits: bool = False, ahead: int = 0, ends: Iterable[int] = (), least_margin: float = 0.0
) -> None:
    """Make a step show the choices of the wanted rows.

    Args:
        state: of the step; changed.
        logits: show their logits as well.
        ahead: tokens that every row goes on for, at most `MOST_AHEAD`; above 0 a sequence has one row.
        ends: tokens that nothing follows; once every row has come to one, the step ends. Those beyond `MOST_ENDS` do
            not count.
        least_margin: of a choice after which a draft goes on; the exact view does not look at it.
    """
    state[MARGIN : MARGIN + 1].view(np.float32)[0] = least_margin
    state[SHOWS], state[AHEAD] = 2 if logits else 1, ahead
    found = sorted(ends)[:MOST_ENDS]
    state[ENDS : ENDS + len(found)] = [token + 1 for token in found]


def head_state(state: np.ndarray, wanted: int) -> np.ndarray:
    """The state for the logits layer alone, whose rows are the `wanted` ones of a step."""
    made, rows = np.zeros_like(state), state[WANTED : WANTED + wanted]
    made[1] = wanted
    made[CHOICES : CHOICES + wanted] = state[CHOICES + rows]
    return made
