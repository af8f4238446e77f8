"""Policies by name. Built-in ones are registered here and nowhere else; what each does is in its own file.

The only file of this folder that imports more of specdec than the policy contract.
"""

from __future__ import annotations

from collections.abc import Callable

from specdec.policies.bandit import BanditPolicy
from specdec.policies.confidence import ConfidencePolicy
from specdec.policies.effort_entropy import EffortEntropyPolicy
from specdec.policies.entropy import EntropyPolicy
from specdec.policies.fixed import FixedPolicy
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.heuristic import HeuristicPolicy

from specdec.conforms import conforms
from specdec.engine.policy import Policy
from specdec.errors import PluginError
from specdec.plugin_spec import construct, read_spec
from specdec.registry import Registry

_registry: Registry[Callable[..., Policy]] = Registry("policy", "specdec.policies")

register = _registry.register
names = _registry.names


def create(spec: str) -> Policy:
    """A new policy from `name`, `name:key=value,key=value`, or a policy file, `FILE.yaml` (see `plugin_spec`).

    Raises:
        UnknownNameError: no policy of that name.
        InvalidArgumentError: parameters that the policy does not have or refuses, or a file that is not a policy file.
        PluginError: the policy cannot be loaded, fails in its constructor, or lacks a method.
    """
    wanted = read_spec(spec, kind="policy", presets="policies")
    policy = construct(_registry.get(wanted.name), wanted, kind="policy")
    if not conforms(policy, Policy):
        raise PluginError("policy", wanted.name, "must have the methods plan, next_step and observe")
    return policy


register("auto", GoodputPolicy)
register("bandit", BanditPolicy)
register("confidence", ConfidencePolicy)
register("effort-entropy", EffortEntropyPolicy)
register("entropy", EntropyPolicy)
register("fixed", FixedPolicy)
register("goodput", GoodputPolicy)
register("heuristic", HeuristicPolicy)
