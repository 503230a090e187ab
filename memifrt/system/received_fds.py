"""Close fds that a peer sent or shares, without letting the control thread wait for the close.

Owns the threads that close them. Knows nothing of the purpose of the fds.

Why a close may wait
--------------------
A peer can send a file of a kind that is slow to close, or never closes: a FUSE file waits for its server, a TCP socket
lingers over unsent data. An eventfd, even our own, waits for the peer's epoll set in which it is registered, and the
peer can make ``epoll_wait`` lock that set forever. Freeing memory takes time. Closing a socket closes the unread fds in
its queue. So the threads of :class:`_Backlog` close all of them. The caller itself closes only memory and eventfds of
trusted users: our own user and root could kill this process anyway.

The kernel frees the number of an fd before a close hangs, so a thread that hangs uses no fd number. Each fd that waits
for a thread does. They are counted for each user, and no more messages are taken from a user with too many of them
(:func:`closes_too_slowly`).
"""

from __future__ import annotations

import _socket
import array
import contextlib
import errno
import fcntl
import functools
import os
import resource
import select
import socket
import time

from memifrt.system.fds import EventFd, OwnedFd
from memifrt.system.original_functions import Lock, RLock, poll, start_new_thread

#: Number of fds of one user that may wait to be closed. With more, no message is taken from that user.
MAX_CLOSING = 64
#: Number of threads that close the fds of one user. One is not enough: a lingering socket would block all other fds.
_THREADS = 4
#: Seconds after which a thread counts as stuck. Then another thread takes the waiting fds.
_STUCK_AFTER = 0.01
#: Seconds between two checks of the standby thread.
_LOOK_EVERY = 0.01
#: Seconds for which a thread without work waits for more, because starting a thread costs more than a close.
_IDLE = 0.002
#: With more waiting fds of one user than this, sockets, memory and eventfds are parked (see :meth:`_Backlog._park`). So
#: the end of a connection with many queues does not reach MAX_CLOSING.
_PARK_ABOVE = 16
#: Size in bytes above which a thread frees memory, even that of a trusted user. Freeing this many takes about 1 ms.
_LARGE = 4 << 20
#: How many unread messages are searched for fds when a channel is closed.
_UNREAD = 16
_CREDENTIALS = socket.CMSG_SPACE(12)
_BLOCK = 512  # the unit of st_blocks in bytes
#: The uid of fds from an unknown user.
UNKNOWN_USER = -1
#: The map of the first user namespace, in which every user is.
_ALL_USERS = ["0", "0", "4294967295"]

#: ``os.closerange``, which ignores errors and which no monkey patching replaces.
_close_range = os.closerange
#: Reentrant: the garbage collector may close a forgotten fd while this thread holds the lock.
_lock = RLock()
_backlogs: dict[int, _Backlog] = {}
#: A lock that is never released. Waiting for it with a timeout is a sleep that no monkey-patching replaces.
_never = Lock()
_never.acquire()


def is_trusted(uid: int) -> bool:
    """Return whether this is our own user or root; either could kill this process anyway."""
    return uid == 0 or (uid == os.geteuid() and not _may_be_any_user(uid))


def _may_be_any_user(uid: int) -> bool:
    """Return whether the kernel shows this process users without a mapping in its user namespace under this uid.

    A program in a container often runs as that uid, ``nobody``: a user of another container then looks like its own.
    """
    if uid != _overflow_uid():
        return False
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() != _ALL_USERS
    except OSError:  # there is no /proc
        return True


@functools.cache
def _overflow_uid() -> int:
    try:
        with open("/proc/sys/kernel/overflowuid") as file:
            return int(file.read())
    except OSError:
        return 65534  # the kernel's default


