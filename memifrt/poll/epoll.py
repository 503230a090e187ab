"""Internal polling: our own epoll behind the same hook that an application would bring.

Owns the epoll fd and the cancel eventfd. Knows nothing of memif.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError, ForkedError
from memifrt.system import original_functions
from memifrt.system.fds import OwnedFd
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent

if TYPE_CHECKING:
    from memifrt.poll.gevent import ReadableWait

#: Events taken from the kernel in one wait.
_MAX_EVENTS = 256
#: Seconds: what epoll_wait takes at most, in an int of milliseconds.
_LONGEST_WAIT = (2**31 - 1) // 1000


class EpollPoller:
    """An epoll set, level-triggered, and a way to end a wait from outside.

    The cancel eventfd is a semaphore: each :meth:`cancel` ends exactly one wait, whenever it comes.
    """

    def __init__(self) -> None:
        self._epoll = original_functions.epoll()
        self._pid = os.getpid()
        self._cancel = OwnedFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE), "cancel")
        # A cancel in another thread must not reach whatever file gets the number of the closed fd. Reentrant: a signal
        # handler may cancel while its own thread closes.
        self._closing = original_functions.RLock()
        self._epoll.register(self._cancel.fileno(), select.EPOLLIN)
        #: Events that came without a wait: no other greenlet has run since.
        self._unyielding = 0
        #: Greenlets that wait.
        self._waits: list[ReadableWait] = []
        abandon_after_fork(self._abandon)

    def fileno(self) -> int:
        """The epoll's own fd: readable whenever a wait would find something."""
        return self._epoll.fileno()

    def update(self, fd: int, events: FdEvent) -> None:
        """The hook."""
        if events & FdEvent.DEL:
            self._epoll.unregister(fd)
        elif events & FdEvent.MOD:
            self._epoll.modify(fd, to_epoll(events))
        else:
            self._epoll.register(fd, to_epoll(events))

    def wait(self, timeout: float | None) -> tuple[list[tuple[int, FdEvent]], bool]:
        """The fds that are ready, and whether the wait is cancelled.

        Where gevent has patched the process, other greenlets run meanwhile, and now and then even if there is nothing
        to wait for.

        :param timeout: in seconds; 0 does not wait, None or a negative number waits for as long as it takes. More
            than 24 days are 24 days.
        :raises ConfigError: it is not a number.
        """
        if timeout is not None and not timeout >= 0:
            if timeout != timeout:  # gevent's timers would never end again
                raise ConfigError(f"timeout is {timeout!r}; it must be a number of seconds, or None")
            timeout = None
        cooperative = timeout != 0 and original_functions.is_patched()
        ready = self._wait_cooperatively(timeout) if cooperative else self._poll(timeout)
        cancel = self._cancel.fileno()
        return [(fd, from_epoll(mask)) for fd, mask in ready if fd != cancel], any(fd == cancel for fd, _ in ready)

    def _poll(self, timeout: float | None, limit: int = _MAX_EVENTS) -> list[tuple[int, int]]:
        return self._epoll.poll(-1 if timeout is None else min(timeout, _LONGEST_WAIT), limit)

    def _wait_cooperatively(self, timeout: float | None) -> list[tuple[int, int]]:
        from memifrt.poll import gevent  # which is there already, or nothing would be patched

        if not gevent.can_wait():
            return self._poll(timeout)
        if self._unyielding >= gevent.DEFAULT_BATCH:
            self._unyielding = 0
            gevent.let_others_run()
        ready = self._look(gevent.DEFAULT_BATCH)
        if ready or self._lost:
            self._unyielding += len(ready)
            return ready
        self._unyielding = 0
        wait = gevent.ReadableWait(self._epoll.fileno())
        self._waits.append(wait)
        try:
            wait.wait(None if timeout is None else min(timeout, _LONGEST_WAIT))
        finally:
            self._waits.remove(wait)
        if self._pid != os.getpid():  # somebody has forked meanwhile, and this is the child
            gevent.end_copied_wait(ForkedError(self._pid))
        return self._look(gevent.DEFAULT_BATCH)

    @property
    def _lost(self) -> bool:
        """What can become of the set while others run: one closes it, or forks, and the copy of this greenlet goes on
        in a child to which it does not belong."""
        return self._epoll.closed or self._pid != os.getpid()

    def _look(self, limit: int) -> list[tuple[int, int]]:
        return [] if self._lost else self._poll(0, limit)

    def cancel(self) -> None:
        """End one wait. Safe from any thread and from a signal handler."""
        with self._closing:
            if not self._cancel.closed:
                os.eventfd_write(self._cancel.fileno(), 1)

    def consume_cancel(self) -> bool:
        """Take one cancel; False if there is none (any more)."""
        try:
            os.eventfd_read(self._cancel.fileno())
        except BlockingIOError:
            return False
        return True

    def _abandon(self) -> None:
        """In a forked child: the set is the parent's too. A copied greenlet that waits for it goes on."""
        self._closing = original_functions.RLock()  # a thread that the child does not have may hold it
        for wait in self._waits:
            wait.abandon()

    def close(self) -> None:
        with self._closing:
            self._cancel.close()
        if self._pid == os.getpid():
            for wait in self._waits:
                wait.end()
            self._epoll.close()


def to_epoll(events: FdEvent) -> int:
    """The epoll mask for READ, WRITE and ERROR."""
    return (
        (select.EPOLLIN if events & FdEvent.READ else 0)
        | (select.EPOLLOUT if events & FdEvent.WRITE else 0)
        | (select.EPOLLERR if events & FdEvent.ERROR else 0)
    )


def from_epoll(mask: int) -> FdEvent:
    """The events in an epoll mask. A hang-up is an ERROR that reading explains."""
    return (
        (FdEvent.READ if mask & select.EPOLLIN else FdEvent(0))
        | (FdEvent.WRITE if mask & select.EPOLLOUT else FdEvent(0))
        | (FdEvent.ERROR if mask & (select.EPOLLERR | select.EPOLLHUP) else FdEvent(0))
    )
