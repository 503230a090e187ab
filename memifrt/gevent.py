"""memif for gevent: interfaces on which greenlets wait while other greenlets run.

Owns how greenlets wait. :mod:`memifrt.waiting.steps` has the logic, :mod:`memifrt.poll.gevent` the hub's watchers.

::

    import memifrt.gevent

    with memifrt.gevent.open_interface(socket="/run/vpp/memif.sock", reconnect=True) as interface:
        interface.wait_connected(timeout=10)
        for burst in interface.bursts():
            for packet in burst.packets():
                ...

It works the same in a process that gevent has patched and in one that it has not.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sized
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from memifrt.system.optional import Needs

with Needs("memifrt.gevent", "memifrt[gevent]"):
    import gevent
    from gevent._hub_local import get_hub_if_exists
    from gevent.hub import Waiter

from memifrt.errors import ConfigError, ForkedError
from memifrt.options import DEFAULT_APP_NAME, RuntimeOptions
from memifrt.poll.gevent import DEFAULT_BATCH as DEFAULT_EVENTS
from memifrt.poll.gevent import GeventPoller, end_copied_wait, let_others_run
from memifrt.queue import DEFAULT_BURST, RxQueue
from memifrt.ring import Burst
from memifrt.runtime import OpenArguments, Runtime
from memifrt.waiting.base_interface import BaseInterface, BurstHolder, interface_arguments, split_arguments
from memifrt.waiting.kept import RECV
from memifrt.waiting.steps import DEFAULT_BATCH, Receiving, Waiting
from memifrt.waiting.wakeup import PASS, Line, Pass, Steps, Wait

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from memifrt.types import ReadableBuffer


T = TypeVar("T")
_Taken = TypeVar("_Taken", bound=Sized)

#: The longest wait in seconds, because libuv has no timer for infinity. A longer wait is repeated.
_LONGEST_WAIT = 86400.0

#: The poller of each runtime that was opened here.
_pollers: weakref.WeakKeyDictionary[Runtime, GeventPoller] = weakref.WeakKeyDictionary()


def open_runtime(
    app_name: str = DEFAULT_APP_NAME,
    *,
    batch: int = DEFAULT_EVENTS,
    **options: Unpack[RuntimeOptions],
) -> Runtime:
    """Make a runtime in the hub of this thread, for several interfaces. It is a context manager that closes it.

    A greenlet of the runtime calls the callbacks of its interfaces, one at a time. They may sleep, lock and do I/O:
    every other greenlet runs meanwhile, and the runtime's next event waits.

    :param app_name: the name that peers see, at most 31 bytes.
    :param batch: the most events to handle before other greenlets get a turn.
    :param on_error: called with the exception of a callback; by default the hub's ``handle_error``, which prints it.
    :param options: as for :class:`memifrt.Runtime`.
    :raises ConfigError: an argument is wrong.
    """
    poller = GeventPoller(batch=batch, on_error=options.get("on_error"))
    runtime = Runtime(app_name, control_fd_update=poller.update, **options)
    poller.start(runtime.control_fd_handler)
    _pollers[runtime] = poller
    return runtime


class GeventInterface(BaseInterface["_Signal"]):
    """An interface on which greenlets wait, made by :func:`open_interface`.

    Any number of greenlets may wait, also for the same queue. Each packet goes to one of them.

    ``gevent.Timeout`` and ``kill()`` may end any of these calls. A packet leaves the ring when a call returns it, so a
    packet that was not returned is still there for the next call.
    """

    def __init__(self, waiting: Waiting[_Signal], runtime: Runtime, owned: Runtime | None) -> None:
        super().__init__(waiting)
        self._owned = owned
        self._poller = _pollers.get(runtime)

    def wait_connected(self, timeout: float | None = None) -> None:
        """Wait until there is a peer. If no peer listens yet, this goes on waiting: a slave tries again with its timer.

        :param timeout: in seconds; None waits without a limit.
        :raises TimeoutError: there is no peer yet.
        :raises Disconnected: a handshake failed and ``reconnect`` is off; or the interface is closed.
        """
        self._drive(self._waiting.wait_connected(), timeout)

    def recv(self, limit: int = DEFAULT_BURST, timeout: float | None = None, *, qid: int = 0) -> list[bytes]:
        """Wait for packets, and return up to ``limit`` of them: at least one.

        Packets that a peer sent before it left are returned before ``Disconnected`` is raised.

        :param timeout: in seconds; None waits without a limit, 0 does not wait.
        :param qid: the number of the receive queue.
        :raises TimeoutError: no packet came.
        :raises ConfigError: there is no such queue; or this is a callback, which must not wait.
        :raises Disconnected: there is no peer and ``reconnect`` is off; or the interface is closed.
        """
        end = _deadline(timeout)
        packets = self._receive(self._waiting.receiving(qid, limit, RECV), end)
        assert packets is not None
        return packets

    def bursts(self, qid: int = 0, limit: int = DEFAULT_BURST) -> Bursts:
        """Iterate over the packets of a queue without copies, in bursts of up to ``limit`` buffers.

        Each burst is given back to the peer, and its views end, when the body of the loop is done with it. The same
        happens when the loop is left by ``break``, an exception, a ``Timeout`` or a kill. If the iterator outlives the
        loop, end it with ``close()``, or use it as a context manager. Raises as :meth:`recv` does.

        :param qid: the number of the receive queue.
        """
        return Bursts(self, qid, limit)

    def send(self, packets: Iterable[ReadableBuffer], *, qid: int = 0) -> int:
        """Send all packets, wait for room as often as needed, and return their number.

        memif has no signal for a ring that has room again. So a greenlet that finds it full looks again after 0.1 ms
        (libuv: 1 ms), and then after pauses that double up to 5 ms. New room may stay unused for that long. A peer that
        takes nothing costs some 200 looks a second, about 1 % of a core. A ring that is large enough for each call
        never waits.

        If the greenlet is killed here, or its ``gevent.Timeout`` ends, it may have sent only the first packets.

        :param qid: the number of the transmit queue.
        :raises ConfigError: a packet is empty or too long, or there is no such queue; packets before a wrong one may
            have been sent. Or this is a callback, which must not wait.
        :raises Disconnected: there is no peer and ``reconnect`` is off; or the interface is closed.
        """
        return self._drive(self._waiting.send(packets, qid), None)

    def close(self) -> None:
        """Delete the interface, and its runtime if it has its own: callers that wait get
        :class:`~memifrt.Disconnected`. A second call is harmless.

        :raises ConfigError: the interface is in the hub of another thread.
        """
        self._waiting.check_owner(False)
        try:
            self.interface.delete()
        finally:
            if self._owned is not None:
                self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(
        self, call: Receiving[_Signal, _Taken], end: float | None, bursts: Bursts | None = None
    ) -> _Taken | None:
        """Wait for packets and take them. Return None if ``bursts``, the calling iterator, is closed meanwhile.

        This does what :meth:`_drive` does, without a generator and with few Python calls. Each call costs about a
        microsecond in a process that slept until the packet came.
        """
        waiting, poller = self._waiting, self._poller
        has_waited = False
        try:
            while bursts is None or not bursts.closed:
                taken = waiting.look(call)
                if taken is not None:
                    return taken
                if (
                    call.waits
                    and call.timeout is end is None
                    and (poller is None or gevent.getcurrent() is not poller.dispatcher)
                ):
                    call.signal.wait(None)
                else:
                    self._wait(call if call.waits else PASS, end)
                has_waited = True
            return None
        except ForkedError as error:
            if has_waited:
                end_copied_wait(error)
            raise
        finally:
            if call.joined:
                call.line.leave(call, hand_over=call.hand_over)

    def _drive(self, steps: Steps[_Signal, T], timeout: float | None) -> T:
        """Perform the steps of a call, and return its result. Other greenlets run while it waits."""
        end = _deadline(timeout)
        has_waited = False
        try:
            while True:
                self._wait(next(steps), end)
                has_waited = True
        except StopIteration as done:
            result: T = done.value
            return result
        except ForkedError as error:
            if has_waited:
                end_copied_wait(error)
            raise
        finally:
            steps.close()

    def _wait(self, request: Wait[_Signal] | Pass, end: float | None) -> None:
        if not isinstance(request, Wait):
            let_others_run()
            return
        if self._poller is not None and gevent.getcurrent() is self._poller.dispatcher:
            raise ConfigError(
                "a callback must not wait on its runtime, which waits for the callback: wait in another greenlet"
            )
        request.signal.wait(request.timeout if end is None else self._limit(request.timeout, end))

    def _limit(self, pause: float | None, end: float) -> float:
        """Return the longest time to wait now, in seconds.

        :raises TimeoutError: the call has no time left.
        """
        left = end - time.monotonic()
        if left <= 0:
            self.interface.check_not_forked()
            raise TimeoutError(f"{self}: timed out; it is {self.state.value}")
        return min(left, _LONGEST_WAIT if pause is None else pause)


def _deadline(timeout: float | None) -> float | None:
    """Return the moment, by ``time.monotonic()``, at which a call with this timeout ends; None if it does not.

    :raises ConfigError: the timeout is not a number. With NaN every timer of the hub would stop.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout != timeout:
        raise ConfigError(f"timeout is {timeout!r}; it must be a number of seconds, or None")
    return time.monotonic() + timeout


