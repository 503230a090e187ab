"""The options of interfaces and runtimes: one list of their names, types, defaults and checks.

Everything that makes an interface takes these options: :meth:`memifrt.Runtime.create_interface`, ``open_interface`` of
each loop, the scapy socket, the pytest fixtures, the command line and the endpoint strings of ``memifrt bridge``.
Knows nothing of sockets or loops.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar, Union, cast

from memifrt.errors import ConfigError, ErrorCode
from memifrt.types import (
    MAX_BUFFER_SIZE,
    MAX_LOG2_RING_SIZE,
    MAX_QUEUES,
    NAME_BYTES,
    SECRET_BYTES,
    Mode,
    Role,
    RxMode,
    check_range,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from memifrt.types import ReadableBuffer

_E = TypeVar("_E", bound=IntEnum)

DEFAULT_SOCKET = "/run/vpp/memif.sock"
DEFAULT_APP_NAME = "memifrt"
DEFAULT_LOG2_RING_SIZE = 10
DEFAULT_RING_SIZE = 1 << DEFAULT_LOG2_RING_SIZE
DEFAULT_BUFFER_SIZE = 2048
#: Seconds between two attempts of a slave to connect (libmemif's default period).
DEFAULT_RECONNECT_INTERVAL = 2.0
#: Seconds that a peer has from connect to CONNECTED. A handshake takes milliseconds; a busy peer needs some more.
DEFAULT_HANDSHAKE_TIMEOUT = 5.0
#: Connections of one listener that have not named an interface yet. A slave names it at once.
DEFAULT_MAX_HALF_OPEN = 128

#: The spellings of a role. ``server`` and ``client`` are DPDK's words.
RoleName = Literal["master", "server", "slave", "client"]
ModeName = Literal["ethernet", "ip", "punt-inject"]
RxModeName = Literal["interrupt", "polling", "adaptive"]
#: Called with the exception that a callback raised.
OnError = Callable[[BaseException], object]
#: ``allocate(size)`` returns an fd of a file at least ``size`` bytes large, which memifrt then owns.
RegionAllocator = Callable[[int], int]


class HasFileno(Protocol):
    """An object with an fd."""

    def fileno(self) -> int:
        """Return the fd."""


#: The objects that may end :meth:`TxQueue.forward_from`.
Stop = Union[int, HasFileno, "ReadableBuffer"]


class InterfaceOptions(TypedDict, total=False):
    """The options of one interface. All are optional; the defaults are libmemif's.

    - ``id``: the number of the interface on its socket, 0 to 4294967295. Both ends need the same. Default 0.
    - ``name``: the interface's name, which the peer sees; at most 31 bytes. Default empty.
    - ``role``: ``"master"`` (or ``"server"``) listens; ``"slave"`` (or ``"client"``) connects and makes the shared
      memory. Default slave.
    - ``mode``: ``"ethernet"``, ``"ip"`` or ``"punt-inject"``, the same on both ends. Default Ethernet.
    - ``secret``: at most 23 bytes. The slave sends it; the master refuses a slave with another one. Default none.
    - ``queues``: the number of rings in each direction, 1 to 255. A master accepts the rings that its slave offers.
      Default 1.
    - ``num_s2m_rings``, ``num_m2s_rings``: the number of rings from slave to master and from master to slave, if they
      differ. Not together with ``queues``.
    - ``ring_size``: slots of a ring, a power of two from 1 to 16384. The slave chooses it. Default 1024.
    - ``log2_ring_size``: the base-2 logarithm of ``ring_size``, 0 to 14, as in libmemif. Not together with it.
    - ``buffer_size``: bytes of a buffer, 1 to 65535. The slave chooses it. Default 2048.
    - ``rx_mode``: ``"interrupt"``, ``"polling"``, or ``"adaptive"``, which masks interrupts while packets wait in the
      ring. Default interrupt.
    - ``rx_headroom``: bytes that a slave leaves free in front of each packet that it receives. Default 0.
    - ``auto_refill``: whether a slave's receive buffers are posted on connect. Without it the application calls
      ``refill`` in ``on_connect``, as with libmemif. Default true.
    - ``chained_tx``: whether a packet longer than a buffer is sent as a chain of buffers; it is refused otherwise.
      Default true.
    """

    id: int
    name: str
    role: Role | RoleName
    mode: Mode | ModeName
    secret: str | bytes | None
    queues: int
    num_s2m_rings: int
    num_m2s_rings: int
    ring_size: int
    log2_ring_size: int
    buffer_size: int
    rx_mode: RxMode | RxModeName
    rx_headroom: int
    auto_refill: bool
    chained_tx: bool


class RuntimeOptions(TypedDict, total=False):
    """The options of a runtime, except its name and its hook. :class:`memifrt.Runtime` describes them."""

    reconnect_interval: float
    region_allocator: RegionAllocator
    accept_unsealed: bool
    handshake_timeout: float
    max_half_open: int
    stats_socket: str | os.PathLike[str] | None
    prometheus: str | None
    web: str | int | None
    on_error: OnError | None


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    """The options of one interface, checked. :class:`InterfaceOptions` describes them.

    :raises ConfigError: a value is wrong.
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

    @classmethod
    def of(cls, **options: Unpack[InterfaceOptions]) -> InterfaceConfig:
        """Check the options of an interface.

        :raises ConfigError: a value is wrong, or two options contradict each other.
        :raises TypeError: an option does not exist.
        """
        given = dict(options)
        _check_names(given)
        if "queues" in given:
            _not_together(given, "queues", "num_s2m_rings", "num_m2s_rings")
            queues = check_range("queues", cast("int", given.pop("queues")), 1, MAX_QUEUES)
            given |= {"num_s2m_rings": queues, "num_m2s_rings": queues}
        if "ring_size" in given:
            _not_together(given, "ring_size", "log2_ring_size")
            given["log2_ring_size"] = log2_of_ring_size(cast("int", given.pop("ring_size")))
        for name, parse in (("role", parse_role), ("mode", parse_mode), ("rx_mode", parse_rx_mode)):
            if name in given:
                given[name] = parse(cast("Any", given[name]))
        if "secret" in given:
            given["secret"] = check_secret(cast("Any", given["secret"]))
        return cls(**cast("Any", given))

    @property
    def ring_size(self) -> int:
        """Slots of a ring."""
        return 1 << self.log2_ring_size

    def check_length(self, what: str, size: int) -> None:
        """Check that a packet fits into a ring, if this end is the slave, which chooses it.

        A master learns the size of the rings and the buffers from its peer.

        :param what: the begin of the message, which says what has the size.
        :raises ConfigError: the packet is longer than all buffers of a ring together.
        """
        holds = self.ring_size * self.buffer_size
        if self.role is Role.SLAVE and size > holds:
            raise ConfigError(
                f"{what}; a ring of {self.ring_size} buffers of {self.buffer_size} bytes holds {holds}: use a larger "
                "ring or larger buffers"
            )

    def options(self) -> InterfaceOptions:
        """Return these values as options for :meth:`memifrt.Runtime.create_interface`."""
        return cast("InterfaceOptions", {name: getattr(self, name) for name in _CONFIG_FIELDS})

    def replace(self, **changes: Unpack[InterfaceOptions]) -> InterfaceConfig:
        """Return a copy with some options changed; raises as :meth:`of` does."""
        kept = self.options()
        if "queues" in changes:
            del kept["num_s2m_rings"], kept["num_m2s_rings"]
        if "ring_size" in changes:
            del kept["log2_ring_size"]
        return InterfaceConfig.of(**cast("InterfaceOptions", {**kept, **changes}))


