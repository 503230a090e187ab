"""Internal polling: our own epoll behind the same hook that an application would bring.

Owns the epoll fd and the cancel eventfd. Knows nothing of memif.
"""

from __future__ import annotations

import os
import select

from memifrt.fds import OwnedFd
from memifrt.types import FdEvent

#: Events taken from the kernel in one wait.
_MAX_EVENTS = 256
#: Seconds: what epoll_wait takes at most, in an int of milliseconds.
_LONGEST_WAIT = (2**31 - 1) // 1000


class EpollPoller:
    """An epoll set, level-triggered, and a way to end a wait from outside.

    The cancel eventfd is a semaphore: each :meth:`cancel` ends exactly one wait, whenever it comes.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pid = os.getpid()
        self._cancel = OwnedFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE), "cancel")
        self._epoll.register(self._cancel.fileno(), select.EPOLLIN)

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

        :param timeout: in seconds; 0 does not wait, None or a negative number waits for as long as it takes. More
            than 24 days are 24 days.
        """
        ready = self._epoll.poll(-1 if timeout is None or timeout < 0 else min(timeout, _LONGEST_WAIT), _MAX_EVENTS)
        cancel = self._cancel.fileno()
        return [(fd, from_epoll(mask)) for fd, mask in ready if fd != cancel], any(fd == cancel for fd, _ in ready)

    def cancel(self) -> None:
        """End one wait. Safe from any thread and from a signal handler."""
        os.eventfd_write(self._cancel.fileno(), 1)

    def consume_cancel(self) -> bool:
        """Take one cancel; False if there is none (any more)."""
        try:
            os.eventfd_read(self._cancel.fileno())
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._cancel.close()
        if self._pid == os.getpid():
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
