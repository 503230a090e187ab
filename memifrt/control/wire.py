"""memif's control messages: 128 bytes on the wire, frozen dataclasses here.

Owns the layout of every message (docs/protocol.md). Knows nothing of sockets or of which message may
follow which.
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
    """The master's answer to each of INIT, ADD_REGION and ADD_RING."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The master's limits. ``max_*`` are the highest indices: the number of rings is that plus one."""

    name: str
    min_version: int = VERSION
    max_version: int = VERSION
    max_region: int = 255
    max_m2s_ring: int = 255
    max_s2m_ring: int = 255
    max_log2_ring_size: int = 14


@dataclass(frozen=True, slots=True)
class Init:
    """The slave asks for an interface. The secret is never part of the repr."""

    version: int
    id: int
    mode: int
    secret: bytes = field(repr=False)
    name: str


@dataclass(frozen=True, slots=True)
class AddRegion:
    """One memory region of ``size`` bytes; its fd travels beside the message."""

    index: int
    size: int


@dataclass(frozen=True, slots=True)
class AddRing:
    """One ring at ``offset`` of ``region``; its eventfd travels beside the message."""

    s2m: bool
    index: int
    region: int
    offset: int
    log2_ring_size: int
    private_hdr_size: int = 0


@dataclass(frozen=True, slots=True)
class Connect:
    """The slave has offered everything; ``if_name`` is its interface's name."""

    if_name: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The master's answer to CONNECT."""

    if_name: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The end, from either side. ``code`` is almost always 0: the string is the reason."""

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
    """The 128 bytes of a message. Names must fit (:func:`memifrt.types.check_name`); a reason is cut to fit."""
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
    """The message in ``data``.

    Padding is ignored and strings end at their first NUL: peers leave garbage there.

    :raises ProtocolError: ``MFMSG`` if ``data`` is not 128 bytes, ``UNKNOWN_MSG`` if its type is none of the eight.
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
    """``value`` as UTF-8 with room for its NUL, cut between characters where it is too long."""
    data = value.encode(errors="replace")
    if len(data) >= size:
        data = data[: size - 1].decode(errors="ignore").encode()
    return data


def _cut(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _string(data: bytes) -> str:
    # A peer's name is shown to people: bytes that are not UTF-8 become visible escapes, not an exception.
    return _cut(data).decode(errors="backslashreplace")
