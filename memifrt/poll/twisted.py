"""memifrt's fds in a Twisted reactor: epoll, poll, select and asyncio reactors alike.

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

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python import log, threadable
from twisted.python.failure import Failure
from zope.interface import implementer

from memifrt.errors import ConfigError
from memifrt.poll.hook import FdHandler
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent


class Reactor(Protocol):
    """What is needed of a reactor."""

    running: bool

    def addReader(self, reader: object) -> object: ...
    def removeReader(self, reader: object) -> object: ...
    def addWriter(self, writer: object) -> object: ...
    def removeWriter(self, writer: object) -> object: ...


@implementer(IReadWriteDescriptor)
class _Descriptor:
    """One fd, as the reactor knows it."""

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
        """The reactor saw a hang-up and has removed the fd. Reading explains what happened."""
        self._poller.dispatch(self._fd, FdEvent.READ | FdEvent.ERROR)
        self._poller.watch_again(self._fd)

    def logPrefix(self) -> str:
        return "memifrt"


class TwistedPoller:
    """The hook of a runtime whose fds are in a Twisted reactor.

    A reactor removes a descriptor whose ``doRead`` raises, for ever. So this poller reports what a callback raised and
    keeps the fd: events that were not handled come again.

    :param reactor: the reactor, ``twisted.internet.reactor``.
    :param on_error: called with what a callback raised. Default: Twisted's log. ``Runtime(on_error=...)`` comes first.
    """

    def __init__(self, reactor: Reactor, *, on_error: Callable[[BaseException], object] | None = None) -> None:
        self._reactor = reactor
        self._on_error = on_error
        self._handler: FdHandler | None = None
        self._watched: dict[int, tuple[_Descriptor, FdEvent]] = {}
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """How many fds are watched."""
        return len(self._watched)

    def start(self, handler: FdHandler) -> None:
        """Hand events to ``handler(fd, events)``, a runtime's ``control_fd_handler``."""
        self._handler = handler

    def check_caller(self) -> None:
        """Check that this thread may change what is watched.

        :raises ConfigError: the reactor runs in another thread.
        """
        if self._reactor.running and not threadable.isInIOThread():
            raise ConfigError(
                "this runtime's fds are in a Twisted reactor that runs in another thread: use reactor.callFromThread()"
            )

    def update(self, fd: int, events: FdEvent) -> None:
        """The hook.

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
        """Hand an event on. A stale one, whose fd is gone, is harmless."""
        if self._handler is None or fd not in self._watched:
            return
        try:
            self._handler(fd, events)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(error)

    def watch_again(self, fd: int) -> None:
        """Watch an fd that the reactor has removed, if it is still ours."""
        if fd in self._watched:
            self._apply(*self._watched[fd])

    def close(self) -> None:
        """Take every fd out of the reactor. Closing the runtime does so too."""
        self._handler = None
        for fd in list(self._watched):
            self._remove(fd)

    def _apply(self, descriptor: _Descriptor, events: FdEvent) -> None:
        (self._reactor.addReader if events & FdEvent.READ else self._reactor.removeReader)(descriptor)
        (self._reactor.addWriter if events & FdEvent.WRITE else self._reactor.removeWriter)(descriptor)

    def _remove(self, fd: int) -> None:
        if fd in self._watched:  # else the poller is closed, before its runtime
            descriptor, _ = self._watched.pop(fd)
            self._reactor.removeReader(descriptor)
            self._reactor.removeWriter(descriptor)

    def _report(self, error: BaseException) -> None:
        try:
            if self._on_error is not None:
                self._on_error(error)
                return
        except Exception as worse:
            error = worse
        log.err(Failure(error), "a callback of memifrt failed")

    def _abandon(self) -> None:
        """In a forked child: the reactor's poll set is the parent's too. Take nothing out of it."""
        self._watched.clear()


__all__ = ["TwistedPoller"]
