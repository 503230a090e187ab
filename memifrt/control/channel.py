"""One control channel: a SEQPACKET socket, its send queue, the fds that travel on it, the peer's credentials.

Owns the socket. Knows nothing of the meaning of the messages or of event loops; ``wants_write`` tells the owner when to
watch for writing.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memifrt.control import farewell
from memifrt.control.wire import MESSAGE_SIZE, Disconnect, Message, decode, encode
from memifrt.errors import ErrorCode, MemifError, ProtocolError, os_error
from memifrt.system.fds import own_socket
from memifrt.system.not_copied import NotCopied
from memifrt.system.received_fds import ReceivedFd, close_channel, closes_too_slowly

if TYPE_CHECKING:
    from memifrt.memory.sigbus import HangUp

_UCRED = struct.Struct("3i")
_INT = struct.Struct("i")
#: Room for exactly one fd. CMSG_SPACE includes padding, in which the kernel would store a second one.
_ONE_FD = socket.CMSG_LEN(4)
_PEEK = int(socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC)
#: Options that connections inherit from an adopted listener. The data that they add would take the room of the fd.
_UNWANTED = (socket.SO_PASSCRED, socket.SO_PASSSEC, 76)  # SO_PASSPIDFD


@dataclass(frozen=True, slots=True)
class Credentials:
    """The process, user and group of the peer, as the kernel saw them at connect (``SO_PEERCRED``).

    ``pid`` is 0 if our process namespace has no number for the peer: it runs in another container, or outside ours.
    """

    pid: int
    uid: int
    gid: int

    @property
    def process(self) -> str:
        """Return the peer's process in words, for messages."""
        return f"peer pid {self.pid}" if self.pid else "peer in another process namespace"


class ChannelClosed(Exception):
    """The peer has closed its end."""


