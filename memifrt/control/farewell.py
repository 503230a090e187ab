"""Tell peers that this process ends, if it exits without closing its runtimes.

Owns the list of objects that still have peers, and the hook that runs when the interpreter exits. Knows nothing of
messages.

Without a DISCONNECT a peer cannot tell a program that has finished from one that has crashed. Some peers crash if a
connection ends without one in the middle of the handshake (a VPP master after its HELLO).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Protocol


class HasPeers(Protocol):
    """An object that has one or more peers."""

    def say_farewell(self) -> None:
        """Tell every peer that this process ends. Called on the main thread while other threads may still run."""


_open: weakref.WeakSet[HasPeers] = weakref.WeakSet()
_pid = os.getpid()


def remember(owner: HasPeers) -> None:
    """Call ``owner.say_farewell`` when the interpreter exits, if ``owner`` still exists then."""
    _open.add(owner)


def forget(owner: HasPeers) -> None:
    """Remove ``owner``, which has no peers any more. Does nothing for an unknown object."""
    _open.discard(owner)


def _say_all() -> None:
    if os.getpid() != _pid:  # a forked child: the peers are the parent's
        return
    for owner in list(_open):
        with contextlib.suppress(Exception):
            owner.say_farewell()


def _forget_all() -> None:
    """Start with an empty list in a forked child: the peers so far are the parent's."""
    global _pid
    _open.clear()
    _pid = os.getpid()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_say_all)
