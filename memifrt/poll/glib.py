"""Watch memifrt's fds in GLib's default main context, which GTK, GStreamer and D-Bus services use.

Owns the context's sources for these fds. Knows nothing of memif.

::

    from gi.repository import GLib

    poller = GLibPoller()
    runtime = memifrt.Runtime(control_fd_update=poller.update)
    poller.start(runtime.control_fd_handler)
    runtime.create_interface(...)
    GLib.MainLoop().run()
"""

from __future__ import annotations

import functools
import select
import threading
from collections.abc import Callable

from memifrt.system.optional import Needs

with Needs("memifrt.poll.glib", "PyGObject"):
    from gi.repository import GLib

from memifrt.errors import ConfigError
from memifrt.poll.hook import FdHandler, call_excepthook, report
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent

_ERRORS = select.POLLERR | select.POLLHUP | select.POLLNVAL  # GLib has the same numbers

#: READ and WRITE have a source each, because a source cannot be changed. Replacing it would take the fd out of the
#: current round of the context, and a callback that did so in every round would starve the fd.
_CONDITIONS = {FdEvent.READ: GLib.IOCondition.IN, FdEvent.WRITE: GLib.IOCondition.OUT}


class _Watch:
    """One fd, and the ids of its sources."""

    __slots__ = ("fd", "sources")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.sources: dict[FdEvent, int] = {}


class GLibPoller:
    """Watches a runtime's fds in GLib's default main context. :meth:`update` is the hook.

    GLib removes a source for ever if its callback raises. So this poller reports the exception of a callback and keeps
    the fd: events that were not handled come again.

    :param priority: the priority of the sources.
    :param on_error: called with the exception of a callback; by default ``sys.excepthook``, as for any callback of
        PyGObject. ``Runtime(on_error=...)`` has precedence.
    """

    def __init__(
        self, *, priority: int = GLib.PRIORITY_DEFAULT, on_error: Callable[[BaseException], object] | None = None
    ) -> None:
        self._context = GLib.MainContext.default()
        self._priority = priority
        self._on_error = on_error
        self._handler: FdHandler | None = None
        self._watches: dict[int, _Watch] = {}
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of watched fds."""
        return len(self._watches)

    def start(self, handler: FdHandler) -> None:
        """Pass events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def check_caller(self) -> None:
        """Check that this thread may change the watched fds.

        :raises ConfigError: the default main context runs in another thread.
        """
        if self._context.is_owner():
            return
        if self._context.acquire():  # no thread runs it now
            self._context.release()
            return
        raise ConfigError(
            "this runtime's fds are in GLib's default main context, which another thread runs, not "
            f"{threading.current_thread().name!r}: use GLib.idle_add()"
        )

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``.

        :raises ConfigError: the default main context runs in another thread.
        """
        self.check_caller()
        if events & FdEvent.DEL:
            self._remove(fd)
            return
        watch = self._watches[fd] if events & FdEvent.MOD else _Watch(fd)
        self._watches[fd] = watch
        for event in _CONDITIONS:
            if not events & event:
                self._remove_source(watch, event)
            elif event not in watch.sources:
                self._add_source(watch, event)

    def close(self) -> None:
        """Remove every fd from the context. Closing the runtime does so too."""
        self._handler = None
        for fd in list(self._watches):
            self._remove(fd)

    def _add_source(self, watch: _Watch, event: FdEvent) -> None:
        watch.sources[event] = GLib.unix_fd_add_full(
            self._priority, watch.fd, _CONDITIONS[event], functools.partial(self._on_ready, watch, event)
        )

    def _remove_source(self, watch: _Watch, event: FdEvent) -> None:
        source = watch.sources.pop(event, None)
        if source is not None:
            GLib.source_remove(source)

    def _remove(self, fd: int) -> None:
        watch = self._watches.pop(fd, None)
        if watch is not None:  # None if the poller was closed before its runtime
            for event in _CONDITIONS:
                self._remove_source(watch, event)

    def _on_ready(self, watch: _Watch, event: FdEvent, fd: int, condition: GLib.IOCondition) -> bool:
        """Pass an event on; GLib calls this. Ignore a stale event of a removed fd.

        :returns: whether GLib keeps the source.
        """
        if self._watches.get(fd) is not watch:
            return False
        if self._handler is None:  # start() was not called yet
            return True
        try:
            self._handler(fd, _from_glib(int(condition)))
        except Exception as error:
            report(error, self._on_error, call_excepthook)
        except BaseException:
            # PyGObject prints it or ends the program, and GLib removes the source: add another.
            if self._watches.get(fd) is watch and event in watch.sources:
                self._add_source(watch, event)
            raise
        return True

    def _abandon(self) -> None:
        """Forget all fds in a forked child: they belong to the parent. A source that fires in the child is removed."""
        self._watches.clear()


@functools.cache  # there are few conditions, and combining the members takes long
def _from_glib(mask: int) -> FdEvent:
    """Return the events of a condition. A hang-up becomes ERROR; reading the fd shows the cause."""
    return (
        (FdEvent.READ if mask & select.POLLIN else FdEvent(0))
        | (FdEvent.WRITE if mask & select.POLLOUT else FdEvent(0))
        | (FdEvent.ERROR if mask & _ERRORS else FdEvent(0))
    )


__all__ = ["GLibPoller"]
