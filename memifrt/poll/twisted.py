"""Watch memifrt's fds in a Twisted reactor: an epoll, poll, select or asyncio reactor.

Owns the reactor's readers and writers for these fds. Knows nothing of memif.

::

    from twisted.internet import reactor

    poller = TwistedPoller(reactor)
    runtime = memifrt.Runtime(control_fd_update=poller.update)
    poller.start(runtime.control_fd_handler)
    runtime.create_interface(...)
    reactor.run()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from memifrt.system.optional import Needs

with Needs("memifrt.poll.twisted", "twisted"):
    from twisted.internet.interfaces import IReadWriteDescriptor
    from twisted.python import log, threadable
    from twisted.python.failure import Failure
    from zope.interface import implementer

from memifrt.errors import ConfigError
from memifrt.poll.hook import FdHandler, report
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent


class Reactor(Protocol):
    """The part of a reactor that we use."""

    running: bool

    def addReader(self, reader: object) -> object: ...
    def removeReader(self, reader: object) -> object: ...
    def addWriter(self, writer: object) -> object: ...
    def removeWriter(self, writer: object) -> object: ...


@implementer(IReadWriteDescriptor)
class _Descriptor:
    """One fd, with the interface that a reactor needs."""

    def __init__(self, fd: int, poller: TwistedPoller) -> None:
        self._fd = fd
        self._poller = poller

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        self._poller.dispatch(self._fd, FdEvent.READ)

    def doWrite(self) -> None:
        self._poller.dispatch(self._fd, FdEvent.WRITE)

    def connectionLost(self, reason: Failure) -> None:
        """Pass a hang-up on, after which the reactor has removed the fd. Reading the fd shows the cause."""
        self._poller.dispatch(self._fd, FdEvent.READ | FdEvent.ERROR)
        self._poller.watch_again(self._fd)

    def logPrefix(self) -> str:
        return "memifrt"


class TwistedPoller:
    """Watches a runtime's fds in a Twisted reactor. :meth:`update` is the hook.

    A reactor removes a descriptor for ever if its ``doRead`` raises. So this poller reports the exception of a callback
    and keeps the fd: events that were not handled come again.

    :param reactor: the reactor, usually ``twisted.internet.reactor``.
    :param on_error: called with the exception of a callback. By default it goes to Twisted's log.
        ``Runtime(on_error=...)`` has precedence.
    """

    def __init__(self, reactor: Reactor, *, on_error: Callable[[BaseException], object] | None = None) -> None:
        self._reactor = reactor
        self._on_error = on_error
        self._handler: FdHandler | None = None
        self._watched: dict[int, tuple[_Descriptor, FdEvent]] = {}
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of watched fds."""
        return len(self._watched)

    def start(self, handler: FdHandler) -> None:
        """Pass events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def check_caller(self) -> None:
        """Check that this thread may change the watched fds.

        :raises ConfigError: the reactor runs in another thread.
        """
        if self._reactor.running and not threadable.isInIOThread():
            raise ConfigError(
                "this runtime's fds are in a Twisted reactor that runs in another thread: use reactor.callFromThread()"
            )

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``.

        :raises ConfigError: the reactor runs in another thread.
        """
        self.check_caller()
        if events & FdEvent.DEL:
            self._remove(fd)
            return
        descriptor = self._watched[fd][0] if events & FdEvent.MOD else _Descriptor(fd, self)
        self._watched[fd] = descriptor, events
        self._apply(descriptor, events)

    def dispatch(self, fd: int, events: FdEvent) -> None:
        """Pass an event on. Ignore a stale event of a removed fd."""
        if self._handler is None or fd not in self._watched:
            return
        try:
            self._handler(fd, events)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            report(error, self._on_error, _log)

    def watch_again(self, fd: int) -> None:
        """Watch an fd again after the reactor has removed it, if it is still ours."""
        if fd in self._watched:
            self._apply(*self._watched[fd])

    def close(self) -> None:
        """Remove every fd from the reactor. Closing the runtime does so too."""
        self._handler = None
        for fd in list(self._watched):
            self._remove(fd)

    def _apply(self, descriptor: _Descriptor, events: FdEvent) -> None:
        (self._reactor.addReader if events & FdEvent.READ else self._reactor.removeReader)(descriptor)
        (self._reactor.addWriter if events & FdEvent.WRITE else self._reactor.removeWriter)(descriptor)

    def _remove(self, fd: int) -> None:
        if fd in self._watched:  # not if the poller was closed before its runtime
            descriptor, _ = self._watched.pop(fd)
            self._reactor.removeReader(descriptor)
            self._reactor.removeWriter(descriptor)

    def _abandon(self) -> None:
        """Forget all fds in a forked child. Remove none of them: the parent shares the poll set of the reactor."""
        self._watched.clear()


def _log(error: BaseException) -> None:
    log.err(Failure(error), "a callback of memifrt failed")


__all__ = ["TwistedPoller"]
