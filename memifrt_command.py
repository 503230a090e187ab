"""The installed command ``memifrt``: ends quietly on Ctrl+C from its first moment on, and to the last.

A module of its own, outside the package: Python imports the package before any module inside of it, and that takes
the longest part of the start.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

#: 128 + SIGINT
_INTERRUPTED = 130


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)  # nothing is open yet, or everything is closed


def main() -> int:
    """Run the command line and return its exit status."""
    signal.signal(signal.SIGINT, _end)  # also where it was ignored, as in a script's background
    from memifrt.cli import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, _end)
