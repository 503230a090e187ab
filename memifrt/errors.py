"""Every error that memifrt raises, with libmemif's numbers.

Owns the error codes, their texts and the exception classes. Knows nothing of sockets, rings or loops.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, TypeVar

_Packets = TypeVar("_Packets", bound=Iterable[object])


class ErrorCode(IntEnum):
    """libmemif's error codes, number for number (libmemif 4.0, ``libmemif.h``)."""

    SUCCESS = 0
    SYSCALL = 1
    CONNREFUSED = 2
    ACCES = 3
    NO_FILE = 4
    FILE_LIMIT = 5
    PROC_FILE_LIMIT = 6
    ALREADY = 7
    AGAIN = 8
    BAD_FD = 9
    NOMEM = 10
    INVAL_ARG = 11
    NOCONN = 12
    CONN = 13
    CB_FDUPDATE = 14
    FILE_NOT_SOCK = 15
    NO_SHMFD = 16
    COOKIE = 17
    NOBUF_RING = 18
    NOBUF = 19
    NOBUF_DET = 20
    INT_WRITE = 21
    MFMSG = 22
    QID = 23
    PROTO = 24
    ID = 25
    ACCSLAVE = 26
    ALRCONN = 27
    MODE = 28
    SECRET = 29
    NOSECRET = 30
    MAXREG = 31
    MAXRING = 32
    NO_INTFD = 33
    DISCONNECT = 34
    DISCONNECTED = 35
    UNKNOWN_MSG = 36
    POLL_CANCEL = 37
    MAX_RING = 38
    PRIVHDR = 39


_TEXTS = {
    ErrorCode.SUCCESS: "success",
    ErrorCode.SYSCALL: "system call failed",
    ErrorCode.CONNREFUSED: "connection refused: nobody listens on the socket",
    ErrorCode.ACCES: "permission denied",
    ErrorCode.NO_FILE: "no such file or directory",
    ErrorCode.FILE_LIMIT: "the system's limit of open files is reached",
    ErrorCode.PROC_FILE_LIMIT: "the process's limit of open files is reached",
    ErrorCode.ALREADY: "already in progress",
    ErrorCode.AGAIN: "resource temporarily unavailable",
    ErrorCode.BAD_FD: "bad file descriptor",
    ErrorCode.NOMEM: "out of memory",
    ErrorCode.INVAL_ARG: "invalid argument",
    ErrorCode.NOCONN: "no such connection handle",
    ErrorCode.CONN: "handle is already in use",
    ErrorCode.CB_FDUPDATE: "control_fd_update hook failed",
    ErrorCode.FILE_NOT_SOCK: "file is not a socket of the right kind",
    ErrorCode.NO_SHMFD: "region came without a shared memory fd",
    ErrorCode.COOKIE: "wrong cookie in ring header",
    ErrorCode.NOBUF_RING: "ring is full",
    ErrorCode.NOBUF: "more packets than buffers to take them",
    ErrorCode.NOBUF_DET: "more room needed for details",
    ErrorCode.INT_WRITE: "interrupt could not be sent",
    ErrorCode.MFMSG: "malformed message",
    ErrorCode.QID: "no such queue",
    ErrorCode.PROTO: "protocol versions do not match",
    ErrorCode.ID: "no interface with this id",
    ErrorCode.ACCSLAVE: "a slave interface does not accept connections",
    ErrorCode.ALRCONN: "already connected",
    ErrorCode.MODE: "interface modes differ",
    ErrorCode.SECRET: "wrong secret",
    ErrorCode.NOSECRET: "secret required",
    ErrorCode.MAXREG: "too many regions",
    ErrorCode.MAXRING: "too many rings",
    ErrorCode.NO_INTFD: "ring came without an interrupt fd",
    ErrorCode.DISCONNECT: "disconnect received",
    ErrorCode.DISCONNECTED: "not connected",
    ErrorCode.UNKNOWN_MSG: "unknown message type",
    ErrorCode.POLL_CANCEL: "poll was cancelled",
    ErrorCode.MAX_RING: "ring size out of range",
    ErrorCode.PRIVHDR: "private headers are not supported",
}

_FROM_ERRNO = {
    errno.ECONNREFUSED: ErrorCode.CONNREFUSED,
    errno.EACCES: ErrorCode.ACCES,
    errno.ENOENT: ErrorCode.NO_FILE,
    errno.ENFILE: ErrorCode.FILE_LIMIT,
    errno.EMFILE: ErrorCode.PROC_FILE_LIMIT,
    errno.EALREADY: ErrorCode.ALREADY,
    errno.EAGAIN: ErrorCode.AGAIN,
    errno.EBADF: ErrorCode.BAD_FD,
    errno.ENOMEM: ErrorCode.NOMEM,
    errno.ENOTSOCK: ErrorCode.FILE_NOT_SOCK,
}


def strerror(code: int) -> str:
    """Return the text for an error code, ``"undefined error"`` for an unknown number."""
    try:
        return _TEXTS[ErrorCode(code)]
    except ValueError:
        return "undefined error"


class MemifError(Exception):
    """The base class of every exception that memifrt raises.

    ``code`` is libmemif's number; ``str()`` says what happened, to what, and what would be right.
    """

    code: ErrorCode

    def __init__(self, code: ErrorCode, message: str | None = None) -> None:
        self.code = code
        self.message = message if message is not None else strerror(code)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the attributes, as a pool of processes does with an exception of a worker."""
        # The default would call the class with the message alone, which few of the classes take.
        return _restore, (type(self), self.args, self._state())

    def _state(self) -> dict[str, Any]:
        return {**self.__dict__}


class ConfigError(MemifError, ValueError):
    """An argument is wrong. The message names it, its value and what would be right."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INVAL_ARG) -> None:
        super().__init__(code, message)


