"""JSON schemas to ask for: random ones of fixed seeds, and those of the JSON Schema test suite."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

_KEYS = st.sampled_from(["a", "id", "name", "first name", "größe", 'quoted "key"', "list", "x1"])
_VALUES = st.one_of(st.integers(-9, 99), st.sampled_from(["red", "green", "déjà vu", ""]), st.booleans(), st.none())
_SMALL = st.integers(0, 4)
_PATTERNS = st.sampled_from(
    ["^[a-f]{2,5}$", "^[0-9]{3}-[0-9]{4}$", "^(yes|no)$", "x+y?", "^[A-Z][a-z]*( [A-Z][a-z]*)?$"]
)
_FORMATS = st.sampled_from(["date", "time", "date-time", "ipv4", "ipv6", "uuid", "email", "hostname", "uri"])
_UNUSUAL = st.sampled_from(["uniqueItems", "contains", "not", "dependentRequired", "propertyNames", "if"])


def random_schemas(count: int, start: int) -> list[dict[str, Any]]:
    """Distinct schemas; the same for the same arguments.

    Raises:
        SystemExit: the seed gives too few.
    """
    found: dict[str, dict[str, Any]] = {}

    @seed(start)
    @settings(
        max_examples=3 * count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schemas())
    def collect(schema: dict[str, Any]) -> None:
        jsonschema.Draft202012Validator.check_schema(schema)
        if len(found) < count:
            found.setdefault(json.dumps(schema, sort_keys=True), schema)

    collect()
    if len(found) < count:
        sys.exit(f"only {len(found)} distinct schemas of {count}: take another --seed")
    return list(found.values())


def suite_schemas(folder: Path) -> list[dict[str, Any]]:
    """The schemas of a draft's folder of the JSON Schema test suite, such as `tests/draft2020-12`.

    Those that refer to other documents are left out.

    Raises:
        SystemExit: there are none.
    """
    found = [
        group["schema"]
        for path in sorted(folder.glob("*.json"))
        for group in json.loads(path.read_text(encoding="utf-8"))
        if isinstance(group["schema"], dict) and "localhost:1234" not in json.dumps(group["schema"])
    ]
    if not found:
        sys.exit(f"{folder} has no files of the JSON Schema test suite")
    return found


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of most keywords; some cannot be met, and some have keywords that few grammars know."""
    inner = st.recursive(_leaves(), _nested, max_leaves=8)
    rare = {0: _unusual(inner), 1: _combined(inner), 2: _shared(inner), 3: inner}
    return st.integers(0, 19).flatmap(lambda number: rare.get(number, _nested(inner)))


def _leaves() -> st.SearchStrategy[dict[str, Any]]:
    strings = st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, _SMALL, _SMALL)
    numbers = st.builds(
        lambda kind, low, more: {"type": kind, "minimum": low, "maximum": low + more},
        st.sampled_from(["integer", "number"]),
        st.integers(-20, 200),
        _SMALL,
    )
    bounds = st.builds(
        lambda low, high: {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high},
        st.integers(-5, 5),
        st.integers(-2, 20),
    )
    return st.one_of(
        st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda kind: {"type": kind}),
        st.sampled_from([["string", "null"], ["integer", "boolean"]]).map(lambda kinds: {"type": kinds}),
        strings,
        numbers,
        bounds,
        st.integers(2, 9).map(lambda step: {"type": "integer", "multipleOf": step}),
        _PATTERNS.map(lambda pattern: {"type": "string", "pattern": pattern}),
        _FORMATS.map(lambda form: {"type": "string", "format": form}),
        st.lists(_VALUES, min_size=1, max_size=5).map(lambda values: {"enum": values}),
        _VALUES.map(lambda value: {"const": value}),
    )


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    some = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner,
            _SMALL,
            _SMALL,
        ),
        some.map(lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}),
        some.map(lambda options: {"anyOf": options}),
        st.builds(_object, st.dictionaries(_KEYS, inner, min_size=1, max_size=4), st.randoms(use_true_random=False)),
    )


def _combined(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Parts that must hold at once, or of which one must: often they contradict each other."""
    some = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        some.map(lambda options: {"oneOf": options}),
        some.map(lambda options: {"allOf": options}),
        st.builds(lambda low: {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + 9}]}, _SMALL),
    )


def _object(properties: dict[str, Any], rng: Any) -> dict[str, Any]:
    required = [key for key in properties if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _unusual(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def add(keyword: str, part: dict[str, Any]) -> dict[str, Any]:
        added = {
            "uniqueItems": {"type": "array", "items": part, "uniqueItems": True, "maxItems": 3},
            "contains": {"type": "array", "items": part, "contains": part, "maxItems": 3},
            "not": {"type": "string", "maxLength": 5, "not": part},
            "dependentRequired": {"type": "object", "properties": {"a": part}, "dependentRequired": {"a": ["b"]}},
            "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": part},
            "if": {"if": part, "then": {"type": "integer"}, "else": {"type": "boolean"}},
        }
        return added[keyword]

    return st.builds(add, _UNUSUAL, inner)


def _shared(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def shared(part: dict[str, Any]) -> dict[str, Any]:
        child = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
        node = _object({"value": part, "next": child}, _Always())
        return {"$defs": {"node": node}, "$ref": "#/$defs/node"}

    return inner.map(shared)


class _Always:
    """Stands for a generator of random numbers: everything is required."""

    def random(self) -> float:
        """0."""
        return 0.0
