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

import functools
import re
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from memifrt.errors import ConfigError, Disconnected, ErrorCode, MemifError
from memifrt.interface import Details, Interface
from memifrt.queue import DEFAULT_BURST, RxQueue, TxQueue, check_packets
from memifrt.system.forks import abandon_after_fork
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


_POLLING = RxMode.POLLING  # looking it up in its class takes longer than receiving a packet


class Signal(Protocol):
    """What one waiter waits for."""

    def set(self) -> object: ...


S = TypeVar("S", bound=Signal)
T = TypeVar("T")
_Q = TypeVar("_Q", RxQueue, TxQueue)


@dataclass(slots=True)  # not frozen: that takes three times as long to make, and one is made for each wake-up
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


class Place(Generic[S]):
    """The place of one caller in a :class:`Line`."""

    __slots__ = ("_make_signal", "signal", "woken")

    def __init__(self, make_signal: Callable[[], S]) -> None:
        self._make_signal = make_signal
        #: What the caller waits for at this moment.
        self.signal: S | None = None
        #: Something has happened since the caller set this to False.
        self.woken = False

    def wake(self) -> None:
        """Let the caller look again."""
        self.woken = True
        if self.signal is not None:
            self.signal.set()

    def wait(self, timeout: float | None) -> Steps[S, None]:
        """Wait to be woken, for at most ``timeout`` seconds."""
        self.signal = signal = self._make_signal()
        try:
            yield Wait(signal, timeout)
        finally:
            self.signal = None


class Line(Generic[S, _Q]):
    """The callers that wait for one queue, in the order in which they came.

    The first alone may use the queue. When it leaves, with or without what it came for, the next one looks: a wake-up
    that hit a caller which was cancelled, killed or timed out is not lost.
    """

    def __init__(self, make_signal: Callable[[], S]) -> None:
        self._make_signal = make_signal
        self._places: OrderedDict[Place[S], None] = OrderedDict()
        #: The place of the caller whose turn it is.
        self.first: Place[S] | None = None
        #: How often somebody was to be woken, whether or not anybody waited.
        self.wakes = 0
        #: The queue of the present connection, once a caller has found it.
        self.queue: _Q | None = None

    def __len__(self) -> int:
        return len(self._places)

    def join(self) -> Place[S]:
        """A new place at the end."""
        place = Place(self._make_signal)
        self._places[place] = None
        if self.first is None:
            self.first = place
        return place

    def note_wake(self) -> S | None:
        """Like :meth:`wake`, but leave it to the caller to set the signal that is returned, if anybody waits."""
        self.wakes += 1
        first = self.first
        if first is None:
            return None
        first.woken = True
        return first.signal

    def leave(self, place: Place[S], *, hand_over: bool = True) -> None:
        """Give up a place.

        :param hand_over: whether the next one is to look. False: there is nothing to look for now, and what comes next
            will wake it.
        """
        del self._places[place]
        if self.first is place:
            self.first = next(iter(self._places), None) if self._places else None
            if hand_over:
                self._wake_first()

    def wake(self) -> None:
        """Something has come: the first looks."""
        self.wakes += 1
        self._wake_first()

    def wake_all(self) -> None:
        """The connection has come or gone: everybody looks."""
        self.wakes += 1
        self.queue = None
        for place in list(self._places):
            place.wake()

    def _wake_first(self) -> None:
        first = self.first
        if first is not None:
            first.wake()


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


def _no_owner(waiting: bool) -> None:
    """The interface may be used anywhere."""


def _renumbered(error: ConfigError, sent: int) -> ConfigError:
    """The error of a batch, with the packet's number among all packets of the call."""
    message = re.sub(r"^packet (\d+)\b", lambda match: f"packet {int(match[1]) + sent}", error.message)
    renumbered = type(error)(message, error.code)
    renumbered.__cause__ = error.__cause__
    return renumbered