class PacketTypeError(ConfigError, TypeError):
    """An object passed to a send call is not a packet: neither bytes nor another buffer of bytes."""


class NoQueueYet(MemifError, IndexError):
    """The caller indexed the queues of an interface that has never been connected and so has no queues."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.DISCONNECTED, message)


def not_a_packet(number: int, packet: object) -> PacketTypeError:
    """Return the error for packet ``number`` of a call, which is not a buffer of bytes."""
    shown = repr(packet)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    advice = "; encode() makes bytes of it" if isinstance(packet, str) else ""
    return PacketTypeError(
        f"packet {number} is {shown}, a {type(packet).__name__}; "
        f"a packet must be bytes or another buffer of bytes{advice}"
    )


def check_packets(packets: _Packets) -> _Packets:
    """Return ``packets``.

    :raises PacketTypeError: it is a single packet, or is not iterable.
    """
    given: object = packets
    if isinstance(given, bytes | bytearray | memoryview):
        raise PacketTypeError(
            f"send() takes a list of packets, not one packet ({type(given).__name__}): send([packet])"
        )
    if isinstance(given, str) or not (hasattr(given, "__iter__") or hasattr(given, "__getitem__")):
        raise PacketTypeError(f"send() takes a list of packets, each of them bytes; this is {given!r}")
    return packets


def packet_bytes(number: int, packet: object) -> bytes:
    """Return packet ``number`` of a call as bytes.

    :param packet: a buffer of bytes, or an object with ``__bytes__``, such as a scapy packet.
    :raises PacketTypeError: it is neither. Numbers are refused, too: ``bytes(5)`` would be five zeros.
    """
    if isinstance(packet, str | int) or packet is None:
        raise not_a_packet(number, packet)
    try:
        return bytes(packet)  # type: ignore[call-overload, no-any-return]
    except TypeError as error:
        raise not_a_packet(number, packet) from error


class ProtocolError(MemifError):
    """The peer broke the protocol, or offered something that we cannot accept."""


class RingViolation(ProtocolError):
    """The peer wrote an invalid value into a ring in shared memory.

    ``sending`` tells whether it is a transmit ring. A relay uses two rings and must know which of them is broken.
    """

    def __init__(self, message: str, code: ErrorCode = ErrorCode.DISCONNECTED, *, sending: bool = False) -> None:
        super().__init__(code, message)
        self.sending = sending


class Disconnected(MemifError, ConnectionError):
    """The interface has no peer, or has lost it. Also a :class:`ConnectionError`, as for a socket without its peer.

    ``established`` tells whether ``on_connect`` had been called for the connection that ended.
    """

    def __init__(self, message: str, code: ErrorCode = ErrorCode.DISCONNECTED, *, established: bool = False) -> None:
        super().__init__(code, message)
        self.established = established


class ForkedError(MemifError):
    """A forked child used an object of its parent.

    The child shares the parent's fds and memory but owns none of them. It must create a runtime of its own.

    :param pid: the process that created the object.
    :param what: the kind of object, for the message.
    """

    def __init__(self, pid: int, what: str = "runtime") -> None:
        super().__init__(
            ErrorCode.INVAL_ARG,
            f"this {what} belongs to process {pid} and cannot be used in process {os.getpid()}: "
            "a forked child makes one of its own",
        )
        self.pid = pid
        self.what = what


class PollCancelled(MemifError):
    """Another call, ``cancel_poll_event``, ended this ``poll_event``."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.POLL_CANCEL)


class MemifOSError(MemifError, OSError):
    """A system call failed: ``errno``, ``strerror`` and ``filename`` are those of the call."""

    def __init__(self, code: ErrorCode, message: str, cause: OSError, path: str | None = None) -> None:
        MemifError.__init__(self, code, message)
        self.errno = cause.errno
        self.strerror = cause.strerror
        self.filename = path

    def _state(self) -> dict[str, Any]:
        return {**self.__dict__, "errno": self.errno, "strerror": self.strerror, "filename": self.filename}


def _restore(kind: type[MemifError], arguments: tuple[object, ...], state: dict[str, Any]) -> MemifError:
    """Return a pickled error, with the attributes that it had."""
    error = kind.__new__(kind)
    error.args = arguments
    for name, value in state.items():
        setattr(error, name, value)
    return error


def os_error(what: str, cause: OSError, *, path: str | None = None, code: ErrorCode | None = None) -> MemifOSError:
    """Return a :class:`MemifOSError` for a failed system call.

    :param what: what failed, such as ``"cannot connect to /run/memif.sock"``; the system's text and errno follow it.
    :param path: the file concerned, if there is one.
    :param code: libmemif's code; default: the one that belongs to the errno, or ``SYSCALL``.
    """
    number = cause.errno or 0
    if code is None:
        code = _FROM_ERRNO.get(number, ErrorCode.SYSCALL)
    name = errno.errorcode.get(number, str(number))
    message = f"{what}: {os.strerror(number) if number else cause} [{name}]"
    error = MemifOSError(code, message, cause, path)
    error.__cause__ = cause
    return error


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """Return ``; did you mean CHOICE?`` for the choice that is most like a word, or nothing if none is."""
    import difflib  # only for the message of an error

    names = {choice.lstrip("-"): choice for choice in choices}  # two dashes would make every two options alike
    close = difflib.get_close_matches(word.lstrip("-"), names, 1)
    return f"; did you mean {names[close[0]]}?" if close else ""