class Bursts(BurstHolder["_Signal"]):
    """The iterator of :meth:`GeventInterface.bursts`."""

    def __init__(self, interface: GeventInterface, qid: int, limit: int) -> None:
        super().__init__(interface._waiting, qid, limit)
        self._receive = interface._receive

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Burst:
        call = self._begin()
        try:
            burst = self._burst = self._receive(call, None, self)
        finally:
            self._taking = False
        if burst is None:
            raise StopIteration
        return burst

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Signal:
    """Wakes one greenlet. An ``Event`` costs twice as much, because any thread may set it and it may wake many."""

    __slots__ = ("is_set", "waiter")

    def __init__(self) -> None:
        self.is_set = False
        #: Wakes the greenlet, while it waits.
        self.waiter: Waiter | None = None

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            if self.waiter is not None:
                gevent.get_hub().loop.run_callback(self.waiter.switch, None)

    def wait(self, timeout: float | None) -> None:
        if self.is_set:
            return
        self.waiter = waiter = Waiter()
        timer = None
        try:
            if timeout is not None:
                loop = gevent.get_hub().loop
                timer = loop.timer(max(timeout, loop.approx_timer_resolution))  # libuv warns of less than it can
                timer.start(waiter.switch, None)
            waiter.get()
        finally:
            self.waiter = None  # a later set() must not switch to this greenlet
            if timer is not None:
                timer.close()


