"""The names, numbers and frozen configuration that every layer shares.

Owns the enums with the wire's and libmemif's numbers, the limits, and the checks of what a user asks for. Imports
only :mod:`memifrt.errors` of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum, IntFlag
from typing import TYPE_CHECKING, TypeVar

from memifrt.errors import ConfigError, ErrorCode

if TYPE_CHECKING:
    from typing_extensions import Buffer

    #: Anything with the buffer protocol: bytes, bytearray, memoryview, array, mmap, a NumPy array.
    ReadableBuffer = Buffer

_E = TypeVar("_E", bound=IntEnum)

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

DEFAULT_SOCKET = "/run/vpp/memif.sock"
DEFAULT_APP_NAME = "memifrt"
DEFAULT_LOG2_RING_SIZE = 10
DEFAULT_BUFFER_SIZE = 2048
#: Seconds between two attempts of a slave to connect (libmemif's default period).
DEFAULT_RECONNECT_INTERVAL = 2.0
#: Seconds that a peer has from connect to CONNECTED. A handshake takes milliseconds; a busy peer some more.
DEFAULT_HANDSHAKE_TIMEOUT = 5.0
#: Peers of one listener that may be silent about which interface they want. A slave says so at once.
DEFAULT_MAX_HALF_OPEN = 128


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


_ROLE_NAMES = {"master": Role.MASTER, "server": Role.MASTER, "slave": Role.SLAVE, "client": Role.SLAVE}
_MODE_NAMES = {"ethernet": Mode.ETHERNET, "ip": Mode.IP, "punt-inject": Mode.PUNT_INJECT}
_RX_MODE_NAMES = {"interrupt": RxMode.INTERRUPT, "polling": RxMode.POLLING, "adaptive": RxMode.ADAPTIVE}


def parse_role(value: Role | str) -> Role:
    """A role from an enum member or one of ``master``, ``server``, ``slave``, ``client``."""
    return _parse("role", value, Role, _ROLE_NAMES)


def parse_mode(value: Mode | str) -> Mode:
    """An interface mode from an enum member or one of ``ethernet``, ``ip``, ``punt-inject``."""
    return _parse("mode", value, Mode, _MODE_NAMES)


def parse_rx_mode(value: RxMode | str) -> RxMode:
    """A receive mode from an enum member or one of ``interrupt``, ``polling``, ``adaptive``."""
    return _parse("rx_mode", value, RxMode, _RX_MODE_NAMES)


def _parse(what: str, value: object, kind: type[_E], names: dict[str, _E]) -> _E:
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value.lower() in names:
        return names[value.lower()]
    raise ConfigError(f"{what} is {value!r}; it must be one of {', '.join(names)}")


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


def check_name(what: str, value: str, limit: int = NAME_BYTES) -> str:
    """``value`` if it fits into a name field of the wire: at most ``limit`` bytes of UTF-8 and no NUL."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} is {value!r}; it must be a string")
    size = len(value.encode(errors="replace"))
    if size > limit:
        raise ConfigError(f"{what} {value!r} is {size} bytes long; at most {limit} fit into a message")
    if "\0" in value:
        raise ConfigError(f"{what} {value!r} has a NUL byte in it")
    return value


def check_secret(value: str | bytes | None) -> bytes:
    """A secret as bytes, empty for none. The error never shows the secret itself."""
    if value is None:
        return b""
    if not isinstance(value, str | bytes):
        raise ConfigError(f"the secret is of type {type(value).__name__}; it must be a string or bytes")
    try:
        # What a command line holds beyond UTF-8 comes as surrogates, and goes back to the bytes that it was.
        secret = value.encode(errors="surrogateescape") if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise ConfigError("the secret is not text that UTF-8 can encode") from None
    if len(secret) > SECRET_BYTES:
        raise ConfigError(f"the secret is {len(secret)} bytes long; at most {SECRET_BYTES} fit into a message")
    if b"\0" in secret:
        raise ConfigError("the secret has a NUL byte in it")
    return secret


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    """What a user asks of one interface, checked. Defaults are libmemif's.

    ``rx_headroom`` bytes stay free in front of every packet that a slave receives. With ``auto_refill`` the
    buffers of a slave's receive rings are posted on connect; without it (libmemif's way) the application calls
    ``refill``. With ``chained_tx`` a packet longer than a buffer is sent as a chain, without it refused.
    """

    id: int = 0
    name: str = ""
    role: Role = Role.SLAVE
    mode: Mode = Mode.ETHERNET
    secret: bytes = field(default=b"", repr=False)
    num_s2m_rings: int = 1
    num_m2s_rings: int = 1
    log2_ring_size: int = DEFAULT_LOG2_RING_SIZE
    buffer_size: int = DEFAULT_BUFFER_SIZE
    rx_mode: RxMode = RxMode.INTERRUPT
    rx_headroom: int = 0
    auto_refill: bool = True
    chained_tx: bool = True

    def __post_init__(self) -> None:
        check_range("id", self.id, 0, 0xFFFFFFFF)
        check_name("name", self.name)
        check_range("num_s2m_rings", self.num_s2m_rings, 1, MAX_QUEUES)
        check_range("num_m2s_rings", self.num_m2s_rings, 1, MAX_QUEUES)
        check_range("log2_ring_size", self.log2_ring_size, 0, MAX_LOG2_RING_SIZE, ErrorCode.MAX_RING)
        check_range("buffer_size", self.buffer_size, 1, MAX_BUFFER_SIZE)
        check_range("rx_headroom", self.rx_headroom, 0, self.buffer_size - 1)


@dataclass(frozen=True, slots=True)
class QueueCounters:
    """What one queue did since its interface was created, reconnects included.

    ``interrupts`` are eventfd reads that found a kick (receive) or kicks sent (transmit); ``ring_full`` counts calls
    that could not take all they were given; ``bad_descriptors`` are violations of the peer.
    """

    packets: int = 0
    bytes: int = 0
    interrupts: int = 0
    ring_full: int = 0
    bad_descriptors: int = 0

    def __add__(self, other: QueueCounters) -> QueueCounters:
        return QueueCounters(
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.interrupts + other.interrupts,
            self.ring_full + other.ring_full,
            self.bad_descriptors + other.bad_descriptors,
        )
