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
#: Default limit of a burst in buffers. VPP and DPDK, too, use vectors of 256.
DEFAULT_BURST = 256
#: Highest region index and ring index that a master advertises. Indices start at 0, so it accepts one more of each.
MAX_INDEX = 255
#: Queues in one direction that an interface may ask for (libmemif counts them in a u8).
MAX_QUEUES = 255
#: A descriptor has 32 bits for a length, but libmemif's buffer_size is a u16.
MAX_BUFFER_SIZE = 65535
#: Largest received buffer in bytes: every known peer stores the length of a buffer's data in 16 bits. The size of the
#: region does not limit what is copied, because a hostile slave can point all its descriptors at the same memory.
MAX_RECEIVED_BUFFER = 65536
#: Largest packet in bytes, over all of its buffers: 256 buffers of the largest size.
MAX_PACKET_SIZE = 1 << 24
NAME_BYTES = 31
SECRET_BYTES = 23
#: The highest uid or gid. The kernel reads the next number, 0xFFFFFFFF, as "do not change it".
MAX_ID = 0xFFFFFFFE
#: ``sun_path`` is 108 bytes with its NUL.
PATH_BYTES = 107


class FdEvent(IntFlag):
    """Events of an fd: the ones that a hook must watch for, and the ones that the loop reports. Libmemif's values."""

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
    """The kind of packets: an Ethernet frame, an IP packet, or VPP's punt/inject."""

    ETHERNET = 0
    IP = 1
    PUNT_INJECT = 2


class RxMode(IntEnum):
    """How the application learns that a receive queue has packets.

    ``INTERRUPT``: the peer kicks the queue's eventfd. ``POLLING``: the application looks at the ring, and the peer need
    not kick. ``ADAPTIVE`` (not in libmemif): interrupts that are masked while packets remain in the ring, which saves a
    fast peer its kicks.
    """

    INTERRUPT = 0
    POLLING = 1
    ADAPTIVE = 2


class Direction(Enum):
    """Which way a ring carries packets."""

    S2M = "s2m"
    M2S = "m2s"


class BufferFlag(IntFlag):
    """Descriptor flags. ``NEXT``: the packet continues in the next descriptor."""

    NEXT = 1


class State(Enum):
    """The state of an interface."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"


def printable(text: str) -> str:
    """Return a peer's text, safe to show on a terminal: unprintable characters become visible escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def peer_names(interface: str, program: str) -> str:
    """Return a peer's names for a message, such as ``'memif0' of 'VPP'``. A peer may leave either of them empty."""
    if not program:
        return f"{interface!r} of a program without a name" if interface else "a peer without a name"
    return f"{interface!r} of {program!r}" if interface else f"an interface without a name of {program!r}"


def check_range(what: str, value: int, low: int, high: int, code: ErrorCode = ErrorCode.INVAL_ARG) -> int:
    """Return ``value``.

    :param what: the name of the argument, for the message.
    :raises ConfigError: with ``code``: ``value`` is not a whole number from ``low`` to ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{what} is {value!r}; it must be a whole number from {low} to {high}", code)
    return value


def check_callback(what: str, value: object) -> None:
    """Check that ``value`` can be called or is None.

    :param what: the name of the argument, for the message.
    :raises ConfigError: it is neither.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"{what} is {value!r}; it must be a function, or None")


@dataclass(frozen=True, slots=True)
class QueueCounters:
    """The counters of one queue since its interface was created, over all connections.

    ``interrupts`` counts eventfd reads that found a kick (receive queue) or kicks sent (transmit queue). ``ring_full``
    counts calls that could not send all of their packets. ``bad_descriptors`` counts invalid descriptors of the peer.
    ``repeated_kicks`` (transmit queue) counts additional kicks, sent because the peer had left packets in the ring.
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
    """The sums of the counters of an interface's queues since it was created, over all connections."""

    rx: QueueCounters
    tx: QueueCounters
