"""The process in which a foreign program runs: `sandbox` starts this file by its path, with nothing else to import.

It limits itself, gives up rights where it has any to give, and then runs the program that stands on its standard input.
The word on the descriptor of results says how that ended; no word means that the program ended the process itself.
"""

import json
import os
import resource
import sys
import traceback

NOBODY = 65534
# What programs commonly import. Read before rights are given up: the interpreter may lie where only its owner reads.
_COMMON = (
    "abc bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools "
    "json math operator random re statistics string sys textwrap time typing"
)


def limit(limits: dict[str, int]) -> None:
    """Set the limits of this process and its children, and stop being root."""
    for name in _COMMON.split():
        __import__(name)
    if os.getuid() == 0:  # no limit on processes holds for root, and files would be open to it
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        # What the user runs already counts, so none means that no process and no thread can be started.
        resource.RLIMIT_NPROC: limits["processes"],
    }
    for kind, value in wanted.items():
        # Past the hard limit of processor time the kernel kills; at the soft one the signal says why.
        _lower(kind, value, spare=int(kind == resource.RLIMIT_CPU))
    try:
        _lower(resource.RLIMIT_AS, limits["memory_bytes"])
    except (OSError, ValueError):
        if sys.platform != "darwin":  # whose kernel knows the limit and refuses to set it
            raise


def _lower(kind: int, value: int, spare: int = 0) -> None:
    """Set a limit for good; the hard one can only sink."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)))


def main() -> None:
    """Run the program of standard input under the limits of the first argument."""
    limits, results = json.loads(sys.argv[1]), int(sys.argv[2])
    program = sys.stdin.buffer.read()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    limit(limits)
    os.write(results, b"limited\n")
    sys.argv = ["program.py"]
    word = "passed"
    try:
        # A module of its own, as if the program were the main one.
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
    except MemoryError:
        word = "memory"
    except BaseException as error:
        last = traceback.format_exception_only(error)[-1].strip()
        word = f"failed {last[:200]}"
    os.write(results, word.encode(errors="replace") + b"\n")
    os._exit(0)  # no exit handlers of the program


main()
