"""Where a control socket lives, and how to connect to it or listen on it.

Owns paths, abstract names, stale socket files, and the words for what the system answers. Knows nothing of messages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass

from memifrt.control.permissions import FilePermissions
from memifrt.control.socket_file import SocketFile, is_other_file, not_a_socket, open_new
from memifrt.errors import ConfigError, ErrorCode, MemifOSError, os_error
from memifrt.system import original_functions
from memifrt.system.fds import OwnedFd, accept, own_socket
from memifrt.system.received_fds import UNKNOWN_USER, close_channel, close_listener
from memifrt.types import PATH_BYTES

#: Connections that may wait for accept; the kernel caps it at net.core.somaxconn.
BACKLOG = 4096
#: What VPP puts between a socket's path and its network namespace.
_NETNS = ",netns_name="
#: Connections that are accepted to be closed when their listener closes.
_WAITING = 64


@dataclass(frozen=True, slots=True)
class Address:
    """A socket's path as users write it: a file, or ``@name`` for a name in the abstract namespace.

    :ivar netns: the network namespace in which the socket is made: a name that ``ip netns`` knows, a path, or
        ``pid:N``. Empty for this process's own.
    """

    path: str
    netns: str = ""

    @classmethod
    def parse(cls, path: str | os.PathLike[str]) -> Address:
        """Return the address for ``/a/path``, ``@name``, ``"\\0name"`` or VPP's ``abstract:name``.

        ``,netns_name=NS`` behind any of them makes the socket in that network namespace, as VPP's names have it.

        :raises ConfigError: it is none of these, or too long.
        """
        try:
            text = os.fspath(path)
        except TypeError:
            raise ConfigError(f"socket is {path!r}; it must be a path or @name") from None
        if not isinstance(text, str):
            raise ConfigError(f"socket is {path!r}; it must be a path or @name")
        text, mark, netns = text.partition(_NETNS)
        if mark and not netns:
            raise ConfigError(f"socket is {path!r}; netns_name= needs the name or the path of a network namespace")
        for prefix in ("\0", "abstract:"):
            if text.startswith(prefix):
                text = "@" + text[len(prefix) :]
        size = len(os.fsencode(text))
        if text in ("", "@"):
            raise ConfigError(f"socket is {path!r}; it must be a path or @name")
        if size > PATH_BYTES:
            raise ConfigError(f"socket path {text!r} is {size} bytes long; at most {PATH_BYTES} fit into an address")
        if "\0" in text + netns:
            raise ConfigError(f"socket path {text + mark + netns!r} has a NUL byte in it")
        return cls(text, netns)

    @property
    def is_abstract(self) -> bool:
        return self.path.startswith("@")

    @property
    def native(self) -> bytes:
        """What ``bind`` and ``connect`` take. An abstract name has no trailing NUL (docs/protocol.md)."""
        raw = os.fsencode(self.path)
        return b"\0" + raw[1:] if self.is_abstract else raw

    def __str__(self) -> str:
        """The same as a user writes it."""
        return f"{self.path}{_NETNS}{self.netns}" if self.netns else self.path


def connect(address: Address, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> socket.socket:
    """A connected, non-blocking socket. Never waits: a listener whose backlog is full is an error (EAGAIN).

    :param kind: memif's control channel is a ``SOCK_SEQPACKET`` socket.

    :raises MemifOSError: with the errno and the path: ``NO_FILE``, ``CONNREFUSED``, ``ACCES``, ``AGAIN``, …
    """
    sock = _new_socket(address, kind)
    try:
        sock.connect(address.native)
    except OSError as error:
        sock.close()
        if error.errno == errno.EPROTOTYPE:
            raise os_error(
                f"cannot connect to {address}: not a {kind.name} socket",
                error,
                path=address.path,
                code=ErrorCode.FILE_NOT_SOCK,
            ) from error
        if error.errno == errno.ECONNREFUSED and not address.is_abstract and is_other_file(address.path):
            raise not_a_socket(f"cannot connect to {address}", error, address.path) from error
        raise os_error(f"cannot connect to {address}", error, path=address.path) from error
    return sock


class Listener(OwnedFd):
    """A listening socket. Removes its file when it closes, if the file is still its own."""

    __slots__ = ("_adopted", "_file", "_socket", "address")

    def __init__(
        self, sock: socket.socket, address: Address, file: SocketFile | None, *, adopted: bool = False
    ) -> None:
        super().__init__(sock.fileno(), f"listener on {address}")
        self._adopted = adopted
        self._socket = own_socket(sock)
        self._file = file
        self.address = address

    def accept(self) -> socket.socket | None:
        """The next connection, or None when none waits (any more).

        :raises MemifOSError: the system refuses, for example for want of fds.
        """
        try:
            return accept(self._socket)
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            raise os_error(f"cannot accept on {self.address}", error, path=self.address.path) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.remove()
            self._file.close()
        if not self.closed and self._pid == os.getpid() and not self._adopted:
            self._refuse_waiting()
        self._socket.detach()
        fd = self.detach()
        if fd >= 0 and self._pid == os.getpid():  # in a forked child it is its parent's
            close_listener(fd)

    def _refuse_waiting(self) -> None:
        """Close the connections that nobody has accepted: else the listener must be closed in another thread, and its
        name would be free a moment later. Not those of a listener that others may hold, too."""
        with contextlib.suppress(MemifOSError):
            for _ in range(_WAITING):
                waiting = self.accept()
                if waiting is None:
                    return
                close_channel(waiting, UNKNOWN_USER)

    @classmethod
    def bind(
        cls,
        address: Address,
        kind: socket.SocketKind = socket.SOCK_SEQPACKET,
        *,
        permissions: FilePermissions | None = None,
    ) -> Listener:
        """Listen on an address. A socket file that nobody listens on is replaced.

        :param kind: memif's control channel is a ``SOCK_SEQPACKET`` socket.
        :param permissions: of the new file. It never has more than them, and nobody can connect before it has them.
        :raises MemifOSError: EADDRINUSE if somebody listens there; ``FILE_NOT_SOCK`` if a file of another kind is
            there; ``NO_FILE`` if its directory is missing; ``ACCES``; EPERM for an owner that we may not give.
        """
        sock = _new_socket(address, kind)
        try:
            file = None if address.is_abstract else _bind_file(sock, address, kind, permissions)
            if file is None:
                sock.bind(address.native)
            listener = cls(sock, address, file)
        except OSError as error:
            sock.close()
            if isinstance(error, MemifOSError):
                raise
            raise _bind_error(address, error) from error
        try:
            if file is not None and permissions is not None:
                file.set_permissions(permissions)
            sock.listen(BACKLOG)
        except OSError as error:
            listener.close()  # and the file with it
            if isinstance(error, MemifOSError):
                raise
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
            sock = original_functions.socket(fileno=fd)
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
        return cls(sock, address, None, adopted=True)


def _new_socket(address: Address, kind: socket.SocketKind) -> socket.socket:
    def make() -> socket.socket:
        return original_functions.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)

    try:
        if not address.netns:
            return make()
        # Imported here: few sockets need it, and ctypes with it. A socket belongs to the namespace it was made in.
        from memifrt.system.netns import call_in_namespace

        return call_in_namespace(address.netns, make)
    except MemifOSError:
        raise
    except OSError as error:
        raise os_error(f"cannot make a socket for {address}", error, path=address.path) from error


def _bind_file(
    sock: socket.socket, address: Address, kind: socket.SocketKind, permissions: FilePermissions | None
) -> SocketFile:
    """Make the socket's file, in the place of a stale one."""
    _remove_stale(address, kind)
    if permissions is not None and permissions.mode is not None:
        # bind makes the file with it, less what the umask takes away: there is no moment with more.
        os.fchmod(sock.fileno(), permissions.mode)
    sock.bind(address.native)
    return open_new(address.path)


