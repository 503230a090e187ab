"""memifrt's fds in gevent's hub, and waiting for an fd while other greenlets run.

Owns the watchers, and the greenlet that calls back. Knows nothing of memif.

A watcher's callback runs in the hub, which must never wait. So it does no more than to note the event, and the
dispatcher, a greenlet, hands it on: what it calls may sleep, lock and do I/O. No other event of the same runtime is
handed on meanwhile, but every other greenlet runs.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from typing import NoReturn, Protocol

import gevent
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event

from memifrt.errors import ConfigError, ForkedError
from memifrt.poll.hook import FdHandler
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent, check_range

#: Events handed on before other greenlets get a turn. A turn costs 3 us (libuv: 20 us), an event with one packet 8 us:
#: with 16 a turn is a fiftieth of the whole (libuv: a seventh). A flood of 256 packets an event on a hundred interfaces
#: then holds up the others for some 10 ms at most, with 64 for 30 ms, with 256 for 50 ms.
DEFAULT_BATCH = 16
_NOTHING = FdEvent(0)
_WAITED = FdEvent.READ | FdEvent.WRITE  # whose numbers are gevent's
#: By gevent's number. An error is none of them; reading explains it.
_EVENTS = (FdEvent.READ, FdEvent.READ, FdEvent.WRITE, _WAITED)


class _Watcher(Protocol):
    """What is needed of gevent's watchers."""

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
    """What is needed of gevent's hub."""

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
        #: Called by the hub itself, in the dispatcher's place.
        self.in_hub: Callable[[], object] | None = None
        #: What is ready and not handed on yet. While there is something, the watch is in the queue.
        self.pending = _NOTHING
        #: The watcher is stopped: it would call the hub again and again for what the dispatcher has not come to yet.
        self.paused = False


class GeventPoller:
    """The hook of a runtime whose fds are in the hub of the thread that makes this.

    ::

        poller = GeventPoller()
        runtime = memifrt.Runtime(control_fd_update=poller.update)
        poller.start(runtime.control_fd_handler)

    Closing the runtime leaves no watcher and no greenlet behind. :mod:`memifrt.gevent` has all this ready-made.

    :param batch: how many events are handed on before other greenlets get a turn; a flood of packets delays them by
        no more than so many callbacks.
    :param on_error: called with what a callback raised, in the dispatcher. Default: the hub's ``handle_error``, which
        prints it. An event whose callback failed comes again.
    :raises ConfigError: the batch is not a whole number from 1 on.
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
        #: The greenlet that calls back, if there is one: it must not wait for what it has to do itself.
        self.dispatcher: gevent.Greenlet | None = None
        self._parked = False
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """How many fds are watched."""
        return len(self._watches)

    @property
    def idle(self) -> bool:
        """Whether there is no dispatcher: none is needed before the first event, nor after the last fd."""
        return self.dispatcher is None

    def start(self, handler: FdHandler) -> None:
        """Hand events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def check_caller(self) -> None:
        """Check that the caller is in the thread of the hub.

        :raises ConfigError: it is not.
        """
        if get_hub_if_exists() is not self._hub:
            raise ConfigError("this runtime's fds are in the hub of another thread: it must be used there")

    def update(self, fd: int, events: FdEvent) -> None:
        """The hook.

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
        """Let the hub itself call ``callback()`` for each event of an fd that is watched, until it is withdrawn.

        The callback must not wait. It may switch to a waiting greenlet as the last thing that it does.
        """
        watch = self._watches.get(fd)
        if watch is not None:
            watch.in_hub = callback
            if not watch.paused:
                watch.watcher.stop()
                watch.watcher.start(callback)

    def close(self) -> None:
        """Watch nothing any more. Closing the runtime does so too."""
        self._handler = None
        for fd in list(self._watches):
            self._remove(fd)

    # --- watchers -----------------------------------------------------------------------------------------------

    def _watch(self, watch: _Watch) -> None:
        self._watches[watch.fd] = watch
        watch.watcher.start(self._on_ready, watch, pass_events=True)

    def _modify(self, fd: int, events: FdEvent) -> None:
        # A watcher does not change while it is active, and one that is closed may not be used again: a new one it is.
        watch = self._watches[fd]
        old, watch.watcher = watch.watcher, self._hub.loop.io(fd, int(events & _WAITED))
        old.stop()
        old.close()
        if not watch.paused:
            watch.watcher.start(self._on_ready, watch, pass_events=True)

    def _remove(self, fd: int) -> None:
        watch = self._watches.pop(fd, None)
        if watch is None:  # the poller is closed, before its runtime
            return
        # Now, and not when the hub comes to it: the fd is closed next, and its number may be another file's.
        watch.watcher.stop()
        watch.watcher.close()
        watch.pending = _NOTHING
        if not self._watches:
            self._end()

    def _on_ready(self, events: int, watch: _Watch) -> None:
        """In the hub."""
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
        """A dispatcher that is killed before it runs leaves no other trace."""
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
        """The dispatcher: as long as something is watched. If it is killed, the next event starts another."""
        turn = self._hub.loop.timer(0)
        try:
            while self._watches:
                for _ in range(self._batch):
                    if not self._ready:
                        break
                    self._hand_on(self._ready.popleft())
                if self._ready:
                    turn.start(self._wake)  # when the loop has gone round: see let_others_run
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
        """Nothing is watched any more: the dispatcher is not needed."""
        self._ready.clear()
        if self._parked:
            self._wake()

    def _hand_on(self, watch: _Watch) -> None:
        events, watch.pending = watch.pending, _NOTHING
        try:
            if events and self._handler is not None:  # else the fd is withdrawn meanwhile
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
        """In a forked child, which has a copy of every greenlet, but the fds and their events are the parent's."""
        watches = list(self._watches.values())
        self._watches.clear()
        self._ready.clear()
        self._handler = None
        _stop_inherited(self._hub, [watch.watcher for watch in watches])
        if get_hub_if_exists() is self._hub:
            self._end()


