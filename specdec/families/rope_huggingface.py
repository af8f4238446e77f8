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
from specdec.model.rope_scaling import RopeScaling


def rope_rule(fields: Fields, *, theta: float, head_dim: int, max_context: int) -> RopeRule:
    """Rotary positions of a model.

    Args:
        fields: config.json.
        theta: base of the frequencies where the file says nothing.
        head_dim: D.
        max_context: `max_position_embeddings`, in tokens.

    Raises:
        ModelFormatError: the rule is not supported, or a number of it is missing or senseless.
    """
    check_head_dim(head_dim)
    # A `rope_scaling` that says something counts more, even beside the newer name.
    rule = fields.mapping("rope_scaling" if fields.mapping("rope_scaling").values else "rope_parameters")
    if any(isinstance(value, dict) for value in rule.values.values()):
        raise ModelFormatError(f"{rule.where}: one rule per kind of layer is not supported")
    kind = rule.text("rope_type", rule.text("type", "default"))
    if kind not in _RULES:
        raise ModelFormatError(f"{rule.where}: rotary scaling {kind!r} is not supported, only {', '.join(_RULES)}")
    theta = rule.number("rope_theta", fields.number("rope_theta", theta))
    plain = RopeRule(rope_theta=theta, max_context=max_context, longest_context=max_context)
    return _RULES[kind](_Stated(rule, fields, plain, head_dim))


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a rule is made from: its own fields, the whole file, the model without scaling, and its head size."""

    rule: Fields
    fields: Fields
    plain: RopeRule
    head_dim: int

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
        values, pairs = self.rule.array(key), self.head_dim // 2
        if len(values) != pairs or not all(type(value) in (int, float) and value > 0 for value in values):
            raise ModelFormatError(f"{self.rule.where}: {key} must be a list of {pairs} positive numbers")
        return tuple(float(value) for value in values)


def _default(stated: _Stated) -> RopeRule:
    return stated.plain


def _linear(stated: _Stated) -> RopeRule:
    factor, plain = stated.rule.number("factor"), stated.plain
    return replace(
        plain,
        rope_factors=linear_factors(factor, stated.head_dim),
        longest_context=longest(plain.max_context, plain.max_context, factor),
    )


def _proportional(stated: _Stated) -> RopeRule:
    """Position interpolation of the turned part of the head, which is all of it here."""
    return _linear(replace(stated, rule=Fields({"factor": 1.0, **stated.rule.values}, stated.rule.where)))


def _llama3(stated: _Stated) -> RopeRule:
    rule = stated.rule
    low, high = rule.number("low_freq_factor"), rule.number("high_freq_factor")
    if low >= high:
        raise ModelFormatError(f"{rule.where}: low_freq_factor {low} must be below high_freq_factor {high}")
    factors = llama3_factors(
        theta=stated.plain.rope_theta,
        head_dim=stated.head_dim,
        factor=rule.number("factor"),
        low_freq=low,
        high_freq=high,
        original_context=stated.original(),
    )
    return replace(stated.plain, rope_factors=factors)


def _dynamic(stated: _Stated) -> RopeRule:
    plain = stated.plain
    scaling = RopeScaling(kind="dynamic", original=plain.max_context, factor=stated.rule.number("factor"))
    # The base goes on growing: no context is too long for the rule.
    return replace(plain, rope_scaling=scaling, longest_context=max(plain.max_context, MOST_CONTEXT))


def _yarn(stated: _Stated) -> RopeRule:
    rule, plain, original, factor = stated.rule, stated.plain, stated.original(), stated.factor()
    usual = yarn_attention(factor)
    mscale, all_dim = (rule.at_least_zero(key, 0.0) for key in ("mscale", "mscale_all_dim"))
    if mscale and all_dim:
        usual = yarn_attention(factor, mscale) / yarn_attention(factor, all_dim)
    return replace(
        plain,
        rope_factors=yarn_factors(
            theta=plain.rope_theta,
            head_dim=stated.head_dim,
            factor=factor,
            original_context=original,
            beta_fast=rule.at_least_zero("beta_fast", 0.0) or 32.0,
            beta_slow=rule.at_least_zero("beta_slow", 0.0) or 1.0,
            truncate=rule.flag("truncate", True),
        ),
        rope_attention_factor=rule.number("attention_factor", usual),
        longest_context=longest(plain.max_context, original, factor),
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
        rope_factors=scaling.short,
        rope_attention_factor=rule.number("attention_factor", longrope_attention(factor, original)),
        rope_scaling=scaling,
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
