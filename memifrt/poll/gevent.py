"""Watch memifrt's fds in gevent's hub, and wait for an fd while other greenlets run.

Owns the watchers, and the greenlet that calls back. Knows nothing of memif.

The callback of a watcher runs in the hub, which must never wait. So the callback only records the event. A greenlet,
the dispatcher, passes it on. The callbacks of the application may sleep, lock and do I/O: other greenlets run
meanwhile, but the same runtime passes on no other event.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from typing import NoReturn, Protocol

from memifrt.system.optional import Needs

with Needs("memifrt.poll.gevent", "memifrt[gevent]"):
    import gevent
    from gevent._hub_local import get_hub_if_exists
    from gevent.event import Event

from memifrt.errors import ConfigError, ForkedError
from memifrt.poll.hook import FdHandler
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent, check_range

#: The number of events to pass on before other greenlets get a turn. A turn costs 3 us (libuv: 20 us), and an event
#: with one packet 8 us, so with 16 events the turns take 2 % of the time (libuv: 14 %). A flood of 256 packets an event
#: on a hundred interfaces then delays other greenlets by 10 ms at most; with 64 by 30 ms, with 256 by 50 ms.
DEFAULT_BATCH = 16
_NOTHING = FdEvent(0)
_WAITED = FdEvent.READ | FdEvent.WRITE  # gevent has the same numbers
#: Events by gevent's number. gevent has none for errors, so an error becomes READ; reading shows the cause.
_EVENTS = (FdEvent.READ, FdEvent.READ, FdEvent.WRITE, _WAITED)


class _Watcher(Protocol):
    """The part of gevent's watchers that we use."""

    def start(self, callback: Callable[..., object], *args: object, pass_events: bool = False) -> object: ...
    def stop(self) -> object: ...
    def close(self) -> object: ...


class _Loop(Protocol):
    approx_timer_resolution: float

    def io(self, fd: int, events: int) -> _Watcher: ...
    def timer(self, after: float) -> _Watcher: ...
    def reinit(self) -> object: ...
    def run_callback(self, function: Callable[..., object], *args: object) -> object: ...


class _Hub(Protocol):
    """The part of gevent's hub that we use."""

    loop: _Loop

    def switch(self) -> object: ...
    def wait(self, watcher: _Watcher) -> object: ...
    def handle_error(self, context: object, kind: object, value: object, trace: object) -> object: ...


class _Watch:
    """One fd in the hub's loop."""

    __slots__ = ("fd", "in_hub", "paused", "pending", "watcher")

    def __init__(self, fd: int, watcher: _Watcher) -> None:
        self.fd = fd
        self.watcher = watcher
        #: If set, the hub calls this instead of the dispatcher.
        self.in_hub: Callable[[], object] | None = None
        #: Events that are ready and not passed on yet. While there are any, the watch is in the queue.
        self.pending = _NOTHING
        #: Whether the watcher is stopped because events are pending: it would call the hub again and again.
        self.paused = False


