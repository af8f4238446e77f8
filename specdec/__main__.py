"""`python -m specdec`: the same command line as the installed `specdec`."""

import sys

from specdec.cli.startup import main

if __name__ == "__main__":
    sys.exit(main())