def _stop_inherited(hub: _Hub, watchers: list[_Watcher]) -> None:
    """In a forked child: watch nothing of the parent's any more, and leave the parent's poll set as it is.

    The poll set of the hub's loop is shared with the parent. libev only notes that a watcher is stopped, and makes a
    set of its own before it polls again. libuv takes the fd out of the set at once, and with it the parent's. So its
    loop gets a set of its own first, as ``gevent.os.fork`` gives it a moment later; a second time is harmless. The hub
    of a thread that the child does not have will never run: its watchers are kept as they are, for ever, because to
    collect one is to close it.
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
    """Whether there are greenlets in this thread that could run meanwhile."""
    return get_hub_if_exists() is not None


class ReadableWait:
    """One wait for an fd to become readable, while other greenlets run."""

    def __init__(self, fd: int) -> None:
        hub: _Hub = gevent.get_hub()
        self._hub = hub
        self._over = Event()
        self._shortest = hub.loop.approx_timer_resolution
        self._watcher: _Watcher | None = hub.loop.io(fd, int(FdEvent.READ))

    def wait(self, timeout: float | None) -> None:
        """Wait for at most ``timeout`` seconds; None for as long as it takes."""
        assert self._watcher is not None
        self._watcher.start(self._on_ready)
        try:
            # libuv warns of a timer that is shorter than it can.
            self._over.wait(None if timeout is None else max(timeout, self._shortest))
        finally:
            self.end()

    def _on_ready(self) -> None:
        """In the hub: once, or it would come again and again until the greenlet has its turn."""
        if self._watcher is not None:
            self._watcher.stop()
        self._over.set()

    def end(self) -> None:
        """The fd is closed next: whoever waits goes on. A second call is harmless."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()
            self._over.set()

    def abandon(self) -> None:
        """In a forked child: whoever waits goes on, and the parent's wait is as it was."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            _stop_inherited(self._hub, [watcher])
            if get_hub_if_exists() is self._hub:
                self._over.set()


class CopiedWaitError(ForkedError):
    """What ends a greenlet that a forked child has a copy of, in the middle of a wait for its parent's packets."""


def end_copied_wait(error: ForkedError) -> NoReturn:
    """End a call that waited when this process was forked. To be called in the child, in the greenlet that waited.

    gevent would print a traceback for each of those greenlets, which nobody has started here: this one it does not
    print. The copy of the main greenlet goes on waiting. It would run to the end of the program, and end the child in
    the middle of what it was forked for.
    """
    hub = gevent.get_hub()
    if gevent.getcurrent() is hub.parent:
        while True:
            hub.switch()
    if CopiedWaitError not in hub.NOT_ERROR:
        hub.NOT_ERROR = (*hub.NOT_ERROR, CopiedWaitError)
    raise CopiedWaitError(error.pid, error.what) from None


def let_others_run() -> None:
    """Give every other greenlet a turn, and the loop a look at its fds and timers.

    ``gevent.sleep(0)`` alone does the first but not the second: the hub goes through up to 50 greenlets in a row before
    it asks whether it is time to look, and one that sleeps so after each batch of its own may be all of them.
    """
    hub: _Hub = gevent.get_hub()
    timer = hub.loop.timer(0)
    try:
        hub.wait(timer)
    finally:
        timer.close()
    gevent.sleep(0)  # out of the loop's timers, where a new timer of 0 s would be next (libuv before 1.45)
