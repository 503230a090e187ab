"""What a forked child inherits and does not own.

Owns the hook that runs in a child after a fork, and the list of the objects that it tells. Knows nothing of memif.

The child shares every fd, poll set and mapping with its parent. So the objects of the parent end there at once, each
by its own ``_abandon``: nothing has to look at the process id later, and a call for each packet costs no more.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import Protocol


class Inheritable(Protocol):
    """An object that a forked child must not use."""

    def _abandon(self) -> object:
        """In the child: forget all that is shared with the parent, and touch none of it."""


_things: weakref.WeakSet[Inheritable] = weakref.WeakSet()


def abandon_after_fork(thing: Inheritable) -> None:
    """Call ``thing._abandon()`` in every forked child, as long as the object exists."""
    _things.add(thing)


def _abandon_all() -> None:
    for thing in list(_things):
        try:
            thing._abandon()
        except Exception:  # one that fails must not keep the others in use
            sys.excepthook(*sys.exc_info())
    _things.clear()


os.register_at_fork(after_in_child=_abandon_all)