def closes_too_slowly(uid: int) -> bool:
    """Return whether too many fds of this user wait to be closed, so that none may be taken from it now.

    The limit is :data:`MAX_CLOSING`. It is 1 while the fds of all users together hold half of RLIMIT_NOFILE.
    """
    backlog = _backlogs.get(uid)
    if backlog is None:
        return False
    with _lock:
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        is_crowded = sum(each.outstanding for each in _backlogs.values()) >= max(soft_limit // 2, MAX_CLOSING)
        return backlog.outstanding >= (1 if is_crowded else MAX_CLOSING)


class ReceivedFd(OwnedFd):
    """An :class:`~memifrt.system.fds.OwnedFd` that a peer sent. Its close never waits for the peer.

    :param uid: the peer's user.
    """

    __slots__ = ("uid",)

    def __init__(self, fd: int, what: str, uid: int = UNKNOWN_USER) -> None:
        super().__init__(fd, what)
        self.uid = uid

    def close(self) -> None:
        """Close the fd, in a thread if the close could wait."""
        fd = self.detach()
        if fd < 0 or self._pid != os.getpid():
            return
        kind = _kind(fd)
        if is_trusted(self.uid) and kind and not (kind == "memory" and _is_large(fd)):
            _close_range(fd, fd + 1)
        else:
            _close_in_thread([fd], self.uid, may_park=bool(kind))


class SharedEventFd(EventFd):
    """An eventfd that is shared with a peer, created by either side. Its close never waits for an untrusted peer."""

    __slots__ = ("uid",)

    def __init__(self, fd: int, what: str, uid: int = UNKNOWN_USER) -> None:
        super().__init__(fd, what)
        #: The peer's user.
        self.uid = uid

    def close(self) -> None:
        """Close the fd, in a thread if the peer is not trusted."""
        if is_trusted(self.uid):
            super().close()
            return
        if self._pid != os.getpid():
            self.abandon()
            return
        fd = self.detach()
        if fd >= 0:
            _close_in_thread([fd], self.uid, may_park=True)


def is_eventfd(fd: int) -> bool:
    """Return whether the file is an eventfd. This reads only the kernel's own tables, so it cannot wait."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:  # there is no /proc, or the path is too long, so it is not an eventfd
        return False


def close_channel(sock: socket.socket, uid: int) -> None:
    """Close a connected Unix socket without waiting, even if unread fds are in it. A second call does nothing.

    :param uid: the peer's user.
    """
    if sock.fileno() < 0:
        return
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # so that no more messages arrive
    if _has_unread_fds(sock):
        _close_in_thread([sock.detach()], uid, may_park=True)
    else:
        sock.close()


def close_listener(fd: int) -> None:
    """Close a listening socket without waiting, even if fds were sent on connections that were never accepted."""
    if _is_readable(fd):
        _close_in_thread([fd], UNKNOWN_USER, may_park=True)
    else:
        _close_range(fd, fd + 1)


def receive_without_fds(sock: socket.socket, size: int) -> bytes:
    """Read from a Unix stream socket like ``recv``, which would close fds that come with the data, and so may wait.

    :param size: the most bytes to read.
    :raises OSError: EBADMSG: the peer has sent fds. They stay unread; close the socket with :func:`close_channel`.
    """
    # Urgent data may carry fds, too, and reading past it would close them. So have it read like all other data.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    data, _, flags, _ = sock.recvmsg(size, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
    return sock.recv(len(data), socket.MSG_DONTWAIT) if data else b""


def _is_readable(fd: int) -> bool:
    waiting = poll()
    waiting.register(fd, select.POLLIN)
    try:
        return bool(waiting.poll(0))
    except OSError:  # poll fails if RLIMIT_NOFILE is 0
        return True


def _has_unread_fds(sock: socket.socket) -> bool:
    """Return whether unread fds are, or may be, in a socket that is shut down. Messages without fds are read."""
    is_stream = sock.type == socket.SOCK_STREAM  # a stream has no empty messages
    try:
        # With this option every message carries credentials, so an empty message differs from the end. The buffer has
        # room for them, but not for fds: MSG_PEEK takes none, and MSG_CTRUNC tells that there are some.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # as in receive_without_fds
        for _ in range(_UNREAD):
            try:
                data, ancillary, flags, _ = sock.recvmsg(1, _CREDENTIALS, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                if flags & socket.MSG_CTRUNC:
                    return True
                if not data and (is_stream or not ancillary):
                    return False
                sock.recv(1, socket.MSG_DONTWAIT)
            except ConnectionResetError:  # reported once, before the peer's messages
                continue
    except OSError:
        pass
    return True


def _kind(fd: int) -> str:
    """Return "memory", "eventfd", or "" for any other file. Uses no call that could wait."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # takes no lock
    except OSError:
        return "eventfd" if is_eventfd(fd) else ""
    return "memory"


def _is_large(fd: int) -> bool:
    return os.fstat(fd).st_blocks * _BLOCK > _LARGE


# --- the threads ----------------------------------------------------------------------------------------------------


class _Backlog:
    """The fds of one user that wait to be closed, and the threads that close them.

    The caller of every method holds the lock.
    """

    def __init__(self, uid: int) -> None:
        self.uid = uid
        #: Fds that no thread has taken yet.
        self.waiting: list[int] = []
        #: Number of fds that are not closed yet: the waiting ones, and those that a thread has taken.
        self.outstanding = 0
        #: Each closing thread, with the time when it last took or closed an fd.
        self._threads: dict[object, float] = {}
        #: The thread that takes the waiting fds when all others are stuck.
        self.standby: object | None = None
        #: The socket that holds parked fds (see :meth:`_park`).
        self._parking: _socket.socket | None = None

    def add(self, fds: list[int], *, may_park: bool) -> None:
        """Take fds to close, and start a thread if one is needed."""
        if may_park and self.outstanding >= _PARK_ABOVE:
            fds = [fd for fd in fds if not self._park(fd)]
        self.waiting += fds
        self.outstanding += len(fds)
        self._start_thread()

    def take(self, thread: object) -> int:
        """Return the fd that this thread must close, or -1. It gets one at a time, because its close may hang."""
        self.forget_parking()
        self._threads[thread] = time.monotonic()
        if not self.waiting:
            return -1
        fd = self.waiting.pop(0)
        if self.waiting:
            self._start_thread()
        return fd

    def end(self, thread: object) -> bool:
        """Forget this thread if no fd waits. Return whether the thread must end."""
        if self.waiting:
            return False
        if thread is self.standby:
            self.standby = None
        else:
            del self._threads[thread]
        if not (self.outstanding or self._threads or self.standby) and _backlogs.get(self.uid) is self:
            del _backlogs[self.uid]
        return True

    def closed(self, thread: object) -> None:
        """Count an fd that this thread has closed."""
        self.outstanding -= 1
        self._threads[thread] = time.monotonic()

    def step_in(self, thread: object) -> bool:
        """Make the standby thread a closing one if all others are stuck. Return whether they are."""
        now = time.monotonic()
        if any(now - since < _STUCK_AFTER for since in self._threads.values()):
            return False
        self.standby = None
        self._threads[thread] = now
        return True

    def _start_thread(self) -> None:
        """Start a closing thread if there is none, otherwise a standby thread, in case the closing ones hang."""
        thread = object()
        if not self._threads:
            run = _close_all
            self._threads[thread] = time.monotonic()
        elif self.standby is None and len(self._threads) < _THREADS:
            run = _stand_by
            self.standby = thread
        else:
            return
        try:
            start_new_thread(run, (self, thread))
        except RuntimeError:  # the system has no thread to give: the fds stay open until the next close tries again
            if self._threads.pop(thread, None) is None:
                self.standby = None

    def _park(self, fd: int) -> bool:
        """Send an fd to ourselves through a socket pair and free its number, so that many of them use few numbers.

        A thread closes the socket pair, and with it the files in its messages. Only for sockets, memory and eventfds:
        freeing a number of another file, such as a FUSE file, may wait already. Return whether the fd was parked.
        """
        for _ in range(2):
            try:
                if self._parking is None:
                    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                    self._parking, other = _socket.socketpair(socket.AF_UNIX, kind)
                    # Both ends wait for the thread as numbers, although the first is still used to send.
                    self.waiting += [self._parking.fileno(), other.detach()]
                    self.outstanding += 2
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                self._parking.sendmsg([b"fd"], rights)
            except BlockingIOError:  # this pair is full
                self.forget_parking()
            except OSError:
                return False
            else:
                _close_range(fd, fd + 1)
                return True
        return False

    def forget_parking(self) -> None:
        """Stop using the socket pair, which a thread closes."""
        if self._parking is not None:
            self._parking.detach()
            self._parking = None


def _close_in_thread(fds: list[int], uid: int, *, may_park: bool) -> None:
    """Have a thread close fds of a user.

    :param may_park: whether the files may be parked: they are sockets, memory or eventfds.
    """
    with _lock:
        backlog = _backlogs.get(uid)
        if backlog is None:
            backlog = _backlogs[uid] = _Backlog(uid)
        backlog.add(fds, may_park=may_park)


def _close_all(backlog: _Backlog, thread: object) -> None:
    """Close the waiting fds until none is left. Runs on a thread of its own."""
    while True:
        with _lock:
            fd = backlog.take(thread)
        if fd >= 0:
            _close_range(fd, fd + 1)  # releases the GIL
            with _lock:
                backlog.closed(thread)
                is_idle = not backlog.waiting
            if is_idle:
                _never.acquire(timeout=_IDLE)  # the end of a connection brings several fds, one after the other
        else:
            with _lock:
                if backlog.end(thread):
                    return


def _stand_by(backlog: _Backlog, thread: object) -> None:
    """Close the waiting fds once all closing threads are stuck. Runs on a thread of its own."""
    while True:
        _never.acquire(timeout=_LOOK_EVERY)
        with _lock:
            if backlog.end(thread):
                return
            if backlog.step_in(thread):
                break
    _close_all(backlog, thread)


def _forget_parent() -> None:
    """Start without fds in a forked child: they are the parent's, and its threads do not exist there."""
    global _lock
    _lock = RLock()
    for backlog in _backlogs.values():
        backlog.forget_parking()
    _backlogs.clear()


os.register_at_fork(after_in_child=_forget_parent)
