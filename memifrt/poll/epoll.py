"""Internal polling: memifrt's own epoll loop, behind the same hook as the loop of an application.

Owns the epoll fd and the cancel eventfd. Knows nothing of memif.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError, ForkedError
from memifrt.system import original_functions
from memifrt.system.fds import OwnedFd
from memifrt.system.forks import abandon_after_fork, keep_for_ever
from memifrt.types import FdEvent

if TYPE_CHECKING:
    from memifrt.poll.gevent import ReadableWait

#: The most events to take from the kernel in one wait.
MAX_EVENTS = 256
#: The longest wait in seconds: epoll_wait takes an int of milliseconds.
LONGEST_WAIT = (2**31 - 1) // 1000


class EpollPoller:
    """A level-triggered epoll set, with :meth:`cancel` to end a wait from outside.

    The cancel eventfd is a semaphore: each :meth:`cancel` ends exactly one wait, the current one or the next.
    """

    def __init__(self) -> None:
        self._epoll = original_functions.epoll()
        self._pid = os.getpid()
        #: Whether this is a copy in a forked child.
        self._inherited = False
        self._cancel = OwnedFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE), "cancel")
        # A cancel in another thread must not write to another file that gets the number of the closed fd. The lock is
        # reentrant because a signal handler may cancel while the same thread closes.
        self._closing = original_functions.RLock()
        self._epoll.register(self._cancel.fileno(), select.EPOLLIN)
        #: Events since other greenlets last ran.
        self._unyielding = 0
        #: The waits of greenlets.
        self._waits: list[ReadableWait] = []
        abandon_after_fork(self._abandon)

    def fileno(self) -> int:
        """Return the fd of the epoll set. It is readable when a wait would return an event."""
        return self._epoll.fileno()

    def cancel_fileno(self) -> int:
        """Return the fd that is readable while a cancel waits to be consumed."""
        return self._cancel.fileno()

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``."""
        if events & FdEvent.DEL:
            self._epoll.unregister(fd)
        elif events & FdEvent.MOD:
            self._epoll.modify(fd, to_epoll(events))
        else:
            self._epoll.register(fd, to_epoll(events))

    def wait(self, timeout: float | None) -> tuple[list[tuple[int, FdEvent]], bool]:
        """Wait for events; return the fds that are ready, and whether the wait was cancelled.

        If gevent has patched the process, other greenlets run during the wait, and now and then even if events are
        ready.

        :param timeout: in seconds. 0 does not wait; None or a negative number waits without a limit. The longest wait
            is 24 days.
        :raises ConfigError: the timeout is not a number.
        """
        if timeout is None:
            timeout = -1
        elif not timeout >= 0:
            if timeout != timeout:  # a timer of gevent with NaN would never end
                raise ConfigError(f"timeout is {timeout!r}; it must be a number of seconds, or None")
            timeout = -1
        elif timeout > LONGEST_WAIT:
            timeout = LONGEST_WAIT
        if timeout and original_functions.is_patched():
            ready = self._wait_cooperatively(timeout)
        else:
            ready = self._epoll.poll(timeout, MAX_EVENTS)
        cancel = self._cancel.fileno()
        events = [(fd, EVENTS[mask & _BITS]) for fd, mask in ready if fd != cancel]
        return events, len(events) < len(ready)

    def _wait_cooperatively(self, timeout: float) -> list[tuple[int, int]]:
        """Let other greenlets run during the wait.

        :param timeout: in seconds; -1 waits without a limit.
        """
        from memifrt.poll import gevent  # it is installed, because it has patched the process

        if not gevent.can_wait():
            return self._epoll.poll(timeout, MAX_EVENTS)
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
            wait.wait(None if timeout < 0 else timeout)
        finally:
            self._waits.remove(wait)
        if self._inherited:  # another greenlet has forked meanwhile, and this is the child
            gevent.end_copied_wait(ForkedError(self._pid))
        return self._look(gevent.DEFAULT_BATCH)

    @property
    def _lost(self) -> bool:
        """Whether this greenlet must not use the epoll set any more.

        Another greenlet may have closed the set. Or it has forked, and this is a copy of the greenlet in the child,
        which must leave the parent's set alone.
        """
        return self._epoll.closed or self._inherited

    def _look(self, limit: int) -> list[tuple[int, int]]:
        return [] if self._lost else self._epoll.poll(0, limit)

    def cancel(self) -> None:
        """End one wait. Any thread and any signal handler may call this."""
        with self._closing:
            if not self._cancel.closed:
                os.eventfd_write(self._cancel.fileno(), 1)

    def consume_cancel(self) -> bool:
        """Take one cancel; return False if there is none."""
        try:
            os.eventfd_read(self._cancel.fileno())
        except BlockingIOError:
            return False
        return True

    def _abandon(self) -> None:
        """Leave the set alone in a forked child, because the parent shares it. End the waits of copied greenlets."""
        self._closing = original_functions.RLock()  # a thread that exists only in the parent may hold the old one
        self._inherited = True
        keep_for_ever(self._epoll)
        for wait in self._waits:
            wait.abandon()

    def close(self) -> None:
        with self._closing:
            self._cancel.close()
        if not self._inherited:
            for wait in self._waits:
                wait.end()
            self._epoll.close()


def to_epoll(events: FdEvent) -> int:
    """Return the epoll mask for READ, WRITE and ERROR."""
    return (
        (select.EPOLLIN if events & FdEvent.READ else 0)
        | (select.EPOLLOUT if events & FdEvent.WRITE else 0)
        | (select.EPOLLERR if events & FdEvent.ERROR else 0)
    )


def _events_of(mask: int) -> FdEvent:
    return (
        (FdEvent.READ if mask & select.EPOLLIN else FdEvent(0))
        | (FdEvent.WRITE if mask & select.EPOLLOUT else FdEvent(0))
        | (FdEvent.ERROR if mask & (select.EPOLLERR | select.EPOLLHUP) else FdEvent(0))
    )


#: The bits of an epoll mask that matter, and the events of each combination. Combining three enum members for every
#: event would take longer than the system call that reports it (4 us in CPython 3.11).
_BITS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
EVENTS = tuple(_events_of(mask) for mask in range(_BITS + 1))


def from_epoll(mask: int) -> FdEvent:
    """Return the events of an epoll mask. A hang-up becomes ERROR; reading the fd shows the cause."""
    return EVENTS[mask & _BITS]