class GeventPoller:
    """Watches a runtime's fds in the hub of the thread that makes this poller. :meth:`update` is the hook.

    ::

        poller = GeventPoller()
        runtime = memifrt.Runtime(control_fd_update=poller.update)
        poller.start(runtime.control_fd_handler)

    Closing the runtime leaves no watcher and no greenlet behind. Most programs use :mod:`memifrt.gevent` instead.

    :param batch: how many events to pass on before other greenlets get a turn.
    :param on_error: called in the dispatcher with the exception of a callback; by default the hub's ``handle_error``,
        which prints it. If a callback fails, its event comes again.
    :raises ConfigError: the batch is not an integer of 1 or more.
    """

    def __init__(
        self, *, batch: int = DEFAULT_BATCH, on_error: Callable[[BaseException], object] | None = None
    ) -> None:
        self._batch = check_range("batch", batch, 1, 1 << 30)
        self._hub: _Hub = gevent.get_hub()
        self._on_error = on_error
        self._handler: FdHandler | None = None
        self._watches: dict[int, _Watch] = {}
        self._ready: deque[_Watch] = deque()
        #: The greenlet that calls back, or None. It must not wait for its own work.
        self.dispatcher: gevent.Greenlet | None = None
        self._parked = False
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of watched fds."""
        return len(self._watches)

    @property
    def idle(self) -> bool:
        """Whether there is no dispatcher: it starts with the first event, and ends after the last fd."""
        return self.dispatcher is None

    def start(self, handler: FdHandler) -> None:
        """Pass events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def check_caller(self) -> None:
        """Check that this thread may change the watched fds.

        :raises ConfigError: called from a thread that is not the hub's.
        """
        if get_hub_if_exists() is not self._hub:
            raise ConfigError("this runtime's fds are in the hub of another thread: use the runtime in that thread")

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``.

        :raises ConfigError: called from a thread that is not the hub's.
        """
        self.check_caller()
        if events & FdEvent.DEL:
            self._remove(fd)
        elif events & FdEvent.MOD:
            self._modify(fd, events)
        else:
            self._watch(_Watch(fd, self._hub.loop.io(fd, int(events & _WAITED))))

    def handle_in_hub(self, fd: int, callback: Callable[[], object]) -> None:
        """Let the hub call ``callback()`` for each event of a watched fd, until the fd is removed.

        The callback must not wait. As its last step it may switch to a waiting greenlet.
        """
        watch = self._watches.get(fd)
        if watch is not None:
            watch.in_hub = callback
            if not watch.paused:
                watch.watcher.stop()
                watch.watcher.start(callback)

    def close(self) -> None:
        """Stop watching all fds. Closing the runtime does so too."""
        self._handler = None
        for fd in list(self._watches):
            self._remove(fd)

    # --- watchers -----------------------------------------------------------------------------------------------

    def _watch(self, watch: _Watch) -> None:
        self._watches[watch.fd] = watch
        watch.watcher.start(self._on_ready, watch, pass_events=True)

    def _modify(self, fd: int, events: FdEvent) -> None:
        # An active watcher cannot be changed, and a closed one cannot be used again, so make a new one.
        watch = self._watches[fd]
        old, watch.watcher = watch.watcher, self._hub.loop.io(fd, int(events & _WAITED))
        old.stop()
        old.close()
        if not watch.paused:
            watch.watcher.start(self._on_ready, watch, pass_events=True)

    def _remove(self, fd: int) -> None:
        watch = self._watches.pop(fd, None)
        if watch is None:  # the poller was closed before its runtime
            return
        # Close the watcher now: the fd is closed next, and its number may soon belong to another file.
        watch.watcher.stop()
        watch.watcher.close()
        watch.pending = _NOTHING
        if not self._watches:
            self._end()

    def _on_ready(self, events: int, watch: _Watch) -> None:
        """Record an event; the hub calls this."""
        if watch.in_hub is not None:
            watch.in_hub()
            return
        ready = _EVENTS[events & 3] if events > 0 else FdEvent.READ
        if watch.pending:
            watch.pending |= ready
            watch.watcher.stop()
            watch.paused = True
        else:
            watch.pending = ready
            self._ready.append(watch)
            self._wake()

    # --- the dispatcher -----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self.dispatcher is None:
            self.dispatcher = gevent.spawn(self._dispatch)
            self.dispatcher.rawlink(self._on_end)
        elif self._parked:
            self._parked = False
            self._hub.loop.run_callback(self.dispatcher.switch)

    def _on_end(self, dispatcher: object) -> None:
        """Note the end of a dispatcher. If it was killed before it ran, this is the only sign of it."""
        if self.dispatcher is dispatcher:
            self.dispatcher = None
            if self._ready:
                self._wake()

    def _park(self) -> None:
        self._parked = True
        try:
            self._hub.switch()
        finally:
            self._parked = False

    def _dispatch(self) -> None:
        """Pass events on while any fd is watched. If this greenlet is killed, the next event starts another."""
        turn = self._hub.loop.timer(0)
        try:
            while self._watches:
                for _ in range(self._batch):
                    if not self._ready:
                        break
                    self._hand_on(self._ready.popleft())
                if self._ready:
                    turn.start(self._wake)  # after one round of the loop: see let_others_run
                elif not self._watches:
                    break
                self._park()
                turn.stop()
        finally:
            turn.stop()
            turn.close()
            self.dispatcher = None
            if self._ready:
                self._wake()

    def _end(self) -> None:
        """End the dispatcher after the last fd is removed."""
        self._ready.clear()
        if self._parked:
            self._wake()

    def _hand_on(self, watch: _Watch) -> None:
        events, watch.pending = watch.pending, _NOTHING
        try:
            if events and self._handler is not None:  # no events if the fd was removed meanwhile
                self._handler(watch.fd, events)
        except gevent.GreenletExit:
            raise
        except BaseException as error:
            self._report(error)
        finally:
            if watch.paused and self._watches.get(watch.fd) is watch and not watch.pending:
                watch.paused = False
                watch.watcher.start(self._on_ready, watch, pass_events=True)

    def _report(self, error: BaseException) -> None:
        try:
            if self._on_error is not None and not isinstance(error, SystemExit | KeyboardInterrupt):
                self._on_error(error)
                return
        except BaseException as worse:
            error = worse
        self._hub.handle_error(self, type(error), error, error.__traceback__)

    def _abandon(self) -> None:
        """Forget all fds in a forked child. It has a copy of every greenlet, but the fds belong to the parent."""
        watches = list(self._watches.values())
        self._watches.clear()
        self._ready.clear()
        self._handler = None
        _stop_inherited(self._hub, [watch.watcher for watch in watches])
        if get_hub_if_exists() is self._hub:
            self._end()


def _stop_inherited(hub: _Hub, watchers: list[_Watcher]) -> None:
    """Stop the parent's watchers in a forked child, without changing the parent's poll set.

    The parent and the child share the poll set of the loop. libev only notes that a watcher is stopped, and makes a new
    set before it polls again. libuv removes the fd from the shared set at once, so its loop must get a new set first.
    ``gevent.os.fork`` does that too, a moment later; doing it twice is harmless. If the hub belongs to a thread that
    exists only in the parent, it never runs in the child. Its watchers are kept for ever, because the garbage collector
    would close them.
    """
    if not watchers:
        return
    if get_hub_if_exists() is not hub:
        for watcher in watchers:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(watcher))
        return
    if "libuv" in type(hub.loop).__module__:
        hub.loop.reinit()
    for watcher in watchers:
        watcher.stop()
        watcher.close()


# --- waiting --------------------------------------------------------------------------------------------------------


def can_wait() -> bool:
    """Return whether this thread has a hub, so that other greenlets can run during a wait."""
    return get_hub_if_exists() is not None


class ReadableWait:
    """One wait for a readable fd, while other greenlets run."""

    def __init__(self, fd: int) -> None:
        hub: _Hub = gevent.get_hub()
        self._hub = hub
        self._over = Event()
        self._shortest = hub.loop.approx_timer_resolution
        self._watcher: _Watcher | None = hub.loop.io(fd, int(FdEvent.READ))

    def wait(self, timeout: float | None) -> None:
        """Wait for at most ``timeout`` seconds; None waits without a limit."""
        assert self._watcher is not None
        self._watcher.start(self._on_ready)
        try:
            # libuv warns of a timer that is shorter than its resolution.
            self._over.wait(None if timeout is None else max(timeout, self._shortest))
        finally:
            self.end()

    def _on_ready(self) -> None:
        """End the wait; the hub calls this. Stop the watcher, or it would fire until the greenlet has run."""
        if self._watcher is not None:
            self._watcher.stop()
        self._over.set()

    def end(self) -> None:
        """End the wait before the fd is closed. A second call is harmless."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()
            self._over.set()

    def abandon(self) -> None:
        """End the wait in a forked child, without changing the wait of the parent."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            _stop_inherited(self._hub, [watcher])
            if get_hub_if_exists() is self._hub:
                self._over.set()


class CopiedWaitError(ForkedError):
    """Ends the copy of a waiting greenlet in a forked child: it waited for packets of the parent."""


def end_copied_wait(error: ForkedError) -> NoReturn:
    """End a call that was waiting when this process was forked. Call it in the child, in the greenlet that waited.

    gevent prints no traceback for this error, because the child has not started these greenlets. The copy of the main
    greenlet waits for ever: if it continued, it would run to the end of the program and end the child in the middle of
    its work.
    """
    hub = gevent.get_hub()
    if gevent.getcurrent() is hub.parent:
        while True:
            hub.switch()
    if CopiedWaitError not in hub.NOT_ERROR:
        hub.NOT_ERROR = (*hub.NOT_ERROR, CopiedWaitError)
    raise CopiedWaitError(error.pid, error.what) from None


def let_others_run() -> None:
    """Let every other greenlet run, and let the loop check its fds and timers.

    ``gevent.sleep(0)`` alone does not let the loop check: the hub runs up to 50 greenlets before it does so, and one
    greenlet that sleeps like this after each batch may be all 50 of them.
    """
    hub: _Hub = gevent.get_hub()
    timer = hub.loop.timer(0)
    try:
        hub.wait(timer)
    finally:
        timer.close()
    gevent.sleep(0)  # leave the timer phase of the loop, where a new timer of 0 s would run next (libuv before 1.45)
