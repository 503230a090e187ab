"""A listening socket in a runtime's loop: who connects is handed on, a few at a time.

Owns the listener, when it is watched, and the pause that it takes while the system has no room for a connection. Knows
nothing of what is spoken.
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

#: Connections accepted for one readiness of the listener: what else is ready has its turn in between.
_PER_EVENT = 16
#: Seconds until a listener that found no room for a connection, for want of fds or memory, looks again.
_PAUSE = 0.1


class ListeningSocket(Protocol):
    """What is accepted from: a listener of Unix sockets, or one like it."""

    def fileno(self) -> int: ...
    def accept(self) -> original_functions.socket | None:
        """The next connection, or None when none waits (any more).

        :raises MemifOSError: the system refuses.
        """

    def close(self) -> None: ...


class Acceptor:
    """Accepts from a listener until it is closed. Takes the listener.

    :param welcome: called with each connection, which it takes.
    :param what: who listens, for the log.
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
        #: There was no room at the last attempt.
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
        self._schedule.cancel(self._pause)
        try:
            self._registry.remove(self._listener.fileno())
        finally:
            self._listener.close()

    def take_waiting(self, take: Callable[[original_functions.socket], object], limit: int) -> None:
        """Hand on the connections that nobody has accepted yet, at most ``limit``, or as many as the system lets us."""
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
            if self.closed:  # by whom we have just welcomed
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
        """There is no room for a connection: the listener stays readable, and watching it on would be a busy loop."""
        if not self.out_of_fds:
            logger.warning("%s: %s: trying again every %g s", self._what, error.message, _PAUSE)
            self.out_of_fds = True
        self._pause = self._schedule.after(_PAUSE, self._go_on)
        self._registry.remove(self._listener.fileno())

    def _go_on(self) -> None:
        try:
            self._watch()
        except BaseException:  # the application's hook: a listener that nobody watches would be lost
            self._pause = self._schedule.after(_PAUSE, self._go_on)
            raise
