"""Watch memifrt's fds in a selector of the application, beside the application's own keys.

Owns which keys are memifrt's. Knows nothing of memif.

::

    selector = selectors.DefaultSelector()
    poller = SelectorPoller(selector)
    runtime = memifrt.Runtime(control_fd_update=poller.update)
    poller.start(runtime.control_fd_handler)
    while True:
        for key, mask in selector.select():
            if key.data is poller:
                poller(key.fd, mask)
            else:
                ...  # the application's own
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading

from memifrt.errors import ConfigError
from memifrt.poll.hook import FdHandler
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent

#: glibc's ``FD_SETSIZE``: ``select()`` takes only smaller fds.
_SELECT_LIMIT = 1024
_WAITED = FdEvent.READ | FdEvent.WRITE  # EVENT_READ and EVENT_WRITE have the same numbers
#: Events by a selector's number, because making an FdEvent takes longer.
_EVENTS = (FdEvent(0), FdEvent.READ, FdEvent.WRITE, _WAITED)


class SelectorPoller:
    """Watches a runtime's fds in a selector. :meth:`update` is the hook.

    The poller is the ``data`` of its keys, and calling it passes an event on. So a loop that calls
    ``key.data(key.fileobj, mask)``, as in the documentation of the standard library, works unchanged.

    Selectors have no event for errors. A hang-up or an error becomes the READ or WRITE that is watched; reading or
    writing then shows the cause.

    :param selector: the application's ``EpollSelector``, ``PollSelector``, ``SelectSelector`` or the like. It stays
        open when the poller is closed.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._handler: FdHandler | None = None
        self._fds: set[int] = set()
        #: The native id of the thread that passed the last event on, and so runs the selector.
        self._thread: int | None = None
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of watched fds."""
        return len(self._fds)

    def start(self, handler: FdHandler) -> None:
        """Pass events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``.

        :raises ConfigError: another thread runs the selector.
        :raises ValueError: the fd is too large for ``select()``.
        """
        self.check_caller()
        if events & FdEvent.DEL:
            self._remove(fd)
        elif events & FdEvent.MOD:
            self._selector.modify(fd, int(events & _WAITED), self)
        else:
            if fd >= _SELECT_LIMIT and isinstance(self._selector, selectors.SelectSelector):
                raise ValueError(
                    f"fd {fd} is too large for select(), which ends at {_SELECT_LIMIT - 1}: poll has no limit"
                )
            self._selector.register(fd, int(events & _WAITED), self)
            self._fds.add(fd)

    def check_caller(self) -> None:
        """Check that this thread may change the watched fds. A selector does not notice a change while it waits.

        The selector belongs to the thread that passed the last event on, until that thread ends.

        :raises ConfigError: another thread runs the selector.
        """
        if self._thread is None or self._thread == threading.get_native_id():
            return
        if os.path.exists(f"/proc/self/task/{self._thread}"):
            raise ConfigError(
                "this runtime's fds are in a selector that another thread runs, not "
                f"{threading.current_thread().name!r}: wake that thread, and make the call there"
            )

    def __call__(self, fd: int, mask: int) -> None:
        """Pass an event of one of our keys on. Ignore a stale event of a removed fd.

        :raises BaseException: the exception of a callback.
        """
        self._thread = threading.get_native_id()
        if self._handler is not None and fd in self._fds:
            self._handler(fd, _EVENTS[mask & 3])

    def close(self) -> None:
        """Remove our fds from the selector. Closing the runtime does so too."""
        for fd in list(self._fds):
            self._remove(fd)
        self._handler = None

    def _abandon(self) -> None:
        """Forget all fds in a forked child. Remove none of them: the parent shares the poll set of the selector."""
        self._fds.clear()
        self._thread = None

    def _remove(self, fd: int) -> None:
        if fd in self._fds:  # not if the poller was closed before its runtime
            self._fds.discard(fd)
            with contextlib.suppress(KeyError):  # the selector is closed and has no keys
                self._selector.unregister(fd)
