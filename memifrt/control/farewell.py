"""Tell peers that this process ends, when it ends without closing its runtimes.

Owns the list of what still has peers, and the hook that runs when the interpreter exits. Knows nothing of messages.

A peer that sees a connection end without a DISCONNECT cannot tell a program that has finished from one that crashed,
and some peers do not survive it at every step of a handshake (a VPP master after its HELLO).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Protocol


class HasPeers(Protocol):
    """An object with peers, one or many."""

    def say_farewell(self) -> None:
        """Tell every peer that this process ends. Called on the main thread while other threads may still run."""


_open: weakref.WeakSet[HasPeers] = weakref.WeakSet()
_pid = os.getpid()


def remember(owner: HasPeers) -> None:
    """Call ``owner.say_farewell`` when the interpreter exits, if ``owner`` still exists then."""
    _open.add(owner)


def forget(owner: HasPeers) -> None:
    """Call nothing: ``owner`` has no peers any more. Harmless if it was never remembered."""
    _open.discard(owner)


def _say_all() -> None:
    if os.getpid() != _pid:  # a forked child: the peers are its parent's
        return
    for owner in list(_open):
        with contextlib.suppress(Exception):
            owner.say_farewell()


def _forget_all() -> None:
    """A forked child has no part in its parent's peers, and may make some of its own."""
    global _pid
    _open.clear()
    _pid = os.getpid()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_say_all)
