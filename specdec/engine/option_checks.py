"""Checks of single options, and of options that would do nothing together. The options are in `options`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from specdec.checks import check_effort, is_integral, is_unicode
from specdec.errors import InvalidArgumentError, OptionError
from specdec.model.effort import EffortSchedule

_DRAFTING = ("draft_effort", "draft_view", "draft_len", "policy", "drafter", "trust")
_NEUTRAL = {"top_k": 0, "top_p": 1, "min_p": 0}  # filters, and their values that keep every token


def check_useful(given: Mapping[str, Any]) -> None:
    """Refuse options that would have no effect together with the others.

    Args:
        given: the options that the caller named, by name; None stands for one that was not.

    Raises:
        OptionError: one of them has no effect.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if named.get("speculate") is False:
        for name in _DRAFTING:
            if name in named:
                raise OptionError(name, "has no effect on plain decoding, which drafts nothing: leave one of them out")
    policy = named.get("policy", "auto")
    if "draft_len" in named and isinstance(policy, str) and not policy.startswith("fixed") and "." not in policy:
        raise OptionError("draft_len", f"is only for the policy 'fixed', and the policy is {policy!r}: name 'fixed'")
    for name, neutral in _NEUTRAL.items():
        if named.get(name, neutral) != neutral and not named.get("temperature"):
            raise OptionError(name, "has no effect at temperature 0, which takes the likeliest token: give one above 0")
    if named.get("chat") is False and "chat_template_kwargs" in named:
        raise OptionError("chat_template_kwargs", "has no effect without the chat template: leave one of them out")
    if named.get("chat") is False and named.get("literal") is False:
        raise OptionError("literal", "has no effect without the chat template: leave one of them out")


def plain_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options for plain decoding of the same answer."""
    kept = {name: value for name, value in given.items() if name not in _DRAFTING}
    return {**kept, "speculate": False}


def check_flag(name: str, value: object) -> bool:
    """A switch: true or false, also as 0, 1 or a NumPy value.

    Raises:
        OptionError: it is something else.
    """
    if isinstance(value, (int, np.integer, np.bool_)) and value in (0, 1):
        return bool(value)
    raise OptionError(name, f"must be True or False, not {value!r}")


def effort_schedule(name: str, value: float | EffortSchedule) -> EffortSchedule:
    """A schedule from the option called `name`.

    Raises:
        OptionError: it is neither a schedule nor a number in (0, 1].
    """
    if isinstance(value, EffortSchedule):
        return value
    try:
        return EffortSchedule(check_effort(value))
    except InvalidArgumentError:
        raise OptionError(name, f"must be a number above 0 and at most 1, not {value!r}") from None


def stop_strings(value: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings from one string or several.

    Raises:
        InvalidArgumentError: one of them is empty or not text.
    """
    if not isinstance(value, Iterable):
        raise OptionError("stop", f"must be text or a sequence of texts, not {value!r}")
    stops = (value,) if isinstance(value, str) else tuple(value)
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise InvalidArgumentError(f"a stop string must be text of at least one character, not {stop!r}")
        if not is_unicode(stop):
            raise InvalidArgumentError(f"a stop string must be valid Unicode, not {stop!r}: no answer has such text")
    return stops


def stop_ids(value: object) -> tuple[int, ...]:
    """Token ids that end an answer.

    Raises:
        OptionError: it is not a sequence of whole numbers of at least 0.
    """
    if value is None:
        return ()
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise OptionError("stop_token_ids", f"must be a sequence of token ids, not {value!r}")
    found = tuple(value)
    for one in found:
        if not is_integral(one) or int(one) < 0:
            raise OptionError("stop_token_ids", f"must be token ids, whole numbers of at least 0, not {one!r}")
    return tuple(int(one) for one in found)


def checked_bias(value: object) -> dict[int, float] | None:
    """Biases by token id; an id may also be text, as in JSON.

    Raises:
        OptionError: it is not a mapping, an id is not a whole number of at least 0, or a bias not from -100 to 100.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise OptionError("logit_bias", f"must be a mapping of token ids to numbers, not {value!r}")
    found: dict[int, float] = {}
    for key, bias in value.items():
        if (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20) or (
            is_integral(key) and int(key) >= 0
        ):
            token = int(key)
        else:
            raise OptionError("logit_bias", f"must have token ids for keys, not {key!r}")
        if not is_number(bias) or not -100 <= bias <= 100:
            raise OptionError("logit_bias", f"must be a number from -100 to 100 for token {token}, not {bias!r}")
        found[token] = float(bias)
    return found


def checked_processors(value: object) -> tuple[Callable[..., Any], ...]:
    """Logits processors.

    Raises:
        OptionError: it is not a sequence of functions.
    """
    if value is None:
        return ()
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise OptionError("logits_processors", f"must be a sequence of functions, not {value!r}")
    found = tuple(value)
    for one in found:
        if not callable(one):
            raise OptionError("logits_processors", f"must be functions of (tokens, logits), not {one!r}")
    return found


def check_variables(value: object) -> None:
    """Refuse variables of a chat template that are not a mapping of names.

    Raises:
        OptionError: they are not.
    """
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
        raise OptionError("chat_template_kwargs", f"must be a mapping of names to values, not {value!r}")


def check_whole(
    name: str, value: object, *, least: int, most: float = math.inf, instead: tuple[str, str] | None = None
) -> int:
    """`value`, a whole number from `least` to `most`, as Python's own.

    Raises:
        OptionError: it is not.
    """
    if not is_integral(value) or not least <= int(value) <= most:
        wanted = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise OptionError(name, f"must be a whole number {wanted}, not {value!r}", instead=instead)
    return int(value)


def is_number(value: object) -> bool:
    """Whether it is a real number and not a truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
