"""Watch memifrt's fds in the Qt event loop of a thread, with PySide6. Needs only QtCore.

Owns the socket notifiers of these fds. Knows nothing of memif.

::

    app = QCoreApplication([])  # or QApplication
    poller = QtPoller()
    runtime = memifrt.Runtime(control_fd_update=poller.update)
    poller.start(runtime.control_fd_handler)
    runtime.create_interface(...)
    app.exec()
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from memifrt.system.optional import Needs

with Needs("memifrt.poll.qt", "PySide6"):
    from PySide6.QtCore import QAbstractEventDispatcher, QSocketNotifier

from memifrt.errors import ConfigError
from memifrt.poll.hook import FdHandler, call_excepthook, report
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent


class _Watch:
    """One fd and its two notifiers. Each is enabled while its event is watched."""

    def __init__(self, fd: int, poller: QtPoller) -> None:
        self._fd = fd
        self._poller = poller
        #: A notifier is made when it is first needed: most fds never need one for writing.
        self._notifiers: dict[FdEvent, QSocketNotifier] = {}

    def apply(self, events: FdEvent) -> None:
        for event, kind, slot in (
            (FdEvent.READ, QSocketNotifier.Type.Read, self._readable),
            (FdEvent.WRITE, QSocketNotifier.Type.Write, self._writable),
        ):
            notifier = self._notifiers.get(event)
            if notifier is not None:
                notifier.setEnabled(bool(events & event))
            elif events & event:
                notifier = self._notifiers[event] = QSocketNotifier(self._fd, kind)
                notifier.activated.connect(slot)

    def remove(self) -> None:
        for notifier in self._notifiers.values():
            with contextlib.suppress(RuntimeError):  # the application has ended and deleted its objects
                # Disable it now, because the fd is closed next. Delete it later: its own signal may be running.
                notifier.setEnabled(False)
                notifier.deleteLater()
        self._notifiers.clear()

    def _readable(self) -> None:
        self._poller.dispatch(self._fd, FdEvent.READ)

    def _writable(self) -> None:
        self._poller.dispatch(self._fd, FdEvent.WRITE)


class QtPoller:
    """Watches a runtime's fds in the Qt event loop of the thread that makes this poller. :meth:`update` is the hook.

    Qt has no event for errors. A hang-up or an error becomes the READ or WRITE that is watched; reading or writing then
    shows the cause.

    :param on_error: called with the exception of a callback; by default ``sys.excepthook``, as for any slot. The fd
        stays watched, and an event that was not handled comes again. ``Runtime(on_error=...)`` has precedence.
    :raises ConfigError: there is no Qt event loop in this thread.
    """

    def __init__(self, *, on_error: Callable[[BaseException], object] | None = None) -> None:
        if QAbstractEventDispatcher.instance() is None:
            raise ConfigError(
                f"there is no Qt event loop in thread {threading.current_thread().name!r}: make a QCoreApplication "
                "first, or make this poller in a QThread"
            )
        self._thread = threading.get_native_id()
        self._thread_name = threading.current_thread().name
        self._on_error = on_error
        self._handler: FdHandler | None = None
        self._watches: dict[int, _Watch] = {}
        #: The parent's watches in a forked child. They are kept, because deleting them would change a shared loop.
        self._inherited: list[_Watch] = []
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of watched fds."""
        return len(self._watches)

    def start(self, handler: FdHandler) -> None:
        """Pass events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def check_caller(self) -> None:
        """Check that this thread may change the watched fds.

        :raises ConfigError: the fds are in the event loop of another thread.
        """
        if threading.get_native_id() != self._thread:
            raise ConfigError(
                f"this runtime's fds are in the Qt event loop of thread {self._thread_name!r}, but it was used in "
                f"thread {threading.current_thread().name!r}: use a queued signal or QMetaObject.invokeMethod()"
            )

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``.

        :raises ConfigError: called from another thread.
        """
        self.check_caller()
        if events & FdEvent.DEL:
            self._remove(fd)
            return
        watch = self._watches[fd] if events & FdEvent.MOD else _Watch(fd, self)
        self._watches[fd] = watch
        watch.apply(events)

    def dispatch(self, fd: int, events: FdEvent) -> None:
        """Pass an event on. Ignore a stale event of a removed fd."""
        if self._handler is None or fd not in self._watches:
            return
        try:
            self._handler(fd, events)
        except Exception as error:
            report(error, self._on_error, call_excepthook)

    def close(self) -> None:
        """Remove every fd from the event loop. Closing the runtime does so too."""
        self._handler = None
        for fd in list(self._watches):
            self._remove(fd)

    def _remove(self, fd: int) -> None:
        watch = self._watches.pop(fd, None)
        if watch is not None:  # None if the poller was closed before its runtime
            watch.remove()

    def _abandon(self) -> None:
        """Forget all fds in a forked child: they belong to the parent. Remove none, and pass no event on."""
        self._inherited += self._watches.values()
        self._watches.clear()


__all__ = ["QtPoller"]
