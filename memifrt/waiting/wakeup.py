"""Who waits for what, in which order, and what wakes them. Without a loop.

A call that waits is a generator of requests: :class:`Wait` or :class:`Pass`. See :mod:`memifrt.waiting.steps`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Generic, Protocol, TypeVar

from memifrt.queue import RxQueue, TxQueue

#: Seconds between two looks at what no fd tells (room in a ring, packets in a queue that polls): the first pause, and
#: the longest that doubling it comes to.
FIRST_PAUSE, LONGEST_PAUSE = 0.0001, 0.005


class Signal(Protocol):
    """What wakes one waiter."""

    def set(self) -> object: ...


S = TypeVar("S", bound=Signal)
T = TypeVar("T")
_Q = TypeVar("_Q", RxQueue, TxQueue)


class Wait(Generic[S]):
    """Wait until ``signal`` is set, for at most ``timeout`` seconds; None: for as long as it takes."""

    __slots__ = ("signal", "timeout")

    def __init__(self, signal: S, timeout: float | None) -> None:
        self.signal = signal
        self.timeout = timeout


class Pass:
    """Let everybody else run once, and the loop look at its fds."""

    __slots__ = ()


PASS = Pass()

#: A call in steps: what it waits for, and in the end its result.
Steps = Generator["Wait[S] | Pass", None, T]


class Wakeup(Generic[S]):
    """Something that happens again and again, and those who wait for the next time.

    A waiter notes ``count``, looks whether what it wants is there, and waits unless the count has moved since.
    """

    def __init__(self, make_signal: Callable[[], S]) -> None:
        self.count = 0
        self._make_signal = make_signal
        self._signals: dict[S, None] = {}

    def wake(self) -> None:
        """It happens: everybody who waits looks again."""
        self.count += 1
        for signal in list(self._signals):
            signal.set()

    def wait(self, seen: int, timeout: float | None = None) -> Steps[S, None]:
        """Wait for it to happen, unless it has since ``count`` was ``seen``."""
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
    """The place of one caller in a :class:`Line`. It is also what the caller yields while it waits there: one object
    for each wait, because most calls wait once."""

    __slots__ = ("woken",)

    def __init__(self, signal: S) -> None:
        self.signal = signal
        self.timeout = None
        #: Something has happened since the caller set this to False.
        self.woken = False

    def wake(self) -> None:
        """Let the caller look again."""
        self.woken = True
        self.signal.set()


class Line(Generic[S, _Q]):
    """The callers that wait for one queue, in the order in which they came.

    The first alone may use the queue. When it leaves, with or without what it came for, the next one looks: a wake-up
    that hit a caller which was cancelled, killed or timed out is not lost.
    """

    def __init__(self) -> None:
        #: The place of the caller whose turn it is, and the places behind it.
        self.first: Place[S] | None = None
        self._behind: OrderedDict[Place[S], None] = OrderedDict()
        #: How often somebody was to be woken, whether or not anybody waited.
        self.wakes = 0
        #: The eventfd is readable, and left to the first to read.
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

        :param hand_over: whether the next one is to look. False: there is nothing to look for now, and what comes next
            will wake it.
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
        """Something has come: the first looks."""
        self.wakes += 1
        if self.first is not None:
            self.first.wake()

    def wake_all(self) -> None:
        """The connection has come or gone: everybody looks."""
        self.wakes += 1
        self.kicked = False
        self.queue = None
        if self.first is not None:
            for place in [self.first, *self._behind]:
                place.wake()


class Pause:
    """The pauses between two looks at what no fd tells: short, growing, bounded."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def reset(self) -> None:
        self._next = FIRST_PAUSE

    def next(self) -> float:
        """In seconds."""
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
