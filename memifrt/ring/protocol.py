"""Define rings and bursts: the Protocols that every ring implementation fulfils.

Owns the types that go in and come out. Knows nothing of sockets, callbacks or configuration.

A *buffer* is the memory of one descriptor. A *packet* is one buffer, or several that are chained with the flag
``NEXT``. A *burst* is a sequence of buffers. Indices of a ring are free-running numbers of 16 bits; the slot of an
index is ``index & (size - 1)``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from memifrt.types import BufferFlag, QueueCounters

if TYPE_CHECKING:
    from typing_extensions import Self

    from memifrt.types import ReadableBuffer

#: A zero-copy slave returns used buffers in batches of this size (VPP, DPDK). Fewer buffers in flight may all be used.
BATCH = 32


@dataclass(frozen=True, slots=True)
class RingMemory:
    """Where a ring lies: ``offset`` bytes into ``regions[region]``. ``name`` is for messages (``rx ring 0``)."""

    regions: Sequence[memoryview]
    region: int
    offset: int
    log2_size: int
    name: str


@dataclass(frozen=True, slots=True)
class SlaveBuffers:
    """The buffers that a slave gives to a ring: one for each slot, ``size`` bytes at ``offsets[slot]`` of ``region``.

    The ring keeps ``offsets``, the slave's own record of the buffer in each slot, and swaps its elements (zero copy).
    The descriptors in shared memory only inform the peer.
    """

    region: int
    size: int
    offsets: array[int]


class Packet(Protocol):
    """A whole packet of a burst. It ends with the burst: use ``bytes(packet)`` to keep a copy.

    ``len(packet)`` is the number of its bytes.
    """

    @property
    def views(self) -> tuple[memoryview, ...]:
        """Writable views into shared memory, one for each buffer of the packet. A chain has several.

        :raises ValueError: the burst has ended, or the packet has been sent.
        """
        raise NotImplementedError

    def __buffer__(self, flags: int, /) -> memoryview:
        """Give the memory of the packet, if it lies in one buffer.

        So ``struct.unpack_from(">H", packet, 12)`` and ``numpy.frombuffer(packet, "u1")`` work, and are quicker than
        with the view. Packets of the readable rings can do this from Python 3.12 on (PEP 688).

        :raises BufferError: it lies in several buffers: use :attr:`views`.
        :raises ValueError: the burst has ended, or the packet has been sent.
        """
        raise NotImplementedError

    def __bytes__(self) -> bytes:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def drop(self) -> None:
        """Leave the packet out of what ``forward`` sends.

        :raises ConfigError: the burst was allocated, not received.
        :raises ValueError: the burst has ended, or the packet has been sent.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[memoryview]:
        """Iterate over :attr:`views`. Deprecated: packets were tuples of views."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> memoryview:
        """Return a view of :attr:`views`. Deprecated: packets were tuples of views."""
        raise NotImplementedError


class Burst(Protocol):
    """Buffers of one ring, in order: those that are left, which means not sent yet.

    ``burst[i]`` and iteration give a writable memoryview of each buffer. ``len``, indices, iteration and ``packets``
    all refer to the buffers that are left. An index that none of them has raises ``IndexError``. Each call that sends
    some (``forward``, ``transmit``) or gives some back (``refill``) removes them from the front: ``burst[0]`` is then
    the next buffer to send. A view that you took before stays the view of its own buffer; the view of a buffer that is
    sent ends.

    The views end with the burst: ``close``, or the end of its ``with`` block, releases them. Drop everything that you
    make of a view (a slice, a cast, a NumPy array) before the burst ends. If something is left, the call that ends the
    burst raises ``BufferError``.
    """

    def __len__(self) -> int:
        """Return the number of buffers that are left."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> memoryview:
        raise NotImplementedError

    def __iter__(self) -> Iterator[memoryview]:
        raise NotImplementedError

    def packets(self) -> Iterator[Packet]:
        """Iterate over the packets that are left, each of them whole."""
        raise NotImplementedError

    def length(self, index: int) -> int:
        """Return the bytes of data in a buffer."""
        raise NotImplementedError

    def flags(self, index: int) -> BufferFlag:
        """Return ``NEXT`` if the packet goes on in the next buffer, otherwise 0."""
        raise NotImplementedError

    def slot(self, index: int) -> int:
        """Return the ring's slot that the buffer sits in."""
        raise NotImplementedError

    def set_length(self, index: int, length: int) -> None:
        """Make a buffer's data ``length`` bytes long.

        The data may shrink. On a slave it may grow to the end of the buffer. On a master an allocated buffer may grow
        to the length that the slave posted, and a received buffer may not grow. The buffer's view ends: take a new
        one.

        :raises ConfigError: the buffer has no room for this length, or the length is less than 1.
        """
        raise NotImplementedError

    def set_flags(self, index: int, flags: int) -> None:
        """Say whether the packet of an allocated buffer goes on in the next one: ``NEXT``, or 0.

        :raises ConfigError: the buffer was received, or there is no such flag.
        """
        raise NotImplementedError

    def advance(self, index: int, count: int) -> None:
        """Drop ``count`` bytes from the front of a buffer's data.

        On a slave's ring a negative count adds the bytes before the data (the headroom), to prepend a header. The
        buffer's view ends: take a new one.

        :raises ConfigError: no byte would be left, or the headroom is too small.
        """
        raise NotImplementedError

    def drop(self, index: int) -> None:
        """Leave the packet that this buffer belongs to out of what ``forward`` sends.

        :raises ConfigError: the buffer was allocated, not received.
        """
        raise NotImplementedError

    def pack_into(self, target: ReadableBuffer, stamp: bytes, limit: int, first: int = 0) -> tuple[int, int]:
        """Copy packets that are left into ``target``, one after the other.

        Each packet becomes a record: ``stamp``, the number of bytes copied, the length of the packet (both 32 bit,
        little-endian), and at most ``limit`` of its bytes.

        :param target: a writable buffer.
        :param first: the first buffer of the packet to start with.
        :returns: the first buffer of the first packet that had no room (the burst's length if there was room for all),
            and the number of bytes of ``target`` that are filled.
        :raises ConfigError: ``target`` cannot be written in place.
        """
        raise NotImplementedError

    @property
    def sent(self) -> int:
        """How many buffers the burst has lost from its front: sent, or given back by ``refill(count)``."""
        raise NotImplementedError

    @property
    def done(self) -> int:
        """The index of the first buffer that is left. Deprecated: it is always 0."""
        raise NotImplementedError

    def close(self) -> None:
        """End the views, and give the buffers back.

        :raises BufferError: something that was made of a view is still held. The buffers are given back all the same.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError


class Ring(Protocol):
    """What both directions have in common."""

    @property
    def size(self) -> int:
        """Number of slots."""
        raise NotImplementedError

    @property
    def head(self) -> int:
        """The slave's index."""
        raise NotImplementedError

    @property
    def tail(self) -> int:
        """The master's index."""
        raise NotImplementedError

    @property
    def flags(self) -> int:
        """The ring's flags. Bit 0 is ``MASK_INT``: the receiver asks for no interrupts."""
        raise NotImplementedError

    @property
    def counters(self) -> QueueCounters:
        """What this ring has done so far. A ring does not count ``interrupts``, which stay 0."""
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """Bytes of a slave's own buffers; 0 for a master, which learns the size from each descriptor."""
        raise NotImplementedError

    @property
    def is_held(self) -> bool:
        """Whether a burst holds buffers."""
        raise NotImplementedError

    def abandon(self, pid: int) -> None:
        """In a forked child: end every burst that is held, and touch no shared memory.

        A use of such a burst raises :class:`~memifrt.ForkedError`. Closing it does nothing.

        :param pid: the id of the parent, for the error.
        """
        raise NotImplementedError

    def set_mask(self, masked: bool) -> None:
        """Ask the peer for no interrupts (True), or for interrupts (False). Only the receiving side calls this."""
        raise NotImplementedError