_CONFIG_FIELDS = tuple(found.name for found in dataclasses.fields(InterfaceConfig))
_OPTION_NAMES = tuple(InterfaceOptions.__annotations__)


def _check_names(given: Mapping[str, object]) -> None:
    for name in given:
        if name not in _OPTION_NAMES:
            import difflib  # for this message alone

            close = difflib.get_close_matches(name, _OPTION_NAMES, 1)
            raise TypeError(
                f"an interface has no option {name!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"it has {', '.join(_OPTION_NAMES)}")
            )


def _not_together(given: Mapping[str, object], name: str, *others: str) -> None:
    for other in others:
        if other in given:
            raise ConfigError(
                f"{name} is {given[name]!r} and {other} is {given[other]!r}; an interface takes one of the two"
            )


# --- one value ------------------------------------------------------------------------------------------------------

_ROLES: dict[RoleName, Role] = {
    "master": Role.MASTER,
    "server": Role.MASTER,
    "slave": Role.SLAVE,
    "client": Role.SLAVE,
}
_MODES: dict[ModeName, Mode] = {"ethernet": Mode.ETHERNET, "ip": Mode.IP, "punt-inject": Mode.PUNT_INJECT}
_RX_MODES: dict[RxModeName, RxMode] = {
    "interrupt": RxMode.INTERRUPT,
    "polling": RxMode.POLLING,
    "adaptive": RxMode.ADAPTIVE,
}


