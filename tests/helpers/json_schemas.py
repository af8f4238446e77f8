"""Random JSON schemas of the keywords that grammars support, and random values that they allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

_KEYS = st.sampled_from(["a", "na", "name", "x y", "é", 'q"'])
_NUMBERS = st.sampled_from([-7, 0, 3, 12])
_FEW = st.integers(0, 3)
_FORMATS = {"date": "2026-02-28", "ipv4": "10.0.0.255", "uuid": "c9b1c2d0-58ad-4c2e-9d7b-0f8f3f6d2e11"}


def schemas() -> st.SearchStrategy[Any]:
    """Schemas, nested."""
    return st.recursive(_leaves(), _nested, max_leaves=6)


def _leaves() -> st.SearchStrategy[Any]:
    values = st.one_of(_NUMBERS, _KEYS, st.booleans(), st.none())
    return st.one_of(
        st.sampled_from([{"type": kind} for kind in ("boolean", "null", "string", "integer", "number")]),
        st.sampled_from([{"type": ["string", "null"]}, {"type": ["integer", "boolean"]}]),
        st.sampled_from([{"type": "string", "pattern": one} for one in ("^[a-c]+$", "^[0-9]{2}-[0-9]{2}$", "x|yz")]),
        st.sampled_from([{"type": "string", "format": one} for one in _FORMATS]),
        st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, _FEW, _FEW),
        st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, _NUMBERS, _FEW),
        st.builds(lambda low: {"type": "number", "exclusiveMinimum": low, "maximum": low + 2}, _NUMBERS),
        st.just({"type": "integer", "multipleOf": 5}),
        st.lists(values, min_size=1, max_size=4).map(lambda found: {"enum": found}),
        st.one_of(_NUMBERS, _KEYS, st.lists(_NUMBERS, max_size=2)).map(lambda value: {"const": value}),
    )


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner,
            _FEW,
            _FEW,
        ),
        some.map(lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}),
        some.map(lambda options: {"anyOf": options}),
        st.builds(
            lambda properties, needs: {
                "type": "object",
                "properties": properties,
                "required": [key for key in properties if needs],
                "additionalProperties": False,
            },
            st.dictionaries(_KEYS, inner, max_size=3),
            st.booleans(),
        ),
    )


def values_of(schema: Any) -> st.SearchStrategy[Any]:
    """Values that a schema of `schemas` allows, properties in its order."""
    for keyword, values in (("enum", st.sampled_from), ("anyOf", _any_of), ("const", st.just)):
        if keyword in schema:
            return values(schema[keyword])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of(*(_BY_TYPE[kind](schema) for kind in kinds))


def _any_of(options: list[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*map(values_of, options))


def _strings(schema: Any) -> st.SearchStrategy[str]:
    if "format" in schema:
        return st.just(_FORMATS[schema["format"]])
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z")).filter(lambda text: text.isprintable())
    letters = st.characters(codec="utf-8", categories=("L", "N", "P", "Zs"))
    return st.text(letters, min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 6))


def _integers(schema: Any) -> st.SearchStrategy[int]:
    step = schema.get("multipleOf", 1)
    return st.integers(schema.get("minimum", -9999), schema.get("maximum", 9999)).map(
        lambda value: value // step * step
    )


def _arrays(schema: Any) -> st.SearchStrategy[list[Any]]:
    if "prefixItems" in schema:
        return st.tuples(*map(values_of, schema["prefixItems"])).map(list)
    return st.lists(values_of(schema["items"]), min_size=schema["minItems"], max_size=schema["maxItems"])


def _objects(schema: Any) -> st.SearchStrategy[dict[str, Any]]:
    properties, required = schema["properties"], schema["required"]
    chosen = st.just(list(properties)) if required or not properties else st.lists(st.sampled_from(list(properties)))
    # fixed_dictionaries is free to change the order of keys.
    return chosen.flatmap(
        lambda keys: st.tuples(
            *(st.tuples(st.just(key), values_of(one)) for key, one in properties.items() if key in keys)
        ).map(dict)
    )


_BY_TYPE: dict[str, Callable[[Any], st.SearchStrategy[Any]]] = {
    "boolean": lambda _: st.booleans(),
    "null": lambda _: st.none(),
    "string": _strings,
    "integer": _integers,
    "number": lambda schema: st.sampled_from([0.5, 1, 1.25, 2]).map(lambda x: x + schema.get("exclusiveMinimum", 0)),
    "array": _arrays,
    "object": _objects,
}
