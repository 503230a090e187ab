"""A timerfd: a period as something to poll, on the monotonic clock.

Owns the fd. CPython has ``os.timerfd_create`` from 3.13 on; before that the C library is called.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time

from memifrt.fds import OwnedFd

_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC


class TimerFd(OwnedFd):
    """A periodic timer, disarmed at first."""

    __slots__ = ("_armed",)

    def __init__(self) -> None:
        super().__init__(_create(), "timer")
        self._armed = False

    @property
    def armed(self) -> bool:
        return self._armed

    def arm(self, period: float) -> None:
        """Become readable every ``period`` seconds from now on."""
        _set(self.fileno(), max(period, 1e-9))  # what rounds to 0 ns would disarm it
        self._armed = True

    def disarm(self) -> None:
        if self._armed:
            _set(self.fileno(), 0.0)
            self._armed = False

    def drain(self) -> bool:
        """Make the fd unreadable; whether the timer had expired."""
        try:
            return bool(os.read(self.fileno(), 8))
        except BlockingIOError:
            return False


if sys.version_info >= (3, 13):

    def _create() -> int:
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=_TFD_NONBLOCK | _TFD_CLOEXEC)

    def _set(fd: int, period: float) -> None:
        os.timerfd_settime(fd, initial=period, interval=period)

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

    def _set(fd: int, period: float) -> None:
        seconds, nanoseconds = divmod(round(period * 1e9), 1_000_000_000)
        spec = _Itimerspec(seconds, nanoseconds, seconds, nanoseconds)
        if _libc.timerfd_settime(fd, 0, ctypes.byref(spec), None) < 0:
            raise _last_error()

    def _last_error() -> OSError:
        number = ctypes.get_errno()
        return OSError(number, errno.errorcode.get(number, str(number)))
