"""The conversations of master and slave on the control channel, each written as one function from top to bottom.

Owns the order of the messages and the checks of their contents (docs/protocol.md, The control channel). Knows no fd,
socket or clock: a conversation is a generator. It yields an *action*, and the connection that drives it does the I/O
and sends the result back:

    action = conversation.send(result)

A conversation never returns. It raises ``ProtocolError`` when the peer breaks the protocol, and ``Disconnected`` when
the peer sends DISCONNECT. After ``Established`` it only waits for that.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from memifrt.control.wire import (
    Ack,
    AddRegion,
    AddRing,
    Connect,
    Connected,
    Disconnect,
    Hello,
    Init,
    Message,
)
from memifrt.errors import Disconnected, ErrorCode, ProtocolError
from memifrt.types import MAX_INDEX, MAX_LOG2_RING_SIZE, SECRET_BYTES, VERSION, Direction, Mode, printable

# --- actions: requests of a conversation to its driver --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for the next message; the result is a :class:`Received`."""

    #: The name of the expected message, for the error if it does not come.
    awaited: str = field(default="", compare=False)
    #: Why a peer may hang up at this step; empty after the handshake.
    hint: str = field(default="", compare=False)

    @property
    def interrupted(self) -> str:
        """The end of the error message for a peer that hangs up at this step without a reason."""
        return f" while we waited for {self.awaited}: {self.hint}" if self.hint else ""


@dataclass(frozen=True, slots=True)
class RegionFd:
    """The memory fd of one of our regions."""

    index: int


@dataclass(frozen=True, slots=True)
class RingFd:
    """The eventfd of one of our rings."""

    direction: Direction
    index: int


@dataclass(frozen=True, slots=True)
class Send:
    """Queue a message, with the fd that ``attach`` names, if any."""

    message: Message
    attach: RegionFd | RingFd | None = None


@dataclass(frozen=True, slots=True)
class CreateMemory:
    """Slave: create the regions and rings. The result is a :class:`SharedMemory`."""

    num_s2m_rings: int
    num_m2s_rings: int
    log2_ring_size: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Master: look up an interface. The result is its :class:`MasterTerms`, or None if no interface has this id."""

    interface_id: int


@dataclass(frozen=True, slots=True)
class Bind:
    """Master: make this peer the interface's peer. Its INIT is accepted."""

    interface_id: int
    peer_name: str


@dataclass(frozen=True, slots=True)
class AcceptRegion:
    """Master: check and map the fd that came with the message as region ``index``."""

    index: int
    size: int


@dataclass(frozen=True, slots=True)
class AcceptRing:
    """Master: check the ring against its region and keep the eventfd that came with the message."""

    direction: Direction
    index: int
    region: int
    offset: int
    log2_ring_size: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Master: reset the rings. The peer has described them all, and has not been told yet that it is connected."""


@dataclass(frozen=True, slots=True)
class Established:
    """The handshake is complete. Packets may flow."""

    peer_name: str
    peer_if_name: str


Action = (
    Receive | Send | CreateMemory | Claim | Bind | AcceptRegion | AcceptRing | Prepare | Established
)  # fmt: skip

# --- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A message, and whether an fd came with it. The driver keeps the fd."""

    message: Message
    has_fd: bool = False


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """The slave's memory: the size of each region in bytes, and the place of each ring (S2M first, then M2S)."""

    region_sizes: Sequence[int]
    rings: Sequence[AddRing]


@dataclass(frozen=True, slots=True)
class MasterTerms:
    """The requirements of a master's interface, and its state, for checking a peer's INIT."""

    mode: Mode
    secret: bytes = field(repr=False)
    if_name: str
    connected: bool = False
    is_slave: bool = False


Result = Received | SharedMemory | MasterTerms | None
Conversation = Generator[Action, Result, None]
_M = TypeVar("_M", Hello, Ack, Connected, Init)


# --- the slave ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SlaveOffer:
    """The slave's part of the negotiation: its names, the interface that it asks for, and its rings."""

    app_name: str
    if_name: str
    interface_id: int
    mode: Mode
    secret: bytes = field(repr=False)
    num_s2m_rings: int
    num_m2s_rings: int
    log2_ring_size: int


