"""Fds that a peer sent: whatever they are of, closing them does not wait.

Owns how such an fd is closed. Knows nothing of what it should have been.

Closing a file asks its file system, and one of the peer's own (FUSE) may never answer; a socket may linger over what it
has not sent. Memory and eventfds have nobody to ask. Everything else is closed in a thread of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from memifrt.fds import OwnedFd
from memifrt.unpatched import Lock, start_new_thread

#: Seconds that a thread gets before we go on without it. What closes at all does so in microseconds.
_PATIENCE = 0.01
#: With so many that have not come back there is no patience left.
_STUCK = 8

_close = os.close
#: Closes that have not come back.
_closing: set[object] = set()


class ReceivedFd(OwnedFd):
    """An :class:`~memifrt.fds.OwnedFd` whose close never waits for the peer."""

    __slots__ = ()

    def close(self) -> None:
        fd = self.detach()
        if fd < 0 or self._pid != os.getpid():
            return
        if _closes_at_once(fd):
            os.close(fd)
        else:
            _close_beside(fd)


def _closes_at_once(fd: int) -> bool:
    """Whether the file is memory or an anonymous inode such as an eventfd. Nothing is asked that could wait."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # no memory
        try:
            return os.readlink(f"/proc/self/fd/{fd}").startswith("anon_inode:")
        except OSError:
            return False
    return True


def _close_beside(fd: int) -> None:
    finished = Lock()
    finished.acquire()

    def close() -> None:
        try:
            with contextlib.suppress(OSError):  # its file system may have died; the number is free all the same
                _close(fd)
        finally:
            _closing.discard(finished)
            finished.release()

    patient = len(_closing) < _STUCK
    _closing.add(finished)
    try:
        start_new_thread(close, ())
    except RuntimeError:  # no more threads: an fd that stays open is better than one that keeps us waiting
        _closing.discard(finished)
        return
    if patient:
        finished.acquire(timeout=_PATIENCE)
