"""`conforms` says what `isinstance` says of protocols."""

from __future__ import annotations

import pytest

from specdec.conforms import conforms
from specdec.drafters.base import Archivist, ChoiceObserver, Drafter, Foreteller, LikelyObserver, Observer
from specdec.engine.policy import Estimator, Learner, Policy, Reporter

PROTOCOLS = (
    Archivist, ChoiceObserver, Drafter, Estimator, Foreteller, Learner, LikelyObserver, Observer, Policy, Reporter,
)  # fmt: skip


class Whole:
    """Everything that a drafter may have."""

    views = ()
    takes_effort = False
    verified = None  # that it has not

    @property
    def likely(self) -> int:
        raise AssertionError("evaluated")

    def draft(self) -> None: ...
    def ranked(self) -> None: ...
    def match_length(self) -> None: ...


class Late:
    """Has its methods only once it is made."""

    def __init__(self, *names: str) -> None:
        for name in names:
            setattr(self, name, lambda *_: None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value", [Late(), Late("begin"), Late("plan", "next_step", "observe"), Late("ended", "chosen"), object(), "text"]
)
def test_it_agrees_with_isinstance(value: object, protocol: type) -> None:
    assert conforms(value, protocol) == isinstance(value, protocol)


def test_objects_of_one_class_may_differ() -> None:
    assert [conforms(one, Learner) for one in (Late(), Late("begin"), Late())] == [False, True, False]


def test_properties_are_not_evaluated_and_none_is_no_method() -> None:
    found = {protocol for protocol in PROTOCOLS if conforms(Whole(), protocol)}
    assert found == {Drafter, Foreteller, LikelyObserver}
