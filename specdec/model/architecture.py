"""What a model is, as data: a list of layers and what surrounds them. Reading it from files is for `specdec.families`.

`layers` has the parts of a layer; `features` names what a runtime must execute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

from specdec.errors import ModelFormatError, OptionError
from specdec.interrupts import unless_signalled
from specdec.model.checks import check_flags, check_numbers, check_sizes, is_number, is_whole
from specdec.model.layers import Attention, Layer, Mlp, Rope, layer_from, to_values
from specdec.model.rope_scaling import RopeScaling

MAX_LAYERS = 4096  # far above any model; a damaged number must not make billions of layers

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and arithmetic of a decoder-only transformer with RMS norms.

    Equal layers share one object. The hash is computed once: configs are keys of caches that every pass asks.

    Attributes:
        family: name of the model family, for people.
        vocab: V, rows of the logits layer.
        hidden: width of the residual stream.
        layers: the blocks, first to last.
        eps: epsilon of every RMS norm.
        max_context: longest context T of the model as it is loaded, in tokens.
        norm_offset: added to the weights of every norm.
        embed_scale: multiplies embeddings.
        logit_scale: multiplies logits.
        logit_cap: logits become logit_cap * tanh(logit / logit_cap); None leaves them.
        tied: the logits layer is the embedding table.
        longest_context: longest context that the model can be loaded for, see `for_context`; None is `max_context`.
    """

    family: str
    vocab: int
    hidden: int
    layers: tuple[Layer, ...]
    eps: float
    max_context: int
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    tied: bool = False
    longest_context: int | None = None
    _kinds: tuple[Layer, ...] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.family, str) or not self.family:
            raise ModelFormatError(f"the model family must have a name, not {self.family!r}")
        check_sizes(self, vocab="vocab_size", hidden="hidden_size", max_context="max_context")
        check_numbers(self, "eps", "embed_scale", "logit_scale", *([] if self.logit_cap is None else ["logit_cap"]))
        if not is_number(self.norm_offset):
            raise ModelFormatError(f"norm_offset must be a number, not {self.norm_offset!r}")
        check_flags(self, "tied")
        if self.longest_context is not None:
            check_sizes(self, longest_context="longest_context")
            if self.longest_context < self.max_context:
                raise ModelFormatError(
                    f"longest_context {self.longest_context} must be at least max_context {self.max_context}"
                )
        check_layers(len(self.layers))
        shared: dict[Layer, Layer] = {}
        object.__setattr__(self, "layers", tuple(shared.setdefault(layer, layer) for layer in self.layers))
        object.__setattr__(self, "_kinds", tuple(shared))
        values = tuple(getattr(self, one.name) for one in fields(self) if one.compare)
        object.__setattr__(self, "_hash", hash(values))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def uniform(
        cls,
        *,
        family: str,
        vocab_size: int,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        norm_eps: float,
        rope_theta: float,
        max_context: int,
        rope_factors: tuple[float, ...] | None = None,
        rope_attention_factor: float = 1.0,
        rope_scaling: RopeScaling | None = None,
        longest_context: int | None = None,
        sliding_window: int | None = None,
        first_sliding_layer: int = 0,
        tie_embeddings: bool = False,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        num_experts: int = 0,
        experts_per_token: int = 0,
    ) -> ModelConfig:
        """A model whose layers are equal, but that those before `first_sliding_layer` may have no sliding window.

        Arguments are the attributes of `Rope`, `Attention`, `Mlp` and `ModelConfig`; `qk_norm` is a norm by head.

        Raises:
            ModelFormatError: a value is out of range.
        """
        check_layers(num_layers)
        rope = Rope(
            theta=rope_theta, factors=rope_factors, attention_factor=rope_attention_factor, scaling=rope_scaling
        )
        mlp = Mlp(width=intermediate_size, experts=num_experts, experts_used=experts_per_token if num_experts else 0)

        def layer(window: int | None) -> Layer:
            attention = Attention(
                heads=num_heads,
                kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope,
                window=window,
                bias=qkv_bias,
                qk_norm="head" if qk_norm else "none",
            )
            return Layer(attention=attention, mlp=mlp)

        first = min(first_sliding_layer, num_layers) if sliding_window is not None else 0
        return cls(
            family=family,
            vocab=vocab_size,
            hidden=hidden_size,
            layers=(layer(None),) * first + (layer(sliding_window),) * (num_layers - first),
            eps=norm_eps,
            max_context=max_context,
            tied=tie_embeddings,
            longest_context=longest_context,
        )

    def for_context(self, context: int) -> ModelConfig:
        """The model as it is when loaded for `context` tokens: `max_context`, and the rotary factors of that length.

        Raises:
            InvalidArgumentError: `context` is not a whole number of 1 to the longest context.
        """
        longest = self.longest_context or self.max_context
        if not is_whole(context) or context <= 0:
            raise OptionError("context", f"must be a whole number of at least 1, not {context!r}")
        if context > longest:
            raise OptionError("context", f"must be at most {longest} tokens for this model, not {context}")
        loaded = {kind: replace(kind, attention=kind.attention.for_context(context)) for kind in self._kinds}
        return replace(
            self,
            layers=tuple(loaded[layer] for layer in self.layers),
            max_context=context,
            longest_context=longest if longest > context else None,
        )

    @property
    def kinds(self) -> tuple[Layer, ...]:
        """The different layers, in the order in which they first occur."""
        return self._kinds

    @property
    def vocab_size(self) -> int:
        """Rows of the logits layer, V."""
        return self.vocab

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.hidden

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def norm_eps(self) -> float:
        """Epsilon of every RMS norm."""
        return self.eps

    @property
    def tie_embeddings(self) -> bool:
        """The logits layer is the embedding table."""
        return self.tied

    # What follows is for code that runs models whose layers agree in it; it raises ModelFormatError where they differ.

    @property
    def num_heads(self) -> int:
        """Query heads of every layer."""
        return self._same("heads", lambda layer: layer.attention.heads)

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of every layer."""
        return self._same("kv_heads", lambda layer: layer.attention.kv_heads)

    @property
    def head_dim(self) -> int:
        """Head size of every layer."""
        return self._same("head_dim", lambda layer: layer.attention.head_dim)

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies of every layer."""
        return self._same("theta", lambda layer: layer.attention.rope.theta)

    @property
    def rope_factors(self) -> tuple[float, ...] | None:
        """Divisors of the rotary frequencies of every layer, or None."""
        return self._same("factors", lambda layer: layer.attention.rope.factors)

    @property
    def rope_attention_factor(self) -> float:
        """What multiplies sines and cosines in every layer."""
        return self._same("attention_factor", lambda layer: layer.attention.rope.attention_factor)

    @property
    def qkv_bias(self) -> bool:
        """Every layer has biases of queries, keys and values."""
        return self._same("bias", lambda layer: layer.attention.bias)

    @property
    def qk_norm(self) -> bool:
        """Every layer has norms of queries and keys."""
        return self._same("qk_norm", lambda layer: layer.attention.qk_norm != "none")

    @property
    def intermediate_size(self) -> int:
        """Inner width of every MLP."""
        return self._same("width", lambda layer: layer.mlp.width)

    @property
    def num_experts(self) -> int:
        """Experts of every layer; 0 without a mixture."""
        return self._same("experts", lambda layer: layer.mlp.experts)

    @property
    def experts_per_token(self) -> int:
        """Experts that each token uses in every layer."""
        return self._same("experts_used", lambda layer: layer.mlp.experts_used)

    def window(self, layer: int) -> int | None:
        """Sliding window of `layer` in tokens, or None when it sees the whole context."""
        return self.layers[layer].attention.window

    def mlp_names(self, layer: int) -> list[str]:
        """Prefixes of the gated MLPs of `layer`: one, or one per expert and then the shared one, if any."""
        base, mlp = f"layers.{layer}.mlp", self.layers[layer].mlp
        if not mlp.experts:
            return [base]
        return [f"{base}.experts.{e}" for e in range(mlp.experts)] + [f"{base}.shared"] * bool(mlp.shared_width)

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Every matrix that takes part in effort, by canonical name, with its (out, in) shape, in order of use.

        Names: `layers.{i}.attn.{q,k,v,o}` (and `gate` before `o`, where attention has one),
        `layers.{i}.mlp.{gate,up,down}` (or `layers.{i}.mlp.experts.{e}.…`, and `layers.{i}.mlp.shared.…`), `head`.
        """
        return dict(_matrices(self))

    def tables(self) -> dict[str, tuple[int, int]]:
        """16-bit tensors outside effort by (rows, columns): `embed` unless tied, and `layers.{i}.mlp.router`."""
        tables = {} if self.tied else {"embed": (self.vocab, self.hidden)}
        for i, layer in enumerate(self.layers):
            if layer.mlp.experts:
                tables[f"layers.{i}.mlp.router"] = (layer.mlp.experts, self.hidden)
        return tables

    def vectors(self) -> dict[str, int]:
        """Float32 vectors and their lengths: norms (`layers.{i}.attn_norm`, `layers.{i}.mlp_norm` of what enters a
        part, `…_post_norm` of what it returns, `layers.{i}.attn.{q,k}_norm`), biases (the name of the matrix or router
        with `.bias`) and `layers.{i}.attn.sinks` where there are any; `final_norm`."""
        lengths: dict[str, int] = {}
        for i, layer in enumerate(self.layers):
            lengths |= _layer_vectors(f"layers.{i}", layer, self)
        lengths["final_norm"] = self.hidden
        return lengths

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores an equal object. Values that equal their default are left out.

        `kinds` has every different layer once, `layers` the number of each layer's kind.
        """
        numbers = {layer: number for number, layer in enumerate(self._kinds)}
        values = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.init and one.name != "layers" and getattr(self, one.name) != one.default
        }
        kinds, layers = [to_values(layer) for layer in self._kinds], [numbers[layer] for layer in self.layers]
        return values | {"kinds": kinds, "layers": layers}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild from `to_dict` output.

        Raises:
            ModelFormatError: a key is missing or unknown, or a value is out of range.
        """
        values = dict(values)
        try:
            kinds = [layer_from(kind) for kind in values.pop("kinds")]
            numbers = values.pop("layers")
            if not all(is_whole(number) and 0 <= number < len(kinds) for number in numbers):
                raise ModelFormatError(f"layers must be numbers of the {len(kinds)} kinds of layers")
            return cls(layers=tuple(kinds[number] for number in numbers), **values)
        except unless_signalled(TypeError, KeyError, AttributeError) as error:
            raise ModelFormatError(f"model description does not fit this version: {error}") from None

    def to_flat_dict(self) -> dict[str, Any] | None:
        """The description in stores of versions 1 to 3; None where it cannot hold this model."""
        first, last = self.layers[0], self.layers[-1]
        attention, window = first.attention, last.attention.window
        sliding = [layer.attention.window is not None for layer in self.layers]
        values = {
            "architecture": self.family,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": first.mlp.width,
            "num_layers": len(self.layers),
            "num_heads": attention.heads,
            "num_kv_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
            "norm_eps": self.eps,
            "rope_theta": attention.rope.theta,
            "max_context": self.max_context,
            "rope_factors": attention.rope.factors,
            "sliding_window": window,
            "first_sliding_layer": sliding.index(True) if True in sliding else 0,
            "tie_embeddings": self.tied,
            "qkv_bias": attention.bias,
            "qk_norm": attention.qk_norm == "head",
            "num_experts": first.mlp.experts,
            "experts_per_token": first.mlp.experts_used,
        }
        try:
            return values if self.from_flat_dict(values) == self else None
        except ModelFormatError:  # what is left of the model without its other features is impossible
            return None

    @classmethod
    def from_flat_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild from `to_flat_dict` output: the arguments of `uniform`, the family under `architecture`.

        Raises:
            ModelFormatError: a key is missing or unknown, or a value is out of range.
        """
        values = dict(values)
        try:
            if values.get("rope_factors") is not None:
                values["rope_factors"] = tuple(float(x) for x in values["rope_factors"])
            return cls.uniform(family=values.pop("architecture"), **values)
        except ModelFormatError:
            raise
        except unless_signalled(TypeError, KeyError, ValueError) as error:
            raise ModelFormatError(f"model description does not fit this version: {error}") from None

    def _same(self, name: str, of: Callable[[Layer], _T]) -> _T:
        """What `of` finds in every layer."""
        first = of(self._kinds[0])
        if any(of(kind) != first for kind in self._kinds[1:]):
            raise ModelFormatError(f"{name} differs between layers of this model")
        return first


