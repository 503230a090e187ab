"""The received packets of one interface, between the thread that takes them from the rings and the threads that read.

Owns the packets that nobody has read yet, whether there is a peer, and how a reader waits for either. Knows nothing of
rings. scapy's sockets and pytest's ports both read from an inbox.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from memifrt.errors import Disconnected, ForkedError, os_error
from memifrt.system.fds import OwnedFd
from memifrt.system.forks import abandon_after_fork


class Inbox:
    """Packets in the order in which they came, each with the time at which it was put in.

    One thread puts packets in and reports the peer. Any thread may read and wait. In a forked child the packets are
    the parent's: reading and waiting raise :class:`~memifrt.ForkedError`.

    :param what: the name of the reader for errors, such as ``memif socket``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._packets: deque[tuple[bytes, float]] = deque()
        self._has_peer = self._ended = self._closed = False
        self._reason: Disconnected | None = None
        # The lock is reentrant, because a finalizer may close the inbox while this thread holds it.
        self._changed = threading.Condition(threading.RLock())
        self._fd: OwnedFd | None = None
        self._pid = os.getpid()
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of packets that nobody has read."""
        return len(self._packets)

    # --- for the thread that receives ---------------------------------------------------------------------------

    def put(self, packets: Iterable[bytes]) -> None:
        """Add packets. They all get the present time.

        Call this after the packets are read from the ring: with an earlier time, an answer that came meanwhile would be
        older than its question.
        """
        now = time.time()
        timed = [(packet, now) for packet in packets]
        if timed:
            with self._changed:
                self._packets.extend(timed)
                self._count(len(timed))
                self._changed.notify_all()

    def peer_came(self) -> None:
        """Note that there is a peer."""
        with self._changed:
            self._has_peer = True
            self._changed.notify_all()

    def peer_left(self, reason: Disconnected | None = None) -> None:
        """Note that there is no peer any more, and why. Packets that came before can still be read."""
        with self._changed:
            self._has_peer = False
            self._reason = reason or self._reason
            self._changed.notify_all()

    def end(self) -> None:
        """Note that no more packets will come. Packets that came before can still be read."""
        with self._changed:
            if not self._ended:
                self._ended = True
                self._count(1)
                self._changed.notify_all()

    # --- for readers --------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a peer. False in a forked child."""
        return self._has_peer

    @property
    def reason(self) -> Disconnected | None:
        """Why the last peer left; None if there was none."""
        return self._reason

    @property
    def readable(self) -> bool:
        """Whether :meth:`take` does not return None now."""
        return bool(self._packets) or self._ended or not self._is_ours()

    def wait_connected(self, timeout: float | None) -> bool:
        """Wait for a peer. Return whether there is one after ``timeout`` seconds at most (None: no limit)."""
        return self._wait(lambda: self._has_peer, timeout)

    def wait_disconnected(self, timeout: float | None) -> bool:
        """Wait until there is no peer. Return whether this is so after ``timeout`` seconds at most."""
        return self._wait(lambda: not self._has_peer, timeout)

    def wait(self, count: int | None, timeout: float | None, *, needs_peer: bool) -> bool:
        """Wait for packets, as long as more can come. Return whether there are ``count`` of them.

        :param count: None waits for the end alone, and returns False.
        :param timeout: seconds to wait at most; None waits without a limit.
        :param needs_peer: whether the wait ends with the peer. Otherwise it goes on until the peer comes back.
        :raises Disconnected: ``needs_peer``, there is no peer, and fewer packets are here. Its text is the reason why
            the last peer left.
        """

        def enough() -> bool:
            return count is not None and len(self._packets) >= count

        self._wait(lambda: enough() or self._ended or (needs_peer and not self._has_peer), timeout)
        with self._changed:
            if needs_peer and not self._has_peer and not enough():
                raise Disconnected(f"not connected: {self._reason or 'nobody has connected yet'}")
            return enough()

    def take(self) -> tuple[bytes, float] | None:
        """Return the oldest packet and its time in seconds since 1970; None if there is none now.

        :raises EOFError: there is none, and no more will come.
        :raises ForkedError: this is a forked child.
        """
        self._check_ours()
        with self._changed:
            if self._closed:
                raise EOFError(f"the {self._what} is closed")
            if self._packets:
                self._discount()
                return self._packets.popleft()
            if self._ended:
                raise EOFError(f"the {self._what} has ended")
            return None

    def take_all(self, count: int | None = None) -> list[bytes]:
        """Return the oldest ``count`` packets (None: all), or those that are here if they are fewer."""
        self._check_ours()
        with self._changed:
            taken = [packet for packet, _ in islice(self._packets, count)]
            for _ in taken:
                self._packets.popleft()
                self._discount()
        return taken

    def fileno(self) -> int:
        """Return an fd that is readable exactly while :attr:`readable` is true; -1 once the inbox is closed.

        The first call makes the fd.

        :raises MemifOSError: no fd can be made.
        :raises ForkedError: this is a forked child: the fd is the parent's.
        """
        self._check_ours()
        with self._changed:
            if self._closed:
                return -1
            if self._fd is None:
                try:
                    # A semaphore: its number is that of the packets, and 1 more for the end.
                    fd = os.eventfd(
                        len(self._packets) + self._ended, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE
                    )
                except OSError as error:
                    raise os_error(f"cannot make the fd of the {self._what}", error) from error
                self._fd = OwnedFd(fd, "received packets")
            return self._fd.fileno()

    def close(self) -> None:
        """End the inbox, wake every reader, and forget the packets. A second call is harmless."""
        if self._is_ours():
            self.end()
            with self._changed:
                self._closed = True
                self._packets.clear()
                if self._fd is not None:
                    self._fd.close()
        self._packets.clear()

    # --- inside -------------------------------------------------------------------------------------------------

    def _wait(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        self._check_ours()
        with self._changed:
            return self._changed.wait_for(predicate, timeout)

    def _count(self, number: int) -> None:
        """Make the fd readable ``number`` times more. The caller holds the lock, so the fd is not closed meanwhile."""
        if self._fd is not None and not self._fd.closed:
            os.eventfd_write(self._fd.fileno(), number)

    def _discount(self) -> None:
        if self._fd is not None and not self._fd.closed:
            with contextlib.suppress(BlockingIOError):  # the application has read the fd itself
                os.eventfd_read(self._fd.fileno())

    def _is_ours(self) -> bool:
        return self._pid == os.getpid()

    def _check_ours(self) -> None:
        if not self._is_ours():
            raise ForkedError(self._pid, self._what)

    def _abandon(self) -> None:
        """Forget the packets in a forked child, and replace the lock: a thread of the parent may hold it."""
        self._changed = threading.Condition(threading.RLock())
        self._packets.clear()
        self._has_peer = False
