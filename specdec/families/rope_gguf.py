"""Rotary scaling in a GGUF file: metadata under `rope.`, and tensors of divisors, resolved as llama.cpp does."""

from __future__ import annotations

import math
from dataclasses import replace

from specdec.errors import ModelFormatError
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope import RopeRule, check_head_dim, longest, yarn_attention, yarn_factors
from specdec.model.layers import Rope
from specdec.model.rope_scaling import RopeScaling
from specdec.warn import warn

FREQUENCY_DIVISORS, LONG_DIVISORS, SHORT_DIVISORS = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
DIVISORS = (FREQUENCY_DIVISORS, LONG_DIVISORS, SHORT_DIVISORS)
"""Tensors that hold a divisor for each pair of dimensions."""

_TYPES = ("none", "linear", "yarn", "longrope")


def rope_rules(
    fields: GgufFields,
    *,
    head_dim: int,
    turned: int,
    max_context: int,
    scales_local: bool = True,
    local_theta: float | None = None,
    truncate: bool = True,
) -> tuple[RopeRule, RopeRule]:
    """Rotary positions of layers that see the whole context, and of those with a sliding window.

    Args:
        fields: of the file.
        head_dim: D.
        turned: dimensions of a head that are turned.
        max_context: `context_length`, in tokens.
        scales_local: rotary scaling counts in layers with a sliding window, too.
        local_theta: base of the frequencies in those, where the file says nothing; None is that of the others.
        truncate: see `rope.yarn_factors`.

    Raises:
        ModelFormatError: the rule is not supported, or a number or tensor of it is missing or senseless.

    Warns:
        UserWarning: a key is missing that published models with this rule have, or one is there that nothing reads.
    """
    check_head_dim(head_dim)
    plain = Rope(theta=fields.number(fields.key("rope.freq_base"), 1e4), share=turned / head_dim)
    full = _rule(fields, plain, turned, max_context, truncate)
    theta = fields.number(fields.key("rope.freq_base_swa"), local_theta or full.rope.theta)
    if scales_local:
        return full, full.with_rope(theta=theta)
    return full, replace(full, rope=Rope(theta=theta, share=full.rope.share))


def _rule(fields: GgufFields, rope: Rope, turned: int, max_context: int, truncate: bool) -> RopeRule:
    key = fields.key
    for name, divisors in fields.rope_divisors.items():
        if len(divisors) != turned // 2:
            raise ModelFormatError(f"{fields.where}: tensor {name!r} must have shape ({turned // 2},)")
    kind = fields.text(key("rope.scaling.type"), "linear")  # with the factor 1, where none is stated
    if kind not in _TYPES:
        raise ModelFormatError(f"{fields.where}: rotary scaling {kind!r} is not supported, only {', '.join(_TYPES)}")
    plain = RopeRule(rope=rope, max_context=max_context, longest_context=max_context).with_rope(
        factors=fields.rope_divisors.get(FREQUENCY_DIVISORS),
        attention_factor=fields.number(key("rope.scaling.attn_factor"), 1.0),
    )
    if plain.rope.factors is None and (
        kind == "longrope" or {LONG_DIVISORS, SHORT_DIVISORS} & set(fields.rope_divisors)
    ):
        return _longrope(fields, plain, kind)
    factor = 1.0 if kind == "none" else _factor(fields)
    if kind == "yarn":
        return _yarn(fields, plain, factor, turned, truncate)
    divided = _times(plain.rope.factors, (factor,) * (turned // 2))
    stretched = longest(max_context, _original(fields, max_context), factor)
    return replace(plain, longest_context=stretched).with_rope(factors=divided)


def _yarn(fields: GgufFields, plain: RopeRule, factor: float, turned: int, truncate: bool) -> RopeRule:
    key, original = fields.key, _original(fields, plain.max_context)
    extrapolation = fields.at_least_zero(key("rope.scaling.yarn_ext_factor"), 1.0)
    divisors = yarn_factors(
        theta=plain.rope.theta,
        head_dim=turned,
        factor=factor,
        original_context=original,
        beta_fast=fields.number(key("rope.scaling.yarn_beta_fast"), 32.0),
        beta_slow=fields.number(key("rope.scaling.yarn_beta_slow"), 1.0),
        truncate=truncate,
        extrapolation=extrapolation,
    )
    # Without extrapolation this is position interpolation, which scales no attention.
    attention = 1.0
    if extrapolation:
        attention = yarn_attention(factor) / _yarn_divisor(fields, factor)
        _check_attention(fields, attention)
    return replace(plain, longest_context=longest(plain.max_context, original, factor)).with_rope(
        factors=_times(plain.rope.factors, divisors),
        attention_factor=plain.rope.attention_factor * attention,
    )


def _yarn_divisor(fields: GgufFields, factor: float) -> float:
    """What the original model's `mscale_all_dim` takes back of the scaled attention."""
    multiplier = fields.at_least_zero(fields.key("rope.scaling.yarn_log_multiplier"), 0.0)
    return yarn_attention(factor, multiplier) if multiplier else 1.0


def _check_attention(fields: GgufFields, used: float) -> None:
    key = fields.key("rope.scaling.yarn_attn_factor")
    stated = fields.number(key, 1.0)
    if stated != 1 and not math.isclose(stated, used, rel_tol=1e-5):
        warn(f"{fields.where}: {key} is {stated:.6g}, which nothing reads: attention is scaled by {used:.6g}")


def _longrope(fields: GgufFields, plain: RopeRule, kind: str) -> RopeRule:
    if missing := [name for name in (SHORT_DIVISORS, LONG_DIVISORS) if name not in fields.rope_divisors]:
        raise ModelFormatError(f"{fields.where} lacks tensor {missing[0]!r}, which rotary scaling 'longrope' needs")
    if kind == "yarn":
        raise ModelFormatError(f"{fields.where}: rotary scaling 'yarn' together with tensor {LONG_DIVISORS!r}")
    original = _original(fields, plain.max_context)
    key = fields.key("rope.scaling.attn_factor")
    if original < plain.max_context and key not in fields:
        warn(f"{fields.where}: {key} is missing: attention is not scaled, and answers may be worse for it")
    scaling = RopeScaling(
        kind="longrope",
        original=original,
        short=fields.rope_divisors[SHORT_DIVISORS],
        long=fields.rope_divisors[LONG_DIVISORS],
    )
    bounded = replace(plain, max_context=min(original, plain.max_context))
    return bounded.with_rope(factors=scaling.short, scaling=scaling)


def _original(fields: GgufFields, max_context: int) -> int:
    """Tokens of the context before scaling."""
    key = fields.key("rope.scaling.original_context_length")
    original = fields.integer(key, max_context)
    if original <= 0:
        raise fields.wrong(key if key in fields else fields.key("context_length"), "a positive whole number")
    return original


def _factor(fields: GgufFields) -> float:
    """The stated factor, perhaps under its old name; 1 where there is none or it is 0."""
    old = fields.at_least_zero(fields.key("rope.scale_linear"), 1.0)
    return fields.at_least_zero(fields.key("rope.scaling.factor"), old) or 1.0


def _times(first: tuple[float, ...] | None, second: tuple[float, ...]) -> tuple[float, ...] | None:
    """Products of divisors; None where nothing is divided."""
    if first is not None:
        second = tuple(left * right for left, right in zip(first, second, strict=True))
    return None if first is None and all(divisor == 1 for divisor in second) else second
