"""Rotary scaling in config.json, `rope_scaling` (old) or `rope_parameters` (new), resolved as transformers does."""

from __future__ import annotations

from dataclasses import dataclass, replace

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.families.rope import (
    RopeRule,
    check_head_dim,
    linear_factors,
    llama3_factors,
    longest,
    longrope_attention,
    yarn_attention,
    yarn_factors,
)
from specdec.model.bounds import MOST_CONTEXT
from specdec.model.layers import Rope
from specdec.model.rope_scaling import RopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeDefaults:
    """What transformers' class of a family takes where config.json says nothing, and how it reads what is there.

    Attributes:
        theta: base of the frequencies.
        share: part of the head that is turned; None where the family always turns all of it.
        local_theta: base in layers with a sliding window, under `rope_local_base_freq`; None where it is that of the
            other layers.
        scales_local: a rule counts in layers with a sliding window, too.
    """

    theta: float = 1e4
    share: float | None = None
    local_theta: float | None = None
    scales_local: bool = True


def rope_rules(fields: Fields, defaults: RopeDefaults, *, head_dim: int, max_context: int) -> tuple[RopeRule, RopeRule]:
    """Rotary positions of layers that see the whole context, and of those with a sliding window.

    Args:
        fields: config.json.
        defaults: of the family.
        head_dim: D.
        max_context: `max_position_embeddings`, in tokens.

    Raises:
        ModelFormatError: a rule is not supported, or a number of it is missing or senseless.
    """
    check_head_dim(head_dim)
    scaling, parameters = fields.mapping("rope_scaling"), fields.mapping("rope_parameters")
    by_kind = next((one for one in (scaling, parameters) if _has_rules(one)), None)
    if by_kind is not None:
        full, local = (by_kind.mapping(kind) for kind in ("full_attention", "sliding_attention"))
        unknown = sorted(set(by_kind.values) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ModelFormatError(f"{by_kind.where}: rules for {', '.join(unknown)} are not supported")
        if by_kind is parameters:  # a `rope_scaling` beside it is the rule of the layers that see everything
            full = Fields({**full.values, **scaling.values}, full.where)
        local_theta = defaults.local_theta or defaults.theta
    else:
        # A `rope_scaling` that says something counts more, even beside the newer name.
        full = scaling if scaling.values else parameters
        local = full if defaults.scales_local else Fields({}, full.where)
        local_theta = full.number("rope_theta", fields.number("rope_theta", defaults.theta))
        if defaults.local_theta is not None:
            local_theta = fields.number("rope_local_base_freq", defaults.local_theta)
    share = defaults.share
    return (
        _rule(full, fields, fields.number("rope_theta", defaults.theta), head_dim, max_context, share),
        _rule(local, fields, local_theta, head_dim, max_context, share),
    )


def _has_rules(rule: Fields) -> bool:
    return any(isinstance(value, dict) for value in rule.values.values())


def _rule(rule: Fields, fields: Fields, theta: float, head_dim: int, max_context: int, share: float | None) -> RopeRule:
    """The rule that one mapping states."""
    kind = rule.text("rope_type", rule.text("type", "default"))
    if kind not in _RULES:
        raise ModelFormatError(f"{rule.where}: rotary scaling {kind!r} is not supported, only {', '.join(_RULES)}")
    theta = rule.number("rope_theta", theta)
    turned = _turned(rule, fields, head_dim, share)
    rope = Rope(theta=theta, share=turned / head_dim)
    plain = RopeRule(rope=rope, max_context=max_context, longest_context=max_context)
    return _RULES[kind](_Stated(rule, fields, plain, turned))


def _turned(rule: Fields, fields: Fields, head_dim: int, share: float | None) -> int:
    """Turned dimensions of a head."""
    key = "partial_rotary_factor"
    stated = rule.number(key, fields.number(key, 1.0 if share is None else share))
    if share is None and stated != 1:
        raise ModelFormatError(f"{fields.where}: {key} must be 1, not {stated}")
    turned = int(head_dim * stated)
    if stated > 1 or turned < 2 or turned % 2:
        raise ModelFormatError(f"{fields.where}: {key} {stated:g} must turn an even part of the head of {head_dim}")
    return turned


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a rule is made from: its own fields, the whole file, the model without scaling, turned dimensions of a
    head."""

    rule: Fields
    fields: Fields
    plain: RopeRule
    turned: int

    def original(self) -> int:
        """Tokens of the context before scaling."""
        for where in (self.fields, self.rule):
            if (key := "original_max_position_embeddings") in where:
                if (original := where.integer(key)) <= 0:
                    raise where.wrong(key, "a positive whole number")
                return original
        return self.plain.max_context

    def factor(self) -> float:
        """The stated factor, else the ratio of the contexts."""
        return self.rule.number("factor", self.plain.max_context / self.original())

    def divisors(self, key: str) -> tuple[float, ...]:
        """A list with a divisor for each pair of dimensions."""
        values, pairs = self.rule.array(key), self.turned // 2
        if len(values) != pairs or not all(type(value) in (int, float) and value > 0 for value in values):
            raise ModelFormatError(f"{self.rule.where}: {key} must be a list of {pairs} positive numbers")
        return tuple(float(value) for value in values)


def _default(stated: _Stated) -> RopeRule:
    return stated.plain


def _linear(stated: _Stated) -> RopeRule:
    factor, plain = stated.rule.number("factor"), stated.plain
    stretched = replace(plain, longest_context=longest(plain.max_context, plain.max_context, factor))
    return stretched.with_rope(factors=linear_factors(factor, stated.turned))


def _proportional(stated: _Stated) -> RopeRule:
    """Position interpolation, where all of the head is turned. Of a part, transformers turns other pairs."""
    if stated.plain.rope.share != 1:
        raise ModelFormatError(
            f"{stated.rule.where}: rotary scaling 'proportional' is supported for whole heads only, and a part of "
            f"{stated.plain.rope.share:g} is turned"
        )
    return _linear(replace(stated, rule=Fields({"factor": 1.0, **stated.rule.values}, stated.rule.where)))


def _llama3(stated: _Stated) -> RopeRule:
    rule = stated.rule
    low, high = rule.number("low_freq_factor"), rule.number("high_freq_factor")
    if low >= high:
        raise ModelFormatError(f"{rule.where}: low_freq_factor {low} must be below high_freq_factor {high}")
    factors = llama3_factors(
        theta=stated.plain.rope.theta,
        head_dim=stated.turned,
        factor=rule.number("factor"),
        low_freq=low,
        high_freq=high,
        original_context=stated.original(),
    )
    return stated.plain.with_rope(factors=factors)


def _dynamic(stated: _Stated) -> RopeRule:
    plain = stated.plain
    scaling = RopeScaling(kind="dynamic", original=plain.max_context, factor=stated.rule.number("factor"))
    # The base goes on growing: no context is too long for the rule.
    return replace(plain, longest_context=max(plain.max_context, MOST_CONTEXT)).with_rope(scaling=scaling)


def _yarn(stated: _Stated) -> RopeRule:
    rule, plain, original, factor = stated.rule, stated.plain, stated.original(), stated.factor()
    usual = yarn_attention(factor)
    mscale, all_dim = (rule.at_least_zero(key, 0.0) for key in ("mscale", "mscale_all_dim"))
    if mscale and all_dim:
        usual = yarn_attention(factor, mscale) / yarn_attention(factor, all_dim)
    return replace(plain, longest_context=longest(plain.max_context, original, factor)).with_rope(
        factors=yarn_factors(
            theta=plain.rope.theta,
            head_dim=stated.turned,
            factor=factor,
            original_context=original,
            beta_fast=rule.at_least_zero("beta_fast", 0.0) or 32.0,
            beta_slow=rule.at_least_zero("beta_slow", 0.0) or 1.0,
            truncate=rule.flag("truncate", True),
        ),
        attention_factor=rule.number("attention_factor", usual),
    )


def _longrope(stated: _Stated) -> RopeRule:
    rule, plain, original, factor = stated.rule, stated.plain, stated.original(), stated.factor()
    scaling = RopeScaling(
        kind="longrope",
        original=original,
        short=stated.divisors("short_factor"),
        long=stated.divisors("long_factor"),
    )
    return replace(
        plain,
        max_context=min(original, plain.max_context),
        longest_context=longest(plain.max_context, original, factor),
    ).with_rope(
        factors=scaling.short,
        attention_factor=rule.number("attention_factor", longrope_attention(factor, original)),
        scaling=scaling,
    )


# "su" is what the first models with LongRoPE call it.
_RULES = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}
