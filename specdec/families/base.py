"""What a model family is: how its description and its tensors are read from each kind of source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a kind of tensor lies in a source.

    Attributes:
        tensor: the source's name, with `{layer}` and `{expert}` for numbers. A tensor of an expert whose name has no
            `{expert}` holds those of all experts, stacked.
        part: number of the matrix within the tensor, when several lie in it one after the other.
        parts: how many there are.
        interleaved: rows of every head are in the interleaved rotary layout, 2j beside 2j + 1; they are brought into
            the half-split one.
    """

    tensor: str
    part: int = 0
    parts: int = 1
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class Tensors:
    """One way in which a kind of source stores the tensors of a family.

    Attributes:
        places: by canonical name without numbers: "embed", "attn.q", "attn.q.bias", "mlp.gate", "mlp.experts.gate".
        mark: part of a tensor's name by which this way is told from others; empty for the one that is taken otherwise.
    """

    places: Mapping[str, Stored]
    mark: str = ""

    def find(self, name: str) -> tuple[Stored, str, int | None]:
        """Where a canonical name lies.

        Returns:
            The place, the name of the tensor there, and the expert's number (None where the tensor is not that of an
            expert).

        Raises:
            ModelFormatError: the family has no such tensor.
        """
        layer, expert, kind = "", None, name
        if name.startswith("layers."):
            _, layer, kind = name.split(".", 2)
        if kind.startswith("mlp.experts."):
            _, _, number, projection = kind.split(".", 3)
            expert, kind = int(number), f"mlp.experts.{projection}"
        if kind not in self.places:
            raise ModelFormatError(f"no tensor of the source is known for {name!r}")
        place = self.places[kind]
        return place, place.tensor.format(layer=layer, expert=expert), expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family.

    Attributes:
        name: by which configs name it, and `model_type` in config.json.
        from_huggingface: config.json to the model; None where none is read.
        huggingface: ways of storing its tensors in safetensors files.
        gguf_name: `general.architecture` of its GGUF files; None where none is read. A family without one of its own
            may be what another's `from_gguf` finds.
        from_gguf: metadata to the model.
        gguf: ways of storing its tensors in GGUF files.
    """

    name: str
    from_huggingface: Callable[[Fields], ModelConfig] | None = None
    huggingface: Sequence[Tensors] = ()
    gguf_name: str | None = None
    from_gguf: Callable[[GgufFields], ModelConfig] | None = None
    gguf: Sequence[Tensors] = ()


def tensors_for(ways: Sequence[Tensors], names: Sequence[str]) -> Tensors:
    """The way in which a file with tensors of these names stores them: the first whose mark occurs, else the one
    without a mark."""
    for way in ways:
        if way.mark and any(way.mark in name for name in names):
            return way
    return next(way for way in ways if not way.mark)
