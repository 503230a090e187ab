"""``python -m memifrt``: the command line."""

import sys

from memifrt_command import main

if __name__ == "__main__":
    sys.exit(main())