class Waiting(Generic[S]):
    """One interface, and everybody who waits for something on it.

    Creates the interface with callbacks of its own, which wake the waiters and pass on to those among ``options``.

    :param make_signal: a new signal of the face's, for one wait.
    :param reconnect: go on waiting across a disconnect, instead of raising :class:`~memifrt.Disconnected`.
    :param batch: packets that may pass without a wait before the others get a turn.
    :param check_owner: ``check_owner(waiting)`` raises ConfigError if the caller is in a thread or loop other than the
        one that handles the events of ``runtime``; ``waiting`` tells whether the call could wait.
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
        check_owner: Callable[[bool], object] = _no_owner,
    ) -> None:
        self.runtime = runtime
        self.reconnect = reconnect
        #: ``check_owner(waiting)`` raises ConfigError in a thread or loop to which the interface does not belong.
        self.check_owner = check_owner
        abandon_after_fork(self._abandon)
        self._batch = check_range("batch", batch, 1, 1 << 30)
        self._passed = 0
        #: Called when the eventfds of the receive queues are watched anew.
        self.on_queues: Callable[[], object] | None = None
        self._make_signal = make_signal
        #: The interface connects, disconnects or is deleted.
        self._changed = Wakeup(make_signal)
        #: Callers that wait for packets, and for room, by the number of the queue.
        self._receivers: dict[int, Line[S, RxQueue]] = {}
        self._senders: dict[int, Line[S, TxQueue]] = {}
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
        self.interface.on_delete = self._wake_all

    @property
    def has_interrupt_callback(self) -> bool:
        """Whether the application wants to be told of each interrupt."""
        return self._on_interrupt is not None

    def receivers(self, qid: int) -> Line[S, RxQueue]:
        """The callers that wait for packets of a queue."""
        return self._line(self._receivers, qid)

    @property
    def connected(self) -> bool:
        """Whether there is a peer, and ``on_connect`` has been called for it."""
        return self.interface.connected and self.interface.announced

    @property
    def waiters(self) -> int:
        """How many wait at this moment."""
        return self._changed.waiters + sum(len(line) for line in self._lines())

    def _abandon(self) -> None:
        """In a forked child: say whose the interface is, before anything else is checked."""
        self.check_owner = lambda waiting: self.interface.check_not_forked() if waiting else None

    # --- the calls, in steps ------------------------------------------------------------------------------------

    def wait_connected(self) -> Steps[S, None]:
        """Wait until there is a peer. That nobody listens yet is not an error: the timer tries again.

        :raises Disconnected: a peer came and refused, or went before everything was agreed, and ``reconnect`` is off;
            or the interface is deleted.
        :raises ConfigError: the call comes from a foreign thread or loop.
        """
        self.check_owner(True)
        return self._wait_connected()

    def _wait_connected(self) -> Steps[S, None]:
        ends = self._ends
        while not self.connected:
            self._check_alive()
            yield from self._changed.wait(self._changed.count)
            if self._ends != ends and not self.connected and not self.reconnect:
                raise self._disconnect_error()

    def recv(self, qid: int, limit: int) -> Steps[S, list[bytes]]:
        """Wait for packets and take those of up to ``limit`` buffers.

        Callers that wait for one queue are served in the order in which they came, also across a reconnect.

        :raises ConfigError: there is no such queue, or the call comes from a foreign thread or loop.
        :raises Disconnected: there is no peer (any more), and ``reconnect`` is off; or the interface is deleted.
        """
        self.check_owner(True)
        return self._receive(qid, limit, RxQueue.recv)

    def burst(self, qid: int, limit: int) -> Steps[S, Burst]:
        """Wait for packets and take up to ``limit`` buffers as a burst, the caller's to close; raises as ``recv``."""
        self.check_owner(True)
        return self._receive(qid, limit, RxQueue.burst)

    def send(self, packets: Iterable[ReadableBuffer], qid: int) -> Steps[S, int]:
        """Send all packets, and wait for room as often as it takes; their number.

        Callers that wait for room take turns of one batch, in the order in which they came.

        :raises ConfigError: a packet is empty or too long, there is no such queue, or the call comes from a foreign
            thread or loop. Packets before it may have been sent.
        :raises Disconnected: there is no peer (any more), and ``reconnect`` is off; or the interface is deleted.
        """
        self.check_owner(True)
        return self._send(list(check_packets(packets)), qid)

    def _send(self, packets: list[ReadableBuffer], qid: int) -> Steps[S, int]:
        sent, pause = 0, Pause()
        if type(qid) is not int or qid < 0:
            self._check_qid("transmit", qid)
        line, ends = self._line(self._senders, qid), self._ends
        place: Place[S] | None = None
        try:
            while True:
                # See _receive for the order of these steps.
                wakes, timeout = line.wakes, None
                if place is not None:
                    place.woken = False
                queue = line.queue
                if queue is None or ends != self._ends:
                    queue = line.queue = self._queue("transmit", qid, self.interface.tx_queues, ends)
                if queue is not None and (line.first is place):
                    if sent == len(packets):
                        return sent
                    if self._passed >= self._batch:
                        self._passed = 0
                        place = place or line.join()  # callers that come meanwhile are served later
                        yield Pass()
                        continue  # others have run: look at everything anew
                    batch = packets[sent : sent + self._batch]
                    self._passed += len(batch)
                    try:
                        taken = queue.send(batch)
                    except Disconnected:
                        if not self.reconnect:
                            raise
                        line.queue = None
                        continue
                    except ConfigError as error:
                        raise _renumbered(error, sent) from None
                    sent += taken
                    if taken:
                        pause.reset()
                    if taken == len(batch):
                        if place is not None:
                            line.leave(place)
                            place = line.join() if line else None  # a turn is one batch: to the end of the line
                        continue
                    timeout = pause.next()  # nothing tells of room in a ring: look again after a while
                if place is None:
                    place = line.join()
                    place.woken = line.wakes != wakes
                if not place.woken:
                    yield from place.wait(timeout)
                    self._passed = 0
        finally:
            if place is not None:
                line.leave(place)

    def _receive(self, qid: int, limit: int, take: Callable[[RxQueue, int], _Taken]) -> Steps[S, _Taken]:
        if type(qid) is not int or qid < 0:
            self._check_qid("receive", qid)
        line, ends = self._line(self._receivers, qid), self._ends
        place: Place[S] | None = None
        pause: Pause | None = None
        hand_over = True
        try:
            if self._passed >= self._batch:
                self._passed = 0
                place = line.join()  # callers that come meanwhile are served later
                yield Pass()
            self._passed += 1
            while True:
                # In this order: note that nobody has woken us, then look at the ring, then wait unless we have been
                # woken since. A packet that comes before the look is taken. One that comes after it kicks, and the
                # interrupt wakes us. Were the note made after the look, an interrupt in between, which reads the kick
                # away, would wake nobody.
                wakes, timeout = line.wakes, None
                if place is not None:
                    place.woken = False
                queue = line.queue
                if queue is None or ends != self._ends:
                    queue = line.queue = self._queue("receive", qid, self.interface.rx_queues, ends)
                # Only the first in the line may look: a caller that finds others waiting joins them at the end.
                if queue is not None and (line.first is place):
                    polling = queue.mode is _POLLING
                    if self._on_interrupt is not None:
                        queue.drained = True  # the callback is called for each kick: all are left to it
                    try:
                        # The eventfd is left to the interrupt, unless there are packets whose interrupt is still to
                        # come: one read of it for each kick.
                        taken = take(queue, limit) if polling or queue.drained or limit < 1 or queue.pending() else None
                    except Disconnected:
                        if not self.reconnect:
                            raise
                        line.queue = None
                        continue
                    if taken:  # no yield from here on: what is taken is returned
                        self._passed += len(taken) - 1
                        hand_over = polling or queue.more
                        return taken
                    if polling:
                        pause = pause or Pause()
                        timeout = pause.next()
                if place is None:
                    place = line.join()
                    place.woken = line.wakes != wakes
                if not place.woken:
                    place.signal = signal = self._make_signal()
                    try:
                        yield Wait(signal, timeout)
                    finally:
                        place.signal = None
                    self._passed = 0
        finally:
            if place is not None:
                line.leave(place, hand_over=hand_over)

    def _queue(self, what: str, qid: int, present: tuple[_Q, ...], ends: int) -> _Q | None:
        """The queue of a connection that works; None: there is none now, and the caller waits for the next one.

        :param ends: how many conversations had ended when the caller began.
        """
        self._check_alive()
        if ends != self._ends and not self.reconnect:
            raise self._disconnect_error()
        if self.connected:
            if qid >= len(present):
                raise self._no_queue(what, qid, present)
            # One that the peer broke ends with the next event of the channel; until then it says why by itself.
            if present[qid].connected or not self.reconnect:
                return present[qid]
        elif not self.reconnect:
            raise self._disconnect_error()
        return None

    def _check_qid(self, what: str, qid: int) -> None:
        if isinstance(qid, bool) or not isinstance(qid, int) or qid < 0:
            self._check_alive()
            if not self.connected and not self.reconnect:
                raise self._disconnect_error()
            present = self.interface.rx_queues if what == "receive" else self.interface.tx_queues
            raise self._no_queue(what, qid, present)

    def _no_queue(self, what: str, qid: object, present: tuple[object, ...]) -> ConfigError:
        return ConfigError(
            f"{self.interface}: {what} queue is {qid!r}; there are {len(present)}, counted from 0", ErrorCode.QID
        )

    def _line(self, lines: dict[int, Line[S, _Q]], qid: int) -> Line[S, _Q]:
        line = lines.get(qid)
        if line is None:
            line = lines[qid] = Line[S, _Q](self._make_signal)
        return line

    # --- what wakes them ----------------------------------------------------------------------------------------

    def _connected(self, interface: Interface) -> None:
        for queue in interface.rx_queues:
            queue.on_mode_change = functools.partial(self._mode_changed, queue.qid)
        if self.on_queues is not None:
            self.on_queues()
        try:
            if self._on_connect is not None:
                self._on_connect(interface)
        finally:
            self._wake_all()

    def _mode_changed(self, qid: int) -> None:
        """A caller that waits for an interrupt must look at a queue that polls now by itself."""
        if self.on_queues is not None:
            self.on_queues()
        self._line(self._receivers, qid).wake()

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
        self._line(self._receivers, qid).wake()
        if self._on_interrupt is not None:
            self._on_interrupt(interface, qid)

    def _wake_all(self) -> None:
        self._changed.wake()
        for line in list(self._lines()):
            line.wake_all()

    def _lines(self) -> Iterator[Line[S, RxQueue] | Line[S, TxQueue]]:
        return chain(self._receivers.values(), self._senders.values())

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
        self._waiting.check_owner(True)
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
        :raises ConfigError: the call comes from a foreign thread or loop.
        """
        self._waiting.check_owner(False)
        self._close()

    def _close(self) -> None:
        self._closed = True
        if self._taking:
            self._waiting._wake_all()
        self._give_back()

    def _give_back(self) -> None:
        burst, self._burst = self._burst, None
        if burst is not None:
            burst.close()

    def __del__(self) -> None:
        self._close()


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
    def runtime(self) -> Runtime:
        """The runtime of the interface."""
        return self._waiting.runtime

    _runtime = runtime  # its name in programs that were written before it was public

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
        return Counters(*self.interface.total_counters())

    def details(self) -> Details:
        """Everything about the interface at this moment."""
        return self.interface.details()

    def request_connection(self) -> None:
        """A slave connects now, without waiting for the timer; see :meth:`memifrt.Interface.request_connection`."""
        self._waiting.check_owner(False)
        self.interface.request_connection()

    def disconnect(self, reason: str = "disconnected by the application") -> None:
        """End the present connection, if there is one; a slave then connects again with the timer."""
        self._waiting.check_owner(False)
        self.interface.disconnect(reason)

    def delete(self) -> None:
        """Disconnect and forget the interface: whoever waits on it gets :class:`~memifrt.Disconnected`."""
        self._waiting.check_owner(False)
        self.interface.delete()

    def __str__(self) -> str:
        return str(self.interface)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self}, {self._waiting.waiters} waiting>"


def runtime_of_this_loop(runtime: Runtime, **own: object) -> None:
    """Check a runtime that interfaces share, and that nothing is asked for which only a new one could give.

    :raises ConfigError: it polls by itself, or an argument of ``own`` is not None.
    """
    if runtime.polls_itself:
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
    "Line",
    "Pass",
    "Place",
    "Signal",
    "Steps",
    "Wait",
    "Waiting",
    "Wakeup",
    "runtime_of_this_loop",
]
