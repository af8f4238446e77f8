"""Calls between tests and a program: what passes as if both were one process, and what does not."""

from __future__ import annotations

import json
import textwrap

import pytest
from places import DATA

from specdec.lab.eval.humaneval import Problem, load_problems, to_program
from specdec.lab.eval.sandbox import Limits, Program, run_program

# One program of functions that tests of all kinds call, and the tests, which know nothing of the process between.
PROGRAM = """
import collections, decimal, enum, fractions

Point = collections.namedtuple("Point", "x y")

class Colour(enum.IntEnum):
    RED = 1

class OwnError(ValueError):
    pass

calls = []

def same(value, **named):
    return named or value

def shorten(values):
    values.pop()
    values.append("new")

def fill(values):
    values["seen"] = [values]

def fails(kind):
    if kind == "own":
        raise OwnError("own", 1)
    if kind == "key":
        return {}["absent"]
    if kind == "exit":
        raise SystemExit(3)
    if kind == "index":
        return [][1]
    return 1 / 0

def shortens_and_fails(values):
    values.clear()
    raise KeyError

def count():
    calls.append(None)
    return len(calls)

def odd(kind):
    return {
        "counter": lambda: collections.Counter("aab"),
        "default": lambda: collections.defaultdict(list, a=[1]),
        "named tuple": lambda: Point(1, 2),
        "enum": lambda: Colour.RED,
        "fraction": lambda: fractions.Fraction(1, 3),
        "generator": lambda: (one for one in ()),
        "function": lambda: count,
    }[kind]()

CONSTANT = 1
"""
_CASES = r"""
### numbers
assert same(2**200) == 2**200 and same(-1) == -1 and type(same(2.0)) is float and type(same(2)) is int
### floats
import math
assert math.isnan(same(math.nan)) and same(-math.inf) == -math.inf and str(same(-0.0)) == "-0.0"
### truth
assert same(True) is True and same(None) is None and type(same(1)) is int
### text
assert same("\ud83d\ude00\ud800\u00e9\x00") == "\ud83d\ude00\ud800\u00e9\x00" and same(b"\xff") == b"\xff"
### containers
value = [(1, [2]), {"a": {(1, 2): {3}}}, frozenset("x"), range(3), 1j, bytearray(b"x")]
assert same(value) == value and list(map(type, same(value))) == list(map(type, value))
### order of keys
assert list(same({"b": 1, "a": 2})) == ["b", "a"]
### names of arguments
assert same(1, a=[2], b=None) == {"a": [2], "b": None}
### arguments that change
values = [1, 2]
assert shorten(values) is None and values == [1, "new"]
### parts of arguments that change
inner = [1]
outer = {"x": inner}
fill(outer)
assert outer["seen"][0] is outer and outer["x"] is inner
### the same object
values, pair = [1], (1, 2)
assert same(values) is values and same((values, values))[1] is values and same(pair) is pair
### another object
assert odd("default") == {"a": [1]} and odd("default") is not odd("default")
### cycles
values = []
values.append((values,))
assert same(values)[0][0] is values
### errors of its own
try:
    fails("own")
except ValueError as error:
    assert error.args == ("own", 1) and type(error).__name__ == "OwnError"
else:
    assert False
### errors of keys
try:
    fails("key")
except KeyError as error:
    assert error.args == ("absent",)
### errors of indices
try:
    fails("index")
except LookupError:
    pass
### errors of arithmetic
try:
    fails("")
except ArithmeticError as error:
    assert str(error) == "division by zero"
### errors after changes
values = [1]
try:
    shortens_and_fails(values)
except KeyError:
    pass
assert values == []
### state
assert [count(), count(), count()] == [1, 2, 3]
### counters
assert odd("counter") == {"a": 2, "b": 1}
### subclasses
assert odd("named tuple") == (1, 2) and odd("enum") == 1
### fractions
from fractions import Fraction
assert odd("fraction") * 3 == 1
### nesting
value = []
for _ in range(300): value = [value]
assert same(value) == value
### functions as values
assert list(map(same, [1, 2])) == [1, 2] and sorted([2, 1], key=same) == [1, 2]
### names of the tests
import math as same
from math import floor as shorten
assert shorten(1.5) == 1
"""
CASES = dict(part.split("\n", 1) for part in _CASES.split("\n### ")[1:])
FAILURES = {
    "assert same(1) == 2, 'no'": "failed AssertionError: no",
    "fails('own')": "failed OwnError: ('own', 1)",
    "fails('exit')": "failed SystemExit: 3",
    "absent(1)": "failed NameError: name 'absent' is not defined",
    "CONSTANT()": "failed TypeError: 'int' object is not callable",
    "odd('generator')": "failed TypeError: 'generator' is not plain data",
    "odd('function')": "failed TypeError: 'function' is not plain data",
    "same(lambda: 1)": "failed TypeError: 'function' is not plain data",
    "same('x' * (17 << 20))": "failed TypeError: values of more than 16 MB",
    "same()": "failed TypeError: same() missing 1 required positional argument: 'value'",
    "def f(:": "failed SyntaxError",
}


