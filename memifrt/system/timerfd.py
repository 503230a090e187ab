"""A timerfd: an fd that becomes readable at one moment of the monotonic clock.

Owns the fd. CPython has ``os.timerfd_create`` from 3.13 on. Before that, ctypes calls the C library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from select import POLLIN

from memifrt.system.fds import OwnedFd
from memifrt.system.original_functions import poll, read

_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
#: A time in the past: 0 ns would disarm the timer.
_AT_ONCE = 1e-9


class TimerFd(OwnedFd):
    """An fd that becomes readable at one moment. It starts disarmed."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        super().__init__(_create(), "timer")
        self._due: float | None = None

    @property
    def due(self) -> float | None:
        """When it expires, in seconds of ``time.monotonic()``; None while it is disarmed."""
        return self._due

    @property
    def armed(self) -> bool:
        """Whether the timer is set."""
        return self._due is not None

    def arm(self, due: float) -> None:
        """Make the fd readable at ``due`` (by ``time.monotonic()``), or at once if that is past."""
        if due != self._due:
            _set(self.fileno(), max(due, _AT_ONCE))
            self._due = due

    def hasten(self, due: float) -> None:
        """Make the fd readable at ``due`` at the latest. May be called from any thread.

        This asks the kernel, and leaves :attr:`due` to the owner's thread: a second writer could hide that the timer is
        not set. If the owner's thread sets the timer at the same time, this may delay it, but never beyond ``due``.
        """
        fd = self.fileno()
        left = _left(fd)
        if 0 < left <= due - time.monotonic() or (not left and _is_readable(fd)):
            return
        _set(fd, max(due, _AT_ONCE))

    def disarm(self) -> None:
        """Make the fd unreadable until it is armed again."""
        if self._due is not None:
            _set(self.fileno(), 0.0)
            self._due = None

    def drain(self) -> bool:
        """Make the fd unreadable and disarm it. Return whether the timer had expired."""
        try:
            expired = bool(read(self.fileno(), 8))
        except BlockingIOError:
            return False
        self._due = None
        return expired


def _is_readable(fd: int) -> bool:
    poller = poll()
    poller.register(fd, POLLIN)
    return bool(poller.poll(0))


if sys.version_info >= (3, 13):

    def _create() -> int:
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=_TFD_NONBLOCK | _TFD_CLOEXEC)

    def _set(fd: int, due: float) -> None:
        if fd < 0:  # os.timerfd_settime raises ValueError; the callers know a closed timer by its OSError
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.timerfd_settime(fd, flags=_TFD_TIMER_ABSTIME, initial=due)

    def _left(fd: int) -> float:
        """Return in how many seconds the timer expires; 0 if it has expired or is not set."""
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return os.timerfd_gettime(fd)[0]

else:

    class _Itimerspec(ctypes.Structure):
        _fields_ = (
            ("interval_s", ctypes.c_long),
            ("interval_ns", ctypes.c_long),
            ("value_s", ctypes.c_long),
            ("value_ns", ctypes.c_long),
        )

    _libc = ctypes.CDLL(None, use_errno=True)

    def _create() -> int:
        fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if fd < 0:
            raise _last_error()
        return fd

    def _set(fd: int, due: float) -> None:
        seconds, nanoseconds = divmod(round(due * 1e9), 1_000_000_000)
        spec = _Itimerspec(0, 0, seconds, nanoseconds)
        if _libc.timerfd_settime(fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None) < 0:
            raise _last_error()

    def _left(fd: int) -> float:
        """Return in how many seconds the timer expires; 0 if it has expired or is not set."""
        spec = _Itimerspec()
        if _libc.timerfd_gettime(fd, ctypes.byref(spec)) < 0:
            raise _last_error()
        return float(spec.value_s + spec.value_ns / 1e9)

    def _last_error() -> OSError:
        number = ctypes.get_errno()
        return OSError(number, errno.errorcode.get(number, str(number)))
