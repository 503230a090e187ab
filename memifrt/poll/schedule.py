"""Schedule calls in a loop that knows only fds, with one timerfd that is set to the earliest call.

Owns the order of the calls. Does not know what they do.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memifrt.system.timerfd import TimerFd


@dataclass(frozen=True, order=True, slots=True)
class TimerHandle:
    """One call that is due at a time of ``time.monotonic()``. :meth:`Schedule.after` makes it."""

    due: float
    #: Orders calls that are due at the same time: the one made first comes first.
    number: int
    action: Callable[[], object] = field(compare=False, repr=False)


class Schedule:
    """Calls that are due later, on one :class:`TimerFd`. The owner polls the fd and calls :meth:`run`."""

    def __init__(self, timer: TimerFd) -> None:
        self._timer = timer
        self._numbers = itertools.count()
        #: Sorted, the next call first.
        self._handles: list[TimerHandle] = []
        #: Calls that other threads have requested, with their times. The schedule's own thread adds them.
        self._posted: deque[tuple[float, Callable[[], object]]] = deque()

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def pending(self) -> tuple[TimerHandle, ...]:
        """The calls that are due later, the next one first."""
        return tuple(self._handles)

    def after(self, delay: float, action: Callable[[], object]) -> TimerHandle:
        """Call ``action`` once, in ``delay`` seconds."""
        handle = TimerHandle(time.monotonic() + delay, next(self._numbers), action)
        bisect.insort(self._handles, handle)
        self._set_timer()
        return handle

    def post(self, delay: float, action: Callable[[], object]) -> None:
        """Call ``action`` once on the schedule's own thread, in ``delay`` seconds. May be called from any thread.

        This takes no lock, so a signal handler or a finalizer may call it too. It queues the request before it sets the
        timer. The schedule's own thread looks for requests after it has set the timer. So one of the two threads always
        sets the timer early enough. Only the schedule's own thread keeps what it has set: others ask the kernel.
        """
        due = time.monotonic() + delay
        self._posted.append((due, action))
        with contextlib.suppress(OSError):  # the timer is closed: no more calls are made
            self._timer.hasten(due)

    def cancel(self, handle: TimerHandle | None) -> None:
        """Cancel a call. This is harmless for None, and for a call that was made or cancelled already."""
        if handle is None:
            return
        index = bisect.bisect_left(self._handles, handle)
        if index < len(self._handles) and self._handles[index] is handle:
            del self._handles[index]
            self._set_timer()

    def run(self) -> None:
        """Make the calls that are due by now.

        :raises BaseException: the exception of an action. The other calls are made with the next event of the timer.
        """
        if not self._timer.drain():
            return
        now = time.monotonic()
        self._take_posted()
        try:
            while self._handles and self._handles[0].due <= now:
                self._handles.pop(0).action()
        finally:
            self._set_timer()

    def clear(self) -> None:
        """Cancel all calls."""
        self._posted.clear()
        self._handles.clear()
        self._set_timer()

    def abandon(self) -> None:
        """Forget all calls in a forked child, without setting the timer, which the parent shares."""
        self._posted.clear()
        self._handles.clear()
        self._timer.detach()

    def _set_timer(self) -> None:
        while not self._timer.closed:
            self._take_posted()
            if self._handles:
                self._timer.arm(self._handles[0].due)
            else:
                self._timer.disarm()
            if not self._posted:
                return

    def _take_posted(self) -> None:
        while self._posted:
            due, action = self._posted.popleft()
            bisect.insort(self._handles, TimerHandle(due, next(self._numbers), action))
