"""File descriptors with one owner, which closes them once, and never in a forked child.

Owns the rule for closing fds, and the eventfds. Knows nothing of memif.
"""

from __future__ import annotations

import contextlib
import os
import select
import warnings
import weakref
from typing import TYPE_CHECKING

from memifrt.errors import os_error
from memifrt.system.eventfd import calls_for
from memifrt.system.not_copied import NotCopied
from memifrt.system.original_functions import Lock, close, poll, socket

if TYPE_CHECKING:
    from typing_extensions import Self

#: Every socket object of ours. A forked child must not close them.
_sockets: weakref.WeakSet[socket] = weakref.WeakSet()


def own_socket(sock: socket) -> socket:
    """Have a forked child detach this socket object, instead of closing its copy with a warning. Return the socket."""
    _sockets.add(sock)
    return sock


def accept(listener: socket) -> socket:
    """Return the next connection as an unpatched socket.

    :raises OSError: as ``socket.accept`` does; :class:`BlockingIOError` if none waits.
    """
    # socket.accept would create an object of the class that the socket module has now, which may be patched.
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return socket(listener.family, listener.type, listener.proto, fileno=fd)


def _forget_sockets() -> None:
    for sock in _sockets:
        sock.detach()


os.register_at_fork(after_in_child=_forget_sockets)


class OwnedFd(NotCopied):
    """An fd that only this object closes.

    A second close does nothing. An object that is never closed warns with :class:`ResourceWarning`. In a forked child,
    which shares the fd with its parent, ``close`` only forgets the number.

    :param what: what the fd is, for the repr.
    """

    __slots__ = ("_fd", "_pid", "_what")

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what
        self._pid = os.getpid()

    def fileno(self) -> int:
        """Return the number, or -1 after the close."""
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the fd is closed or detached."""
        return self._fd < 0

    def detach(self) -> int:
        """Return the number and forget it. The caller must close it."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Close the fd. A second call does nothing; in a forked child the first one only forgets the number."""
        fd, self._fd = self._fd, -1
        if fd >= 0 and self._pid == os.getpid():
            close(fd)

    def __del__(self) -> None:
        # After an __init__ that failed there is no _fd.
        if getattr(self, "_fd", -1) >= 0 and self._pid == os.getpid():
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:  # with "-W error" the warning is an exception
                self.close()

    def __repr__(self) -> str:
        return f"<{self._what} fd={self._fd}>"


class EventFd(OwnedFd):
    """An eventfd that one thread may use while another closes it.

    :ivar calls: its system calls, for the compiled queues.
    """

    __slots__ = ("_lock", "_room", "calls")

    def __init__(self, fd: int, what: str) -> None:
        #: Held for a write, and while the fd is closed, so that no write reaches the next file with its number.
        self._lock = Lock()
        self.calls = calls_for(fd)
        super().__init__(fd, what)
        self._room = poll()
        self._room.register(fd, select.POLLOUT)

    @classmethod
    def create(cls, what: str) -> Self:
        """Create an eventfd.

        :raises MemifOSError: the system refuses, for example because the process has too many open files.
        """
        try:
            return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), what)
        except OSError as error:
            raise os_error(f"cannot make the {what}", error) from error

    def notify(self) -> None:
        """Make the fd readable. If the counter is full, it is readable already."""
        if self.calls.kick():
            return
        # Without a kick that cannot block, a write must do. The peer shares this file: it can fill the counter and
        # clear O_NONBLOCK, so that a write blocks. The poll and set_blocking leave it only the moment before the write.
        # If it uses that moment, this thread and one that closes the fd wait until it reads the counter or exits.
        with self._lock:
            if self._fd >= 0 and self._room.poll(0):
                os.set_blocking(self._fd, False)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self._fd, 1)

    def is_readable(self) -> bool:
        """Return whether a kick has not been read yet."""
        return self.calls.is_readable()

    def drain(self) -> bool:
        """Make the fd unreadable. Return whether it was readable."""
        return self.calls.drain()

    def abandon(self) -> None:
        """Forget the number in a forked child, so that nothing there reaches the parent's eventfd."""
        self._lock = Lock()  # a thread of the parent may have held it
        self.calls.abandon()
        self._fd = -1

    def detach(self) -> int:
        """Return the number and forget it, once no other thread writes to it. The caller must close it."""
        with self._lock:
            self.calls.forget()
            return super().detach()

    def close(self) -> None:
        """Close the fd. Another thread that uses it at this moment finds it closed."""
        if self._pid != os.getpid():
            self.abandon()
            return
        fd = self.detach()
        if fd >= 0:
            close(fd)