def parse_role(value: Role | str) -> Role:
    """Return the role for an enum member or one of ``master``, ``server``, ``slave``, ``client``."""
    return _parse("role", value, Role, _ROLES)


def parse_mode(value: Mode | str) -> Mode:
    """Return the interface mode for an enum member or one of ``ethernet``, ``ip``, ``punt-inject``."""
    return _parse("mode", value, Mode, _MODES)


def parse_rx_mode(value: RxMode | str) -> RxMode:
    """Return the receive mode for an enum member or one of ``interrupt``, ``polling``, ``adaptive``."""
    return _parse("rx_mode", value, RxMode, _RX_MODES)


def _parse(what: str, value: object, kind: type[_E], names: Mapping[Any, _E]) -> _E:
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value.lower() in names:
        return names[value.lower()]
    raise ConfigError(f"{what} is {value!r}; it must be one of {', '.join(names)}")


def log2_of_ring_size(size: int) -> int:
    """Return the logarithm of a ring size.

    :raises ConfigError: ``MAX_RING`` if it is not a power of two from 1 to 16384.
    """
    largest = 1 << MAX_LOG2_RING_SIZE
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= largest or size & (size - 1):
        raise ConfigError(f"ring_size is {size!r}; it must be a power of two from 1 to {largest}", ErrorCode.MAX_RING)
    return size.bit_length() - 1


