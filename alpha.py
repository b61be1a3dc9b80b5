"""The `alpha` command: `python alpha.py train --data=FILE` is the same as the installed `alpha train --data=FILE`."""

import sys

if __name__ == "__main__":
    from alpha.process import start

    sys.exit(start())
