"""Fds that a peer sent or shares: the control thread never waits until one of them is closed.

Owns the threads that close them. Knows nothing of what the fds are for.

Why a close may wait
--------------------
``close`` asks the file, and a peer can choose a file that does not answer: a FUSE file waits for its server, a TCP
socket lingers over unsent data. An eventfd, even one of our own making, waits for an epoll set of the peer in which it
is registered, and a peer can make ``epoll_wait`` hold that set for ever. Memory takes time to free. A socket takes the
unread fds in its queue with it. Threads of :class:`_Backlog` do all of that. Only memory and eventfds of a user who
could kill this process anyway (ours or root) are closed by the caller.

A thread that hangs in ``close`` holds no fd number: the kernel gives the number up first. Fds that wait for a thread
hold one each, so they are counted for each user, and a user with too many of them can send no more
(:func:`closes_too_slowly`).
"""

from __future__ import annotations

import _socket
import array
import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
import time

from memifrt.system.fds import EventFd, OwnedFd
from memifrt.system.original_functions import Lock, RLock, poll, start_new_thread

#: Fds of one user that may wait to be closed. With more, no message is taken from that user.
MAX_CLOSING = 64
#: Threads that close the fds of one user. More than one: a lingering socket must not hold up all others.
_THREADS = 4
#: Seconds after which a thread is stuck: then another one takes what waits behind its fd.
_STUCK_AFTER = 0.01
#: Seconds between two looks of the thread that stands by.
_LOOK_EVERY = 0.01
#: Seconds for which a thread without work waits for more: starting one costs more than a close.
_IDLE = 0.002
#: Waiting fds of one user above which sockets, memory and eventfds are parked (see :meth:`_Backlog._park`). So the end
#: of a connection with many queues does not come near MAX_CLOSING.
_PARK_ABOVE = 16
#: Freeing this many bytes takes about a millisecond: larger memory is freed by a thread, whoever has sent it.
_LARGE = 4 << 20
#: Messages that are searched for fds at the end of a conversation.
_UNREAD = 16
_CREDENTIALS = socket.CMSG_SPACE(12)
_BLOCK = 512  # of st_blocks
#: The uid of fds whose user is not known.
UNKNOWN_USER = -1

#: ``os.closerange``, which ignores errors and which no monkey patching replaces.
_close_range = os.closerange
#: Reentrant: the garbage collector may close a forgotten fd while this thread holds the lock.
_lock = RLock()
_backlogs: dict[int, _Backlog] = {}
#: Never free: to sleep, in a way that no monkey patching replaces.
_never = Lock()
_never.acquire()


def is_trusted(uid: int) -> bool:
    """Return True for our own user and root: they could kill this process anyway."""
    return uid in (0, os.geteuid())


