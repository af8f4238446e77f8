"""Values that pass as messages arrive as they were, types and shape included."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.lab.eval.sandbox_values import MessageError, Writer, read_item, read_objects

_KEYS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.complex_numbers(allow_nan=False),
    st.text(st.characters()), st.binary(), st.fractions(), st.decimals(allow_nan=False),
)  # fmt: skip
_VALUES = st.recursive(
    st.one_of(_KEYS, st.just(math.nan), st.frozensets(_KEYS, max_size=3), st.sets(_KEYS, max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.dictionaries(st.one_of(_KEYS, st.tuples(_KEYS, _KEYS)), inner, max_size=4),
    ),
    max_leaves=20,
)


def passed(value: Any) -> Any:
    """A value after it was a message."""
    words = Writer()
    message = json.loads(json.dumps([words.item(value), words.entries]))
    return read_item(message[0], read_objects((), message[1]))


def shape(value: Any) -> Any:
    """What tells values apart that are equal, such as 1 and 1.0."""
    if isinstance(value, dict):
        return type(value), [(shape(key), shape(inner)) for key, inner in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, value))
    if isinstance(value, (list, tuple, deque)):
        return type(value), list(map(shape, value))
    return type(value), repr(value)


@given(_VALUES)
def test_a_value_arrives_as_it_was(value: Any) -> None:
    assert shape(passed(value)) == shape(value)


def test_types_of_the_library_arrive_as_they_were() -> None:
    for value in (
        Counter("aab"),
        OrderedDict(b=1, a=2),
        Fraction(-1, 3),
        Decimal("1.50"),
        range(1, 9, 2),
        bytearray(b"x"),
    ):
        assert shape(passed(value)) == shape(value)
    arrived = passed(defaultdict(list, a=1))
    assert arrived == {"a": 1}
    assert arrived.default_factory is None


def test_shared_parts_stay_shared() -> None:
    part: list[Any] = []
    whole = passed({"one": part, "two": (part, [part])})
    assert whole["one"] is whole["two"][0] is whole["two"][1][0]
    part.append(part)
    assert (found := passed(part))[0] is found


def test_an_answer_brings_objects_up_to_date() -> None:
    values = [[1], {"a": 1}, {2}, bytearray(b"x"), deque([3])]
    call = Writer()
    items = [call.item(one) for one in values]
    theirs = read_objects((), json.loads(json.dumps(call.entries)))
    their_values = [read_item(item, theirs) for item in items]
    their_values[0].append(their_values[1])
    their_values[1]["b"] = their_values[1].pop("a")
    their_values[2].add(4)
    their_values[3].clear()
    their_values[4].appendleft(())
    answer = Writer(theirs)
    objects = read_objects(call.objects, json.loads(json.dumps(answer.entries)))
    assert values == [[1, {"b": 1}], {"b": 1}, {2, 4}, bytearray(), deque([(), 3])]
    assert objects[0] is values[0]
    assert values[0][1] is values[1]


@pytest.mark.parametrize("value", [object(), print, int, iter([]), (n for n in ()), [lambda: 1], {}.keys(), Ellipsis])
def test_what_is_not_plain_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="is not plain data"):
        passed(value)


def test_an_object_cannot_change_its_type() -> None:
    with pytest.raises(MessageError, match="changed its type"):
        read_objects([[]], [["dict"]])
    with pytest.raises(MessageError, match="missing"):
        read_objects([[]], [])
