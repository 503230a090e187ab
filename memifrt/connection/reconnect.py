"""Connect slaves again from a timer.

Owns the timer for the next attempt and the set of interfaces that wait for it. Knows nothing of how they connect.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from memifrt.errors import MemifOSError
from memifrt.poll.schedule import Schedule, TimerHandle


class ConnectingInterface(Protocol):
    """The members of an interface that this module uses."""

    @property
    def wants_connection(self) -> bool:
        """Whether this is a slave without a connection that is not deleted."""

    def connect(self) -> None:
        """Try to connect once.

        :raises MemifOSError: the attempt failed; the interface keeps the error as its ``last_error``.
        """


class Reconnector:
    """Makes slaves without a connection try to connect, once in each interval.

    :param interval: seconds between two attempts; 0 for no attempts.
    """

    def __init__(self, schedule: Schedule, interval: float) -> None:
        self._schedule = schedule
        self._interval = interval
        #: A dict keeps the order in which the interfaces lost their connection.
        self._waiting: dict[ConnectingInterface, None] = {}
        self._next_attempt: TimerHandle | None = None
        self._closed = False

    @property
    def interval(self) -> float:
        """Seconds between two attempts; 0 for no attempts."""
        return self._interval

    @property
    def next_attempt(self) -> TimerHandle | None:
        """The timer of the next attempt, or None if no slave waits or there is no interval."""
        return self._next_attempt

    def set_interval(self, seconds: float) -> None:
        """Change the interval, and restart it: the next attempt comes ``seconds`` from now."""
        self._interval = seconds
        self._cancel()
        self._update()

    def update(self, interface: ConnectingInterface) -> None:
        """Add or remove an interface, by its ``wants_connection``. Called after every change of it."""
        if interface.wants_connection:
            self._waiting[interface] = None
        else:
            self._waiting.pop(interface, None)
        self._update()

    def close(self) -> None:
        """Make no further attempts. The owner of the schedule cancels the timer."""
        self._closed = True

    def _update(self) -> None:
        if self._closed:
            return
        wanted = self._interval > 0 and bool(self._waiting)
        if wanted and self._next_attempt is None:
            self._next_attempt = self._schedule.after(self._interval, self._attempt)
        elif not wanted:
            self._cancel()

    def _cancel(self) -> None:
        self._schedule.cancel(self._next_attempt)
        self._next_attempt = None

    def _attempt(self) -> None:
        self._next_attempt = None
        try:
            for interface in tuple(self._waiting):
                if interface.wants_connection:
                    with contextlib.suppress(MemifOSError):  # kept in last_error; the timer tries again
                        interface.connect()
        finally:
            self._update()
