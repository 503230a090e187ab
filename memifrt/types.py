"""The names and numbers that every layer shares.

Owns the enums with the wire's and libmemif's numbers, and the limits. Imports only :mod:`memifrt.errors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import TYPE_CHECKING, NamedTuple

from memifrt.errors import ConfigError, ErrorCode

if TYPE_CHECKING:
    from typing_extensions import Buffer

    #: Anything with the buffer protocol: bytes, bytearray, memoryview, array, mmap, a NumPy array.
    ReadableBuffer = Buffer

# memif 2.0 (docs/protocol.md, The control channel)
VERSION = 0x0200
COOKIE = 0x3E31F20
MAX_LOG2_RING_SIZE = 14
#: Highest region, ring index that a master advertises, and so one less than the number it accepts.
MAX_INDEX = 255
#: Queues in one direction that an interface may ask for (libmemif counts them in a u8).
MAX_QUEUES = 255
#: Descriptor lengths are 32 bit on the ring, but libmemif's buffer_size is a u16.
MAX_BUFFER_SIZE = 65535
#: Bytes of one received buffer: every peer counts the data of a buffer in 16 bits. Descriptors of a hostile slave may
#: all name the same memory, so its size alone bounds nothing that is copied out of it.
MAX_RECEIVED_BUFFER = 65536
#: Bytes of one packet, in all of its buffers together: 256 of the largest.
MAX_PACKET_SIZE = 1 << 24
NAME_BYTES = 31
SECRET_BYTES = 23
#: The highest uid or gid. The next number, 0xFFFFFFFF, means "leave it" to the kernel.
MAX_ID = 0xFFFFFFFE
#: ``sun_path`` is 108 bytes with its NUL.
PATH_BYTES = 107


class FdEvent(IntFlag):
    """What a hook is told and what it tells back; libmemif's values."""

    READ = 1
    WRITE = 2
    ERROR = 4
    DEL = 8
    MOD = 16


class Role(IntEnum):
    """``MASTER`` (server) listens; ``SLAVE`` (client) connects and creates the shared memory."""

    MASTER = 0
    SLAVE = 1


class Mode(IntEnum):
    """What a packet is: an Ethernet frame, an IP packet, or VPP's punt/inject."""

    ETHERNET = 0
    IP = 1
    PUNT_INJECT = 2


class RxMode(IntEnum):
    """How a receive queue learns of packets: the peer kicks its eventfd, or the application looks.

    ``ADAPTIVE`` (not libmemif's) is interrupts that are masked while packets stay behind: a peer that sends faster
    than we take is spared its kicks.
    """

    INTERRUPT = 0
    POLLING = 1
    ADAPTIVE = 2


class Direction(Enum):
    """Which way a ring carries packets."""

    S2M = "s2m"
    M2S = "m2s"


class BufferFlag(IntFlag):
    """Descriptor flags; ``NEXT``: the packet goes on in the next descriptor."""

    NEXT = 1


class State(Enum):
    """Where an interface stands."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"


def printable(text: str) -> str:
    """A peer's words for a person's terminal: what is not printable becomes a visible escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def check_range(what: str, value: int, low: int, high: int, code: ErrorCode = ErrorCode.INVAL_ARG) -> int:
    """``value`` if it is a whole number from ``low`` to ``high``; else a :class:`ConfigError` that says so."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{what} is {value!r}; it must be a whole number from {low} to {high}", code)
    return value


def check_callback(what: str, value: object) -> None:
    """A :class:`ConfigError` unless ``value`` can be called, or is None."""
    if value is not None and not callable(value):
        raise ConfigError(f"{what} is {value!r}; it must be a function, or None")


@dataclass(frozen=True, slots=True)
class QueueCounters:
    """What one queue did since its interface was created, reconnects included.

    ``interrupts`` are eventfd reads that found a kick (receive) or kicks sent (transmit); ``ring_full`` counts calls
    that could not take all they were given; ``bad_descriptors`` are violations of the peer. ``repeated_kicks`` of a
    transmit queue are kicks beside ``interrupts``, sent again because the peer had left packets in the ring.
    """

    packets: int = 0
    bytes: int = 0
    interrupts: int = 0
    ring_full: int = 0
    bad_descriptors: int = 0
    repeated_kicks: int = 0

    def __add__(self, other: QueueCounters) -> QueueCounters:
        return QueueCounters(
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.interrupts + other.interrupts,
            self.ring_full + other.ring_full,
            self.bad_descriptors + other.bad_descriptors,
            self.repeated_kicks + other.repeated_kicks,
        )


class Counters(NamedTuple):
    """What all queues of an interface did since it was created, reconnects included."""

    rx: QueueCounters
    tx: QueueCounters
