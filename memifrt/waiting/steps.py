"""The logic of the waiting calls ``wait_connected``, ``recv``, ``bursts`` and ``send``, the same for every loop.

Owns which callers wait for what on one interface, and what wakes them. Knows no loop, and neither sleeps nor switches.
Each call is a generator: it yields what to wait for, and returns the result. The modules for the loops
(:mod:`memifrt.asyncio`, :mod:`memifrt.trio`, :mod:`memifrt.gevent`) drive it with the primitives of their loop::

    def drive(steps):
        try:
            request = next(steps)
            while True:
                match request:
                    case Pass():  # let every other task run once, and let the loop check its fds
                        sleep(0)
                    case Wait(signal, timeout):  # until signal.set() is called, for timeout seconds (None: no limit)
                        signal.wait(timeout)
                request = next(steps)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

``signal`` was made by ``make_signal()`` for this one wait. ``set()`` may be called at any time, several times, and
after the caller has gone. A wait may end too early: the next step looks at the queue again.

A cancellation, a kill or a timeout may come at any yield. It only has to close the generator. Packets leave the ring in
the step that returns them, so none is lost. :meth:`Waiting.receiving` has the same steps without a generator.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import chain
from typing import TYPE_CHECKING, Generic, TypeVar

from memifrt.errors import ConfigError, Disconnected, ErrorCode, ForkedError, check_packets
from memifrt.interface import Interface
from memifrt.queue import RxQueue, TxQueue
from memifrt.system.forks import abandon_after_fork
from memifrt.types import check_callback, check_range
from memifrt.waiting.kept import RECV, KeptPackets, Take
from memifrt.waiting.wakeup import PASS, Line, Pause, Place, Signal, Steps, Wakeup

if TYPE_CHECKING:
    from memifrt.runtime import InterfaceArguments, Runtime
    from memifrt.types import ReadableBuffer

#: Packets that callers may pass without a wait before other tasks get a turn. A turn is one round of the loop. It was
#: measured at 2 us in uvloop, 6 in asyncio and 10 in trio, which is 8 to 40 ns for each packet. A larger batch gains
#: nothing measurable, and one of 16384 packets delays other tasks by tens of milliseconds.
DEFAULT_BATCH = 256

S = TypeVar("S", bound=Signal)
_Q = TypeVar("_Q", RxQueue, TxQueue)
_Taken = TypeVar("_Taken", bound=Sized)


class Receiving(Place[S], Generic[S, _Taken]):
    """One call that waits for packets; see :meth:`Waiting.receiving`."""

    __slots__ = ("begun", "ends", "hand_over", "joined", "limit", "line", "pause", "qid", "take", "take_kept", "waits")

    def __init__(self, line: Line[S, RxQueue], qid: int, limit: int, take: Take[_Taken], ends: int) -> None:
        self.line = line
        self.qid = qid
        self.limit = limit
        self.take = take.from_queue
        self.take_kept = take.from_kept
        #: How many conversations had ended when the call began.
        self.ends = ends
        #: Whether :meth:`Waiting.look` was called for it.
        self.begun = False
        #: Whether it has a place in the line.
        self.joined = False
        #: Whether its last step was to wait. Otherwise it was to let others run.
        self.waits = False
        #: Whether the next caller in the line must look when this call ends.
        self.hand_over = True
        #: The pauses between two looks at a queue in polling mode.
        self.pause: Pause | None = None


def _no_owner(waiting: bool) -> None:
    """Allow every caller."""


def _renumbered(error: ConfigError, sent: int) -> ConfigError:
    """Return the error of a batch, with the packet's number among all packets of the call."""
    message = re.sub(r"^packet (\d+)\b", lambda match: f"packet {int(match[1]) + sent}", error.message)
    renumbered = type(error)(message, error.code)
    renumbered.__cause__ = error.__cause__
    return renumbered