def slave(offer: SlaveOffer) -> Conversation:
    """Talk to a master: wait for its HELLO, then send each message and wait for the answer."""
    hello = yield from _expect(Hello, hint="it may be no memif master, refuse this user, or have no room for a peer")
    _check_versions(hello)
    # For an unknown id libmemif acknowledges the INIT and hangs up afterwards.
    no_such_id = f"it may have no interface with id {offer.interface_id}"
    init = Init(VERSION, offer.interface_id, offer.mode, offer.secret, offer.app_name)
    yield from _ask(Send(init), "INIT", no_such_id)

    # max_*_ring is the highest index, so the number of rings is one more (docs/protocol.md, The control channel).
    result = yield CreateMemory(
        min(hello.max_s2m_ring + 1, offer.num_s2m_rings),
        min(hello.max_m2s_ring + 1, offer.num_m2s_rings),
        min(hello.max_log2_ring_size, offer.log2_ring_size),
    )
    assert isinstance(result, SharedMemory)
    if len(result.region_sizes) > hello.max_region + 1:
        raise ProtocolError(
            ErrorCode.MAXREG,
            f"the peer accepts {hello.max_region + 1} region(s), we need {len(result.region_sizes)}",
        )
    for index, size in enumerate(result.region_sizes):
        hint = f"{no_such_id}, or accept fewer regions or no memory of ours"
        yield from _ask(Send(AddRegion(index, size), RegionFd(index)), f"ADD_REGION {index}", hint)
    for ring in result.rings:
        direction = Direction.S2M if ring.s2m else Direction.M2S
        name = f"ADD_RING {direction.value} {ring.index}"
        yield from _ask(Send(ring, RingFd(direction, ring.index)), name, "it may accept fewer rings")

    yield Send(Connect(offer.if_name))
    connected = yield from _expect(Connected, hint="it may have failed to map our memory, or have ended")
    yield Established(hello.name, connected.if_name)
    yield from _until_disconnected()


def _ask(send: Send, name: str, hint: str) -> Conversation:
    """Send a message, and wait for the master's ACK."""
    yield send
    yield from _expect(Ack, f"ACK to {name}", hint)


def _check_versions(hello: Hello) -> None:
    if not hello.min_version <= VERSION <= hello.max_version:
        raise ProtocolError(
            ErrorCode.PROTO,
            f"the peer speaks memif versions {_version(hello.min_version)} to {_version(hello.max_version)}, "
            f"we speak {_version(VERSION)}",
        )


# --- the master -----------------------------------------------------------------------------------------------------


def master(app_name: str) -> Conversation:
    """Talk to a slave: send HELLO, then answer each of its messages."""
    yield Send(Hello(app_name))
    init = yield from _expect(Init, hint="it may only have checked who listens here")
    if_name = yield from _admit(init)
    yield Send(Ack())

    regions = 0
    rings = {Direction.S2M: 0, Direction.M2S: 0}
    while True:
        message, has_fd = yield from _receive(_OFFERS, "it may have failed to make its memory, or have ended")
        match message:
            case AddRegion(index, size):
                _check_next("region", index, regions, ErrorCode.MAXREG)
                if not has_fd:
                    raise ProtocolError(ErrorCode.NO_SHMFD, f"region {index} came without a shared memory fd")
                yield AcceptRegion(index, size)
                regions += 1
            case AddRing():
                direction = Direction.S2M if message.s2m else Direction.M2S
                _check_ring(message, direction, rings[direction], regions, has_fd)
                yield AcceptRing(direction, message.index, message.region, message.offset, message.log2_ring_size)
                rings[direction] += 1
            case Connect(peer_if_name):
                break
            case _:
                raise _unexpected(message, _OFFERS)
        yield Send(Ack())

    yield Prepare()
    yield Send(Connected(if_name))
    yield Established(init.name, peer_if_name)
    yield from _until_disconnected()


def _admit(init: Init) -> Generator[Action, Result, str]:
    """Check the INIT against the interface that it names, and bind the peer to that interface.

    :returns: the name of our interface.
    """
    if init.version != VERSION:
        raise ProtocolError(
            ErrorCode.PROTO, f"the peer speaks memif {_version(init.version)}, we speak {_version(VERSION)}"
        )
    terms = yield Claim(init.id)
    if terms is None:
        raise ProtocolError(ErrorCode.ID, f"there is no interface with id {init.id} on this socket")
    assert isinstance(terms, MasterTerms)
    if terms.is_slave:
        raise ProtocolError(ErrorCode.ACCSLAVE, f"interface {init.id} is a slave and accepts no connection")
    if terms.secret and not init.secret:
        raise ProtocolError(ErrorCode.NOSECRET, f"interface {init.id} requires a secret")
    if terms.secret and not _are_equal(_padded(terms.secret), _padded(init.secret)):
        raise ProtocolError(ErrorCode.SECRET, f"wrong secret for interface {init.id}")
    # Before the mode, as VPP and DPDK do. A program can thus ask with an invalid mode whether the id is in use.
    if terms.connected:
        raise ProtocolError(ErrorCode.ALRCONN, f"interface {init.id} is already connected")
    if init.mode != terms.mode:
        raise ProtocolError(
            ErrorCode.MODE,
            f"mode mismatch: interface {init.id} is in mode {_mode(terms.mode)}, the peer asks for {_mode(init.mode)}",
        )
    yield Bind(init.id, init.name)
    return terms.if_name


