"""Lets Ctrl+C end ``python -m memifrt`` quietly from its first import on, as it ends the installed command.

The package imports this module before any other. Importing it changes nothing in any other program.
"""

from __future__ import annotations

import os
import signal
import sys


def _starts_command() -> bool:
    """Return whether Python imports the package to run it: meanwhile it sets ``argv[0]`` to ``-m``."""
    return sys.argv[:1] == ["-m"] and any(argument in ("memifrt", "-mmemifrt") for argument in sys.orig_argv)


if _starts_command():
    # Nothing is open yet. The command itself sets its own handler. 130 is 128 + SIGINT.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
