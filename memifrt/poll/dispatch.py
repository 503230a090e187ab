"""Pass the events of ready fds to their handlers, one at a time.

Owns whether a handler runs, and what becomes of its exceptions. Knows nothing of memif. ``NativeDispatcher`` of
``_dispatch.pyx`` is the same, compiled: there is no Python between the wait and a handler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from memifrt.errors import ConfigError, PollCancelled
from memifrt.poll.hook import Handler
from memifrt.types import FdEvent

if TYPE_CHECKING:
    from memifrt.poll.epoll import EpollPoller

logger = logging.getLogger("memifrt")

#: The error of a call that would run a handler inside another one.
CALLBACK_RUNS = (
    "a callback must not poll, nor may another greenlet or thread poll while a callback runs: "
    "it would be called again while it runs"
)

#: Called with an exception that a handler raised.
OnError = Callable[[Exception], object]


class Dispatcher(Protocol):
    """Passes events to handlers. A handler may call anything except the methods of its dispatcher."""

    @property
    def refuses(self) -> bool:
        """Whether no event may be passed on now: a handler runs, or :meth:`stop` was called."""

    @property
    def busy(self) -> bool:
        """Whether a handler runs."""

    def poll(self, timeout: float | None) -> int:
        """Wait once for events, as :meth:`memifrt.poll.epoll.EpollPoller.wait` does, and handle them.

        :returns: the number of events handled.
        :raises PollCancelled: the wait was cancelled, and every event is handled.
        :raises ConfigError: another greenlet or thread runs a handler. No event is lost: they come again.
        :raises BaseException: a handler raised it, and there is no ``on_error``. The other events come again.
        """

    def handle(self, fd: int, events: FdEvent) -> bool:
        """Pass events to the handler of an fd. Return False for a stale event, of an fd that has no handler.

        :raises BaseException: as for :meth:`poll`.
        """

    def stop(self) -> None:
        """Pass on no more events: also none of those that :meth:`poll` has taken already."""

    def abandon(self) -> None:
        """Stop in a forked child, which has a copy of the handler that forked."""


class PythonDispatcher:
    """See :class:`Dispatcher`.

    :param handlers: the handler of each fd. The owner changes it at any time.
    :param poller: what :meth:`poll` waits with, or None if another loop waits.
    :param on_error: called with each :class:`Exception` of a handler, which is then not raised.
    """

    def __init__(
        self, handlers: dict[int, Handler], poller: EpollPoller | None = None, on_error: OnError | None = None
    ) -> None:
        self._handlers = handlers
        self._poller = poller
        self._on_error = on_error
        self.busy = False
        self._stopped = False

    @property
    def refuses(self) -> bool:
        return self.busy or self._stopped

    def poll(self, timeout: float | None) -> int:
        poller = self._poller
        assert poller is not None
        try:
            ready, cancelled = poller.wait(timeout)
        except OSError:
            if self._stopped:  # a signal handler closed the poller during the wait
                return 0
            raise
        if self.busy:  # another greenlet or thread polls, too, and a handler runs there
            raise ConfigError(CALLBACK_RUNS)
        handled = 0
        for fd, events in ready:
            if self._stopped:
                return handled
            handled += self.handle(fd, events)
        if cancelled and not self._stopped and poller.consume_cancel():
            raise PollCancelled
        return handled

    def handle(self, fd: int, events: FdEvent) -> bool:
        handler = self._handlers.get(fd)
        if handler is None:
            return False
        self.busy = True
        try:
            handler(events)
        except Exception as error:
            if self._on_error is None:
                raise
            report_failure(self._on_error, error)
        finally:
            self.busy = False
        return True

    def stop(self) -> None:
        self._stopped = True

    def abandon(self) -> None:
        self._stopped = True
        self.busy = False


def report_failure(on_error: OnError, error: Exception) -> None:
    """Call ``on_error`` with an exception. If it raises one itself, log both."""
    try:
        on_error(error)
    except Exception as failure:
        # Not raised: the loop might then drop the fd, which on_error is meant to prevent.
        failure.__context__ = error
        logger.error("on_error raised an exception itself", exc_info=failure)
