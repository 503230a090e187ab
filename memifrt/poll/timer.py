"""A timerfd: moments as something to poll, on the monotonic clock.

Owns the fd and what is due when; the fd is set to the earliest. CPython has ``os.timerfd_create`` from 3.13 on; before
that the C library is called. Knows nothing of what it is that is due.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from memifrt.fds import OwnedFd

_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1


class TimerFd(OwnedFd):
    """Readable from one moment on; disarmed at first."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        super().__init__(_create(), "timer")
        self._due: float | None = None

    @property
    def due(self) -> float | None:
        """When it expires or has expired, by ``time.monotonic()``; None while it is disarmed."""
        return self._due

    @property
    def armed(self) -> bool:
        return self._due is not None

    def arm(self, due: float) -> None:
        """Become readable at ``due``; at once if that is past."""
        if due != self._due:
            _set(self.fileno(), max(due, 1e-9))  # what rounds to 0 ns would disarm it
            self._due = due

    def disarm(self) -> None:
        """Have nothing to say, even if it had."""
        if self._due is not None:
            _set(self.fileno(), 0.0)
            self._due = None

    def drain(self) -> bool:
        """Make the fd unreadable and disarm; whether the timer had expired."""
        try:
            expired = bool(os.read(self.fileno(), 8))
        except BlockingIOError:
            return False
        self._due = None
        return expired


@dataclass(frozen=True, order=True, slots=True)
class Appointment:
    """One thing that is due at a moment of ``time.monotonic()``."""

    due: float
    #: Of two that are due together, the one that was made first goes first.
    number: int
    action: Callable[[], object] = field(compare=False, repr=False)


class Schedule:
    """What is due when, on one :class:`TimerFd`, which somebody else polls and hands to :meth:`run`."""

    def __init__(self, timer: TimerFd) -> None:
        self._timer = timer
        self._numbers = itertools.count()
        #: In the order in which they are due.
        self._appointments: list[Appointment] = []

    def __len__(self) -> int:
        return len(self._appointments)

    def after(self, delay: float, action: Callable[[], object]) -> Appointment:
        """Call ``action`` in ``delay`` seconds, once."""
        appointment = Appointment(time.monotonic() + delay, next(self._numbers), action)
        bisect.insort(self._appointments, appointment)
        self._set_timer()
        return appointment

    def cancel(self, appointment: Appointment | None) -> None:
        """Do not call it. Harmless for None, and for one that has been called or cancelled."""
        if appointment is None:
            return
        index = bisect.bisect_left(self._appointments, appointment)
        if index < len(self._appointments) and self._appointments[index] is appointment:
            del self._appointments[index]
            self._set_timer()

    def run(self) -> None:
        """Call what is due by now.

        :raises BaseException: what an action raised; the others are called with the next event of the timer.
        """
        if not self._timer.drain():
            return
        now = time.monotonic()
        try:
            while self._appointments and self._appointments[0].due <= now:
                self._appointments.pop(0).action()
        finally:
            self._set_timer()

    def clear(self) -> None:
        """Cancel everything."""
        self._appointments.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer.closed:
            return
        if self._appointments:
            self._timer.arm(self._appointments[0].due)
        else:
            self._timer.disarm()


if sys.version_info >= (3, 13):

    def _create() -> int:
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=_TFD_NONBLOCK | _TFD_CLOEXEC)

    def _set(fd: int, due: float) -> None:
        os.timerfd_settime(fd, flags=_TFD_TIMER_ABSTIME, initial=due)

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

    def _last_error() -> OSError:
        number = ctypes.get_errno()
        return OSError(number, errno.errorcode.get(number, str(number)))
