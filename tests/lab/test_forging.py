"""Programs that try to pass tests which they fail: nothing that they change in their own interpreter makes it so."""

from __future__ import annotations

import struct

import pytest

from specdec.lab.eval.sandbox import Limits, Program, run_program

TESTS = "def check(f):\n    assert f(2) == 4\n    assert f(3) == 9, 'not 9'\n\ncheck(square)\n"
QUICK = Limits(wall_s=300, cpu_s=2)
# Each returns 0 or worse, and does something about that: where it begins, or where it is called.
_FORGERIES = r"""
### it ends its process
import os
os._exit(0)

### it ends its process when called
import os
def square(x):
    os._exit(0)

### it exits
import sys
def square(x):
    sys.exit(0)

### it writes a result on every descriptor
import os
def square(x):
    for fd in range(256):
        for word in (b"passed", b"passed\n", b"limited\npassed\n", b"limited passed"):
            try:
                os.write(fd, word)
            except OSError:
                pass
    os._exit(0)

### it prints a result
import sys
print("passed", flush=True)
sys.stderr.write("passed")
def square(x):
    return 0

### it answers before it is asked
import json, os, struct
message = json.dumps({"value": None, "objects": []}).encode()
for fd in range(3, 64):
    try:
        os.write(fd, (struct.pack(">I", len(message)) + message) * 9)
    except OSError:
        pass
def square(x):
    return 0

### it returns what claims to be equal to everything
class Any:
    def __eq__(self, other): return True
    def __bool__(self): return True
    def __hash__(self): return 0
def square(x):
    return Any()

### it returns a number that is equal to every other
class Any(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def square(x):
    return Any(1)

### it patches what tests use
import builtins, json, os, sys, traceback
builtins.AssertionError = ()
builtins.exec = lambda *_: None
json.dumps = lambda *_, **__: "{}"
traceback.format_exception_only = lambda *_: ["passed"]
sys.excepthook = lambda *_: os._exit(0)
def square(x):
    return 0

### it changes the names of every frame
import sys
def square(x):
    frame = sys._getframe().f_back
    while frame:
        for names in (frame.f_globals, frame.f_locals):
            for name in list(names):
                names[name] = lambda *_, **__: "passed"
        frame = frame.f_back
    return 0

### it changes what the collector knows
import gc
def square(x):
    for one in gc.get_objects():
        if type(one) is dict:
            for key in ("word", "passed", "value", "reason", "check", "candidate", "send", "error"):
                if key in one:
                    one[key] = "passed"
    return 0

### it replaces the code that answers
import sys
harness = sys.modules["specdec.lab.eval.sandbox_program"]
harness._answer = lambda *_: {"value": True, "passed": True, "objects": []}
def square(x):
    return 0

### it overwrites its argument in memory
import ctypes
def square(x):
    ctypes.memset(id(x) + 24, 0, 4)
    return x

### it overwrites its memory through proc
def square(x):
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(id(x) + 24)
        memory.write(bytes(4))
    return x

### it attacks other processes
import ctypes, os, signal
libc = ctypes.CDLL(None)
for pid in (1, os.getppid(), *range(3, 400)):
    libc.ptrace(16, pid, 0, 0)
    if pid != os.getpid():
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
def square(x):
    return 0

### it raises under the name of a result
class passed(Exception):
    pass
passed.__name__ = "passed\npassed"
def square(x):
    raise passed("passed")

### it ends in an exit handler
import atexit, os
atexit.register(os._exit, 0)
def square(x):
    raise SystemExit(0)

### it takes the signals of its limits
import os, signal
for number in range(1, 65):
    try:
        signal.signal(number, lambda *_: os._exit(0))
    except (OSError, ValueError):
        pass
def square(x):
    while True:
        pass

### it looks for the tests
import gc
def square(x):
    texts = [one for one in gc.get_objects() if type(one) is dict and "not 9" in repr(list(one.values()))[:100000]]
    return x * x if texts else 0
"""
FORGERIES = dict(part.split("\n", 1) for part in _FORGERIES.split("\n### ")[1:])


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_program_cannot_forge_its_result(program: str) -> None:
    outcome = run_program(Program(source=program, tests=TESTS), limits=QUICK)
    assert not outcome.passed, outcome.reason


