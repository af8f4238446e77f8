"""Names of plug-ins among options, checked without a model: `check_plugins`. What uses plug-ins is `speculation`."""

from __future__ import annotations

from specdec.drafters.registry import check_name
from specdec.engine.options import Options
from specdec.policies.registry import create as create_policy
from specdec.weights.registry import get_view

_OWN_VIEWS = ("auto", "exact")


def check_plugins(options: Options) -> None:
    """Refuse a policy, drafter or draft view that does not exist. Which of them a model can use shows when it is there.

    Raises:
        UnknownNameError: there is none of a name.
        InvalidArgumentError: a policy refuses its parameters.
        PluginError: a plug-in cannot be loaded.
    """
    if isinstance(options.policy, str):
        create_policy(options.policy)
    for one in options.drafters:
        for part in one.split(";") if isinstance(one, str) else ():
            if part.strip() != "auto":
                check_name(part.strip())
    for view in options.draft_view.replace(" ", "").split(","):
        if view not in _OWN_VIEWS:
            get_view(view)
