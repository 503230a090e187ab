"""The address of a control socket: parse it, connect to it, or listen on it.

Owns paths, abstract names, stale socket files, and the messages of the errors. Knows nothing of control messages.
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

#: Connections that may wait for accept. The kernel limits the number to net.core.somaxconn.
BACKLOG = 4096
#: VPP's separator between a socket's path and its network namespace.
_NETNS = ",netns_name="
#: Waiting connections that a listener accepts and closes when it closes.
_WAITING = 64


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a socket, as users write it.

    :ivar path: a file, or ``@name`` for a name in the abstract namespace.
    :ivar netns: the network namespace in which the socket is created: a name that ``ip netns`` lists, a path, or
        ``pid:N``. Empty for this process's own.
    """

    path: str
    netns: str = ""

    @classmethod
    def parse(cls, path: str | os.PathLike[str]) -> Address:
        """Return the address for ``/a/path``, ``@name``, ``"\\0name"`` or VPP's ``abstract:name``.

        VPP's suffix ``,netns_name=NS`` creates the socket in that network namespace.

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
        """Whether this is a name in the abstract namespace, which has no file."""
        return self.path.startswith("@")

    @property
    def native(self) -> bytes:
        """The address for ``bind`` and ``connect``. An abstract name has no trailing NUL (docs/protocol.md)."""
        raw = os.fsencode(self.path)
        return b"\0" + raw[1:] if self.is_abstract else raw

    def __str__(self) -> str:
        """Return the address as a user writes it."""
        return f"{self.path}{_NETNS}{self.netns}" if self.netns else self.path


def connect(address: Address, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> socket.socket:
    """Connect without waiting, and return a non-blocking socket.

    :param kind: memif's control channel is a ``SOCK_SEQPACKET`` socket.
    :raises MemifOSError: with the errno and the path: ``NO_FILE``, ``CONNREFUSED``, ``ACCES``, … A full backlog of the
        listener is ``AGAIN``.
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
    """A listening socket. When it closes it removes its file, unless another file has replaced it."""

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
        """Return the next connection, or None if none waits.

        :raises MemifOSError: the system refuses, for example because the process has too many open files.
        """
        try:
            return accept(self._socket)
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            raise os_error(f"cannot accept on {self.address}", error, path=self.address.path) from error

    def close(self) -> None:
        """Remove the file, close the waiting connections and the listener. A second call does nothing."""
        if self._file is not None:
            self._file.remove()
            self._file.close()
        if not self.closed and self._pid == os.getpid() and not self._adopted:
            self._refuse_waiting()
        self._socket.detach()
        fd = self.detach()
        if fd >= 0 and self._pid == os.getpid():  # in a forked child the fd is the parent's
            close_listener(fd)

    def _refuse_waiting(self) -> None:
        """Accept and close the waiting connections.

        Otherwise another thread must close the listener (see :func:`close_listener`), and its name would not be free
        when :meth:`close` returns. Not called for an adopted listener: other processes may accept its connections.
        """
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
        """Listen on an address. A stale socket file, on which no process listens, is replaced.

        :param kind: the type of the socket. The default is that of memif's control channel.
        :param permissions: mode and owner of the new file. They are set before a peer can connect, and the file never
            has a wider mode, not even for a moment.
        :raises MemifOSError: EADDRINUSE: a process listens there already, or a symbolic link is there;
            ``FILE_NOT_SOCK``: another kind of file is there; ``NO_FILE``: the directory does not exist; ``ACCES``;
            EPERM: this process may not set the owner.
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
        """Take over a listener that another program made, such as systemd. Its file stays when it closes.

        The listener owns the fd, unless this raises.

        :raises ConfigError: ``FILE_NOT_SOCK``: it is not a listening ``AF_UNIX`` ``SOCK_SEQPACKET`` socket.
        :raises MemifOSError: ``FILE_NOT_SOCK``: it is not a socket; ``BAD_FD``: it is not an open fd.
        """
        try:
            os.fstat(fd)  # first: for a negative number, socket() raises a ValueError
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
        # A socket stays in the namespace in which it is created. Imported here because it needs ctypes.
        from memifrt.system.netns import call_in_namespace

        return call_in_namespace(address.netns, make)
    except MemifOSError:
        raise
    except OSError as error:
        raise os_error(f"cannot make a socket for {address}", error, path=address.path) from error


def _bind_file(
    sock: socket.socket, address: Address, kind: socket.SocketKind, permissions: FilePermissions | None
) -> SocketFile:
    """Create the socket's file. A stale file is removed before."""
    _remove_stale(address, kind)
    if permissions is not None and permissions.mode is not None:
        # bind creates the file with this mode minus the umask, so the file never has a wider mode.
        os.fchmod(sock.fileno(), permissions.mode)
    sock.bind(address.native)
    return open_new(address.path)


