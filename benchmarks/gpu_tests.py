"""Run the GPU runtime's tests on this machine's GPU, and print device, versions and the outcomes by test.

python benchmarks/gpu_tests.py            # -k and other options go on to pytest
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from common import print_machine

from specdec.errors import RuntimeUnavailableError
from specdec.runtimes.mlx.device import find_gpu

FILES = ("test_gpu_features.py", "test_gpu_runtime.py", "test_gpu_quantised.py", "test_gpu_batch.py")
FILES += ("test_gpu_choices.py", "test_gpu_prompts.py", "test_gpu_decode.py")
FILES += ("test_gpu_recycle.py", "test_gpu_ranks.py")
TESTS = [str(Path(__file__).resolve().parent.parent / "tests" / "runtimes" / "mlx" / name) for name in FILES]


class Outcomes:
    """Counts what pytest reports, by test function."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test; a test that passes does so in its call, one that is skipped may be so before it."""
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.split("::")[-1].split("[")[0]
            self.counts.setdefault(name, Counter())[report.outcome] += 1


def main() -> int:
    """Run, print, and exit as pytest does."""
    try:
        gpu = find_gpu()
    except RuntimeUnavailableError as error:
        sys.exit(str(error))
    outcomes = Outcomes()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *TESTS, *sys.argv[1:]], plugins=[outcomes])
    print_machine()
    print(f"{gpu.name}, {gpu.backend}, MLX {gpu.version}")
    for name, counts in outcomes.counts.items():
        print(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
