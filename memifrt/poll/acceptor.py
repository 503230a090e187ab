"""A listening socket in a runtime's loop: accepts connections, a few at a time.

Owns the listener, when it is watched, and its pause while the system has no resources for a connection. Knows nothing
of the protocol on the connections.

It is in ``poll`` because it works with an fd, an event mask and a timer alone. So interfaces, statistics and Prometheus
can share it, and each of them limits its own connections in ``welcome``: only they know which connection to give up.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from memifrt.errors import MemifOSError
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule, TimerHandle
from memifrt.system import original_functions
from memifrt.types import FdEvent

logger = logging.getLogger("memifrt")

#: Connections to accept for one event of the listener, so that other fds get their turn.
_PER_EVENT = 16
#: Seconds until a listener that failed for lack of fds or memory tries again.
_PAUSE = 0.1


class ListeningSocket(Protocol):
    """A listener of Unix sockets, or another one with the same methods."""

    def fileno(self) -> int: ...
    def accept(self) -> original_functions.socket | None:
        """Accept the next connection; return None if none waits.

        :raises MemifOSError: ``accept`` failed.
        """

    def close(self) -> None: ...


class Acceptor:
    """Accepts connections from a listener, which it owns, until it is closed.

    :param welcome: called with each connection, which it then owns.
    :param what: the name of the listener in the log.
    :raises MemifError: ``CB_FDUPDATE`` if the hook raises; the listener is then closed.
    """

    def __init__(
        self,
        registry: FdRegistry,
        schedule: Schedule,
        listener: ListeningSocket,
        welcome: Callable[[original_functions.socket], object],
        what: object,
    ) -> None:
        self._registry = registry
        self._schedule = schedule
        self._listener = listener
        self._welcome = welcome
        self._what = what
        self._pause: TimerHandle | None = None
        self.closed = False
        #: Whether the last attempt failed for lack of resources.
        self.out_of_fds = False
        try:
            self._watch()
        except BaseException:
            listener.close()
            raise

    def fileno(self) -> int:
        return self._listener.fileno()

    def close(self) -> None:
        """Stop listening. Closing twice is harmless.

        :raises MemifError: ``CB_FDUPDATE`` if the hook raises; the listener is closed all the same.
        """
        if self.closed:
            return
        self.closed = True
        fd = self._listener.fileno()
        with contextlib.ExitStack() as stack:
            stack.callback(self._listener.close)
            stack.callback(self._registry.remove, fd)  # if a KeyboardInterrupt ended the first removal
            self._schedule.cancel(self._pause)
            self._registry.remove(fd)

    def take_waiting(self, take: Callable[[original_functions.socket], object], limit: int) -> None:
        """Accept the waiting connections, at most ``limit``, and pass them to ``take``. Stop if ``accept`` fails."""
        with contextlib.suppress(MemifOSError):
            for _ in range(limit):
                sock = self._listener.accept()
                if sock is None:
                    return
                take(sock)

    def _watch(self) -> None:
        self._registry.add(self._listener.fileno(), FdEvent.READ, self._on_ready)

    def _on_ready(self, events: FdEvent) -> None:
        for _ in range(_PER_EVENT):
            if self.closed:  # welcome() may close the acceptor
                return
            try:
                sock = self._listener.accept()
            except MemifOSError as error:
                self._rest(error)
                return
            self.out_of_fds = False
            if sock is None:
                return
            self._welcome(sock)

    def _rest(self, error: MemifOSError) -> None:
        """Pause after a failed ``accept``: the listener stays readable, and watching it would be a busy loop."""
        if not self.out_of_fds:
            logger.warning("%s: %s: trying again every %g s", self._what, error.message, _PAUSE)
            self.out_of_fds = True
        self._pause = self._schedule.after(_PAUSE, self._go_on)
        self._registry.remove(self._listener.fileno())

    def _go_on(self) -> None:
        try:
            self._watch()
        except BaseException:  # the hook failed: try again later, or the listener would never be watched
            self._pause = self._schedule.after(_PAUSE, self._go_on)
            raise
