"""What a model family is: how its description and its tensors are read from each kind of source."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a source stores a kind of tensor.

    Attributes:
        tensor: the source's name, with `{layer}` and `{expert}` for numbers. A tensor of an expert whose name has no
            `{expert}` holds those of all experts, stacked.
        among: kinds of the tensors that this one holds, one after the other; empty if it holds one only.
        alternating: rows of the kinds in `among` take turns instead.
        interleaved: rows of every head are in the interleaved rotary layout, 2j beside 2j + 1; they are brought into
            the half-split one.
        transposed: a matrix is stored as (in, out).
    """

    tensor: str
    among: tuple[str, ...] = ()
    alternating: bool = False
    interleaved: bool = False
    transposed: bool = False


Places = Mapping[str, Stored | tuple[Stored, ...]]
"""Where the tensors of a family lie, by canonical name without numbers ("embed", "attn.q", "attn.q.bias", "mlp.gate",
"mlp.experts.gate"): a place, or those of several ways of storing it, of which the first that a source has counts."""


@dataclass(frozen=True, slots=True)
class Name:
    """A canonical name in parts.

    Attributes:
        kind: the name without numbers.
        layer: number of the layer, as text; empty outside layers.
        expert: number of the expert, or None.
    """

    kind: str
    layer: str = ""
    expert: int | None = None

    @classmethod
    def of(cls, name: str) -> Name:
        """The parts of a canonical name."""
        if not name.startswith("layers."):
            return cls(name)
        _, layer, kind = name.split(".", 2)
        if not kind.startswith("mlp.experts."):
            return cls(kind, layer)
        _, _, number, projection = kind.split(".", 3)
        return cls(f"mlp.experts.{projection}", layer, int(number))

    def sibling(self, kind: str) -> str:
        """The canonical name of another kind in the same layer and expert."""
        if self.expert is not None:
            kind = kind.replace("mlp.experts.", f"mlp.experts.{self.expert}.")
        return f"layers.{self.layer}.{kind}" if self.layer else kind


def find(places: Places, name: str, present: Collection[str]) -> tuple[Stored, str]:
    """Where a source that has the tensors `present` stores a canonical name.

    Returns:
        The place, and the name of the tensor there.

    Raises:
        ModelFormatError: the family has no such tensor.
    """
    parts = Name.of(name)
    found = places.get(parts.kind)
    if found is None:
        raise ModelFormatError(f"no tensor of the source is known for {name!r}")
    ways = found if isinstance(found, tuple) else (found,)
    names = [way.tensor.format(layer=parts.layer, expert=parts.expert) for way in ways]
    chosen = next((number for number, tensor in enumerate(names) if tensor in present), 0)
    return ways[chosen], names[chosen]


def either(*places: Places) -> Places:
    """The places of all, the first ones first where several have a kind."""
    found: dict[str, tuple[Stored, ...]] = {}
    for one in places:
        for kind, place in one.items():
            found[kind] = found.get(kind, ()) + (place if isinstance(place, tuple) else (place,))
    return found


def changed(places: Places, change: Callable[[Stored], Stored]) -> Places:
    """The same kinds at changed places."""
    return {
        kind: tuple(map(change, place)) if isinstance(place, tuple) else change(place) for kind, place in places.items()
    }


def within(places: Places, *prefixes: tuple[str, str]) -> Places:
    """The same tensors where names begin otherwise: (beginning, what it is replaced by), tried in turn after the
    names as they are."""

    def renamed(old: str, new: str) -> Callable[[Stored], Stored]:
        def rename(place: Stored) -> Stored:
            begins = place.tensor.startswith(old)
            return replace(place, tensor=new + place.tensor.removeprefix(old)) if begins else place

        return rename

    return either(places, *(changed(places, renamed(old, new)) for old, new in prefixes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family.

    Attributes:
        name: by which configs name it.
        model_types: `model_type` in config.json; empty is the name alone.
        from_huggingface: config.json to the model; None where none is read.
        huggingface: its tensors in safetensors files.
        ignored: beginnings of names of tensors that belong to other parts of a checkpoint, such as one for images.
        gguf_name: `general.architecture` of its GGUF files; None where none is read. A family without one of its own
            may be what another's `from_gguf` finds.
        from_gguf: metadata to the model.
        gguf: its tensors in GGUF files.
    """

    name: str
    model_types: tuple[str, ...] = ()
    from_huggingface: Callable[[Fields], ModelConfig] | None = None
    huggingface: Places | None = None
    ignored: tuple[str, ...] = ()
    gguf_name: str | None = None
    from_gguf: Callable[[GgufFields], ModelConfig] | None = None
    gguf: Places | None = None