class Waiting(Generic[S]):
    """One interface, and the callers that wait for something on it.

    It creates the interface with its own callbacks. They wake the callers, and call the callbacks in ``options``.

    :param make_signal: makes a signal of the loop, for one wait.
    :param reconnect: after a disconnect, calls wait for the next peer (True) or raise ``Disconnected`` (False).
    :param batch: the number of packets after which other tasks get a turn, even if no call had to wait.
    :param check_owner: ``check_owner(waiting)`` raises ConfigError if the caller is in a thread or loop other than the
        one that handles the events of ``runtime``. ``waiting`` tells whether the call may wait.
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
        #: See the parameter. In a forked child it raises ForkedError for calls that may wait.
        self.check_owner = check_owner
        abandon_after_fork(self._abandon)
        self._batch = check_range("batch", batch, 1, 1 << 30)
        self._passed = 0
        #: Called after the eventfds of the receive queues were added to the loop.
        self.on_queues: Callable[[], object] | None = None
        self._make_signal = make_signal
        #: Wakes callers when the interface connects, disconnects or is deleted.
        self._changed = Wakeup(make_signal)
        #: Callers that wait for packets, and for room, by the number of the queue.
        self._receivers: dict[int, Line[S, RxQueue]] = {}
        self._senders: dict[int, Line[S, TxQueue]] = {}
        #: Packets that were left in each receive queue when a peer ended the connection.
        self._kept: dict[int, KeptPackets] = {}
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
        self.interface.on_ending = self._ending
        self.interface.on_delete = self._deleted

    @property
    def has_interrupt_callback(self) -> bool:
        """Whether the application gave an ``on_interrupt``."""
        return self._on_interrupt is not None

    def receivers(self, qid: int) -> Line[S, RxQueue]:
        """Return the line of callers that wait for packets of a queue."""
        return self._line(self._receivers, qid)

    @property
    def connected(self) -> bool:
        """Whether there is a peer and ``on_connect`` has been called for it."""
        return self.interface.connected

    @property
    def waiters(self) -> int:
        """The number of callers that wait now."""
        return self._changed.waiters + sum(len(line) for line in self._lines())

    def _abandon(self) -> None:
        """Make waiting calls raise ForkedError in a forked child, before they check anything else."""
        self.check_owner = lambda waiting: self.interface.check_not_forked() if waiting else None

    # --- the calls, in steps ------------------------------------------------------------------------------------

    def wait_connected(self) -> Steps[S, None]:
        """Wait until there is a peer. If no peer listens yet, this goes on waiting: the timer tries again.

        :raises Disconnected: a handshake failed and ``reconnect`` is off; or the interface is deleted.
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

        :raises ConfigError: there is no such queue, or the caller is in another thread or loop.
        :raises Disconnected: there is no peer and ``reconnect`` is off; or the interface is deleted.
        """
        return self.receive(qid, limit, RECV)

    def send(self, packets: Iterable[ReadableBuffer], qid: int) -> Steps[S, int]:
        """Send all packets, wait for room as often as needed, and return their number.

        Callers that wait for room take turns of one batch, in the order in which they came.

        :raises ConfigError: a packet is empty or too long, there is no such queue, or the caller is in another thread
            or loop. Packets before a wrong one may have been sent.
        :raises Disconnected: there is no peer and ``reconnect`` is off; or the interface is deleted.
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
                        place = place or self._new_place(line)  # before callers that come during the pass
                        yield PASS
                        continue  # others have run: start again
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
                    timeout = pause.next()  # memif has no signal for room in a ring: look again after a pause
                if place is None:
                    place = self._new_place(line)
                    place.woken = line.wakes != wakes
                elif not place.woken:
                    place.signal = self._make_signal()  # the old one may be set
                if not place.woken:
                    place.timeout = timeout
                    yield place
                    self._passed = 0
        finally:
            if place is not None:
                line.leave(place)

    def receive(self, qid: int, limit: int, take: Take[_Taken]) -> Steps[S, _Taken]:
        """Wait for packets and take them as ``take`` says; for the rest see :meth:`recv`."""
        return self._receive(self.receiving(qid, limit, take))

    def _receive(self, call: Receiving[S, _Taken]) -> Steps[S, _Taken]:
        try:
            while True:
                taken = self.look(call)
                if taken is not None:  # no yield after this: a cancellation would lose the packets
                    return taken
                yield call if call.waits else PASS
        finally:
            self.leave(call)

    def receiving(self, qid: int, limit: int, take: Take[_Taken]) -> Receiving[S, _Taken]:
        """Return one call that waits for packets. Its steps need no generator, which saves time::

            call = waiting.receiving(qid, limit, take)
            try:
                while (taken := waiting.look(call)) is None:
                    ...  # if call.waits: wait as for any Wait, otherwise let others run as for a Pass
                return taken
            finally:
                waiting.leave(call)

        :raises ConfigError: there is no such queue, or the caller is in another thread or loop.
        """
        self.check_owner(True)
        if type(qid) is not int or qid < 0:
            self._check_qid("receive", qid)
        line = self._receivers.get(qid)
        return Receiving(self._line(self._receivers, qid) if line is None else line, qid, limit, take, self._ends)

    def look(self, call: Receiving[S, _Taken]) -> _Taken | None:
        """Take packets if there are some and it is the caller's turn. Return None if the caller has to wait.

        :raises ConfigError: there is no such queue.
        :raises Disconnected: there is no peer and ``reconnect`` is off; or the interface is deleted.
        """
        line = call.line
        if call.waits:  # it has waited since the last look
            self._passed = 0
        elif call.begun or self._passed < self._batch:
            call.begun = True
            self._passed += 1
        else:
            call.begun = True
            self._passed = 0
            call.signal = self._make_signal()
            call.joined = True
            line.join(call)  # before callers that come during the pass
            return None
        # The order of the steps: first clear "woken", then look at the ring, then wait unless "woken" was set again. A
        # packet that comes before the look is taken. A packet that comes after it kicks, and the kick sets "woken". If
        # "woken" were cleared after the look, an interrupt between the two would read the kick and wake nobody.
        while True:
            wakes, timeout = line.wakes, None
            call.woken = False
            queue = line.queue
            if queue is None or call.ends != self._ends:
                if (kept := self._kept.get(call.qid)) and call.limit > 0:
                    if line.first is call or line.first is None:
                        taken = call.take_kept(kept, call.limit)
                        self._passed += len(taken) - 1
                        return taken
                    queue = None
                else:
                    queue = line.queue = self._queue("receive", call.qid, self.interface.rx_queues, call.ends)
            # Only the first caller in the line may look. A caller that finds others there goes to the end of the line.
            if queue is not None and (line.first is call or line.first is None):
                polling = queue.polling
                if self._on_interrupt is not None:
                    queue.drained = True  # leave the eventfd to the callback, which must be called for each kick
                try:
                    # Read the eventfd once for each kick. The interrupt reads it, unless it left that to us
                    # (kicked), or packets are there before their interrupt.
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
                call.signal = self._make_signal()  # the old one may be set
            if not call.woken:
                call.timeout = timeout
                call.waits = True
                return None

    def leave(self, call: Receiving[S, _Taken]) -> None:
        """End the call, with or without packets. The next caller in the line then looks."""
        if call.joined:
            call.line.leave(call, hand_over=call.hand_over)

    def _queue(self, what: str, qid: int, present: tuple[_Q, ...], ends: int) -> _Q | None:
        """Return the queue of a working connection, or None if the caller must wait for the next connection.

        :param ends: how many conversations had ended when the call began.
        """
        self._check_alive()
        if ends != self._ends and not self.reconnect:
            raise self._disconnect_error()
        if self.connected:
            if qid >= len(present):
                raise self._no_queue(what, qid, present)
            # The next event of the channel ends a queue that the peer broke. Until then its calls raise the reason.
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
        """Wake a caller that waits for an interrupt: in polling mode none comes."""
        if self.on_queues is not None:
            self.on_queues()
        self._line(self._receivers, qid).wake()

    def _ending(self, interface: Interface) -> None:
        """Keep the packets that no call has taken: a caller that was woken for them runs after the end."""
        for queue in interface.rx_queues:
            self._kept.setdefault(queue.qid, KeptPackets()).keep(queue)

    def _deleted(self) -> None:
        with contextlib.suppress(ForkedError):  # in a forked child they stay as they are: they are the parent's
            self.interface.check_not_forked()
            for kept in self._kept.values():
                kept.drop()
        self.wake_all()

    def _disconnected(self, interface: Interface, reason: Disconnected) -> None:
        self._ends += 1
        self._reason = reason
        self.wake_all()
        if self._on_disconnect is not None:
            self._on_disconnect(interface, reason)

    def _interrupted(self, interface: Interface, qid: int) -> None:
        # Read the eventfd even if no caller waits: polling is level-triggered, and would call this again and again. The
        # kick need not be remembered, because every caller looks at the ring before it waits.
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
        """Return a new exception, because several callers may raise it."""
        self._check_alive()
        reason = self._reason
        if reason is None:
            return Disconnected(f"{self.interface} is not connected yet: wait_connected() waits for it")
        error = Disconnected(reason.message, reason.code, established=reason.established)
        error.__cause__ = reason.__cause__
        return error


__all__ = ["DEFAULT_BATCH", "Receiving", "Waiting"]