def check_name(what: str, value: str, limit: int = NAME_BYTES) -> str:
    """Return ``value`` if it fits into a name field of the wire: at most ``limit`` bytes of UTF-8 and no NUL."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} is {value!r}; it must be a string")
    size = len(value.encode(errors="replace"))
    if size > limit:
        raise ConfigError(f"{what} {value!r} is {size} bytes long; at most {limit} fit into a message")
    if "\0" in value:
        raise ConfigError(f"{what} {value!r} has a NUL byte in it")
    return value


def check_secret(value: str | bytes | None) -> bytes:
    """Return a secret as bytes, empty for none. The error never shows the secret itself."""
    if value is None:
        return b""
    if not isinstance(value, str | bytes):
        raise ConfigError(f"the secret is of type {type(value).__name__}; it must be a string or bytes")
    try:
        # Bytes of a command line that are not UTF-8 come as surrogates. They become the same bytes again.
        secret = value.encode(errors="surrogateescape") if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise ConfigError("the secret has a character that UTF-8 cannot encode") from None
    if len(secret) > SECRET_BYTES:
        raise ConfigError(f"the secret is {len(secret)} bytes long; at most {SECRET_BYTES} fit into a message")
    if b"\0" in secret:
        raise ConfigError("the secret has a NUL byte in it")
    return secret


# --- arguments of the queues ---------------------------------------------------------------------------------------


def parse_stop(until: object) -> tuple[int, memoryview | None]:
    """Return the fd to watch, or -1, and the buffer to look at, or None.

    :param until: see :meth:`TxQueue.forward_from`.
    :raises ConfigError: ``until`` is neither an fd nor an object with ``fileno()`` nor a buffer.
    """
    if until is None:
        return -1, None
    fd = until.fileno() if hasattr(until, "fileno") else until
    if isinstance(fd, int) and not isinstance(fd, bool) and fd >= 0:
        return fd, None
    try:
        flag = memoryview(until).cast("B")  # type: ignore[arg-type]
    except TypeError:
        flag = memoryview(b"")
    if not len(flag):
        raise ConfigError(
            f"until is {until!r}; it must be an fd, an object with fileno(), or a buffer of at least one byte"
        )
    return -1, flag


def check_limit(limit: int) -> int:
    """Return the limit of a burst.

    :raises ConfigError: it is less than 1.
    """
    if limit < 1:
        raise ConfigError(f"a burst of {limit} buffers; it must be at least 1")
    return limit


def parse_budget(packets: int | None, timeout: float | None) -> tuple[int, float]:
    """Return how many packets to send, and for how many seconds; -1 for no bound.

    :raises ConfigError: one of them is not a number, or is negative.
    """
    if packets is not None:
        check_range("packets", packets, 0, 1 << 62)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0):
        raise ConfigError(f"timeout is {timeout!r}; it must be a number, at least 0, or None")
    return -1 if packets is None else packets, -1.0 if timeout is None else float(timeout)


# --- options as text ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextOption:
    """An option as people type it: ``--ring-size 512`` on the command line, ``ring-size=512`` in an endpoint string.

    :ivar parse: returns the value, or raises :class:`~memifrt.ConfigError`.
    :ivar values: the placeholder for its value in a help text.
    :ivar help: one line, in lower case, without its default.
    """

    name: str
    parse: Callable[[str], object]
    values: str
    help: str

    @property
    def key(self) -> str:
        """The name as it is typed."""
        return self.name.replace("_", "-")


def _whole(name: str, low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise ConfigError(f"{name} is {text!r}; it must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _ring_size(text: str) -> int:
    size = int(text) if re.fullmatch(r"[0-9]{1,20}", text) else 0
    if size & (size - 1) or not 1 <= size <= 1 << MAX_LOG2_RING_SIZE:
        raise ConfigError(f"ring_size is {text!r}; it must be a power of two from 1 to {1 << MAX_LOG2_RING_SIZE}")
    return size


def _packet_mode(text: str) -> Mode:
    """Return the mode, if the command line's programs can read its packets."""
    if text.lower() not in ("ethernet", "ip"):
        raise ConfigError(f"mode is {text!r}; it must be ethernet or ip")
    return parse_mode(text)


#: By name. The other options can be given in Python alone.
TEXT_OPTIONS = {
    option.name: option
    for option in (
        TextOption("role", parse_role, "master|slave", "master (or server) listens, slave (or client) connects"),
        TextOption("id", _whole("id", 0, 0xFFFFFFFF), "N", "interface id, the same on both ends"),
        TextOption("mode", _packet_mode, "ethernet|ip", "ethernet or ip, the same on both ends"),
        TextOption(
            "secret",
            lambda text: check_secret(os.fsencode(text)),  # the bytes that were typed, whatever they encode
            "S",
            f"at most {SECRET_BYTES} bytes; the slave sends it, and the master refuses a slave with another one",
        ),
        TextOption(
            "queues",
            _whole("queues", 1, MAX_QUEUES),
            "N",
            "queues in each direction; a master takes those of its slave",
        ),
        TextOption(
            "num_s2m_rings",
            _whole("num_s2m_rings", 1, MAX_QUEUES),
            "N",
            "queues from slave to master, if the two directions differ",
        ),
        TextOption(
            "num_m2s_rings",
            _whole("num_m2s_rings", 1, MAX_QUEUES),
            "N",
            "queues from master to slave, if the two directions differ",
        ),
        TextOption("ring_size", _ring_size, "N", "slots of a ring, a power of two; the slave chooses it"),
        TextOption(
            "log2_ring_size",
            _whole("log2_ring_size", 0, MAX_LOG2_RING_SIZE),
            "N",
            "base-2 logarithm of the ring size, as in libmemif",
        ),
        TextOption(
            "buffer_size",
            _whole("buffer_size", 1, MAX_BUFFER_SIZE),
            "N",
            "bytes of a buffer; longer packets take several; the slave chooses it",
        ),
        TextOption(
            "rx_mode",
            parse_rx_mode,
            "interrupt|polling|adaptive",
            "interrupt waits for kicks, polling reads the ring all the time, adaptive waits for kicks and masks them "
            "under load",
        ),
    )
}