class RxRing(Ring, Protocol):
    """A ring to receive from. Every method may raise ``RingViolation``: the peer broke a rule of the ring.

    The ring limits the work that a peer can cause. A chain has at most as many buffers as the ring has slots, and a
    packet has at most ``MAX_PACKET_SIZE`` bytes. A buffer has at most ``MAX_RECEIVED_BUFFER`` bytes on a master, and at
    most the buffer size of the interface on a slave. More than that is a violation.
    """

    def pending(self) -> int:
        """Return how many buffers the peer has filled and nobody has taken yet."""
        raise NotImplementedError

    def burst(self, limit: int, split: bool = False) -> Burst:
        """Take up to ``limit`` buffers, whole packets only. Closing the burst gives its buffers back to the peer.

        A single packet of more than ``limit`` buffers is taken whole.

        :param split: whether the burst ends at ``limit`` even inside a packet.
        """
        raise NotImplementedError

    def recv(self, limit: int) -> list[bytes]:
        """Take up to ``limit`` packets and give their buffers back at once; return the packets, chains joined.

        The call stops early once the packets have ``MAX_PACKET_SIZE`` bytes together, so that the peer cannot decide
        how much memory the call uses.
        """
        raise NotImplementedError

    def recv_into(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        """Copy packets into the rows of ``matrix``, give their buffers back at once, and return how many there were.

        Takes at most as many packets as there are rows. A packet longer than a row is cut. Its length in ``lengths`` is
        not cut, except to the largest number that the type of ``lengths`` can hold.

        :param matrix: a writable 2-D buffer of bytes with a row for each packet.
        :param lengths: a writable 1-D buffer of whole numbers of 2, 4 or 8 bytes.
        """
        raise NotImplementedError

    def untake(self, burst: Burst) -> None:
        """Put back the buffers of the newest burst that are not sent, as if they had not been taken.

        :raises ConfigError: this is not the newest burst, it has ended, or its buffers have been trimmed or swapped.
        :raises BufferError: something that was made of a view is still held. Nothing is put back.
        """
        raise NotImplementedError

    def refill(self, count: int | None = None, headroom: int = 0) -> int:
        """Give taken buffers back to the peer, oldest first, and end their views; return how many were given back.

        :param count: how many at most; None for all.
        :param headroom: bytes that a slave leaves free in front of the data. A master's descriptors stay as they are.
        :raises BufferError: something that was made of a view of a burst that ends is still held. The buffers are given
            back all the same.
        """
        raise NotImplementedError

    @property
    def more(self) -> bool:
        """Whether the last ``burst`` or ``recv`` left packets behind only because of its limit."""
        raise NotImplementedError

    def set_headroom(self, headroom: int) -> None:
        """Set the headroom of buffers that a closing burst gives back."""
        raise NotImplementedError


class TxRing(Ring, Protocol):
    """A ring to send on. Every method may raise ``RingViolation``: the peer broke a rule of the ring."""

    @property
    def in_flight(self) -> int:
        """Buffers that the peer has not given back, from 0 to ``size``. May be read from any thread."""
        raise NotImplementedError

    def free(self) -> int:
        """Return how many buffers could be allocated now."""
        raise NotImplementedError

    def alloc(self, count: int, size: int | None = None) -> Burst:
        """Allocate room for up to ``count`` packets of ``size`` bytes, fewer if the ring is full.

        Closing the burst gives back what was not transmitted.

        :param size: None for one whole buffer each. A size above a buffer's gives chains.
        """
        raise NotImplementedError

    def transmit(self, burst: Burst, count: int | None = None) -> int:
        """Publish the next ``count`` (None: all) buffers of an allocated burst; return how many were published.

        :raises ConfigError: buffers that were allocated earlier must be transmitted or given back first.
        :raises BufferError: these are the last buffers of the burst, and something that was made of a view is still
            held. Nothing is published.
        """
        raise NotImplementedError

    def send(self, packets: Iterable[ReadableBuffer], *, chain: bool = True) -> int:
        """Copy packets into the ring and publish them; return how many were sent, fewer if the ring is full.

        If the call raises, it has sent nothing.

        :param chain: whether a packet longer than a buffer may be sent as a chain.
        :raises ConfigError: a packet is empty, not contiguous, longer than ``MAX_PACKET_SIZE``, too long for the whole
            ring, or (without ``chain``) too long for one buffer; or the iterable uses this ring while it is read.
        :raises PacketTypeError: a packet is not a bytes-like object.
        """
        raise NotImplementedError

    def send_from(self, matrix: ReadableBuffer, lengths: ReadableBuffer, *, chain: bool = True) -> int:
        """Copy packets from the rows of a 2-D buffer, row ``i`` up to ``lengths[i]``, and publish them; return how many
        were taken.

        :raises ConfigError: a length is 0 or larger than a row, or as in ``send``. Nothing is sent.
        """
        raise NotImplementedError

    def relay(self, source: RxRing, limit: int) -> int:
        """Receive up to ``limit`` buffers from ``source`` and forward them, in one pass; return how many buffers.

        Packets that do not fit stay in ``source``. If the call raises, all packets stay there.
        """
        raise NotImplementedError

    def forward(self, burst: Burst) -> int:
        """Send the packets of a received burst that are not sent yet; return how many buffers were sent.

        Between rings of one slave this swaps buffers, otherwise it copies. Views of sent buffers end, and a second call
        goes on where the first stopped. Only whole packets are sent. A packet for which the whole ring is too small is
        dropped.
        """
        raise NotImplementedError

    def enqueue(self, burst: Burst, first: int, count: int) -> Burst:
        """Swap ``count`` buffers of a received burst, from ``first`` on, into this ring, ready for ``transmit``; fewer
        if the ring is full. They stay in ``burst``, which has free buffers in exchange.

        :raises ConfigError: the rings are not of one slave.
        """
        raise NotImplementedError

    def rewind(self, burst: Burst, index: int) -> None:
        """Give back an allocated buffer and all that were allocated after it. The next allocation starts there.

        :raises ConfigError: the buffer is not allocated, or it is sent already.
        :raises BufferError: something that was made of a view is still held. Nothing is given back.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Glance:
    """The state of a transmit ring at one moment.

    :ivar sent: our index; each send advances it.
    :ivar taken: the peer's index.
    :ivar left: number of buffers that the peer has not given back.
    :ivar is_certain: whether the ``left`` buffers must hold packets. False: the peer may be keeping used buffers.
    :ivar masked: whether the peer asks for no interrupts.
    :ivar noticed: whether the peer has read our last kick.
    """

    sent: int
    taken: int
    left: int
    is_certain: bool
    masked: bool
    noticed: bool


class RingImplementation(Protocol):
    """The names that the module of an implementation exports."""

    def slave_rx(self, memory: RingMemory, buffers: SlaveBuffers) -> RxRing:
        """Make the slave's end of an M2S ring."""
        raise NotImplementedError

    def slave_tx(self, memory: RingMemory, buffers: SlaveBuffers) -> TxRing:
        """Make the slave's end of an S2M ring."""
        raise NotImplementedError

    def master_rx(self, memory: RingMemory) -> RxRing:
        """Make the master's end of an S2M ring."""
        raise NotImplementedError

    def master_tx(self, memory: RingMemory) -> TxRing:
        """Make the master's end of an M2S ring."""
        raise NotImplementedError

    def check_cookie(self, memory: RingMemory) -> None:
        """Check that there is a ring.

        :raises RingViolation: with the code ``COOKIE``, if there is none.
        """
        raise NotImplementedError

    def exchange(self, burst_a: Burst, index_a: int, burst_b: Burst, index_b: int) -> None:
        """Swap two buffers of one slave's rings, received or allocated, between their slots.

        :raises ConfigError: the rings are not of one slave.
        """
        raise NotImplementedError