def check_layers(layers: int) -> None:
    """Refuse a number of layers that no model has, before anything is made for each."""
    if not is_whole(layers) or layers <= 0:
        raise ModelFormatError(f"num_layers must be a positive whole number, not {layers!r}")
    if layers > MAX_LAYERS:
        raise ModelFormatError(f"the model is said to have {layers} layers; at most {MAX_LAYERS} are read")


@lru_cache(maxsize=16)
def _matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    shapes: dict[str, tuple[int, int]] = {}
    hidden = config.hidden
    for i, layer in enumerate(config.layers):
        attn, attention, mlp = f"layers.{i}.attn", layer.attention, layer.mlp
        q, kv = attention.query_width, attention.kv_width
        shapes |= {f"{attn}.q": (q, hidden), f"{attn}.k": (kv, hidden), f"{attn}.v": (kv, hidden)}
        if attention.gate:
            shapes[f"{attn}.gate"] = (q, hidden)
        shapes[f"{attn}.o"] = (hidden, q)
        for name in config.mlp_names(i):
            width = mlp.shared_width if name.endswith(".shared") else mlp.width
            shapes |= {f"{name}.gate": (width, hidden), f"{name}.up": (width, hidden), f"{name}.down": (hidden, width)}
    shapes["head"] = (config.vocab, hidden)
    return shapes


