"""Waiting like a native: the logic of every loop's ``wait_connected``, ``recv``, ``bursts``, ``send``, without a loop.

Owns who waits for what on one interface, and what wakes them. Knows no loop, and neither sleeps nor switches: each call
is a generator that yields what to wait for and returns the result. A face (:mod:`memifrt.asyncio`, :mod:`memifrt.trio`,
:mod:`memifrt.gevent`) drives it with the primitives of its loop::

    def drive(steps):
        try:
            request = next(steps)
            while True:
                match request:
                    case Pass():  # let everybody else run once, and the loop look at its fds
                        sleep(0)
                    case Wait(signal, timeout):  # until signal.set() is called, for timeout seconds (None: no limit)
                        signal.wait(timeout)
                request = next(steps)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

``signal`` is what the face's ``make_signal()`` made for this one wait; ``set()`` may be called at any time, more than
once, and after the waiter has gone. A wait that was in vain does no harm: the steps look for themselves.

Whatever ends the driving (a cancellation, a kill, a timeout) may come at any yield and must only close the generator:
packets leave the ring in the step that returns them, so none is lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from memifrt.errors import ConfigError, Disconnected, ErrorCode, MemifError
from memifrt.interface import Details, Interface
from memifrt.queue import DEFAULT_BURST, RxQueue, TxQueue
from memifrt.types import Mode, QueueCounters, Role, RxMode, State, check_callback, check_range

if TYPE_CHECKING:
    from memifrt.ring import Burst
    from memifrt.runtime import InterfaceArguments, Runtime
    from memifrt.types import ReadableBuffer

#: Packets that pass without a wait before the others get a turn. A turn is one round of the loop: measured, 2 us in
#: uvloop, 6 in asyncio, 10 in trio, so 8 to 40 ns a packet. Larger batches gain nothing that can be measured; one of
#: 16384 packets keeps the others waiting for tens of milliseconds.
DEFAULT_BATCH = 256
#: Seconds between two looks at what no fd tells (room in a ring, packets in a queue that polls): the first pause, and
#: the longest that doubling it comes to.
FIRST_PAUSE, LONGEST_PAUSE = 0.0001, 0.005


class Signal(Protocol):
    """What one waiter waits for."""

    def set(self) -> object: ...


S = TypeVar("S", bound=Signal)
T = TypeVar("T")
_Q = TypeVar("_Q", RxQueue, TxQueue)


@dataclass(frozen=True, slots=True)
class Wait(Generic[S]):
    """Wait until ``signal`` is set, for at most ``timeout`` seconds; None: for as long as it takes."""

    signal: S
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Pass:
    """Let everybody else run once, and the loop look at its fds."""


#: A call in steps: what it waits for, and in the end its result.
Steps = Generator["Wait[S] | Pass", None, T]


class Counters(NamedTuple):
    """What all queues of an interface did since it was created, reconnects included."""

    rx: QueueCounters
    tx: QueueCounters


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


class Waiting(Generic[S]):
    """One interface, and everybody who waits for something on it.

    Creates the interface with callbacks of its own, which wake the waiters and pass on to those among ``options``.

    :param make_signal: a new signal of the face's, for one wait.
    :param reconnect: go on waiting across a disconnect, instead of raising :class:`~memifrt.Disconnected`.
    :param batch: packets that may pass without a wait before the others get a turn.
    :raises ConfigError: an argument is wrong.
    :raises MemifOSError: a master cannot listen.
    """

    def __init__(
        self,
        runtime: Runtime,
        make_signal: Callable[[], S],
        options: InterfaceArguments,
        *,
        reconnect: bool = False,
        batch: int = DEFAULT_BATCH,
    ) -> None:
        self.reconnect = reconnect
        self._batch = check_range("batch", batch, 1, 1 << 30)
        self._passed = 0
        self._make_signal = make_signal
        #: The interface connects, disconnects or is deleted.
        self._changed = Wakeup(make_signal)
        #: A receive queue is kicked, or ends; by its number.
        self._kicked: dict[int, Wakeup[S]] = {}
        self._ends = 0
        self._reason: Disconnected | None = None
        for callback in ("on_connect", "on_disconnect", "on_interrupt"):
            check_callback(callback, options.get(callback))
        self._on_connect = options.get("on_connect")
        self._on_disconnect = options.get("on_disconnect")
        self._on_interrupt = options.get("on_interrupt")
        ours: InterfaceArguments = {
            **options,
            "on_connect": self._connected,
            "on_disconnect": self._disconnected,
            "on_interrupt": self._interrupted,
        }
        self.interface = runtime.create_interface(**ours)
        self.interface._on_delete = self._wake_all

    @property
    def connected(self) -> bool:
        """Whether there is a peer, and ``on_connect`` has been called for it."""
        return self.interface.connected and self.interface.announced

    @property
    def waiters(self) -> int:
        """How many wait at this moment."""
        return self._changed.waiters + sum(kicked.waiters for kicked in self._kicked.values())

    # --- the calls, in steps ------------------------------------------------------------------------------------

    def wait_connected(self) -> Steps[S, None]:
        """Wait until there is a peer. That nobody listens yet is not an error: the timer tries again.

        :raises Disconnected: a peer came and refused, or went before everything was agreed, and ``reconnect`` is off;
            or the interface is deleted.
        """
        ends = self._ends
        while not self.connected:
            self._check_alive()
            yield from self._changed.wait(self._changed.count)
            if self._ends != ends and not self.connected and not self.reconnect:
                raise self._disconnect_error()

    def recv(self, qid: int, limit: int) -> Steps[S, list[bytes]]:
        """Wait for packets and take those of up to ``limit`` buffers.

        :raises ConfigError: there is no such queue.
        :raises Disconnected: there is no peer (any more), and ``reconnect`` is off; or the interface is deleted.
        """
        return self._receive(qid, lambda queue: queue.recv(limit))

    def burst(self, qid: int, limit: int) -> Steps[S, Burst]:
        """Wait for packets and take up to ``limit`` buffers as a burst, the caller's to close; raises as ``recv``."""
        return self._receive(qid, lambda queue: queue.burst(limit))

    def send(self, packets: Iterable[ReadableBuffer], qid: int) -> Steps[S, int]:
        """Send all packets, and wait for room as often as it takes; their number.

        :raises ConfigError: a packet is empty or too long, or there is no such queue. Packets before it may have been
            sent.
        :raises Disconnected: there is no peer (any more), and ``reconnect`` is off; or the interface is deleted.
        """
        left = list(packets)
        sent, pause = 0, Pause()
        queue = yield from self._tx_queue(qid)
        while sent < len(left):
            seen = self._changed.count
            batch = left[sent : sent + self._batch]
            yield from self._give_way(len(batch))
            try:
                taken = queue.send(batch)
            except Disconnected:
                if not self.reconnect:
                    raise
                queue = yield from self._tx_queue(qid)
                continue
            sent += taken
            if taken:
                pause.reset()
            if taken < len(batch):  # nothing tells of room in a ring: look again after a while
                yield from self._wait(self._changed, seen, pause.next())
        return sent

    def _receive(self, qid: int, take: Callable[[RxQueue], _Taken]) -> Steps[S, _Taken]:
        yield from self._give_way(1)
        pause = Pause()
        queue = yield from self._rx_queue(qid)
        kicked = self._kicks(qid)
        while True:
            # In this order: note the count of kicks, then read the eventfd, then look at the ring (the queue does
            # both), then wait unless the count has moved. A packet that comes before the look is taken. One that comes
            # after it finds the eventfd read, kicks anew, and so wakes us. Were the count noted after the look, a kick
            # in between, which the callback reads away, would wake nobody.
            seen = kicked.count
            try:
                taken = take(queue)
            except Disconnected:
                if not self.reconnect:
                    raise
                queue = yield from self._rx_queue(qid)
                continue
            if taken:  # no yield from here on: what is taken is returned
                self._passed += len(taken) - 1
                return taken
            yield from self._wait(kicked, seen, pause.next() if queue.mode is RxMode.POLLING else None)

    def _rx_queue(self, qid: int) -> Steps[S, RxQueue]:
        return self._queue("receive", qid, lambda interface: interface.rx_queues)

    def _tx_queue(self, qid: int) -> Steps[S, TxQueue]:
        return self._queue("transmit", qid, lambda interface: interface.tx_queues)

    def _queue(self, what: str, qid: int, queues: Callable[[Interface], tuple[_Q, ...]]) -> Steps[S, _Q]:
        """The queue, once there is a connection that works."""
        while True:
            self._check_alive()
            seen = self._changed.count
            if self.connected:
                present = queues(self.interface)
                if isinstance(qid, bool) or not isinstance(qid, int) or not 0 <= qid < len(present):
                    raise ConfigError(
                        f"{self.interface}: {what} queue is {qid!r}; there are {len(present)}, counted from 0",
                        ErrorCode.QID,
                    )
                # One that the peer broke ends with the next event of the channel; until then it says why by itself.
                if present[qid].connected or not self.reconnect:
                    return present[qid]
            elif not self.reconnect:
                raise self._disconnect_error()
            yield from self._changed.wait(seen)

    def _wait(self, wakeup: Wakeup[S], seen: int, timeout: float | None) -> Steps[S, None]:
        yield from wakeup.wait(seen, timeout)
        self._passed = 0

    def _give_way(self, count: int) -> Steps[S, None]:
        """Who never has to wait still lets the others run, once in ``batch`` packets."""
        if self._passed >= self._batch:
            self._passed = 0
            yield Pass()
        self._passed += count

    # --- what wakes them ----------------------------------------------------------------------------------------

    def _connected(self, interface: Interface) -> None:
        for queue in interface.rx_queues:
            queue._on_mode = self._kicks(queue.qid).wake
        try:
            if self._on_connect is not None:
                self._on_connect(interface)
        finally:
            self._changed.wake()

    def _disconnected(self, interface: Interface, reason: Disconnected) -> None:
        self._ends += 1
        self._reason = reason
        self._wake_all()
        if self._on_disconnect is not None:
            self._on_disconnect(interface, reason)

    def _interrupted(self, interface: Interface, qid: int) -> None:
        # Polling is level-triggered: an eventfd that nobody reads, because nobody receives just now, would call us for
        # ever. What it said needs no remembering: everybody looks at the ring before they wait.
        interface.rx_queues[qid].drain()
        self._kicks(qid).wake()
        if self._on_interrupt is not None:
            self._on_interrupt(interface, qid)

    def _wake_all(self) -> None:
        self._changed.wake()
        for kicked in list(self._kicked.values()):
            kicked.wake()

    def _kicks(self, qid: int) -> Wakeup[S]:
        kicked = self._kicked.get(qid)
        if kicked is None:
            kicked = self._kicked[qid] = Wakeup(self._make_signal)
        return kicked

    def _check_alive(self) -> None:
        if self.interface.deleted:
            self.interface.check_not_forked()
            raise Disconnected(f"{self.interface} is deleted")

    def _disconnect_error(self) -> Disconnected:
        """A new exception each time: several waiters may raise it."""
        self._check_alive()
        reason = self._reason
        if reason is None:
            return Disconnected(f"{self.interface} is not connected yet: wait_connected() waits for it")
        error = Disconnected(reason.message, reason.code, established=reason.established)
        error.__cause__ = reason.__cause__
        return error


