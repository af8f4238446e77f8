"""Drafters by name, and the reading of `name` or `name:argument`. What a drafter does lives in its own file."""

from __future__ import annotations

from collections.abc import Callable

from specdec.conforms import conforms
from specdec.drafters.base import Drafter, DrafterSetup
from specdec.drafters.chain import ChainDrafter
from specdec.drafters.effort import EarlyExitDrafter, EffortDrafter
from specdec.drafters.model import ModelDrafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.recycle import RecycleDrafter
from specdec.drafters.replay import ReplayDrafter
from specdec.errors import InvalidArgumentError, PluginError, SpecdecError
from specdec.interrupts import is_from_signal_handler
from specdec.progress import is_from_progress
from specdec.registry import Registry

_registry: Registry[Callable[[str, DrafterSetup], Drafter]] = Registry("drafter", "specdec.drafters")

register = _registry.register
names = _registry.names


def check_name(spec: str) -> None:
    """Refuse `name` or `name:argument` if no drafter has that name.

    Raises:
        UnknownNameError: there is none.
        PluginError: the drafter cannot be loaded.
    """
    _registry.get(spec.partition(":")[0])


def create(spec: str, setup: DrafterSetup) -> Drafter:
    """A new drafter from `name` or `name:argument`; what the argument means is the drafter's business.

    Raises:
        UnknownNameError: no drafter of that name.
        InvalidArgumentError: the drafter refuses its argument or its setup.
        PluginError: the drafter cannot be loaded, its constructor fails in another way, or it lacks a member.
        Exception: of the progress function in `setup`.
    """
    name, _, argument = spec.partition(":")
    constructor = _registry.get(name)
    try:
        drafter = constructor(argument, setup)
        if conforms(drafter, Drafter):
            return drafter
    except Exception as error:
        kind: type = type(error)
        is_named = isinstance(error, SpecdecError) and (kind is not InvalidArgumentError or name in str(error))
        if is_named or is_from_signal_handler(error) or is_from_progress(error):
            raise
        if isinstance(error, ValueError):
            raise InvalidArgumentError(f"drafter {name!r} refuses its argument {argument!r}: {error}") from error
        raise PluginError.raised(
            "drafter", name, error, doing="its constructor, which takes (argument, setup)"
        ) from error
    raise PluginError("drafter", name, "must have properties views and takes_effort and a method draft")


register("chain", ChainDrafter)
register("early-exit", EarlyExitDrafter)
register("effort", EffortDrafter)
register("model", ModelDrafter)
register("ngram", NgramDrafter)
register("recycle", RecycleDrafter)
register("replay", ReplayDrafter)
