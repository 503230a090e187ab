"""What a data plane is: the Protocol that every ring implementation fulfils.

Owns the types that go in and come out. Knows nothing of sockets, callbacks or configuration: memory in, bursts out.

A *buffer* is one descriptor's memory; a *packet* is one buffer, or several chained with the flag NEXT. A *burst* is a
sequence of buffers. Indices on the ring are free-running u16; a slot is ``index & (size - 1)``.
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


@dataclass(frozen=True, slots=True)
class RingMemory:
    """Where a ring lies: ``offset`` bytes into ``regions[region]``. ``name`` stands in messages (``rx ring 0``)."""

    regions: Sequence[memoryview]
    region: int
    offset: int
    log2_size: int
    name: str


@dataclass(frozen=True, slots=True)
class SlaveBuffers:
    """The buffers that a slave gives to a ring: one for each slot, ``size`` bytes at ``offsets[slot]`` of ``region``.

    The ring keeps ``offsets`` and permutes them (zero copy): they are the slave's own record of which buffer sits
    in which slot. The descriptors in shared memory are only what the peer is told.
    """

    region: int
    size: int
    offsets: array[int]


class Burst(Protocol):
    """Buffers of one ring, in order.

    ``burst[i]`` and iteration give a writable memoryview of each buffer. The views end with the burst: ``close``, or
    leaving its ``with`` block, releases them. Drop what you make of a view (a slice, a cast, a NumPy array) before the
    burst ends: it cannot be ended with the view, and the call that ends the burst raises ``BufferError``.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> memoryview: ...
    def __iter__(self) -> Iterator[memoryview]: ...
    def packets(self) -> Iterator[tuple[memoryview, ...]]:
        """Each packet as the views of its buffers: one, unless it is chained."""

    def length(self, index: int) -> int:
        """Bytes of data in a buffer."""

    def flags(self, index: int) -> BufferFlag: ...
    def slot(self, index: int) -> int:
        """The ring's slot that the buffer sits in."""

    def set_length(self, index: int, length: int) -> None:
        """Make a buffer's data ``length`` bytes long: shorter, or as long as the buffer has room behind the data. The
        room is a slave's own buffer, or what the slave had posted when a master allocated the buffer; a master's
        received buffer has none. Its view ends: take it anew."""

    def set_flags(self, index: int, flags: int) -> None:
        """Say whether the packet of an allocated buffer goes on in the next one: ``NEXT``, or 0.

        :raises ConfigError: the buffer was received, or there is no such flag.
        """

    def advance(self, index: int, count: int) -> None:
        """Drop ``count`` bytes from the front of a buffer's data. On a slave's ring a negative count adds what lies
        before them: the headroom, to prepend a header. Its view ends: take it anew."""

    def drop(self, index: int) -> None:
        """Leave the packet that this buffer belongs to out of what ``forward`` sends.

        :raises ConfigError: it was allocated, not received.
        """

    def pack_into(self, target: ReadableBuffer, stamp: bytes, limit: int, first: int = 0) -> tuple[int, int]:
        """Copy packets that are not sent yet, one behind the other, into ``target``, a writable buffer: each as
        ``stamp``, the number of bytes copied and the length of the packet (32 bit, little-endian), and at most
        ``limit`` of its bytes.

        :param first: the buffer that a packet begins with to start from; those that have been sent are skipped.
        :returns: the buffer that the first packet without room begins with (the burst's length if there was room for
            all), and the bytes of ``target`` that are filled.
        :raises ConfigError: ``target`` cannot be written in place.
        """

    @property
    def done(self) -> int:
        """How many buffers from the front have been sent (forwarded, transmitted)."""

    def close(self) -> None:
        """End the views, and give the buffers back.

        :raises BufferError: something that was made of a view is still held; the buffers are given back all the same.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Ring(Protocol):
    """What both directions have in common."""

    @property
    def size(self) -> int:
        """Number of slots."""

    @property
    def head(self) -> int: ...
    @property
    def tail(self) -> int: ...
    @property
    def flags(self) -> int:
        """Bit 0: ``MASK_INT``, the receiver asks for no interrupts."""

    @property
    def counters(self) -> QueueCounters:
        """What this ring did so far; ``interrupts`` are not a ring's to count and stay 0."""

    @property
    def capacity(self) -> int:
        """Bytes of a slave's own buffers; 0 for a master, which learns it from each descriptor."""

    def abandon(self, pid: int) -> None:
        """In a forked child: end every burst that is held and touch no shared memory. A use of such a burst raises
        :class:`~memifrt.ForkedError`, which names ``pid``, the parent; closing it does nothing."""

    def set_mask(self, masked: bool) -> None:
        """Ask the peer for no interrupts (True), or for interrupts; the receiving side's to call."""


