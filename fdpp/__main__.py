"""``python -m fdpp``: the same as the ``fdpp`` command."""

import sys

from fdpp.cli import main

if __name__ == "__main__":
    sys.exit(main())
