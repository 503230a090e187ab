"""memifrt's fds in a selector that the application owns, beside keys of its own.

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

#: glibc's ``FD_SETSIZE``: what ``select()`` has a bit for.
_SELECT_LIMIT = 1024
_WAITED = FdEvent.READ | FdEvent.WRITE  # whose numbers are EVENT_READ's and EVENT_WRITE's
#: By a selector's number: making an FdEvent anew takes longer.
_EVENTS = (FdEvent(0), FdEvent.READ, FdEvent.WRITE, _WAITED)


class SelectorPoller:
    """The hook of a runtime whose fds are in ``selector``: any of ``EpollSelector``, ``PollSelector`` and
    ``SelectSelector``, or another with their ways.

    The poller is itself the ``data`` of its keys, and to call it is to hand an event on. So a loop in the style of the
    standard library's, ``key.data(key.fileobj, mask)``, needs no change at all.

    Selectors have no event for errors. A hang-up or an error shows as the READ or WRITE that was waited for, and
    reading or writing explains it.

    :param selector: the application's; it stays open when the poller is closed.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._handler: FdHandler | None = None
        self._fds: set[int] = set()
        #: The kernel's number of the thread that handed on the last event: it runs the selector.
        self._thread: int | None = None
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """How many fds are watched."""
        return len(self._fds)

    def start(self, handler: FdHandler) -> None:
        """Hand events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def update(self, fd: int, events: FdEvent) -> None:
        """The hook.

        :raises ConfigError: the selector is run by another thread.
        :raises ValueError: the number is too large for ``select()``.
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
        """Check that this thread may change what is watched. A selector does not notice a change while it waits.

        The thread that handed on the last event runs the selector, until it ends.

        :raises ConfigError: that is another thread.
        """
        if self._thread is None or self._thread == threading.get_native_id():
            return
        if os.path.exists(f"/proc/self/task/{self._thread}"):
            raise ConfigError(
                "this runtime's fds are in a selector that another thread than "
                f"{threading.current_thread().name!r} runs: wake that thread, and let it make the call"
            )

    def __call__(self, fd: int, mask: int) -> None:
        """One of our keys is ready. A stale one, whose fd is gone, is harmless.

        :raises BaseException: what a callback raised.
        """
        self._thread = threading.get_native_id()
        if self._handler is not None and fd in self._fds:
            self._handler(fd, _EVENTS[mask & 3])

    def close(self) -> None:
        """Take every fd of ours out of the selector. Closing the runtime does so too."""
        for fd in list(self._fds):
            self._remove(fd)
        self._handler = None

    def _abandon(self) -> None:
        """In a forked child: the selector's poll set is the parent's too. Take nothing out of it."""
        self._fds.clear()
        self._thread = None

    def _remove(self, fd: int) -> None:
        if fd in self._fds:  # else the poller is closed, before its runtime
            self._fds.discard(fd)
            with contextlib.suppress(KeyError):  # the selector is closed, and has forgotten every fd
                self._selector.unregister(fd)
