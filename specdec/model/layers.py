"""What the blocks of a transformer are made of, as data: rotary positions, attention, MLP, layer.

Which features a runtime executes is in `features`, whole models are in `architecture`. Ranges are checked here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from specdec.errors import ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.model.checks import check_choice, check_flags, check_numbers, check_sizes, is_number, is_whole
from specdec.model.rope_scaling import RopeScaling

RopeKind = Literal["half", "interleaved", "none"]
QkNorm = Literal["none", "head", "full"]
Activation = Literal["silu", "gelu_tanh", "clamped_swiglu"]
Router = Literal["softmax-then-top", "top-then-softmax"]
Norms = Literal["pre", "post", "both"]

CLAMP_LIMIT, CLAMP_SLOPE = 7.0, 1.702
"""Of the clamped SwiGLU: bound of its factors, and what multiplies the gate in the sigmoid. Source: gpt-oss (OpenAI,
2508.10925) and its reference code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions of the heads of a layer. Source: Su et al. 2104.09864, section 3.2.2.

    Attributes:
        theta: base of the frequencies.
        factors: divisors of the frequencies, one for each pair of turned dimensions; None divides nothing.
        share: part of the head that is turned, its first dimensions.
        kind: how dimensions pair: "half" is j with j + D / 2 (sources convert where they can), "interleaved" is 2j with
            2j + 1, "none" turns nothing.
        attention_factor: multiplies sines and cosines (YaRN, 2309.00071).
        scaling: how `factors` follow from the context that a model is loaded for; None where they do not.
    """

    theta: float = 10000.0
    factors: tuple[float, ...] | None = None
    share: float = 1.0
    kind: RopeKind = "half"
    attention_factor: float = 1.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "theta", "share", "attention_factor")
        if self.share > 1:
            raise ModelFormatError(f"share must be at most 1, not {self.share!r}")
        check_choice(self, "kind", RopeKind)
        if self.factors is not None and not all(is_number(factor) and factor > 0 for factor in self.factors):
            raise ModelFormatError("rope_factors must be positive numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Causal grouped-query attention of a layer.

    Attributes:
        heads: query heads H.
        kv_heads: key-value heads K; divides H.
        head_dim: D; even.
        rope: rotary positions.
        window: a query at position p sees keys p - window + 1 .. p; None means all.
        bias: projections of queries, keys and values have a bias.
        output_bias: the output projection has a bias.
        qk_norm: RMS norm of queries and keys before the rotation: "head" by head, "full" over all heads.
        scale: of scores; None is 1 / sqrt(D).
        softcap: scores become softcap * tanh(score / softcap).
        sinks: every head has a learned score that takes part in the softmax and has no value.
        gate: the output is multiplied by the sigmoid of a projection of the layer's input.
        growth: queries at position p are multiplied by 1 + growth * ln(1 + floor(p / growth_span)), see
            `query_growth`; 0 leaves them.
        growth_span: tokens; needed with `growth`.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope = field(default_factory=Rope)
    window: int | None = None
    bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = "none"
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    gate: bool = False
    growth: float = 0.0
    growth_span: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, heads="num_heads", kv_heads="num_kv_heads", head_dim="head_dim")
        if self.window is not None:
            check_sizes(self, window="window")
        check_numbers(self, *(name for name in ("scale", "softcap") if getattr(self, name) is not None))
        check_flags(self, "bias", "output_bias", "sinks", "gate")
        check_choice(self, "qk_norm", QkNorm)
        if self.growth != 0 or self.growth_span != 0:
            check_numbers(self, "growth")
            check_sizes(self, growth_span="growth_span")
        if self.heads % self.kv_heads:
            raise ModelFormatError(f"num_heads {self.heads} must be a multiple of num_kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ModelFormatError(f"head_dim must be even for rotary positions, not {self.head_dim}")
        turned = round(share := self.head_dim * self.rope.share)
        if abs(turned - share) > 1e-6 * turned or turned % 2:
            raise ModelFormatError(f"rotary positions must cover an even part of the head, not {share:g} dimensions")
        if self.rope.factors is not None and len(self.rope.factors) != turned // 2:
            raise ModelFormatError(f"rope_factors must hold {turned // 2} numbers, not {len(self.rope.factors)}")
        if self.rope.scaling is not None:
            self.rope.scaling.check_pairs(turned // 2)

    def query_growth(self, position: int) -> float:
        """What multiplies a query at `position` beside the scale of scores, in float64; 1 without `growth`.

        Source: Llama 4's temperature of attention (transformers `llama4`, `ministral3`).
        """
        return 1 + self.growth * math.log(1 + position // self.growth_span) if self.growth else 1.0

    @property
    def score_scale(self) -> float:
        """What multiplies scores: `scale`, or 1 / sqrt(D)."""
        return 1 / math.sqrt(self.head_dim) if self.scale is None else self.scale

    def for_context(self, context: int) -> Attention:
        """The same with the rotary factors of a model that is loaded for `context` tokens."""
        if self.rope.scaling is None:
            return self
        return replace(self, rope=replace(self.rope, factors=self.rope.scaling.factors_for(context, self.turned // 2)))

    @property
    def turned(self) -> int:
        """Dimensions of a head that rotary positions turn, R, its first ones; 0 in a layer without positions."""
        return 0 if self.rope.kind == "none" else round(self.head_dim * self.rope.share)

    @property
    def query_width(self) -> int:
        """Outputs of the query projection, H * D."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Outputs of the key projection and of the value projection, K * D."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Gated MLP of a layer, or a mixture of them.

    Attributes:
        width: inner width (of one expert, if there are experts).
        activation: of the gate: silu, GELU in its tanh form, or gpt-oss's clamped SwiGLU: gates are at most 7, the
            other factors -7 to 7 and then 1 more, and the gate's sigmoid is taken of 1.702 times the gate.
        bias: all projections have a bias.
        experts: 0, or the number of experts of a mixture.
        experts_used: experts that each token uses.
        router: weights of the chosen experts: the softmax over the chosen ("top-then-softmax", Mixtral, 2401.04088), or
            the chosen ones' shares of the softmax over all.
        renormalise: the weights of the chosen experts are divided by their sum.
        router_bias: the router has a bias.
        shared_width: inner width of an MLP that every token uses in addition to its experts, with weight 1; 0 for none.
    """

    width: int
    activation: Activation = "silu"
    bias: bool = False
    experts: int = 0
    experts_used: int = 0
    router: Router = "top-then-softmax"
    renormalise: bool = True
    router_bias: bool = False
    shared_width: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, width="intermediate_size")
        for name, shown in (("experts", "num_experts"), ("experts_used", "experts_per_token"), ("shared_width",) * 2):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 0:
                raise ModelFormatError(f"{shown} must be a whole number of at least 0, not {getattr(self, name)!r}")
        check_flags(self, "bias", "renormalise", "router_bias")
        check_choice(self, "activation", Activation)
        check_choice(self, "router", Router)
        if self.experts and not 0 < self.experts_used <= self.experts:
            raise ModelFormatError(
                f"experts_per_token must be 1 to num_experts ({self.experts}), not {self.experts_used}"
            )
        if not self.experts and (self.experts_used or self.shared_width or self.router_bias):
            raise ModelFormatError("experts_per_token, router_bias and shared_width need experts")
        if not self.renormalise and self.router == "top-then-softmax":
            raise ModelFormatError("a softmax over the chosen experts is always normalised")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One block: attention, then MLP, each added to the residual stream.

    Attributes:
        attention: see `Attention`.
        mlp: see `Mlp`.
        norms: RMS norms of what enters attention and MLP ("pre"), of what they return ("post"), or of both.
        residual_scale: multiplies what they return.
    """

    attention: Attention
    mlp: Mlp
    norms: Norms = "pre"
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self, "norms", Norms)
        check_numbers(self, "residual_scale")