def _handle_kicks_in_hub(waiting: Waiting[_Signal], poller: GeventPoller) -> None:
    """Let the hub itself wake the greenlets that wait for packets.

    If the application has no ``on_interrupt``, an interrupt does nothing that could wait, and needs no dispatcher. A
    switch to the dispatcher would double its cost.
    """
    for queue in waiting.interface.rx_queues:
        if queue.connected:
            poller.handle_in_hub(queue.fileno(), _kick_handler(queue, waiting.receivers(queue.qid)))


def _kick_handler(queue: RxQueue, receivers: Line[_Signal, RxQueue]) -> Callable[[], None]:
    def handle_kick() -> None:
        receivers.wakes += 1
        first = receivers.first
        if first is None:  # no caller reads the eventfd, so the hub would call this again and again
            queue.drain()
            return
        receivers.kicked = first.woken = True  # the caller that takes the packets reads it
        signal = first.signal
        if not signal.is_set:
            signal.is_set = True
            waiter = signal.waiter
            if waiter is not None:
                waiter.switch(None)  # allowed here, because it is the last step of a callback of the hub

    return handle_kick


class _HubCheck:
    """Checks that a call comes from the thread of the hub in which this was made."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._thread = threading.current_thread().name

    def __call__(self, waiting: bool) -> None:
        if get_hub_if_exists() is not self._hub:
            raise ConfigError(
                f"this interface belongs to the gevent hub of thread {self._thread!r}, but was used in thread "
                f"{threading.current_thread().name!r}: use it only in greenlets of its own thread. Other threads can "
                "pass packets to them through a queue, or open their own interface"
            )


def open_interface(
    *,
    runtime: Runtime | None = None,
    reconnect: bool = False,
    batch: int = DEFAULT_BATCH,
    **options: Unpack[OpenArguments],
) -> GeventInterface:
    """Make an interface in the hub of this thread. It is a context manager that closes it.

    :param runtime: a runtime of :func:`open_runtime`, which several interfaces may share. By default the interface gets
        its own, with ``app_name`` and the runtime's options in ``options``.
    :param reconnect: after a disconnect, calls wait for the next peer (True) or raise ``Disconnected`` (False).
    :param batch: the number of packets after which other greenlets get a turn, even if no call had to wait.
    :param options: the options of :meth:`memifrt.Runtime.create_interface`, and those of :class:`memifrt.Runtime` if
        the interface gets its own runtime. :func:`open_runtime` says how callbacks are called. ``on_interrupt`` is
        called once for each kick. It is not called again for packets that it leaves in the ring: ``recv`` returns them.
    :raises ConfigError: an argument is wrong, or the id is taken on this socket.
    :raises MemifOSError: a master cannot listen.
    """
    with contextlib.ExitStack() as undo:
        owned: Runtime | None = None
        if runtime is None:
            app_name, own, arguments = split_arguments(options)
            owned = runtime = undo.enter_context(open_runtime(app_name, **own))
        else:
            arguments = interface_arguments(runtime, options)
        waiting = Waiting(runtime, _Signal, arguments, reconnect=reconnect, batch=batch, check_owner=_HubCheck())
        poller = _pollers.get(runtime)
        if poller is not None and not waiting.has_interrupt_callback:
            waiting.on_queues = functools.partial(_handle_kicks_in_hub, waiting, poller)
        interface = GeventInterface(waiting, runtime, owned)
        undo.pop_all()
    return interface


__all__ = ["Bursts", "GeventInterface", "open_interface", "open_runtime"]
