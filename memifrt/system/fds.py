"""File descriptors with one owner: closed once, missed when forgotten, left alone in a forked child.

Owns the rule of who closes an fd, and the eventfds. Knows nothing of memif.
"""

from __future__ import annotations

import contextlib
import os
import select
import warnings
import weakref
from typing import TYPE_CHECKING

from memifrt.errors import os_error
from memifrt.system.original_functions import Lock, close, poll, socket

if TYPE_CHECKING:
    from typing_extensions import Self

#: Every socket object of ours: in a forked child it is its parent's to close.
_sockets: weakref.WeakSet[socket] = weakref.WeakSet()


def own_socket(sock: socket) -> socket:
    """Let a forked child forget this socket object, instead of closing its copy with a warning."""
    _sockets.add(sock)
    return sock


def accept(listener: socket) -> socket:
    """The next connection, as a socket that nothing has patched.

    :raises OSError: as ``socket.accept`` does; :class:`BlockingIOError` if none waits.
    """
    # The method of this name makes an object of whatever class the socket module holds at that time.
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return socket(listener.family, listener.type, listener.proto, fileno=fd)


def _forget_sockets() -> None:
    for sock in _sockets:
        sock.detach()


os.register_at_fork(after_in_child=_forget_sockets)


class OwnedFd:
    """An fd that this object alone closes.

    Closing twice is harmless; forgetting to close warns with :class:`ResourceWarning`. A forked child shares the fd
    with its parent: there, closing only forgets the number.
    """

    __slots__ = ("_fd", "_pid", "_what")

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what
        self._pid = os.getpid()

    def fileno(self) -> int:
        """The number, or -1 once closed."""
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def detach(self) -> int:
        """Give the fd away: the number is the caller's to close."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0 and self._pid == os.getpid():
            close(fd)

    def __del__(self) -> None:
        # An fd that __init__ never stored, or a closed one, has nothing to say.
        if getattr(self, "_fd", -1) >= 0 and self._pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<{self._what} fd={self._fd}>"


class EventFd(OwnedFd):
    """An eventfd that may be used in one thread while another closes it.

    The number of a closed fd is soon another file's: the lock keeps ``notify`` and ``drain`` from reaching that
    file. Neither of them ever blocks, so it is held for a system call at most.
    """

    __slots__ = ("_kick", "_lock", "_room", "_value")

    def __init__(self, fd: int, what: str) -> None:
        # Imported here because it needs ctypes, which a program that only imports memifrt does not.
        from memifrt.system.kick import kick_for

        super().__init__(fd, what)
        self._lock = Lock()
        self._value = bytearray(8)
        self._kick = kick_for(fd)
        self._room = poll()
        self._room.register(fd, select.POLLOUT)

    @classmethod
    def create(cls, what: str) -> Self:
        """:raises MemifOSError: the system refuses, for example for want of fds."""
        try:
            return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), what)
        except OSError as error:
            raise os_error(f"cannot make the {what}", error) from error

    def notify(self) -> None:
        """Make the fd readable. A counter that is full already says so."""
        with self._lock:
            if self._fd < 0:
                return
            if self._kick is not None and self._kick():
                return
            # A system without such kicks. The peer shares this file: it can fill the counter and make writing block.
            # Asking first, and saying that we do not wait, leaves it no more than the moment before the last call; in
            # that moment it can hold this thread, and one that closes the fd, until it reads the counter or ends.
            if self._room.poll(0):
                os.set_blocking(self._fd, False)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self._fd, 1)

    def is_readable(self) -> bool:
        """Whether somebody has still to read a kick."""
        with self._lock:
            if self._fd < 0:
                return False
            waiting = poll()
            waiting.register(self._fd, select.POLLIN)
            return bool(waiting.poll(0))

    def abandon(self) -> None:
        """In a forked child: forget the number, so that nothing here reaches the parent's eventfd."""
        self._lock = Lock()  # a thread that the child does not have may hold it
        self._fd = -1

    def drain(self) -> bool:
        """Make the fd unreadable; whether it was readable."""
        with self._lock:
            if self._fd < 0:
                return False
            try:
                # RWF_NOWAIT: the peer shares this file and can make it blocking; our read must not wait even then.
                return os.preadv(self._fd, (self._value,), -1, os.RWF_NOWAIT) > 0
            except BlockingIOError:
                return False

    def close(self) -> None:
        if self._pid != os.getpid():  # a thread that the child does not have may hold the lock
            super().close()
            return
        with self._lock:
            super().close()
