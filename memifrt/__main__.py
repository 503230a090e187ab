"""``python -m memifrt``: the command line."""

import sys

from memifrt.cli.command_line import main

if __name__ == "__main__":
    sys.exit(main())
