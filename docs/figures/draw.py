"""Draws the figures of docs/how-it-works.md and docs/fff.md: `python docs/figures/draw.py`. Every number in them is
computed here, by the code that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from specdec.kernels.reference import fff
from specdec.kernels.reference.selection import select_tiers

from specdec.store import BucketLayout
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import from_float32

HERE = Path(__file__).resolve().parent
INK, MUTED, LINE = "#1b1f24", "#59626c", "#c8ced6"
TIERS = ("#2468b4", "#9cc3ee")  # first tier, second tier
KEPT, DROPPED, DRAFT, VERIFY = "#d8f0e1", "#f6dcd6", "#fbe5cf", "#dbe9f9"
CELL_W, CELL_H = 58, 26
TIMES = "\u00d7"


class Canvas:
    """SVG elements, top to bottom."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'font-family="system-ui, sans-serif" font-size="13" role="img"><title>{escape(title)}</title>',
            f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
        ]

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "middle",
        bold: bool = False,
        colour: str = INK,
        size: int = 13,
    ) -> None:
        """Words at a point; `anchor` says which end of them."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" font-size="{size}"{weight}>'
            f"{escape(words)}</text>"
        )

    def box(
        self, x: float, y: float, words: str, *, fill: str = "#ffffff", ink: str = INK, width: float = CELL_W
    ) -> None:
        """A cell with words in it."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width - 4:g}" height="{CELL_H - 4}" rx="3" fill="{fill}" '
            f'stroke="{LINE}"/>'
        )
        self.text(x + (width - 4) / 2, y + CELL_H - 9, words, colour=ink)

    def block(self, x: float, y: float, width: float, height: float, *, fill: str) -> None:
        """A rectangle without words."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" stroke="{LINE}"/>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A line that ends in a point."""
        angle = np.arctan2(y2 - y1, x2 - x1)
        tip = " ".join(
            f"{x2 - 8 * np.cos(angle + turn):.1f},{y2 - 8 * np.sin(angle + turn):.1f}" for turn in (-0.45, 0.45)
        )
        self._parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{MUTED}"/>')
        self._parts.append(f'<polygon points="{x2:g},{y2:g} {tip}" fill="{MUTED}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A thin line."""
        self._parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{LINE}"/>')

    def write(self, name: str) -> None:
        """Put it beside this script."""
        (HERE / name).write_text("\n".join([*self._parts, "</svg>\n"]), encoding="utf-8")


def example() -> tuple[np.ndarray, np.ndarray, BucketedMatrix]:
    """A matrix (8, 4) and an activation (4,) of short numbers, and the matrix in a bucket of 8 with two tiers of 4."""
    random = np.random.default_rng(5)
    weights = (random.integers(-19, 20, (8, 4)) / 10).astype(np.float32)
    activation = np.array([2.0, -0.5, 1.0, 0.25], np.float32)
    bits = from_float32(weights, "float16")
    layout = BucketLayout(bucket_size=8, tier_sizes=(4, 4))
    return weights, activation, BucketedMatrix.from_dense(bits, dtype="float16", layout=layout)


def draw_bucketmul() -> None:
    """The multiplication of `example` at effort 0.5, step by step."""
    weights, activation, matrix = example()
    taken = select_tiers(activation, matrix.scores, (4, 4), effort=0.5)
    tiers = matrix.tier_of_weight()  # (in, out)
    canvas = Canvas(830, 550, "bucketMul on a matrix of 8 outputs and 4 inputs, at effort 0.5")
    canvas.text(20, 30, "1  At conversion: rank each input's weights", anchor="start", bold=True)
    left, top = 96, 66
    for i in range(4):
        canvas.text(left + CELL_W * i + 27, top - 10, f"input {i}", colour=MUTED)
    for o in range(8):
        canvas.text(left - 10, top + CELL_H * o + 17, f"output {o}", anchor="end", colour=MUTED)
        for i in range(4):
            tier = int(tiers[i, o])
            ink = "#ffffff" if tier == 0 else INK
            canvas.box(left + CELL_W * i, top + CELL_H * o, f"{weights[o, i]:.1f}", fill=TIERS[tier], ink=ink)
    _legend(canvas, 20, 300)
    _scores(canvas, 400, 30, activation, matrix, taken)
    _product(canvas, 20, 356, weights, activation, tiers, taken)
    canvas.write("bucketmul.svg")


def _legend(canvas: Canvas, x: float, y: float) -> None:
    canvas.box(x, y, "", fill=TIERS[0], width=30)
    canvas.text(x + 34, y + 16, "tier 0: the 4 largest", anchor="start")
    canvas.box(x + 180, y, "", fill=TIERS[1], width=30)
    canvas.text(x + 214, y + 16, "tier 1: the others", anchor="start")


def _scores(
    canvas: Canvas, x: float, y: float, activation: np.ndarray, matrix: BucketedMatrix, taken: np.ndarray
) -> None:
    """Mean sizes, the activation, and their products with the chosen ones marked."""
    canvas.text(x, y, "2  For each token: score = |activation| " + TIMES + " mean |w|", anchor="start", bold=True)
    for middle, name in ((92, "activation"), (199, "tier 0"), (331, "tier 1")):
        canvas.text(x + middle, y + 26, name, colour=MUTED)
    for i, value in enumerate(activation):
        row = y + 36 + CELL_H * i
        canvas.text(x + 50, row + 17, f"input {i}", anchor="end", colour=MUTED)
        canvas.box(x + 60, row, f"{value:g}", width=74)
        for k in range(2):
            mean = matrix.scores[i, k]
            words = f"{abs(value):g}{TIMES}{mean:.3g} = {abs(value) * mean:.2f}"
            canvas.box(x + 134 + 132 * k, row, words, width=132, fill=KEPT if k < taken[i] else DROPPED)
    below = y + 36 + CELL_H * 4 + 22
    canvas.text(x, below, "3  Effort 0.5: take the best tiers (green) until", anchor="start", bold=True)
    canvas.text(x, below + 18, "half of the 32 multiplications are spent: 4 tiers of 4.", anchor="start")
    canvas.text(x, below + 36, "Scores fall with the tier, so each input keeps a prefix.", anchor="start")


def _product(
    canvas: Canvas,
    x: float,
    y: float,
    weights: np.ndarray,
    activation: np.ndarray,
    tiers: np.ndarray,
    taken: np.ndarray,
) -> None:
    """Results of the chosen weights and of all of them."""
    chosen = np.where(tiers[:, : len(weights)] < taken[:, None], 1.0, 0.0).T
    lowered, dense = (weights * chosen) @ activation, weights @ activation
    cosine = float(lowered @ dense / np.linalg.norm(lowered) / np.linalg.norm(dense))
    canvas.text(x, y, "4  Multiply what was taken, and skip the rest", anchor="start", bold=True)
    for o in range(8):
        canvas.text(x + 120 + 74 * o + 35, y + 28, f"output {o}", colour=MUTED)
        canvas.box(x + 120 + 74 * o, y + 38, f"{lowered[o]:.2f}", fill=KEPT, width=74)
        canvas.box(x + 120 + 74 * o, y + 38 + CELL_H, f"{dense[o]:.2f}", width=74)
    canvas.text(x + 110, y + 55, "effort 0.5", anchor="end")
    canvas.text(x + 110, y + 55 + CELL_H, "effort 1", anchor="end")
    terms = " + ".join([f"{weights[0, i]:.1f}{TIMES}{activation[i]:g}" for i in range(4) if chosen[0, i]]).replace(
        "+ -", "- "
    )
    canvas.text(x, y + 122, f"Output 0, for instance: {terms} = {lowered[0]:.2f}.", anchor="start")
    canvas.text(
        x,
        y + 144,
        f"Cosine of the two results: {cosine:.3f}. Larger matrices have more to choose from.",
        anchor="start",
    )
    canvas.text(
        x, y + 166, "At effort 1 nothing is skipped, and the sums are those of the dense product.", anchor="start"
    )


def draw_round() -> None:
    """One round: four draft tokens, of which two are accepted."""
    words = ("The", "sky", "is", "blue", "since", "the")
    canvas = Canvas(760, 330, "One round of speculative decoding: four tokens drafted, two accepted, and a bonus token")
    canvas.text(20, 30, "1  Draft: one cheap step after another, at low effort", anchor="start", bold=True)
    x0, width = 170, 92
    canvas.text(x0 - 20, 66, "reads", anchor="end", colour=MUTED)
    canvas.text(x0 - 20, 104, "proposes", anchor="end", colour=MUTED)
    for place in range(4):
        canvas.box(x0 + width * place, 49, words[place], width=width - 8, fill=VERIFY if place == 0 else DRAFT)
        canvas.box(x0 + width * place, 87, words[place + 1], width=width - 8, fill=DRAFT)
        if place:
            canvas.arrow(x0 + width * place - 18, 90, x0 + width * place + 6, 68)
    canvas.text(20, 152, "2  Verify: all of them in one pass at effort 1", anchor="start", bold=True)
    kept = ("sky", "is", "clear", "since", "dust")
    canvas.text(x0 - 20, 188, "reads", anchor="end", colour=MUTED)
    canvas.text(x0 - 20, 226, "chooses", anchor="end", colour=MUTED)
    for place in range(5):
        canvas.box(x0 + width * place, 171, words[place], width=width - 8, fill=VERIFY if place == 0 else DRAFT)
        fill = KEPT if place < 3 else "#ffffff"
        canvas.box(x0 + width * place, 209, kept[place], width=width - 8, fill=fill, ink=INK if place < 3 else MUTED)
    canvas.text(20, 274, "3  Keep", anchor="start", bold=True)
    canvas.text(x0, 274, "“sky” and “is” are accepted; “clear” is the bonus token, the verifier's own.", anchor="start")
    canvas.text(x0, 294, "What follows “blue” belongs to another text, and is dropped:", anchor="start")
    canvas.text(x0, 314, "the cache is cut after “is”, and the next round begins with “clear”.", anchor="start")
    canvas.write("round.svg")


def draw_identity() -> None:
    """A token alone and among others: the same sums in the same order."""
    canvas = Canvas(760, 300, "Why a token's result is the same alone and in a batch")
    random = np.random.default_rng(1)
    row = np.round(random.standard_normal(4), 1)
    others = np.round(random.standard_normal((2, 4)), 1)
    weights = np.round(random.standard_normal(4), 1)
    canvas.text(20, 30, "Plain decoding: the token alone", anchor="start", bold=True)
    _chain(canvas, 20, 48, [("this token", row)], weights)
    canvas.text(20, 122, "Verification: the same token between other rows", anchor="start", bold=True)
    _chain(canvas, 20, 140, [("an earlier one", others[0]), ("this token", row), ("a later one", others[1])], weights)
    notes = (
        "Each output of each row is one chain of multiply-adds. The shape of the matrix fixes its order, whatever",
        "other rows are in the pass; skipped products are left out. So equal histories give equal bits and equal",
        "logits. The sampler depends on logits, seed and position alone, so tokens are equal, too.",
    )
    for index, line in enumerate(notes):
        canvas.text(20, 246 + 18 * index, line, anchor="start", colour=MUTED, size=12)
    canvas.write("identity.svg")


def _chain(canvas: Canvas, x: float, y: float, rows: Sequence[tuple[str, np.ndarray]], weights: np.ndarray) -> None:
    for index, (name, row) in enumerate(rows):
        mine = name == "this token"
        top = y + CELL_H * index
        canvas.text(x + 120, top + 17, name, anchor="end", colour=INK if mine else MUTED)
        total = np.float32(0)
        for place, (value, weight) in enumerate(zip(row, weights, strict=True)):
            total = np.float32(total + np.float32(value) * np.float32(weight))
            canvas.box(
                x + 130 + 122 * place,
                top,
                f"+ {value:g} {TIMES} {weight:g}",
                width=122,
                fill=KEPT if mine else "#ffffff",
            )
        canvas.box(x + 130 + 122 * 4, top, f"= {float(total):.3g}", width=90, fill=KEPT if mine else "#ffffff")


def draw_pass() -> None:
    """A pass over three sequences: rows of different kinds, one reading of the weights, a cache for each."""
    canvas = Canvas(760, 300, "One pass over the rows of three sequences")
    sequences = (
        ("answer A", ("sky", "is", "blue"), VERIFY, "bonus token and a draft of 2", "2 accepted"),
        ("answer B", ("42",), VERIFY, "a plain step", "1 token"),
        ("answer C", ("Name", "a", "river"), DRAFT, "a piece of a new prompt", "read"),
    )
    for x, words in ((20, "Rows of the pass"), (312, "Weights"), (470, "Attention, each over its own cache")):
        canvas.text(x, 30, words, anchor="start", bold=True)
    top, height = 48, 3 * CELL_H + 68
    canvas.block(312, top, 110, height, fill=KEPT)
    canvas.text(367, top + height / 2 - 4, "read once", bold=True)
    canvas.text(367, top + height / 2 + 16, "for all rows", colour=MUTED)
    y = top
    for name, words, fill, kind, outcome in sequences:
        for place, word in enumerate(words):
            canvas.box(20 + 64 * place, y, word, fill=fill, width=64)
        canvas.text(20, y + CELL_H + 12, f"{name}: {kind}", anchor="start", colour=MUTED, size=12)
        canvas.arrow(224, y + 11, 306, y + 11)
        canvas.arrow(426, y + 11, 464, y + 11)
        canvas.box(470, y, f"keys and values of {name[-1]}", fill=fill, width=190)
        canvas.text(672, y + 16, outcome, anchor="start", colour=MUTED)
        y += CELL_H + 28
    canvas.text(20, 238, "No row sees a row of another sequence, and the order of its sums depends on", anchor="start")
    canvas.text(20, 258, "shapes alone. So A, B and C get the tokens that they would get alone.", anchor="start")
    canvas.text(20, 278, "New answers join between passes; finished ones leave.", anchor="start", colour=MUTED)
    canvas.write("pass.svg")


def draw_fff() -> None:
    """A fast feedforward layer of depth 3 with the path of one row, by the reference."""
    random = np.random.default_rng(3)
    weights, row = random.normal(size=(7, 4)), random.normal(size=(1, 4))
    scores = row @ weights.T
    leaf = int(fff.leaf_numbers(scores)[0])
    reached = {node for node in range(7) if fff.path_shares(scores, np.array([leaf]))[0][0, node] > 0}
    canvas = Canvas(830, 330, "A fast feedforward layer: one row takes 3 of 7 nodes and 1 of 8 leaves")
    canvas.text(20, 30, "A node multiplies the row by one weight vector: below 0 goes left", anchor="start", bold=True)
    places = {}
    for node in range(15):
        level = (node + 1).bit_length() - 1
        places[node] = (20 + 790 * (node + 2 - 2**level - 0.5) / 2**level, 50 + 66 * level)
    for node in range(1, 15):
        taken = (node - 1) // 2 in reached and (node in reached or node - 7 == leaf)
        (x1, y1), (x2, y2) = places[(node - 1) // 2], places[node]
        if taken:
            canvas.arrow(x1, y1 + CELL_H - 4, x2, y2 - 2)
        else:
            canvas.line(x1, y1 + CELL_H - 4, x2, y2 - 2)
    for node, (x, y) in places.items():
        used = node in reached or node - 7 == leaf
        words = f"{scores[0, node]:.2f}" if node < 7 and used else "" if node < 7 else f"leaf {node - 7}"
        fill = KEPT if used else "#ffffff"
        canvas.box(x - CELL_W / 2 + 2, y, words, fill=fill, ink=INK if used else MUTED)
    canvas.text(20, 300, "A leaf is a small network of two matrices. Only the marked weights are read:", anchor="start")
    canvas.text(20, 318, "3 vectors of nodes and 1 leaf. Twice as many leaves cost one more node.", anchor="start")
    canvas.write("fff.svg")


if __name__ == "__main__":
    draw_bucketmul()
    draw_round()
    draw_identity()
    draw_pass()
    draw_fff()
