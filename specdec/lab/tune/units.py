"""What gets an effort of its own: `Unit`s of one matrix, or of several that are tuned together."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.model.architecture import ModelConfig


@dataclass(frozen=True, slots=True)
class Unit:
    """Matrices that share an effort.

    Attributes:
        name: for people and for the profile.
        kind: which matrix of a layer: "attn.q", "mlp.down", or "head".
        matrices: canonical names.
        multiplications: of all of them together, for one token at effort 1.
    """

    name: str
    kind: str
    matrices: tuple[str, ...]
    multiplications: int


def kind_of(matrix: str) -> str:
    """ "attn.q" of "layers.3.attn.q"; experts count as the matrix that they stand for; "head" of "head"."""
    parts = matrix.split(".")
    return matrix if len(parts) < 4 else f"{parts[2]}.{parts[-1]}"


def units_of(config: ModelConfig, *, quick: bool) -> list[Unit]:
    """The units of a model, in the order of its matrices: one for every matrix of every layer (a layer's experts
    together), or, when `quick`, one for every kind of matrix in the first, middle and last third of the layers."""
    groups: dict[tuple[str, str], list[str]] = {}
    for matrix in config.matrices():
        kind = kind_of(matrix)
        if kind == matrix:
            where = ""
        elif quick:
            where = ("first", "middle", "last")[3 * int(matrix.split(".")[1]) // config.num_layers] + " layers, "
        else:
            where = f"layer {matrix.split('.')[1]}, "
        groups.setdefault((where, kind), []).append(matrix)
    shapes = config.matrices()
    return [
        Unit(where + kind, kind, tuple(matrices), sum(shapes[name][0] * shapes[name][1] for name in matrices))
        for (where, kind), matrices in groups.items()
    ]
