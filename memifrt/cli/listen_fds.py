"""The listeners that systemd or another supervisor passes to this process (socket activation, ``sd_listen_fds(3)``).

Owns the variables ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES``, and which fd listens on which path.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from memifrt.control.address import Address
from memifrt.errors import ConfigError, ErrorCode
from memifrt.system import original_functions

#: The first fd that the protocol passes.
_FIRST = 3
#: More fds than a supervisor passes.
_MANY = 4096


@dataclass(frozen=True, slots=True)
class InheritedListener:
    """One fd that was passed.

    :ivar name: its name in ``LISTEN_FDNAMES``; systemd's ``FileDescriptorName=``, or the name of the socket unit.
    :ivar path: where it listens, as users write it, or a text that says what it is instead.
    """

    fd: int
    name: str
    path: str

    def __str__(self) -> str:
        return f"fd {self.fd}{f' ({self.name})' if self.name else ''} listens on {self.path}"


class InheritedListeners:
    """The fds that were passed to this process and are not in use yet."""

    def __init__(self, listeners: list[InheritedListener]) -> None:
        self._free = listeners

    @classmethod
    def take(cls) -> InheritedListeners:
        """Read the variables and remove them, so that no child process takes the fds for its own.

        :raises ConfigError: a variable is not a number, or an fd is not a listening ``AF_UNIX`` ``SOCK_SEQPACKET``
            socket.
        """
        pid, count = os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", "")
        if not pid or not count:
            return cls([])
        if _number("LISTEN_PID", pid, 1, 1 << 31) != os.getpid():
            return cls([])  # they are for the parent
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        number = _number("LISTEN_FDS", count, 0, _MANY)
        for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(variable, None)
        return cls([_listener(_FIRST + at, names[at] if at < len(names) else "") for at in range(number)])

    def claim(self, path: str) -> int | None:
        """Return the fd that listens on a path, for a master there; None if nothing was passed.

        :raises ConfigError: fds were passed, but none listens on this path.
        """
        for listener in self._free:
            if _same(listener.path, path):
                self._free.remove(listener)
                return listener.fd
        if self._free:
            passed = "; ".join(map(str, self._free))
            raise ConfigError(
                f"none of the sockets that LISTEN_FDS passes listens on {path}: {passed}. Make --socket and "
                f"ListenSequentialPacket= of the socket unit the same"
            )
        return None


def _number(variable: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 11 and low <= int(text) <= high):
        raise ConfigError(f"{variable} is {text!r}; it must be a whole number from {low} to {high}")
    return int(text)


def _listener(fd: int, name: str) -> InheritedListener:
    """Examine an fd, and keep it from child processes."""
    label = f"fd {fd}{f' ({name})' if name else ''}, which LISTEN_FDS passes,"
    try:
        os.set_inheritable(fd, False)
        sock = original_functions.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"{label} is not a socket: {error.strerror}", ErrorCode.FILE_NOT_SOCK) from error
    try:
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET) or not listening:
            raise ConfigError(
                f"{label} is not a listening AF_UNIX SOCK_SEQPACKET socket; a socket unit needs "
                f"ListenSequentialPacket=PATH, not ListenStream=, and Accept=no",
                ErrorCode.FILE_NOT_SOCK,
            )
        where = sock.getsockname()
    finally:
        sock.detach()  # the fd stays open
    path = "@" + os.fsdecode(where[1:]) if isinstance(where, bytes) else str(where)
    return InheritedListener(fd, name, path)


def _same(inherited: str, wanted: str) -> bool:
    address = Address.parse(wanted)
    if address.netns:
        return False
    if address.is_abstract or inherited.startswith("@"):
        return inherited == address.path
    return os.path.realpath(inherited) == os.path.realpath(address.path)