def closes_too_slowly(uid: int) -> bool:
    """Return True if so many fds of this user wait to be closed that no more may be taken from it."""
    backlog = _backlogs.get(uid)
    if backlog is None:
        return False
    with _lock:
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        is_crowded = sum(each.outstanding for each in _backlogs.values()) >= max(soft_limit // 2, MAX_CLOSING)
        return backlog.outstanding >= (1 if is_crowded else MAX_CLOSING)


class ReceivedFd(OwnedFd):
    """An :class:`~memifrt.system.fds.OwnedFd` whose close never waits for the peer.

    :param uid: the user who sent it.
    """

    __slots__ = ("uid",)

    def __init__(self, fd: int, what: str, uid: int = UNKNOWN_USER) -> None:
        super().__init__(fd, what)
        self.uid = uid

    def close(self) -> None:
        fd = self.detach()
        if fd < 0 or self._pid != os.getpid():
            return
        kind = _kind(fd)
        if is_trusted(self.uid) and kind and not (kind == "memory" and _is_large(fd)):
            _close_range(fd, fd + 1)
        else:
            _close_in_thread([fd], self.uid, may_park=bool(kind))


class SharedEventFd(EventFd):
    """An eventfd that a peer has, too, whoever made it; its close never waits for the peer."""

    __slots__ = ("uid",)

    def __init__(self, fd: int, what: str, uid: int = UNKNOWN_USER) -> None:
        super().__init__(fd, what)
        #: The peer's user.
        self.uid = uid

    def close(self) -> None:
        if is_trusted(self.uid):
            super().close()
            return
        with self._lock:
            fd = self.detach()
        if fd >= 0 and self._pid == os.getpid():
            _close_in_thread([fd], self.uid, may_park=True)


def is_eventfd(fd: int) -> bool:
    """Return whether the file is an eventfd. Asks nothing but the kernel's own tables."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:  # no /proc; or the file's path is too long, and then it is no eventfd
        return False


def close_channel(sock: socket.socket, uid: int) -> None:
    """Close a connected Unix socket, whatever its peer has left unread in it. Twice is harmless."""
    if sock.fileno() < 0:
        return
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # nothing more comes in
    if _has_unread_fds(sock):
        _close_in_thread([sock.detach()], uid, may_park=True)
    else:
        sock.close()


def close_listener(fd: int) -> None:
    """Close a listening socket, whatever was sent on connections that nobody accepted."""
    if _is_readable(fd):
        _close_in_thread([fd], UNKNOWN_USER, may_park=True)
    else:
        _close_range(fd, fd + 1)


def receive_without_fds(sock: socket.socket, size: int) -> bytes:
    """Read from a Unix stream socket, as ``recv`` does. ``recv`` itself would close fds that come along.

    :raises OSError: the peer has sent fds: EBADMSG. They stay unread; close the socket with :func:`close_channel`.
    """
    # Urgent data may have fds, too, and reading past it would close them here: it is read like all other data.
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
    except OSError:  # with RLIMIT_NOFILE at 0 even this is too much to ask
        return True


def _has_unread_fds(sock: socket.socket) -> bool:
    """Whether fds wait in a socket that has been shut down, or may. Messages without any are taken."""
    is_stream = sock.type == socket.SOCK_STREAM  # which knows no empty messages
    try:
        # Each message then has credentials beside it, which tell an empty one from the end. There is room for them and
        # not for fds: a look takes none, and is told that some were cut off.
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
            except ConnectionResetError:  # said once, before what the peer has sent
                continue
    except OSError:
        pass
    return True


def _kind(fd: int) -> str:
    """Return "memory", "eventfd", or "" for anything else. Asks nothing that could wait."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # takes no lock
    except OSError:
        return "eventfd" if is_eventfd(fd) else ""
    return "memory"


def _is_large(fd: int) -> bool:
    return os.fstat(fd).st_blocks * _BLOCK > _LARGE


# --- the threads ----------------------------------------------------------------------------------------------------


class _Backlog:
    """The fds of one user that are to be closed, and the threads that do it. Every method needs the lock."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        #: Fds that no thread has taken yet.
        self.waiting: list[int] = []
        #: Those, and those that a thread has taken and not closed yet.
        self.outstanding = 0
        #: Each thread that closes, and since when it has closed nothing.
        self._threads: dict[object, float] = {}
        #: The thread that takes what waits when all of those are stuck.
        self.standby: object | None = None
        self._parking: _socket.socket | None = None

    def add(self, fds: list[int], *, may_park: bool) -> None:
        if may_park and self.outstanding >= _PARK_ABOVE:
            fds = [fd for fd in fds if not self._park(fd)]
        self.waiting += fds
        self.outstanding += len(fds)
        self._start_thread()

    def take(self, thread: object) -> int:
        """Return the fd that this thread is to close; -1: none. The others are left to the other threads: this one may
        never come back."""
        self.forget_parking()
        self._threads[thread] = time.monotonic()
        if not self.waiting:
            return -1
        fd = self.waiting.pop(0)
        if self.waiting:
            self._start_thread()
        return fd

    def end(self, thread: object) -> bool:
        """Forget this thread, unless there is something to close; return whether it is to end."""
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
        self.outstanding -= 1
        self._threads[thread] = time.monotonic()

    def step_in(self, thread: object) -> bool:
        """Let the thread that stands by close, if all others are stuck; return whether it is to."""
        now = time.monotonic()
        if any(now - since < _STUCK_AFTER for since in self._threads.values()):
            return False
        self.standby = None
        self._threads[thread] = now
        return True

    def _start_thread(self) -> None:
        """Start a thread that closes, or one that stands by in case those that close hang."""
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
        except RuntimeError:  # no more threads: the next close tries again, and until then the fds stay open
            if self._threads.pop(thread, None) is None:
                self.standby = None

    def _park(self, fd: int) -> bool:
        """Send a waiting fd to ourselves, and give up its number: a flood of such fds then takes no numbers from us.

        The message that holds the file goes with the socket pair, which a thread closes. Only for files that do nothing
        when a number of theirs is closed (sockets, memory and eventfds): others, like those of FUSE, may wait then.
        """
        for _ in range(2):
            try:
                if self._parking is None:
                    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                    self._parking, other = _socket.socketpair(socket.AF_UNIX, kind)
                    # As numbers, of which the sender is one: the thread closes both.
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
        if self._parking is not None:
            self._parking.detach()
            self._parking = None


def _close_in_thread(fds: list[int], uid: int, *, may_park: bool) -> None:
    with _lock:
        backlog = _backlogs.get(uid)
        if backlog is None:
            backlog = _backlogs[uid] = _Backlog(uid)
        backlog.add(fds, may_park=may_park)


def _close_all(backlog: _Backlog, thread: object) -> None:
    """Close what waits, until nothing does. Runs on a thread of its own."""
    while True:
        with _lock:
            fd = backlog.take(thread)
        if fd >= 0:
            _close_range(fd, fd + 1)  # without the interpreter's lock
            with _lock:
                backlog.closed(thread)
                is_idle = not backlog.waiting
            if is_idle:
                _never.acquire(timeout=_IDLE)  # a connection that ends brings several, one after the other
        else:
            with _lock:
                if backlog.end(thread):
                    return


def _stand_by(backlog: _Backlog, thread: object) -> None:
    """Close what waits once the threads that close are all stuck. Runs on a thread of its own."""
    while True:
        _never.acquire(timeout=_LOOK_EVERY)
        with _lock:
            if backlog.end(thread):
                return
            if backlog.step_in(thread):
                break
    _close_all(backlog, thread)


def _forget_parent() -> None:
    """In a forked child: the fds are the parent's, and the threads are not here."""
    global _lock
    _lock = RLock()
    for backlog in _backlogs.values():
        backlog.forget_parking()
    _backlogs.clear()


os.register_at_fork(after_in_child=_forget_parent)
