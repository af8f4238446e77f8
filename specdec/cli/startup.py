"""Entry point of the command line: `main`. An interrupt while the rest is imported ends the command quietly.

This module imports almost nothing, so that there is a handler before the slow imports. Handlers of everything later
are in `signals`.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command line of the process.

    Returns:
        The exit code.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, quit_at_once)
    from specdec.cli import main as command

    return command.main()


def quit_at_once(_number: int, _frame: FrameType | None) -> None:
    """Handle SIGINT as long as nothing is under way that would have to be cleared up.

    An exception would not do: libraries turn it into an ImportError, or into a longer report.
    """
    try:
        os.write(2, b"specdec: interrupted\n")
    finally:  # it may be closed or full
        os._exit(EXIT_INTERRUPTED)