@pytest.mark.parametrize(
    "name", ["it changes the names of every frame", "it ends its process", "it writes a result on every descriptor"]
)
def test_nor_where_it_is_not_confined(name: str) -> None:
    assert not run_program(Program(source=FORGERIES[name], tests=TESTS), limits=QUICK, unconfined=True).passed


def test_a_right_program_passes() -> None:
    outcome = run_program(Program(source="def square(x):\n    return x * x\n", tests=TESTS))
    assert outcome.passed, outcome.reason


# What a program may write on its socket instead of an answer.
FRAMES = {
    "no JSON": b"passed",
    "no object": b"[1]",
    "deep": b"[" * 100_000,
    "without a value": b"{}",
    "unknown tag": b'{"value": ["code", "0"], "objects": []}',
    "unknown kind": b'{"value": ["at", 0], "objects": [["object"]]}',
    "a name of a function": b'{"value": ["at", 0], "objects": [["os.system", "true"]]}',
    "a tuple in itself": b'{"value": ["at", 0], "objects": [["tuple", ["at", 0]]]}',
    "beyond the end": b'{"value": ["at", 7], "objects": []}',
    "before the beginning": b'{"value": ["at", -1], "objects": [["list"]]}',
    "unhashable": b'{"value": ["at", 1], "objects": [["list"], ["set", ["at", 0]]]}',
    "half a pair": b'{"value": ["at", 0], "objects": [["dict", 1]]}',
    "a range of text": b'{"value": ["at", 0], "objects": [["range", "a", "b", "c"]]}',
    "a fraction of text": b'{"value": ["at", 0], "objects": [["Fraction", "1e999999999", 1]]}',
    "a fraction over 0": b'{"value": ["at", 0], "objects": [["Fraction", 1, 0]]}',
    "a number of many digits": b'{"value": ' + b"9" * 10_000 + b', "objects": []}',
    "an error that is none": b'{"error": ["dict"], "arguments": [], "objects": []}',
    "an error of no name": b'{"error": [1], "arguments": [], "objects": []}',
    "an error without arguments": b'{"error": ["ValueError"], "objects": []}',
}
ON_THE_SOCKET = """
import os, socket
for channel in range(3, 4096):
    try:
        if socket.socket(fileno=os.dup(channel)).family == socket.AF_UNIX: break
    except OSError: pass

def square(x):
    while True: os.write(channel, {bytes!r})
"""


@pytest.mark.parametrize("content", FRAMES.values(), ids=FRAMES.keys())
def test_an_answer_that_is_malformed_is_a_failure(content: bytes) -> None:
    program = ON_THE_SOCKET.format(bytes=struct.pack(">I", len(content)) + content)
    outcome = run_program(Program(source=program, tests=TESTS), limits=QUICK)
    assert outcome.reason.startswith("failed the program's answer cannot be read: "), outcome.reason


def test_an_answer_that_never_ends_is_too_large() -> None:
    outcome = run_program(Program(source=ON_THE_SOCKET.format(bytes=b"\xff" * 4096), tests=TESTS), limits=QUICK)
    assert outcome.reason.endswith("a message is too large"), outcome.reason


def test_an_answer_that_takes_long_to_compare_is_ended() -> None:
    same_hash = "{number * ((1 << 61) - 1): 0 for number in range(20_000)}"  # of all keys
    program = f"def square(x):\n    return {same_hash}\n"
    outcome = run_program(Program(source=program, tests=TESTS), limits=Limits(wall_s=300, cpu_s=1))
    assert outcome.reason == "killed by SIGXCPU"


def test_what_tests_catch_is_counted_nevertheless() -> None:
    tests = "try:\n    f(1)\nexcept:\n    pass\n"
    for program in ("import os\ndef f(x):\n    os._exit(0)\n", "import os\nos._exit(0)\n"):
        assert run_program(Program(source=program, tests=tests)).reason == "ended itself"
    assert run_program(Program(source="def f(x):\n    raise ValueError\n", tests=tests)).passed


def test_neither_the_tests_nor_other_packages_are_in_sight() -> None:
    program = """
import os, sys
found = []
for top in ("/", os.path.dirname(os.__file__)):
    for place, _, files in os.walk(top):
        packages = os.path.basename(place) in ("site-packages", "dist-packages")
        found += [f"{place}/{name}" for name in files if packages or "humaneval" in name or "sandbox" in name]
assert not found, found
"""
    outcome = run_program(program, limits=Limits(wall_s=300, cpu_s=60))
    assert outcome.passed, outcome.reason
