"""Where a control socket lives, and how to connect to it or listen on it.

Owns paths, abstract names, stale socket files and the words for what the system answers. Knows nothing of messages.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass

from memifrt.errors import ConfigError, ErrorCode, MemifError, MemifOSError, os_error
from memifrt.fds import OwnedFd, own_socket
from memifrt.types import PATH_BYTES

#: Connections that may wait for accept; the kernel caps it at net.core.somaxconn.
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class Address:
    """A socket's path as users write it: a file, or ``@name`` for a name in the abstract namespace."""

    path: str

    @classmethod
    def parse(cls, path: str | os.PathLike[str]) -> Address:
        """From ``/a/path``, ``@name``, ``"\\0name"`` or VPP's ``abstract:name``."""
        try:
            text = os.fspath(path)
        except TypeError:
            raise ConfigError(f"socket is {path!r}; it must be a path or @name") from None
        if not isinstance(text, str):
            raise ConfigError(f"socket is {path!r}; it must be a path or @name")
        for prefix in ("\0", "abstract:"):
            if text.startswith(prefix):
                text = "@" + text[len(prefix) :]
        size = len(os.fsencode(text))
        if text in ("", "@"):
            raise ConfigError(f"socket is {path!r}; it must be a path or @name")
        if size > PATH_BYTES:
            raise ConfigError(f"socket path {text!r} is {size} bytes long; at most {PATH_BYTES} fit into an address")
        if "\0" in text:
            raise ConfigError(f"socket path {text!r} has a NUL byte in it")
        return cls(text)

    @property
    def is_abstract(self) -> bool:
        return self.path.startswith("@")

    @property
    def native(self) -> bytes:
        """What ``bind`` and ``connect`` take. An abstract name has no trailing NUL (protocol notes, section 3)."""
        raw = os.fsencode(self.path)
        return b"\0" + raw[1:] if self.is_abstract else raw

    def __str__(self) -> str:
        return self.path


def connect(address: Address) -> socket.socket:
    """A connected, non-blocking socket. Never waits: a listener whose backlog is full is an error (EAGAIN).

    :raises MemifOSError: with the errno and the path: ``NO_FILE``, ``CONNREFUSED``, ``ACCES``, ``AGAIN``, …
    """
    sock = _new_socket(address)
    try:
        sock.connect(address.native)
    except OSError as error:
        sock.close()
        if error.errno == errno.EPROTOTYPE:
            raise os_error(
                f"cannot connect to {address}: not a SOCK_SEQPACKET socket",
                error,
                path=address.path,
                code=ErrorCode.FILE_NOT_SOCK,
            ) from error
        raise os_error(f"cannot connect to {address}", error, path=address.path) from error
    return sock


class Listener(OwnedFd):
    """A listening socket. Removes its file when it closes, if the file is still its own."""

    __slots__ = ("_identity", "_socket", "address")

    def __init__(self, sock: socket.socket, address: Address, identity: tuple[int, int] | None) -> None:
        super().__init__(sock.fileno(), f"listener on {address}")
        self._socket = own_socket(sock)
        self._identity = identity
        self.address = address

    def accept(self) -> socket.socket | None:
        """The next connection, or None when none waits (any more).

        :raises MemifOSError: the system refuses, for example for want of fds.
        """
        try:
            return self._socket.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            raise os_error(f"cannot accept on {self.address}", error, path=self.address.path) from error

    def close(self) -> None:
        bound = not self.closed and self._pid == os.getpid() and self._identity is not None
        if bound and self._identity == _identity(self.address):
            os.unlink(self.address.path)
        self._socket.detach()  # super() closes the number, or leaves it to the parent of a forked child
        super().close()

    @classmethod
    def bind(cls, address: Address) -> Listener:
        """Listen on an address. A socket file that nobody listens on is replaced.

        :raises MemifOSError: EADDRINUSE if somebody listens there; ``FILE_NOT_SOCK`` if a file of another kind is
            there; ``NO_FILE`` if its directory is missing; ``ACCES``.
        """
        sock = _new_socket(address)
        try:
            if not address.is_abstract:
                _remove_stale(address)
            sock.bind(address.native)
            listener = cls(sock, address, None if address.is_abstract else _identity(address))
        except OSError as error:
            sock.close()
            if isinstance(error, MemifOSError):
                raise
            raise _bind_error(address, error) from error
        try:
            sock.listen(_BACKLOG)
        except OSError as error:
            listener.close()  # and the file with it
            raise _bind_error(address, error) from error
        return listener

    @classmethod
    def adopt(cls, fd: int, address: Address) -> Listener:
        """A listener that somebody else made, such as systemd; its file stays when it closes. Takes the fd.

        :raises ConfigError: ``FILE_NOT_SOCK`` if it is not a listening ``AF_UNIX`` ``SOCK_SEQPACKET`` socket; the fd
            then stays the caller's.
        :raises MemifOSError: ``FILE_NOT_SOCK`` if it is no socket at all, ``BAD_FD`` if it is no fd.
        """
        try:
            os.fstat(fd)  # socket has a ValueError for negative numbers
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise os_error(f"fd {fd} cannot be the listener of {address}", error, path=address.path) from error
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET) or not listening:
            sock.detach()
            raise ConfigError(
                f"fd {fd} is not a listening AF_UNIX SOCK_SEQPACKET socket; it cannot be the listener of {address}",
                ErrorCode.FILE_NOT_SOCK,
            )
        sock.setblocking(False)
        return cls(sock, address, None)


def _new_socket(address: Address) -> socket.socket:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise os_error(f"cannot make a socket for {address}", error, path=address.path) from error


def _remove_stale(address: Address) -> None:
    """Unlink a socket file whose listener is gone: connecting to it is refused."""
    try:
        mode = os.stat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        error = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        raise os_error(
            f"cannot listen on {address}: a file that is not a socket is there",
            error,
            path=address.path,
            code=ErrorCode.FILE_NOT_SOCK,
        )
    try:
        connect(address).close()
    except MemifError as error:
        if error.code is ErrorCode.CONNREFUSED:
            os.unlink(address.path)
        elif error.code is not ErrorCode.AGAIN:  # EAGAIN: alive, with a full backlog; bind will say "in use"
            raise


def _bind_error(address: Address, error: OSError) -> MemifOSError:
    what = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        what += ": somebody listens there already"
    elif error.errno == errno.ENOENT and not address.is_abstract:
        what += f": the directory {os.path.dirname(address.path) or '.'} does not exist"
    return os_error(what, error, path=address.path)


def _identity(address: Address) -> tuple[int, int] | None:
    try:
        status = os.stat(address.path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