class _Sized(Protocol):
    def __len__(self) -> int: ...


_Taken = TypeVar("_Taken", bound=_Sized)


class BurstHolder(Generic[S]):
    """One burst after the other from one queue: what a face's iteration over bursts has in common.

    Taking the next one gives the one before it back, and so does ``close``. A loop that is left (by ``break``, an
    exception, a cancellation) drops its iterator: then the collector closes it, in CPython at once.
    """

    def __init__(self, waiting: Waiting[S], qid: int, limit: int) -> None:
        self._waiting = waiting
        self._qid = qid
        self._limit = limit
        self._burst: Burst | None = None
        self._taking = False
        self._closed = False

    def _next(self) -> Steps[S, Burst | None]:
        """The next burst; None if this is closed.

        :raises ConfigError: somebody else waits for it already.
        """
        if self._taking:
            raise ConfigError(
                f"{self._waiting.interface}: somebody waits for the next of these bursts already: "
                "who shares a queue calls bursts() for an iteration of their own"
            )
        self._give_back()
        self._taking = True
        steps = self._waiting.burst(self._qid, self._limit)
        try:
            while not self._closed:  # who closes this wakes us
                yield next(steps)
        except StopIteration as end:
            self._burst = end.value
        finally:
            self._taking = False
            steps.close()
        return self._burst

    def close(self) -> None:
        """Give the present burst back, and end the iteration, also for somebody who waits for its next burst. A second
        call is harmless.

        :raises BufferError: a slice of one of its views is still held; it is given back all the same.
        """
        self._closed = True
        if self._taking:
            self._waiting._wake_all()
        self._give_back()

    def _give_back(self) -> None:
        burst, self._burst = self._burst, None
        if burst is not None:
            burst.close()

    def __del__(self) -> None:
        self.close()