def _remove_stale(address: Address, kind: socket.SocketKind) -> None:
    """Unlink a stale socket file: one to which connecting fails with ECONNREFUSED, because its listener is gone.

    This never connects to a live memif listener, because a peer that connects and hangs up disturbs it (VPP crashes).
    It connects with a datagram and a stream socket instead. If a memif listener is alive, the kernel refuses both with
    EPROTOTYPE.

    :raises MemifOSError: ``FILE_NOT_SOCK``: the file is not a socket, or is a socket of another kind than ``kind``;
        EADDRINUSE: a symbolic link to a missing file or to a stale socket; ``ACCES``, EPERM: another user's socket;
        otherwise the error of ``stat`` or ``connect``.
    """
    try:
        there = os.stat(address.path)
    except FileNotFoundError:
        _refuse_link(address)
        return
    if not stat.S_ISSOCK(there.st_mode):
        error = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        raise not_a_socket(f"cannot listen on {address}", error, address.path)
    for other in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        try:
            connect(address, other).close()
        except MemifOSError as error:
            if error.code is ErrorCode.CONNREFUSED:
                if other is socket.SOCK_DGRAM:
                    _refuse_link(address)
                    try:
                        os.unlink(address.path)
                    except PermissionError as refused:
                        raise _in_the_way(address, there, "this user may not remove it", refused) from refused
                    return
            elif error.code is ErrorCode.FILE_NOT_SOCK:
                continue  # the listener is of another kind
            elif error.code is ErrorCode.ACCES:
                raise _in_the_way(address, there, "this user may not connect to it", error) from error
            elif error.code is not ErrorCode.AGAIN:  # AGAIN: the listener is alive, but its backlog is full
                raise
        found = other
        break
    else:
        found = socket.SOCK_SEQPACKET
    if found is not kind:
        wrong = OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
        what = f"cannot listen on {address}: a socket that is not {kind.name} is there"
        raise os_error(what, wrong, path=address.path, code=ErrorCode.FILE_NOT_SOCK)
    # bind will report that the address is in use


def _in_the_way(address: Address, there: os.stat_result, why: str, error: OSError) -> MemifOSError:
    what = f"cannot listen on {address}: a socket of uid {there.st_uid} is there, and {why}"
    return os_error(f"{what}; remove it, or choose another path", error, path=address.path)


def _refuse_link(address: Address) -> None:
    """Raise if the path is a symbolic link: ``bind`` does not follow it, and removing it would part it from its file.

    :raises MemifOSError: EADDRINUSE, which ``bind`` gives, too.
    """
    try:
        target = os.readlink(address.path)
    except OSError:
        return
    error = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    what = f"cannot listen on {address}: it is a symbolic link to {target}; name the file itself, or remove the link"
    raise os_error(what, error, path=address.path)


def _bind_error(address: Address, error: OSError) -> MemifOSError:
    what = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        what += ": somebody listens there already"
    elif error.errno == errno.ENOENT and not address.is_abstract:
        directory = os.path.dirname(address.path) or "."
        what += f": the directory {directory} {'takes no files' if os.path.isdir(directory) else 'does not exist'}"
    return os_error(what, error, path=address.path)
