"""memif's control messages: 128 bytes on the wire, frozen dataclasses here.

Owns the layout of every message (docs/protocol.md, The control channel). Knows nothing of sockets or of the order of
messages.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

from memifrt.errors import ErrorCode, ProtocolError
from memifrt.types import VERSION

MESSAGE_SIZE = 128
DISCONNECT_STRING_BYTES = 96


class MessageType(IntEnum):
    """The first u16 of every message."""

    ACK = 1
    HELLO = 2
    INIT = 3
    ADD_REGION = 4
    ADD_RING = 5
    CONNECT = 6
    CONNECTED = 7
    DISCONNECT = 8


@dataclass(frozen=True, slots=True)
class Ack:
    """The master's answer to INIT, ADD_REGION and ADD_RING."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The master's limits. Each ``max_*_ring`` and ``max_region`` is the highest index, one less than the number."""

    name: str
    min_version: int = VERSION
    max_version: int = VERSION
    max_region: int = 255
    max_m2s_ring: int = 255
    max_s2m_ring: int = 255
    max_log2_ring_size: int = 14


@dataclass(frozen=True, slots=True)
class Init:
    """The slave's request for an interface. The secret is not part of the repr."""

    version: int
    id: int
    mode: int
    secret: bytes = field(repr=False)
    name: str


@dataclass(frozen=True, slots=True)
class AddRegion:
    """One memory region of ``size`` bytes. Its fd comes with the message."""

    index: int
    size: int


@dataclass(frozen=True, slots=True)
class AddRing:
    """One ring at byte ``offset`` of ``region``. Its eventfd comes with the message."""

    s2m: bool
    index: int
    region: int
    offset: int
    log2_ring_size: int
    private_hdr_size: int = 0


@dataclass(frozen=True, slots=True)
class Connect:
    """The slave's request to connect, after all regions and rings. ``if_name`` is the name of its interface."""

    if_name: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The master's answer to CONNECT. ``if_name`` is the name of its interface."""

    if_name: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The end of the connection, from either side. ``reason`` tells why; ``code`` is almost always 0."""

    code: int
    reason: str


Message = Ack | Hello | Init | AddRegion | AddRing | Connect | Connected | Disconnect

_TYPE = struct.Struct("<H")
_HELLO = struct.Struct("<32sHHHHHB")
_INIT = struct.Struct("<HIB24s32s")
_ADD_REGION = struct.Struct("<HQ")
_ADD_RING = struct.Struct("<HHHIBH")
_NAME = struct.Struct("<32s")
_DISCONNECT = struct.Struct("<I96s")

_S2M = 1  # ADD_RING's flag bit 0


def encode(message: Message) -> bytes:
    """Return the 128 bytes of a message. A name or reason that is too long is cut."""
    match message:
        case Ack():
            kind, body = MessageType.ACK, b""
        case Hello():
            kind = MessageType.HELLO
            body = _HELLO.pack(
                _text(message.name, 32),
                message.min_version,
                message.max_version,
                message.max_region,
                message.max_m2s_ring,
                message.max_s2m_ring,
                message.max_log2_ring_size,
            )
        case Init(version, interface_id, mode, secret, name):
            kind = MessageType.INIT
            body = _INIT.pack(version, interface_id, mode, secret, _text(name, 32))
        case AddRegion(index, size):
            kind, body = MessageType.ADD_REGION, _ADD_REGION.pack(index, size)
        case AddRing():
            kind = MessageType.ADD_RING
            body = _ADD_RING.pack(
                _S2M if message.s2m else 0,
                message.index,
                message.region,
                message.offset,
                message.log2_ring_size,
                message.private_hdr_size,
            )
        case Connect(if_name):
            kind, body = MessageType.CONNECT, _NAME.pack(_text(if_name, 32))
        case Connected(if_name):
            kind, body = MessageType.CONNECTED, _NAME.pack(_text(if_name, 32))
        case Disconnect(code, reason):
            kind = MessageType.DISCONNECT
            body = _DISCONNECT.pack(code, _text(reason, DISCONNECT_STRING_BYTES))
    return (_TYPE.pack(kind) + body).ljust(MESSAGE_SIZE, b"\0")


def decode(data: bytes) -> Message:
    """Return the message in ``data``.

    Padding is ignored, and a string ends at its first NUL, because peers leave garbage in both places.

    :raises ProtocolError: ``MFMSG``: ``data`` is not 128 bytes long; ``UNKNOWN_MSG``: the type is unknown.
    """
    if len(data) != MESSAGE_SIZE:
        raise ProtocolError(ErrorCode.MFMSG, f"message of {len(data)} bytes; every message has {MESSAGE_SIZE}")
    (kind,) = _TYPE.unpack_from(data)
    match kind:
        case MessageType.ACK:
            return Ack()
        case MessageType.HELLO:
            name, *limits = _HELLO.unpack_from(data, 2)
            return Hello(_string(name), *limits)
        case MessageType.INIT:
            version, interface_id, mode, secret, name = _INIT.unpack_from(data, 2)
            return Init(version, interface_id, mode, _cut(secret), _string(name))
        case MessageType.ADD_REGION:
            return AddRegion(*_ADD_REGION.unpack_from(data, 2))
        case MessageType.ADD_RING:
            flags, *rest = _ADD_RING.unpack_from(data, 2)
            return AddRing(bool(flags & _S2M), *rest)
        case MessageType.CONNECT:
            return Connect(_string(*_NAME.unpack_from(data, 2)))
        case MessageType.CONNECTED:
            return Connected(_string(*_NAME.unpack_from(data, 2)))
        case MessageType.DISCONNECT:
            code, reason = _DISCONNECT.unpack_from(data, 2)
            return Disconnect(code, _string(reason))
    raise ProtocolError(ErrorCode.UNKNOWN_MSG, f"message of unknown type {kind}")


def _text(value: str, size: int) -> bytes:
    """Return ``value`` as UTF-8 of less than ``size`` bytes, to leave room for a NUL. Cut between characters."""
    data = value.encode(errors="replace")
    if len(data) >= size:
        data = data[: size - 1].decode(errors="ignore").encode()
    return data


def _cut(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _string(data: bytes) -> str:
    # A peer may send any bytes as its name. Invalid UTF-8 becomes visible escapes, not an exception.
    return _cut(data).decode(errors="backslashreplace")