class Face(Generic[S]):
    """What the interfaces of every loop have in common: all that does not wait.

    Everything else of the interface is that of :attr:`interface`.
    """

    def __init__(self, waiting: Waiting[S]) -> None:
        self._waiting = waiting

    @property
    def interface(self) -> Interface:
        """The interface itself. Its callbacks are taken: give yours to ``open_interface``."""
        return self._waiting.interface

    @property
    def id(self) -> int:
        return self.interface.id

    @property
    def name(self) -> str:
        return self.interface.name

    @property
    def role(self) -> Role:
        return self.interface.role

    @property
    def mode(self) -> Mode:
        return self.interface.mode

    @property
    def state(self) -> State:
        return self.interface.state

    @property
    def connected(self) -> bool:
        return self._waiting.connected

    @property
    def last_error(self) -> MemifError | None:
        """Why the last connection or attempt to connect ended."""
        return self.interface.last_error

    @property
    def rx_queues(self) -> tuple[RxQueue, ...]:
        """The receive queues of the present connection, or of the last one."""
        return self.interface.rx_queues

    @property
    def tx_queues(self) -> tuple[TxQueue, ...]:
        """The transmit queues of the present connection, or of the last one."""
        return self.interface.tx_queues

    @property
    def counters(self) -> Counters:
        """What all queues did since the interface was created, reconnects included."""
        return Counters(*self.interface._all_counters())

    def details(self) -> Details:
        """Everything about the interface at this moment."""
        return self.interface.details()

    def request_connection(self) -> None:
        """A slave connects now, without waiting for the timer; see :meth:`memifrt.Interface.request_connection`."""
        self.interface.request_connection()

    def disconnect(self, reason: str = "disconnected by the application") -> None:
        """End the present connection, if there is one; a slave then connects again with the timer."""
        self.interface.disconnect(reason)

    def delete(self) -> None:
        """Disconnect and forget the interface: whoever waits on it gets :class:`~memifrt.Disconnected`."""
        self.interface.delete()

    def __str__(self) -> str:
        return str(self.interface)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self}, {self._waiting.waiters} waiting>"


def runtime_of_this_loop(runtime: Runtime, **own: object) -> None:
    """Check a runtime that interfaces share, and that nothing is asked for which only a new one could give.

    :raises ConfigError: it polls by itself, or an argument of ``own`` is not None.
    """
    if runtime._poller is not None:
        raise ConfigError(f"{runtime!r} polls by itself, not in this loop: open_runtime() makes one that does")
    given = [name for name, value in own.items() if value is not None]
    if given:
        raise ConfigError(f"{given[0]} is {own[given[0]]!r}, but the runtime that is given has its own: leave it out")


__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_BURST",
    "BurstHolder",
    "Counters",
    "Face",
    "Pass",
    "Signal",
    "Steps",
    "Wait",
    "Waiting",
    "Wakeup",
    "runtime_of_this_loop",
]