def _are_equal(one: bytes, other: bytes) -> bool:
    """Return whether both are equal, in a time that does not tell where they differ."""
    import hmac  # which loads OpenSSL

    return hmac.compare_digest(one, other)


def _padded(secret: bytes) -> bytes:
    """Pad a secret to the length of its field, so that the time of a comparison does not reveal its length."""
    return secret.ljust(SECRET_BYTES + 1, b"\0")


def _check_next(what: str, index: int, expected: int, code: ErrorCode) -> None:
    if index > MAX_INDEX:
        raise ProtocolError(code, f"{what} index {index} is above the advertised {MAX_INDEX}")
    if index != expected:
        raise ProtocolError(code, f"{what} {index} came, expected {what} {expected}")


def _check_ring(ring: AddRing, direction: Direction, due: int, regions: int, has_fd: bool) -> None:
    name = f"{direction.value} ring"
    _check_next(name, ring.index, due, ErrorCode.MAXRING)
    if not has_fd:
        raise ProtocolError(ErrorCode.NO_INTFD, f"{name} {ring.index} came without an interrupt fd")
    if ring.log2_ring_size > MAX_LOG2_RING_SIZE:
        raise ProtocolError(
            ErrorCode.MAX_RING,
            f"{name} {ring.index} has 2^{ring.log2_ring_size} descriptors; "
            f"the advertised limit is 2^{MAX_LOG2_RING_SIZE}",
        )
    if ring.private_hdr_size:
        raise ProtocolError(
            ErrorCode.PRIVHDR,
            f"{name} {ring.index} has private headers of {ring.private_hdr_size} bytes; none are supported",
        )
    if ring.region >= regions:
        raise ProtocolError(
            ErrorCode.MAXREG, f"{name} {ring.index} lies in region {ring.region}, but only {regions} came"
        )


# --- both -----------------------------------------------------------------------------------------------------------


def _receive(awaited: str, hint: str = "") -> Generator[Action, Result, tuple[Message, bool]]:
    """Wait for the next message. A DISCONNECT may come at any time; only this function handles it.

    :returns: the message, and whether an fd came with it.
    """
    action = Receive(awaited, hint)
    received = yield action
    assert isinstance(received, Received)
    message = received.message
    if isinstance(message, Disconnect):
        reason = printable(message.reason) or f"no reason given{action.interrupted}"
        raise Disconnected(f"peer disconnected: {reason}", ErrorCode.DISCONNECT)
    return message, received.has_fd


def _expect(kind: type[_M], awaited: str = "", hint: str = "") -> Generator[Action, Result, _M]:
    message, _ = yield from _receive(awaited or _NAMES[kind], hint)
    if not isinstance(message, kind):
        raise _unexpected(message, _NAMES[kind])
    return message


def _until_disconnected() -> Conversation:
    message, _ = yield from _receive("DISCONNECT")
    raise _unexpected(message, "DISCONNECT")


#: The messages that a slave may send after its INIT is accepted.
_OFFERS = "ADD_REGION, ADD_RING or CONNECT"

_NAMES: dict[type[Message], str] = {
    Ack: "ACK",
    Hello: "HELLO",
    Init: "INIT",
    AddRegion: "ADD_REGION",
    AddRing: "ADD_RING",
    Connect: "CONNECT",
    Connected: "CONNECTED",
}


def _unexpected(message: Message, expected: str) -> ProtocolError:
    return ProtocolError(ErrorCode.UNKNOWN_MSG, f"unexpected message {_NAMES[type(message)]}, expected {expected}")


def _version(version: int) -> str:
    return f"{version >> 8}.{version & 0xFF}"


def _mode(mode: int) -> str:
    try:
        return Mode(mode).name.lower()
    except ValueError:
        return str(mode)
