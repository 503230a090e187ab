"""End the parent's objects in a forked child.

Owns the hook that runs in a child after a fork, and the list of methods that it calls. Knows nothing of memif.

The child shares every fd, poll set and mapping with its parent. So the hook ends the parent's objects in the child at
once, each with a method of its own. Later calls need not compare process ids, so packets cost no more.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from types import MethodType
from typing import TypeVar, cast

_T = TypeVar("_T")

#: The objects of :func:`keep_for_ever`.
_kept: list[object] = []

#: Each object with the method to call. Not a list of weak methods: those complain when the interpreter ends first.
_methods: weakref.WeakKeyDictionary[object, Callable[[object], object]] = weakref.WeakKeyDictionary()


def abandon_after_fork(method: Callable[[], object]) -> None:
    """Call a bound method in every forked child, as long as its object exists. An object has one such method.

    :param method: forgets everything that the child shares with its parent, and touches none of it.
    """
    bound = cast(MethodType, method)
    call_after_fork(bound.__self__, bound.__func__)


def call_after_fork(thing: _T, function: Callable[[_T], object]) -> None:
    """Call ``function(thing)`` in every forked child, as long as ``thing`` exists. An object has one such function.

    :param function: must not keep ``thing``. As for :func:`abandon_after_fork`.
    """
    _methods[thing] = cast("Callable[[object], object]", function)


def keep_for_ever(thing: object) -> None:
    """Keep an object for ever, because its destructor would close an fd by number. Call this in a forked child.

    The child may have closed this fd, as daemons close all, and the number may belong to another file by then.
    """
    _kept.append(thing)


def _abandon_all() -> None:
    for thing, method in list(_methods.items()):
        try:
            method(thing)
        except Exception:  # one failure must not leave the other objects in use
            sys.excepthook(*sys.exc_info())
    _methods.clear()


os.register_at_fork(after_in_child=_abandon_all)