def _layer_vectors(base: str, layer: Layer, config: ModelConfig) -> dict[str, int]:
    """Vectors of one layer whose names begin with `base`."""
    attention, mlp, hidden = layer.attention, layer.mlp, config.hidden
    lengths: dict[str, int] = {}
    if layer.norms in ("pre", "both"):
        lengths |= {f"{base}.attn_norm": hidden, f"{base}.mlp_norm": hidden}
    if layer.norms in ("post", "both"):
        lengths |= {f"{base}.attn_post_norm": hidden, f"{base}.mlp_post_norm": hidden}
    widths = {"q": attention.query_width, "k": attention.kv_width, "v": attention.kv_width}
    if attention.qk_norm != "none":
        for name in ("q", "k"):
            lengths[f"{base}.attn.{name}_norm"] = attention.head_dim if attention.qk_norm == "head" else widths[name]
    if attention.bias:
        lengths |= {f"{base}.attn.{name}.bias": width for name, width in widths.items()}
    if attention.output_bias:
        lengths[f"{base}.attn.o.bias"] = hidden
    if attention.sinks:
        lengths[f"{base}.attn.sinks"] = attention.heads
    if mlp.router_bias:
        lengths[f"{base}.mlp.router.bias"] = mlp.experts
    if mlp.bias:
        number = int(base.rpartition(".")[2])
        for name in config.mlp_names(number):
            width = mlp.shared_width if name.endswith(".shared") else mlp.width
            lengths |= {f"{name}.gate.bias": width, f"{name}.up.bias": width, f"{name}.down.bias": hidden}
    return lengths
