"""Watch memifrt's fds in eventlet's hub, and call back in a green thread.

Owns the hub's listeners for these fds, and the green thread. Knows nothing of memif.

A listener runs in the hub. The hub must never wait, and it drops a listener that raises. So the listener only records
the event, and a green thread passes events on, one at a time. Callbacks may sleep, lock and do I/O.

::

    poller = EventletPoller()
    runtime = memifrt.Runtime(control_fd_update=poller.update)
    poller.start(runtime.control_fd_handler)
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from memifrt.system.optional import Needs

with Needs("memifrt.poll.eventlet", "eventlet"):
    import eventlet
    from eventlet import hubs

from memifrt.errors import ConfigError
from memifrt.poll.hook import FdHandler, report
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent


class _Watch:
    """One fd, its watched events, and the hub's listeners for it."""

    __slots__ = ("events", "fd", "listeners", "pending")

    def __init__(self, fd: int, events: FdEvent) -> None:
        self.fd = fd
        self.events = events
        self.listeners: list[Any] = []
        #: Events that are ready and not passed on yet. Until then the hub does not listen, or it would call endlessly.
        self.pending = FdEvent(0)


class EventletPoller:
    """Watches a runtime's fds in eventlet's hub of this thread. :meth:`update` is the hook.

    :param on_error: called with the exception of a callback. By default its traceback is printed. The fd stays
        watched, and an event that was not handled comes again. ``Runtime(on_error=...)`` has precedence.
    """

    def __init__(self, *, on_error: Callable[[BaseException], object] | None = None) -> None:
        self._hub: Any = hubs.get_hub()
        self._thread = threading.get_native_id()
        self._on_error = on_error
        self._handler: FdHandler | None = None
        self._watches: dict[int, _Watch] = {}
        self._ready: deque[_Watch] = deque()
        self._dispatching = False
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of watched fds."""
        return len(self._watches)

    def start(self, handler: FdHandler) -> None:
        """Pass events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def check_caller(self) -> None:
        """Check that this thread may change the watched fds.

        :raises ConfigError: called from a thread that is not the hub's.
        """
        if threading.get_native_id() != self._thread:  # not get_hub(): it would make a hub for a thread without one
            raise ConfigError("this runtime's fds are in the eventlet hub of another thread: use the runtime there")

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``.

        :raises ConfigError: called from a thread that is not the hub's.
        """
        self.check_caller()
        if events & FdEvent.DEL:
            watch = self._watches.pop(fd, None)
            if watch is not None:  # None if the poller was closed before its runtime
                watch.pending = FdEvent(0)
                self._ignore(watch)
        elif events & FdEvent.MOD:
            watch = self._watches[fd]
            watch.events = events & ~FdEvent.MOD
            if not watch.pending:
                self._ignore(watch)
                self._listen(watch)
        else:
            watch = self._watches[fd] = _Watch(fd, events)
            self._listen(watch)

    def close(self) -> None:
        """Remove every fd from the hub. Closing the runtime does so too."""
        self._handler = None
        for fd in list(self._watches):
            self.update(fd, FdEvent.DEL)

    def _listen(self, watch: _Watch) -> None:
        for event, kind in ((FdEvent.READ, self._hub.READ), (FdEvent.WRITE, self._hub.WRITE)):
            if watch.events & event:
                callback = self._callback(watch, event)
                watch.listeners.append(self._hub.add(kind, watch.fd, callback, callback, lambda: None))

    def _ignore(self, watch: _Watch) -> None:
        for listener in watch.listeners:
            self._hub.remove(listener)
        watch.listeners.clear()

    def _callback(self, watch: _Watch, event: FdEvent) -> Callable[..., None]:
        def on_ready(*_: object) -> None:
            """Record an event; the hub calls this."""
            if self._watches.get(watch.fd) is not watch:  # stale: another callback of this round removed the fd
                return
            if not watch.pending:
                self._ignore(watch)
                self._ready.append(watch)
            watch.pending |= event
            if not self._dispatching:
                self._dispatching = True
                eventlet.spawn(self._dispatch)

        return on_ready

    def _dispatch(self) -> None:
        """Pass events on until none is left. This runs in the green thread."""
        try:
            while self._ready:
                watch = self._ready.popleft()
                events, watch.pending = watch.pending, FdEvent(0)
                if not events:  # the fd was removed meanwhile
                    continue
                try:
                    if self._handler is not None:
                        self._handler(watch.fd, events)
                except Exception as error:
                    report(error, self._on_error, traceback.print_exception)
                finally:
                    if self._watches.get(watch.fd) is watch and not watch.listeners:
                        self._listen(watch)
                eventlet.sleep(0)
        finally:
            self._dispatching = False

    def _abandon(self) -> None:
        """Forget all fds in a forked child. Remove none of them: the parent shares the poll set of the hub."""
        self._watches.clear()
        self._ready.clear()


__all__ = ["EventletPoller"]
