"""The order in which callers wait, and what wakes them. Knows no loop.

A call that waits is a generator of requests: :class:`Wait` or :class:`Pass`. See :mod:`memifrt.waiting.steps`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Generic, Protocol, TypeVar

from memifrt.queue import RxQueue, TxQueue

#: Seconds between two looks at something that has no fd: room in a ring, or packets in a queue in polling mode. The
#: pause starts with the first value, and doubles up to the second.
FIRST_PAUSE, LONGEST_PAUSE = 0.0001, 0.005


class Signal(Protocol):
    """Wakes one caller."""

    def set(self) -> object: ...


S = TypeVar("S", bound=Signal)
T = TypeVar("T")
_Q = TypeVar("_Q", RxQueue, TxQueue)


class Wait(Generic[S]):
    """A request to wait until ``signal`` is set, for at most ``timeout`` seconds (None: without a limit)."""

    __slots__ = ("signal", "timeout")

    def __init__(self, signal: S, timeout: float | None) -> None:
        self.signal = signal
        self.timeout = timeout


class Pass:
    """A request to let every other task run once, and to let the loop check its fds."""

    __slots__ = ()


PASS = Pass()

#: A call in steps: it yields requests, and returns its result.
Steps = Generator["Wait[S] | Pass", None, T]


class Wakeup(Generic[S]):
    """An event that can happen many times, and the callers that wait for it.

    A caller reads ``count``, checks its condition, and then waits unless ``count`` has changed since.
    """

    def __init__(self, make_signal: Callable[[], S]) -> None:
        self.count = 0
        self._make_signal = make_signal
        self._signals: dict[S, None] = {}

    def wake(self) -> None:
        """Count one more event, and wake every caller."""
        self.count += 1
        for signal in list(self._signals):
            signal.set()

    def wait(self, seen: int, timeout: float | None = None) -> Steps[S, None]:
        """Wait for the event, unless it has happened since ``count`` was ``seen``."""
        if self.count != seen:
            return
        signal = self._make_signal()
        self._signals[signal] = None
        try:
            yield Wait(signal, timeout)
        finally:
            del self._signals[signal]

    @property
    def waiters(self) -> int:
        return len(self._signals)


class Place(Wait[S]):
    """The place of one caller in a :class:`Line`. It is also the request that the caller yields to wait there."""

    __slots__ = ("woken",)

    def __init__(self, signal: S) -> None:
        self.signal = signal
        self.timeout = None
        #: Whether the caller was woken since it set this to False.
        self.woken = False

    def wake(self) -> None:
        """Wake the caller."""
        self.woken = True
        self.signal.set()


class Line(Generic[S, _Q]):
    """The callers that wait for one queue, in the order in which they came.

    Only the first caller may use the queue. When it leaves, with or without packets, it wakes the next one, unless the
    queue is known to be empty. So a wake-up is not lost if the first caller is cancelled, is killed or times out.
    """

    def __init__(self) -> None:
        #: The place of the first caller, and the places behind it.
        self.first: Place[S] | None = None
        self._behind: OrderedDict[Place[S], None] = OrderedDict()
        #: The number of wake-ups, also of those for which no caller waited.
        self.wakes = 0
        #: Whether the eventfd is readable and the first caller must read it.
        self.kicked = False
        #: The queue of the present connection, once a caller has found it.
        self.queue: _Q | None = None

    def __len__(self) -> int:
        return 0 if self.first is None else 1 + len(self._behind)

    def join(self, place: Place[S]) -> None:
        """Put a place at the end."""
        if self.first is None:
            self.first = place
        else:
            self._behind[place] = None

    def leave(self, place: Place[S], *, hand_over: bool = True) -> None:
        """Give up a place.

        :param hand_over: whether the next caller must look. It need not if the queue is known to be empty: the next
            packet will wake it.
        """
        if self.first is not place:
            del self._behind[place]
        elif self._behind:
            self.first, _ = self._behind.popitem(last=False)
            if hand_over:
                self.first.wake()
        else:
            self.first = None

    def wake(self) -> None:
        """Wake the first caller."""
        self.wakes += 1
        if self.first is not None:
            self.first.wake()

    def wake_all(self) -> None:
        """Wake every caller, because the connection has begun or ended."""
        self.wakes += 1
        self.kicked = False
        self.queue = None
        if self.first is not None:
            for place in [self.first, *self._behind]:
                place.wake()


class Pause:
    """The pauses between two looks at something that has no fd. They double from the first to the longest."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def reset(self) -> None:
        self._next = FIRST_PAUSE

    def next(self) -> float:
        """Return the next pause in seconds."""
        pause, self._next = self._next, min(2 * self._next, LONGEST_PAUSE)
        return pause


__all__ = [
    "FIRST_PAUSE",
    "LONGEST_PAUSE",
    "PASS",
    "Line",
    "Pass",
    "Pause",
    "Place",
    "Signal",
    "Steps",
    "Wait",
    "Wakeup",
]
