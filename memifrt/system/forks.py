"""What a forked child inherits and does not own.

Owns the hook that runs in a child after a fork, and the list of methods that it calls. Knows nothing of memif.

The child shares every fd, poll set and mapping with its parent. The parent's objects therefore end in the child at
once, each by a method of its own. No later call has to compare process ids, so no packet costs more.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable

_methods: set[weakref.WeakMethod[Callable[[], object]]] = set()


def abandon_after_fork(method: Callable[[], object]) -> None:
    """Call a bound method in every forked child, as long as its object exists.

    :param method: forgets everything that the child shares with its parent, and touches none of it.
    """
    _methods.add(weakref.WeakMethod(method, _methods.discard))


def _abandon_all() -> None:
    for reference in _methods.copy():
        method = reference()
        if method is None:
            continue
        try:
            method()
        except Exception:  # one failure must not leave the other objects in use
            sys.excepthook(*sys.exc_info())
    _methods.clear()


os.register_at_fork(after_in_child=_abandon_all)
