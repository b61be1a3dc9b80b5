"""The `alpha` command: `python alpha.py train --data=FILE` is the same as the installed `alpha train --data=FILE`."""

import sys

from alpha.cli import main

if __name__ == "__main__":
    sys.exit(main())