class Channel(NotCopied):
    """A connected, non-blocking SEQPACKET socket that carries memif messages. It owns the socket.

    It sends a DISCONNECT before every close, also when it is garbage-collected and when the interpreter exits. A
    connection that ends without one after the HELLO crashes a VPP master.
    """

    __slots__ = ("__weakref__", "_hang_up", "_outgoing", "_pid", "_said_goodbye", "_socket", "credentials")

    def __init__(self, sock: socket.socket) -> None:
        self._said_goodbye = False
        self._socket = own_socket(sock)
        self._pid = os.getpid()
        farewell.remember(self)
        self._outgoing: deque[tuple[bytes, int]] = deque()
        self._hang_up: HangUp | None = None
        sock.setblocking(False)
        for option in _UNWANTED:
            with contextlib.suppress(OSError):  # an older kernel does not have the option
                sock.setsockopt(socket.SOL_SOCKET, option, 0)
        self.credentials = Credentials(
            *_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        )

    def fileno(self) -> int:
        """Return the socket's fd, or -1 after the close."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether messages wait for room in the socket's buffer."""
        return bool(self._outgoing)

    def send(self, message: Message, fd: int = -1) -> None:
        """Queue a message, and send as many queued messages as the socket takes.

        :param fd: an fd to send along, or -1. It must stay open until the queue is empty.
        :raises ChannelClosed: the peer is gone.
        :raises MemifOSError: the system refuses.
        """
        self._outgoing.append((encode(message), fd))
        self.flush()

    def flush(self) -> None:
        """Send queued messages until none is left or the socket is full; raises as :meth:`send` does."""
        while self._outgoing:
            data, fd = self._outgoing[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
            try:
                self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError) as error:
                self._outgoing.clear()
                raise ChannelClosed from error
            except OSError as error:
                raise os_error("cannot send a control message", error) from error
            self._outgoing.popleft()

    def receive(self) -> tuple[Message, ReceivedFd | None] | None:
        """Take the next message and the fd that came with it. Return None if no message waits.

        A message with more than one fd stays in the socket and is discarded with it, so its fds never use fd numbers
        of this process.

        :raises ChannelClosed: the peer is gone.
        :raises ProtocolError: the message is malformed.
        :raises MemifError: ``PROC_FILE_LIMIT``: this process cannot open the fd that came with the message, or too many
            fds of the peer's user still wait to be closed.
        """
        uid = self.credentials.uid
        if closes_too_slowly(uid):
            raise MemifError(
                ErrorCode.PROC_FILE_LIMIT, f"fds from uid {uid} do not close; no more are accepted from this user"
            )
        try:
            peeked = self._read(_ONE_FD, _PEEK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise os_error("cannot receive a control message", error) from error
        data, ancillary, flags = peeked
        fd = _received_fd(ancillary, uid)
        try:
            if not data:
                raise ChannelClosed
            if flags & socket.MSG_CTRUNC:
                if fd is not None:
                    raise ProtocolError(ErrorCode.MFMSG, "more than one fd came with a message")
                raise MemifError(
                    ErrorCode.PROC_FILE_LIMIT, "cannot take the fd of a message: this process has too many open files"
                )
            # Remove the message from the socket. Its reference to the file goes with it, but ours keeps the file open.
            self._read(0, 0)
            message = decode(data)
        except BaseException as error:
            if fd is not None:
                fd.close()
            if isinstance(error, OSError):
                raise os_error("cannot receive a control message", error) from error
            raise
        return message, fd

    def _read(self, room: int, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        while True:
            try:
                return self._socket.recvmsg(MESSAGE_SIZE + 1, room, flags)[:3]
            except ConnectionResetError:
                # The peer closed with messages of ours unread. The kernel reports that once, before its last messages.
                continue

    def say_goodbye(self, reason: str) -> None:
        """Send a DISCONNECT with the reason, without waiting. If the socket cannot take it, it is dropped.

        May be called from any thread: it uses only the socket.
        """
        self._said_goodbye = True
        data = [encode(Disconnect(0, reason))]
        with contextlib.suppress(OSError):
            try:
                self._socket.sendmsg(data, [], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                # The peer does not read, and our messages fill the buffer. Enlarge it, to have room for this one.
                size = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)  # the kernel doubles the value
                self._socket.sendmsg(data, [], socket.MSG_NOSIGNAL)

    def say_farewell(self) -> None:
        """Tell the peer that this process ends. Another thread may still use the channel."""
        if self._pid == os.getpid() and not self._said_goodbye and self._socket.fileno() >= 0:
            self.say_goodbye("the process ends")

    def shut_down(self) -> None:
        """Shut down both directions without closing the fd. This wakes the loop that watches the channel."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    @property
    def hang_up(self) -> HangUp:
        """The handle by which the guards of shared memory shut this channel down when a page is lost."""
        if self._hang_up is None:
            from memifrt.memory.sigbus import HangUp

            self._hang_up = HangUp(self._socket.fileno())
        return self._hang_up

    def close(self, reason: str = "the connection is closed") -> None:
        """Close the socket. A second call does nothing.

        :param reason: sent to the peer in a DISCONNECT, unless one was sent before.
        """
        self._outgoing.clear()
        farewell.forget(self)
        if self._hang_up is not None:  # before the close: the number may become another file's
            self._hang_up.forget()
        if self._pid == os.getpid():
            if not self._said_goodbye and self._socket.fileno() >= 0:
                self.say_goodbye(reason)
            close_channel(self._socket, self.credentials.uid)
        else:  # a forked child: the connection is the parent's
            self._socket.detach()

    def __del__(self) -> None:
        # After an __init__ that failed, attributes may be missing.
        with contextlib.suppress(AttributeError):
            if self._socket.fileno() >= 0:
                self.close()


def _received_fd(ancillary: list[tuple[int, int, bytes]], uid: int) -> ReceivedFd | None:
    """Return the fd of a message, if there is one. Called before all checks, so that no error can leak the fd."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= _INT.size:
            return ReceivedFd(_INT.unpack_from(data)[0], "fd received from a peer", uid)
    return None
