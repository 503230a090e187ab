"""The received packets of one interface, between the thread that takes them from the rings and the threads that read.

Owns the packets that nobody has read yet, whether there is a peer, and how a reader waits for either. Knows nothing of
rings. scapy's sockets and pytest's ports both read from an inbox.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from memifrt.errors import Disconnected, ForkedError, os_error
from memifrt.system.fds import OwnedFd
from memifrt.system.forks import abandon_after_fork
from memifrt.system.not_copied import NotCopied

#: Seconds of the longest poll(), which takes no more than 24 days.
_LONGEST_POLL = 3600.0


class Inbox(NotCopied):
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
        self._lock = threading.RLock()
        self._fd: OwnedFd | None = None
        #: An eventfd of each call that waits. A Condition would not do: under gevent's patches a real thread that waits
        #: for one without a limit hangs. A poll() works in every thread.
        self._waiting: set[OwnedFd] = set()
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
            with self._lock:
                self._packets.extend(timed)
                self._count(len(timed))
                self._wake_readers()

    def peer_came(self) -> None:
        """Note that there is a peer."""
        with self._lock:
            self._has_peer = True
            self._wake_readers()

    def peer_left(self, reason: Disconnected | None = None) -> None:
        """Note that there is no peer any more, and why. Packets that came before can still be read."""
        with self._lock:
            self._has_peer = False
            self._reason = reason or self._reason
            self._wake_readers()

    def end(self) -> None:
        """Note that no more packets will come. Packets that came before can still be read."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._count(1)
                self._wake_readers()

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
        """Whether :meth:`take` would return a packet or raise, instead of returning None."""
        return bool(self._packets) or self._ended or not self._is_ours()

    def wait_connected(self, timeout: float | None) -> bool:
        """Wait for a peer. Return whether there is one after ``timeout`` seconds at most (None: no limit)."""
        return self._wait(lambda: self._has_peer, timeout)

    def wait_disconnected(self, timeout: float | None) -> bool:
        """Wait until there is no peer. Return whether this is so after ``timeout`` seconds at most."""
        return self._wait(lambda: not self._has_peer, timeout)

    def wait(self, number: int | None, timeout: float | None, *, needs_peer: bool) -> bool:
        """Wait for packets, as long as more can come. Return whether there are ``number`` of them.

        :param number: None waits for the end alone, and returns False.
        :param timeout: seconds to wait at most; None waits without a limit.
        :param needs_peer: whether the wait ends with the peer. Otherwise it goes on until the peer comes back.
        :raises Disconnected: ``needs_peer``, there is no peer, and fewer packets are here. Its text is the reason why
            the last peer left.
        """

        def enough() -> bool:
            return number is not None and len(self._packets) >= number

        self._wait(lambda: enough() or self._ended or (needs_peer and not self._has_peer), timeout)
        with self._lock:
            if needs_peer and not self._has_peer and not enough():
                raise Disconnected(f"not connected: {self._reason or 'nobody has connected yet'}")
            return enough()

    def take(self) -> tuple[bytes, float] | None:
        """Return the oldest packet and its time in seconds since 1970; None if there is none now.

        :raises EOFError: there is none, and no more will come.
        :raises ForkedError: this is a forked child.
        """
        self._check_ours()
        with self._lock:
            if self._closed:
                raise EOFError(f"the {self._what} is closed")
            if self._packets:
                self._discount()
                return self._packets.popleft()
            if self._ended:
                raise EOFError(f"the {self._what} has ended")
            return None

    def take_all(self, limit: int | None = None) -> list[bytes]:
        """Return the oldest packets, at most ``limit`` (None: all)."""
        self._check_ours()
        with self._lock:
            taken = [packet for packet, _ in islice(self._packets, limit)]
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
        with self._lock:
            if self._closed:
                return -1
            if self._fd is None:
                # Its number is that of the packets, and 1 more for the end.
                fd = _eventfd(len(self._packets) + self._ended, f"cannot make the fd of the {self._what}")
                self._fd = OwnedFd(fd, "received packets")
            return self._fd.fileno()

    def close(self) -> None:
        """End the inbox, wake every reader, and forget the packets. A second call is harmless."""
        if self._is_ours():
            self.end()
            with self._lock:
                self._closed = True
                self._packets.clear()
                if self._fd is not None:
                    self._fd.close()
        self._packets.clear()

    # --- inside -------------------------------------------------------------------------------------------------

    def _wait(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        self._check_ours()
        if predicate():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        wake, poll = OwnedFd(_eventfd(0, "cannot wait for packets"), "wait for packets"), select.poll()
        poll.register(wake.fileno(), select.POLLIN)
        with self._lock:
            self._waiting.add(wake)
        try:
            while not predicate():
                left = _LONGEST_POLL if deadline is None else min(deadline - time.monotonic(), _LONGEST_POLL)
                if left <= 0:
                    return False
                if poll.poll(left * 1000):
                    os.eventfd_read(wake.fileno())
            return True
        finally:
            with self._lock:
                self._waiting.discard(wake)
                wake.close()

    def _wake_readers(self) -> None:
        for wake in self._waiting:
            os.eventfd_write(wake.fileno(), 1)

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
        self._lock = threading.RLock()
        self._waiting.clear()
        self._packets.clear()
        self._has_peer = False


def _eventfd(number: int, failure: str) -> int:
    """Make an eventfd. Each read takes 1 from its number."""
    try:
        return os.eventfd(number, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
    except OSError as error:
        raise os_error(failure, error) from error
