"""`specdec generate --check`: compare an answer with plain decoding."""

from __future__ import annotations

import sys
from typing import Any

import specdec

EXIT_DIFFERENT = 1


def compare(model: specdec.Model, speculative: specdec.Result, plain: specdec.Result) -> dict[str, Any]:
    """The first difference between two answers that should be one, as plain JSON values.

    `identical` tells whether tokens, text and the reason to stop are equal. When tokens differ, `position` is the index
    in the answer of the first that does, and `speculative` and `plain` are the two tokens there (id and text, or null
    where an answer has ended). When only text or ending differ, `position` is null and both sides show those. `speedup`
    is the measured ratio of tokens a second, speculative over plain.
    """
    found: dict[str, Any] = {"identical": True, "tokens": len(speculative.tokens), "plain_stats": plain.stats.to_dict()}
    found["speedup"] = speculative.stats.tok_per_s / plain.stats.tok_per_s if plain.stats.tok_per_s else 0.0
    if speculative.tokens != plain.tokens:
        pairs = zip(speculative.tokens, plain.tokens, strict=False)
        shorter = min(len(speculative.tokens), len(plain.tokens))
        position = next((i for i, (left, right) in enumerate(pairs) if left != right), shorter)
        found |= {
            "identical": False,
            "position": position,
            "speculative": _token_at(model, speculative, position),
            "plain": _token_at(model, plain, position),
        }
    elif _ending(speculative) != _ending(plain):
        found |= {"identical": False, "position": None, "speculative": _ending(speculative), "plain": _ending(plain)}
    return found


def _ending(result: specdec.Result) -> dict[str, str]:
    return {"text": result.text, "stopped_by": result.stopped_by}


def _token_at(model: specdec.Model, result: specdec.Result, position: int) -> dict[str, Any] | None:
    if position >= len(result.tokens):
        return None
    token = result.tokens[position]
    return {"id": token, "text": "" if model.tokenizer is None else model.tokenizer.decode([token])}


def conclude(checked: dict[str, Any]) -> int:
    """Say on standard error what `compare` found; returns the exit code."""
    if checked["identical"]:
        plain = f"{checked['plain_stats']['tok_per_s']:.2f} tokens/s"
        gain = f"plain {plain}; measured {checked['speedup']:.2f}x"
        print(f"check      identical to plain decoding ({checked['tokens']} tokens; {gain})", file=sys.stderr)
        return 0
    if checked["position"] is None:
        what = f"same tokens, but {checked['speculative']} with speculation and {checked['plain']} without"
    else:
        told = {side: _told(checked[side]) for side in ("speculative", "plain")}
        what = f"token {checked['position']} is {told['speculative']} with speculation and {told['plain']} without"
    print(f"specdec: CHECK FAILED: {what}", file=sys.stderr)
    return EXIT_DIFFERENT


def _told(token: dict[str, Any] | None) -> str:
    return "missing" if token is None else f"{token['id']} {token['text']!r}"