def to_values(part: Any) -> dict[str, Any]:
    """Plain JSON values of a layer or a part of one, without values that equal the default."""
    values: dict[str, Any] = {}
    for one in fields(part):
        value = getattr(part, one.name)
        if isinstance(value, Rope | RopeScaling | Attention | Mlp):
            values[one.name] = to_values(value)
        elif value != one.default:
            values[one.name] = list(value) if isinstance(value, tuple) else value
    return values


def layer_from(values: dict[str, Any]) -> Layer:
    """Rebuild a layer from `to_values`.

    Raises:
        ModelFormatError: a value is missing, unknown or out of range.
    """
    try:
        attention, mlp = dict(values["attention"]), Mlp(**values["mlp"])
        rope = dict(attention.pop("rope", {}))
        if rope.get("factors") is not None:
            rope["factors"] = tuple(float(x) for x in rope["factors"])
        if rope.get("scaling") is not None:
            rope["scaling"] = RopeScaling.from_values(rope["scaling"])
        rest = {name: value for name, value in values.items() if name not in ("attention", "mlp")}
        return Layer(attention=Attention(rope=Rope(**rope), **attention), mlp=mlp, **rest)
    except ModelFormatError:
        raise
    except unless_signalled(TypeError, KeyError, ValueError, AttributeError) as error:
        raise ModelFormatError(f"model description does not fit this version: {error}") from None