class RxRing(Ring, Protocol):
    """A ring to receive from. Every method may raise ``RingViolation``: the peer wrote what must not be there.

    Work is bounded by the ring, not by what a peer says: a chain has at most as many buffers as the ring has slots, a
    buffer at most ``MAX_RECEIVED_BUFFER`` bytes (to a slave: those of its own buffers) and a packet
    ``MAX_PACKET_SIZE``. More is a violation.
    """

    def pending(self) -> int:
        """Buffers that the peer has filled and nobody took yet."""

    def burst(self, limit: int, split: bool = False) -> Burst:
        """Take up to ``limit`` buffers, whole packets only; closing the burst gives its buffers back to the peer.

        A single packet of more than ``limit`` buffers is taken whole. With ``split``, a burst ends at ``limit`` even
        inside a packet.
        """

    def recv(self, limit: int) -> list[bytes]:
        """Take up to ``limit`` buffers and give them back at once: their packets, chains joined."""

    def recv_into(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        """Copy packets into the rows of ``matrix``, a writable 2-D buffer of bytes with a row for each packet, and
        give their buffers back at once; the number of packets. Their lengths go into ``lengths``, a writable 1-D
        buffer of whole numbers of 2, 4 or 8 bytes.

        Takes at most as many buffers as there are rows. A packet longer than a row is cut; its length is not, but
        for what the type of ``lengths`` cannot hold.
        """

    def untake(self, burst: Burst) -> None:
        """Put the buffers of the newest burst that are not sent back, as if they had not been taken.

        :raises ConfigError: it is not the newest burst, it has ended, or buffers of it have been trimmed or swapped.
        :raises BufferError: something that was made of a view is still held; nothing is put back.
        """

    def refill(self, count: int | None = None, headroom: int = 0) -> int:
        """Give up to ``count`` (None: all) taken buffers back to the peer, oldest first; the number given.

        A slave posts them with ``headroom`` bytes free in front; a master's descriptors stay as they are. Views of
        buffers that are given back end.

        :raises BufferError: something that was made of a view of a burst that ends is still held; the buffers are
            given back all the same.
        """

    @property
    def more(self) -> bool:
        """Whether the last ``burst`` or ``recv`` left packets behind for no other reason than its limit."""

    def set_headroom(self, headroom: int) -> None:
        """The headroom of buffers that a closing burst gives back."""


class TxRing(Ring, Protocol):
    """A ring to send on. Every method may raise ``RingViolation``."""

    @property
    def in_flight(self) -> int:
        """Buffers that the peer has not given back, from 0 to ``size``. Only looks: may be read from any thread."""

    def free(self) -> int:
        """Buffers that could be allocated now."""

    def alloc(self, count: int, size: int | None = None) -> Burst:
        """Room for up to ``count`` packets of ``size`` bytes (None: one whole buffer each), fewer if the ring is full.

        A size above a buffer's gives chains. Closing the burst gives back what was not transmitted.
        """

    def transmit(self, burst: Burst, count: int | None = None) -> int:
        """Publish the next ``count`` (None: all) buffers of an allocated burst; the number published.

        :raises ConfigError: buffers allocated earlier are still to be transmitted or given back.
        :raises BufferError: these are the last buffers of the burst, and something that was made of a view is still
            held; nothing is published.
        """

    def send(self, packets: Iterable[ReadableBuffer], *, chain: bool = True) -> int:
        """Copy packets onto the ring and publish them; the number taken, fewer than given if the ring is full.

        :raises ConfigError: a packet is empty, not contiguous, longer than ``MAX_PACKET_SIZE``, or too long for the
            ring or (without ``chain``) a buffer; or the iterable uses this ring itself. Nothing of this call is sent
            then.
        :raises PacketTypeError: a packet is no buffer.
        """

    def send_from(self, matrix: ReadableBuffer, lengths: ReadableBuffer, *, chain: bool = True) -> int:
        """Copy packets from the rows of a 2-D buffer, row ``i`` up to ``lengths[i]``, and publish them; the number
        taken.

        :raises ConfigError: a length is 0 or larger than a row, or as in ``send``. Nothing is sent then.
        """

    def relay(self, source: RxRing, limit: int) -> int:
        """Receive up to ``limit`` buffers from ``source`` and forward them, in one pass; the number of buffers.

        Packets that do not fit are not taken; none are if it raises.
        """

    def forward(self, burst: Burst) -> int:
        """Send the packets of a received burst that are not sent yet; the number of buffers taken from it.

        Between rings of one slave this swaps buffers, elsewhere it copies. Views of forwarded buffers end, and a
        second call goes on where the first stopped. Only whole packets are sent; one that not even the whole ring
        has room for is dropped.
        """

    def enqueue(self, burst: Burst, first: int, count: int) -> Burst:
        """Swap ``count`` buffers of a received burst, from ``first`` on, into this ring, ready for ``transmit``;
        fewer if the ring is full.

        :raises ConfigError: the rings are not of one slave.
        """

    def rewind(self, burst: Burst, index: int) -> None:
        """The next allocation starts at this buffer again; it and all allocated after it are given back.

        :raises ConfigError: the buffer is not one that is allocated and not sent.
        :raises BufferError: something that was made of a view is still held; nothing is given back.
        """


class RingImplementation(Protocol):
    """What a module with an implementation exports."""

    def slave_rx(self, memory: RingMemory, buffers: SlaveBuffers) -> RxRing: ...
    def slave_tx(self, memory: RingMemory, buffers: SlaveBuffers) -> TxRing: ...
    def master_rx(self, memory: RingMemory) -> RxRing: ...
    def master_tx(self, memory: RingMemory) -> TxRing: ...
    def check_cookie(self, memory: RingMemory) -> None:
        """:raises RingViolation: ``COOKIE`` if there is no ring."""

    def exchange(self, burst_a: Burst, index_a: int, burst_b: Burst, index_b: int) -> None:
        """Swap two buffers of one slave's rings, received or allocated, between their slots.

        :raises ConfigError: the rings are not of one slave.
        """
