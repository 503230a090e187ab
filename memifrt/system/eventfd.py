"""The system calls of an eventfd that is shared with a peer, readable and compiled.

``NativeCalls`` of ``_eventfd.pyx`` are the same calls, compiled. Knows nothing of memif or of the owner of the fd.
"""

from __future__ import annotations

import errno
import os
import select
from typing import Protocol

from memifrt.system.original_functions import Lock, poll, read

#: Errors of a preadv2 that is missing (ENOSYS), is refused by a seccomp profile (EPERM, EACCES), or does not read an
#: eventfd without waiting (EOPNOTSUPP).
_LACKS_PREADV2 = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


class EventFdCalls(Protocol):
    """The calls of one eventfd. None of them waits, whatever the peer has done to the file.
    There is one exception: where ``preadv2`` does not read an eventfd (an old kernel, a seccomp profile), a drain may
    wait if the peer clears ``O_NONBLOCK`` and reads the eventfd meanwhile.

    One thread may call them while another calls :meth:`forget`: the kernel reuses the number of a closed fd, and no
    call reaches the next file with that number.
    """

    def kick(self) -> bool:
        """Make the fd readable. Return False if this system has no kick that cannot block; then the caller writes."""

    def drain(self) -> bool:
        """Make the fd unreadable. Return whether it was readable.

        :raises OSError: the read has failed.
        """

    def is_readable(self) -> bool:
        """Return whether a kick has not been read yet."""

    def forget(self) -> None:
        """Forget the fd, which is closed next. Later calls do nothing."""

    def abandon(self) -> None:
        """Forget the fd in a forked child, where a thread of the parent may have held a lock."""


class PythonCalls:
    """See :class:`EventFdCalls`."""

    __slots__ = ("_fd", "_kick", "_lock", "_value")

    def __init__(self, fd: int) -> None:
        # Imported here because it imports ctypes, which the compiled calls do without.
        from memifrt.system.kick import kick_for

        self._fd = fd
        self._lock = Lock()
        self._value = bytearray(8)
        self._kick = kick_for(fd)

    def kick(self) -> bool:
        with self._lock:
            return self._fd < 0 or (self._kick is not None and self._kick())

    def drain(self) -> bool:
        with self._lock:
            if self._fd < 0:
                return False
            try:
                # RWF_NOWAIT: the peer shares this file and can clear O_NONBLOCK. The read must not wait even then.
                return os.preadv(self._fd, (self._value,), -1, os.RWF_NOWAIT) > 0
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _LACKS_PREADV2:
                    raise
                return self._drain_by_read()

    def _drain_by_read(self) -> bool:
        """Read where preadv2 cannot: see ``memif_drain_by_read`` in ``eventfd_calls.h``."""
        waiting = poll()
        waiting.register(self._fd, select.POLLIN)
        if not waiting.poll(0):
            return False
        os.set_blocking(self._fd, False)
        try:
            return bool(read(self._fd, 8))
        except BlockingIOError:
            return False

    def is_readable(self) -> bool:
        with self._lock:
            if self._fd < 0:
                return False
            waiting = poll()
            waiting.register(self._fd, select.POLLIN)
            return bool(waiting.poll(0))

    def forget(self) -> None:
        with self._lock:
            self._fd = -1

    def abandon(self) -> None:
        self._lock = Lock()
        self._fd = -1


def calls_for(fd: int) -> EventFdCalls:
    """Return the calls of an eventfd: the compiled ones, if there are any."""
    try:
        from memifrt.system._eventfd import NativeCalls
    except ImportError:
        return PythonCalls(fd)
    return NativeCalls(fd)
