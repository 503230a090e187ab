"""Survive SIGBUS when a peer truncates a mapped file: map zero pages over the region and report the loss.

Chooses between the compiled guards (``_sigbus``) and those in Python (:mod:`memifrt.memory.sigbus_reference`, which has
the contract). ``MEMIFRT_RING=python`` forces the latter, as it does for the rings.

After a truncation, pages of our mapping have no file behind them, and touching one raises SIGBUS. While a
:class:`Guard` exists, the process has a handler that maps anonymous memory over the whole mapping and returns, so the
interrupted code goes on and reads zeros. The handler sets ``lost`` and shuts down the reading side of the connection's
channel. That wakes the control thread, which asks ``lost`` and ends the connection. Any other SIGBUS does what it did
before the handler was installed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ.get("MEMIFRT_RING") == "python":
    from memifrt.memory.sigbus_reference import Guard, HangUp, address_of, make_private
else:
    try:
        from memifrt.memory._sigbus import Guard, HangUp, address_of, make_private
    except ImportError:
        from memifrt.memory.sigbus_reference import Guard, HangUp, address_of, make_private

__all__ = ["Guard", "HangUp", "address_of", "make_private"]
