"""Run the commands as ``python -m q43nl_numba``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
