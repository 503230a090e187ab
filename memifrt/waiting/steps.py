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
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import chain
from typing import TYPE_CHECKING, Generic, TypeVar

from memifrt.errors import ConfigError, Disconnected, ErrorCode
from memifrt.interface import Interface
from memifrt.queue import RxQueue, TxQueue, check_packets
from memifrt.system.forks import abandon_after_fork
from memifrt.types import check_callback, check_range
from memifrt.waiting.wakeup import PASS, Line, Pause, Place, Signal, Steps, Wakeup

if TYPE_CHECKING:
    from memifrt.runtime import InterfaceArguments, Runtime
    from memifrt.types import ReadableBuffer

#: Packets that pass without a wait before the others get a turn. A turn is one round of the loop: measured, 2 us in
#: uvloop, 6 in asyncio, 10 in trio, so 8 to 40 ns a packet. Larger batches gain nothing that can be measured; one of
#: 16384 packets keeps the others waiting for tens of milliseconds.
DEFAULT_BATCH = 256

S = TypeVar("S", bound=Signal)
_Q = TypeVar("_Q", RxQueue, TxQueue)
_Taken = TypeVar("_Taken", bound=Sized)


class Receiving(Place[S], Generic[S, _Taken]):
    """One call that waits for packets; see :meth:`Waiting.receiving`."""

    __slots__ = ("begun", "ends", "hand_over", "joined", "limit", "line", "pause", "qid", "take", "waits")

    def __init__(
        self, line: Line[S, RxQueue], qid: int, limit: int, take: Callable[[RxQueue, int], _Taken], ends: int
    ) -> None:
        self.line = line
        self.qid = qid
        self.limit = limit
        self.take = take
        #: How many conversations had ended when the call began.
        self.ends = ends
        self.begun = False
        self.joined = False
        #: Whether the call waits now: else it lets others run.
        self.waits = False
        #: Whether the next in the line is to look when this call is over.
        self.hand_over = True
        self.pause: Pause | None = None


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
        self.interface.on_delete = self.wake_all

    @property
    def has_interrupt_callback(self) -> bool:
        """Whether the application wants to be told of each interrupt."""
        return self._on_interrupt is not None

    def receivers(self, qid: int) -> Line[S, RxQueue]:
        """The callers that wait for packets of a queue."""
        return self._line(self._receivers, qid)

    @property
    def connected(self) -> bool:
        """Whether there is a peer and ``on_connect`` has been called for it."""
        return self.interface.connected

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
        return self.receive(qid, limit, RxQueue.recv)

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
                # look() says why the steps come in this order.
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
                        place = place or self._new_place(line)  # callers that come meanwhile are served later
                        yield PASS
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
                        if place is not None:  # a turn is one batch: go to the end of the line
                            line.leave(place)
                            place = self._new_place(line) if line else None
                        continue
                    timeout = pause.next()  # nothing tells of room in a ring: look again after a while
                if place is None:
                    place = self._new_place(line)
                    place.woken = line.wakes != wakes
                elif not place.woken:
                    place.signal = self._make_signal()  # the one before may be set
                if not place.woken:
                    place.timeout = timeout
                    yield place
                    self._passed = 0
        finally:
            if place is not None:
                line.leave(place)

    def receive(self, qid: int, limit: int, take: Callable[[RxQueue, int], _Taken]) -> Steps[S, _Taken]:
        """Wait for packets and take them with ``take(queue, limit)``; for the rest see :meth:`recv`."""
        return self._receive(self.receiving(qid, limit, take))

    def _receive(self, call: Receiving[S, _Taken]) -> Steps[S, _Taken]:
        try:
            while True:
                taken = self.look(call)
                if taken is not None:  # no yield from here on: what is taken is returned
                    return taken
                yield call if call.waits else PASS
        finally:
            self.leave(call)

    def receiving(self, qid: int, limit: int, take: Callable[[RxQueue, int], _Taken]) -> Receiving[S, _Taken]:
        """One call that waits for packets, for a face that takes the steps itself because a generator costs too much::

            call = waiting.receiving(qid, limit, take)
            try:
                while (taken := waiting.look(call)) is None:
                    ...  # if call.waits, wait as for any Wait; else let others run, as for a Pass
                return taken
            finally:
                waiting.leave(call)

        :param take: takes packets of a queue, up to a limit.
        :raises ConfigError: there is no such queue, or the call comes from a foreign thread or loop.
        """
        self.check_owner(True)
        if type(qid) is not int or qid < 0:
            self._check_qid("receive", qid)
        line = self._receivers.get(qid)
        return Receiving(self._line(self._receivers, qid) if line is None else line, qid, limit, take, self._ends)

    def look(self, call: Receiving[S, _Taken]) -> _Taken | None:
        """Take packets if it is the caller's turn and there are some; None: there is something to wait for.

        :raises ConfigError: there is no such queue.
        :raises Disconnected: there is no peer (any more), and ``reconnect`` is off; or the interface is deleted.
        """
        line = call.line
        if call.waits:  # and has done so
            self._passed = 0
        elif call.begun or self._passed < self._batch:
            call.begun = True
            self._passed += 1
        else:
            call.begun = True
            self._passed = 0
            call.signal = self._make_signal()
            call.joined = True
            line.join(call)  # callers that come meanwhile are served later
            return None
        # In this order: note that nobody has woken us, then look at the ring, then wait unless we have been woken
        # since. A packet that comes before the look is taken. One that comes after it kicks, and that wakes us. Were
        # the note made after the look, an interrupt in between, which reads the kick away, would wake nobody.
        while True:
            wakes, timeout = line.wakes, None
            call.woken = False
            queue = line.queue
            if queue is None or call.ends != self._ends:
                queue = line.queue = self._queue("receive", call.qid, self.interface.rx_queues, call.ends)
            # Only the first in the line may look: a caller that finds others waiting joins them at the end.
            if queue is not None and (line.first is call or line.first is None):
                polling = queue.polling
                if self._on_interrupt is not None:
                    queue.drained = True  # the callback is called for each kick: all are left to it
                try:
                    # The eventfd is left to the interrupt, unless that left it to us, or there are packets whose
                    # interrupt is still to come: one read of it for each kick.
                    if line.kicked or queue.drained or polling or call.limit < 1 or queue.pending():
                        line.kicked = False
                        taken = call.take(queue, call.limit)
                        if taken:
                            self._passed += len(taken) - 1
                            call.hand_over = polling or queue.more
                            return taken
                except Disconnected:
                    if not self.reconnect:
                        raise
                    line.queue = None
                    continue
                if polling:
                    call.pause = call.pause or Pause()
                    timeout = call.pause.next()
            if not call.joined:
                call.signal = self._make_signal()
                call.joined = True
                line.join(call)
                call.woken = line.wakes != wakes
            elif not call.woken:
                call.signal = self._make_signal()  # the one before may be set
            if not call.woken:
                call.timeout = timeout
                call.waits = True
                return None

    def leave(self, call: Receiving[S, _Taken]) -> None:
        """The call is over, with or without packets: the next in the line looks."""
        if call.joined:
            call.line.leave(call, hand_over=call.hand_over)

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
            line = lines[qid] = Line[S, _Q]()
        return line

    def _new_place(self, line: Line[S, TxQueue]) -> Place[S]:
        place = Place(self._make_signal())
        line.join(place)
        return place

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
            self.wake_all()

    def _mode_changed(self, qid: int) -> None:
        """A caller that waits for an interrupt must look at a queue that polls now by itself."""
        if self.on_queues is not None:
            self.on_queues()
        self._line(self._receivers, qid).wake()

    def _disconnected(self, interface: Interface, reason: Disconnected) -> None:
        self._ends += 1
        self._reason = reason
        self.wake_all()
        if self._on_disconnect is not None:
            self._on_disconnect(interface, reason)

    def _interrupted(self, interface: Interface, qid: int) -> None:
        # Polling is level-triggered: an eventfd that nobody reads, because nobody receives just now, would call us for
        # ever. What it said needs no remembering: everybody looks at the ring before they wait.
        interface.rx_queues[qid].drain()
        self._line(self._receivers, qid).wake()
        if self._on_interrupt is not None:
            self._on_interrupt(interface, qid)

    def wake_all(self) -> None:
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


__all__ = ["DEFAULT_BATCH", "Receiving", "Waiting"]
