"""Fds that a peer sent: whatever they are of, closing them does not wait.

Owns how such an fd is closed. Knows nothing of what it should have been.

Closing a file asks its file system, and one of the peer's own (FUSE) may never answer; a socket may linger over what it
has not sent. Memory and eventfds have nobody to ask. Everything else is closed in a thread of its own. So is a socket
in which fds wait unread: the kernel closes them, in whoever closes the socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
from collections.abc import Iterable

from memifrt.system.fds import OwnedFd
from memifrt.system.original_functions import Lock, poll, start_new_thread

#: Seconds that a thread gets before we go on without it. What closes at all does so in microseconds.
_PATIENCE = 0.01
#: With so many that have not come back there is no patience left.
_STUCK = 8
#: Closes of one user's fds that may be under way: each costs a thread and an fd for as long as it does not come back.
MAX_CLOSING = 64
#: Messages that are looked through for fds at the end of a conversation.
_UNREAD = 16
_CREDENTIALS = socket.CMSG_SPACE(12)
#: A socket that nobody has connected to, and so no user's.
_NOBODY = -1

_close = os.close
#: Closes that have not come back, each with the uid of whose fds they are.
_closing: dict[object, int] = {}


def closes_too_slowly(uid: int) -> bool:
    """Whether so many closes of this user's fds have not come back that no more are to be taken."""
    return bool(_closing) and [*_closing.values()].count(uid) >= MAX_CLOSING


class ReceivedFd(OwnedFd):
    """An :class:`~memifrt.system.fds.OwnedFd` whose close never waits for the peer."""

    __slots__ = ("_uid",)

    def __init__(self, fd: int, what: str, uid: int = _NOBODY) -> None:
        """:param uid: of who has sent it."""
        super().__init__(fd, what)
        self._uid = uid

    def close(self) -> None:
        close_all((self,))


def close_all(received: Iterable[ReceivedFd]) -> None:
    """Close the fds of one message. One thread does for all that may wait."""
    slow: list[int] = []
    uid = _NOBODY
    for owned in received:
        fd = owned.detach()
        if fd < 0 or owned._pid != os.getpid():
            continue
        if _closes_at_once(fd):
            os.close(fd)
        else:
            slow.append(fd)
            uid = owned._uid
    if slow:
        _close_beside(slow, uid)


def close_channel(sock: socket.socket, uid: int) -> None:
    """Close a connected socket, whatever its peer has left unread in it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # nothing more comes in
    if _has_unread_fds(sock):
        _close_beside([sock.detach()], uid)
    else:
        sock.close()


def close_listener(fd: int) -> None:
    """Close a listening socket, whatever those who wait to be accepted have sent."""
    if _is_readable(fd):
        _close_beside([fd], _NOBODY)
    else:
        os.close(fd)


def _is_readable(fd: int) -> bool:
    waiting = poll()
    waiting.register(fd, select.POLLIN)
    try:
        return bool(waiting.poll(0))
    except OSError:  # with RLIMIT_NOFILE at 0 even this is too much to ask
        return True


def _has_unread_fds(sock: socket.socket) -> bool:
    """Whether fds wait in a socket that has been shut down, or may. Messages without any are taken."""
    try:
        # Each message then has credentials beside it, which tell an empty one from the end. There is room for them and
        # not for fds: a look takes none, and is told that some were cut off.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        for _ in range(_UNREAD):
            try:
                data, ancillary, flags, _ = sock.recvmsg(1, _CREDENTIALS, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                if flags & socket.MSG_CTRUNC:
                    return True
                if not data and not ancillary:
                    return False
                sock.recv(1, socket.MSG_DONTWAIT)
            except ConnectionResetError:  # said once, before what the peer has sent
                continue
    except OSError:
        pass
    return True


def _closes_at_once(fd: int) -> bool:
    """Whether the file is memory or an anonymous inode such as an eventfd. Nothing is asked that could wait."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # no memory
        try:
            return os.readlink(f"/proc/self/fd/{fd}").startswith("anon_inode:")
        except OSError:
            return False
    return True


def _close_beside(fds: list[int], uid: int) -> None:
    finished = Lock()
    finished.acquire()

    def close() -> None:
        try:
            for fd in fds:
                with contextlib.suppress(OSError):  # its file system may have died; the number is free all the same
                    _close(fd)
        finally:
            _closing.pop(finished, None)
            finished.release()

    patient = len(_closing) < _STUCK
    _closing[finished] = uid
    try:
        start_new_thread(close, ())
    except RuntimeError:  # no more threads: an fd that stays open is better than one that keeps us waiting
        _closing.pop(finished, None)
        return
    if patient:
        finished.acquire(timeout=_PATIENCE)