def test_calls_are_as_within_one_process() -> None:
    parts = [f"def test():\n{textwrap.indent(case, '    ')}\ntest()\n" for case in CASES.values()]
    outcome = run_program(Program(source=PROGRAM, tests="\n".join(parts)), limits=Limits(wall_s=300))
    if not outcome.passed:  # which
        found = {name: run_program(Program(source=PROGRAM, tests=case)).reason for name, case in CASES.items()}
        assert set(found.values()) == {"passed"}, found
    assert outcome.passed, outcome.reason


@pytest.mark.parametrize(("tests", "reason"), FAILURES.items(), ids=FAILURES.keys())
def test_what_goes_wrong_is_told(tests: str, reason: str) -> None:
    outcome = run_program(Program(source=PROGRAM, tests=tests))
    assert not outcome.passed
    assert outcome.reason.startswith(reason), outcome.reason


def test_helpers_are_the_problems_own() -> None:
    header = "def encode(x):\n    return x + 1\n\n\ndef encode_twice(x):\n    return x + 2\n\n\n"
    check = "def check(candidate):\n    for x in range(9):\n        assert candidate(encode(x)) == x\n"
    problem = Problem("x/1", f'{header}def decode(x):\n    """Undo `encode`."""\n', "decode", check)
    assert run_program(to_program(problem, "    return x - 1\n")).passed
    changed = "def encode(x):\n    return x\n\n\ndef decode(x):\n    return x\n"
    assert not run_program(to_program(problem, changed)).passed  # its own `encode` is not asked


def test_a_function_with_the_name_of_a_built_in_one_is_the_programs() -> None:
    problem = Problem("x/1", "def sum(a):\n", "sum", "def check(f):\n    assert f([1, 2]) == sum([1, 2]) == 3\n")
    assert run_program(to_program(problem, "    return a[0] + a[1]\n")).passed
    assert not run_program(to_program(problem, "    return 4\n")).passed


def test_a_function_whose_name_begins_as_a_helpers_does() -> None:
    problem = Problem(
        "x/1", "def find_zero(x):\n    return 0\n\n\ndef find(x):\n", "find", "def check(f):\n    assert f(1) == 1\n"
    )
    assert "find_zero" in to_program(problem, "    return x\n").helpers
    assert run_program(to_program(problem, "    return x + find_zero(x)\n")).passed


def solutions() -> dict[str, str]:
    lines = (DATA / "humaneval_solutions.jsonl").read_text().splitlines()
    return {row["task_id"]: row["canonical_solution"] for row in map(json.loads, lines)}


# Those that call helpers, or read lists that a function changes.
CHOSEN = ("HumanEval/8", "HumanEval/32", "HumanEval/38", "HumanEval/50", "HumanEval/72", "HumanEval/162")


@pytest.mark.parametrize("problem", [one for one in load_problems() if one.name in CHOSEN], ids=lambda one: one.name)
def test_solutions_pass_and_others_fail(problem: Problem) -> None:
    outcome = run_program(to_program(problem, solutions()[problem.name]))
    assert outcome.passed, outcome.reason
    assert not run_program(to_program(problem, "    return None\n")).passed


@pytest.mark.slow
@pytest.mark.parametrize("problem", load_problems(), ids=lambda one: one.name)
def test_every_solution_passes(problem: Problem) -> None:
    outcome = run_program(to_program(problem, problem.prompt + solutions()[problem.name]))
    assert outcome.passed, outcome.reason
    assert not run_program(to_program(problem, "    return None\n")).passed