def _remove_stale(address: Address, kind: socket.SocketKind) -> None:
    """Unlink a socket file whose listener is gone: connecting to it is refused.

    A listener that is alive is never connected to if it may be memif's: a peer that comes and hangs up at once disturbs
    it (VPP does not survive it). The kernel tells a socket's kind to one of another kind that tries.
    """
    try:
        mode = os.stat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        error = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        raise not_a_socket(f"cannot listen on {address}", error, address.path)
    for other in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        try:
            connect(address, other).close()
        except MemifOSError as error:
            if error.code is ErrorCode.CONNREFUSED:
                if other is socket.SOCK_DGRAM:
                    os.unlink(address.path)
                    return
            elif error.code is ErrorCode.FILE_NOT_SOCK:
                continue  # it is of another kind than this
            elif error.code is not ErrorCode.AGAIN:  # alive, with a full backlog
                raise
        found = other
        break
    else:
        found = socket.SOCK_SEQPACKET
    if found is not kind:
        wrong = OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
        what = f"cannot listen on {address}: not a {kind.name} socket is there"
        raise os_error(what, wrong, path=address.path, code=ErrorCode.FILE_NOT_SOCK)
    # bind says that it is in use


def _bind_error(address: Address, error: OSError) -> MemifOSError:
    what = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        what += ": somebody listens there already"
    elif error.errno == errno.ENOENT and not address.is_abstract:
        directory = os.path.dirname(address.path) or "."
        what += f": the directory {directory} {'takes no files' if os.path.isdir(directory) else 'does not exist'}"
    return os_error(what, error, path=address.path)
