"""Define receive and transmit queues: the contract that the readable and the compiled queues fulfil."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from memifrt.system.not_copied import NotCopied
from memifrt.types import DEFAULT_BURST

if TYPE_CHECKING:
    from memifrt.errors import Disconnected
    from memifrt.options import RxModeName, Stop
    from memifrt.ring.protocol import Burst, Glance
    from memifrt.types import QueueCounters, ReadableBuffer, RxMode


class Queue(NotCopied, ABC):
    """A ring and its eventfd. After a disconnect every operation raises :class:`~memifrt.Disconnected`.

    Only one thread may use a queue at a time. Different threads may use different queues.
    """

    #: The number of the queue, from 0 on.
    qid: int
    #: Number of slots of the ring.
    ring_size: int

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the connection of this queue exists. Once False, it stays False."""
        raise NotImplementedError

    @property
    @abstractmethod
    def counters(self) -> QueueCounters:
        """The counters of this queue since its interface was created, over all connections.

        :raises ForkedError: in a forked child, which does not own the queue.
        """
        raise NotImplementedError

    @abstractmethod
    def fileno(self) -> int:
        """Return the queue's eventfd, for an application that polls it. It stays open until ``on_disconnect`` returns.

        :raises Disconnected: the connection has ended.
        """
        raise NotImplementedError

    @abstractmethod
    def disconnect(self, reason: Disconnected) -> None:
        """Make every operation raise from now on. Called by the connection when it ends."""
        raise NotImplementedError

    @abstractmethod
    def abandon(self, pid: int) -> None:
        """End the queue in a forked child, without telling the peer. ``pid`` is the parent's."""
        raise NotImplementedError


class RxQueue(Queue):
    """A receive queue."""

    #: Whether packets remained in the ring when the last ones were taken; then the eventfd was left readable. Always
    #: False in polling mode.
    more: bool
    #: Whether :meth:`drain` has read the eventfd since packets were last taken.
    drained: bool
    #: Whether the mode is polling.
    polling: bool
    #: Called when the mode changes, to wake callers blocked on an interrupt: a queue in polling mode gets none.
    on_mode_change: Callable[[], object] | None

    @property
    @abstractmethod
    def rx_mode(self) -> RxMode:
        """How the application learns that this queue has packets."""
        raise NotImplementedError

    @property
    @abstractmethod
    def mode(self) -> RxMode:
        """Return :attr:`rx_mode`. This is the old name."""
        raise NotImplementedError

    @abstractmethod
    def set_mode(self, mode: RxMode | RxModeName) -> None:
        """Call :meth:`set_rx_mode`. This is the old name."""
        raise NotImplementedError

    @abstractmethod
    def set_rx_mode(self, rx_mode: RxMode | RxModeName) -> None:
        """Choose between interrupts and polling, and tell the peer whether to kick. Call it on the control thread.

        :param rx_mode: ``"interrupt"``, ``"polling"`` or ``"adaptive"``, as for ``create_interface``.
        :raises ConfigError: it is none of them, or the runtime's fds are in a loop that runs in another thread.
        :raises Disconnected: there is no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def drain(self) -> bool:
        """Make the eventfd unreadable without taking a packet.

        The caller must remember to look at the ring: until the next kick, only :meth:`pending` and the receiving calls
        show the packets that wait.

        :returns: whether the eventfd was readable.
        :raises ForkedError: in a forked child, which does not own the queue.
        """
        raise NotImplementedError

    @abstractmethod
    def is_readable(self) -> bool:
        """Return whether the eventfd is readable: a kick has come that nobody has read."""
        raise NotImplementedError

    @abstractmethod
    def pending(self) -> int:
        """Return the number of buffers that wait in the ring.

        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def burst(self, limit: int = DEFAULT_BURST, *, split: bool = False) -> Burst:
        """Take up to ``limit`` buffers, without a copy, as memoryviews into shared memory.

        Use it as ``with queue.burst() as burst``: the end of the block gives the buffers back to the peer and ends the
        views. Only whole packets are taken; a packet of more than ``limit`` buffers is taken whole.

        :param split: also take a part of a packet, so that ``limit`` is exact.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def recv(self, limit: int = DEFAULT_BURST) -> list[bytes]:
        """Take up to ``limit`` packets, and return a copy of each.

        The buffers of a chain are joined. The call stops early once the packets have 16 MiB together. A buffer has at
        most 64 KiB and a packet at most 16 MiB; a peer that claims more is disconnected.

        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def recv_into(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        """Copy packets into the rows of a matrix, one packet for each row.

        Takes at most as many packets as there are rows. A packet longer than a row is cut, but its full length is
        stored.

        :param matrix: a writable 2-D buffer of bytes, such as a NumPy array of uint8.
        :param lengths: a writable 1-D buffer of integers of 2, 4 or 8 bytes, one for each row. It receives the length
            of each packet in bytes.
        :returns: the number of packets.
        :raises ConfigError: a buffer does not have this shape.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def refill(self, count: int | None = None, headroom: int = 0) -> int:
        """Give taken buffers back to the peer, the oldest first.

        A burst that was used in a ``with`` block has given its buffers back already.

        :param count: at most this many buffers; None: all.
        :param headroom: bytes that a slave leaves free in front of the data.
        :returns: the number of buffers given back.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError


class TxQueue(Queue):
    """A transmit queue."""

    @abstractmethod
    def free(self) -> int:
        """Return the number of buffers that could be allocated now.

        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def in_flight(self) -> int:
        """Return the number of buffers that the peer has not given back.

        At most this many sent buffers wait to be received. The number may be too high: a zero-copy slave gives buffers
        back in batches of 32, and a slave that has just connected may not have posted any yet.

        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def send(self, packets: Iterable[ReadableBuffer]) -> int:
        """Copy packets to the peer.

        A packet longer than a buffer is sent as a chain, unless the interface was created with ``chained_tx=False``.
        If ``packets`` is an iterator, the call may take one more packet from it than it sends.

        :returns: the number of packets sent: fewer than given if the ring is full.
        :raises ConfigError: a packet is empty or too long; nothing was sent.
        :raises PacketTypeError: ``packets`` is a single packet, or one of the packets is not a buffer of bytes; nothing
            was sent. It is a ConfigError and a TypeError.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def send_from(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        """Copy packets from the rows of a matrix to the peer.

        The buffers have the shapes that :meth:`RxQueue.recv_into` describes.

        :param lengths: the length in bytes of the packet in each row.
        :returns: the number of packets sent: fewer than there are if the ring is full.
        :raises ConfigError: a buffer does not have this shape, or a length is 0 or larger than a row; nothing was sent.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(self, source: Burst | RxQueue, limit: int = DEFAULT_BURST) -> int:
        """Send received packets on: the rest of a burst, or up to ``limit`` buffers straight from a receive queue.

        Between the queues of one slave, buffers are swapped without a copy; otherwise packets are copied. Chains stay
        chains. If the ring is full, the other packets stay in the burst, for a second call, or in the receive queue,
        which then stays readable.

        :param source: a received burst, or a receive queue.
        :returns: the number of buffers sent.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def forward_from(
        self,
        source: RxQueue,
        *,
        until: Stop | None = None,
        packets: int | None = None,
        timeout: float | None = None,
        limit: int = DEFAULT_BURST,
    ) -> int:
        """Forward what ``source`` receives, again and again, until something ends it.

        The compiled queues do this without Python and without the GIL, so pairs of queues in different threads run at
        the same time on any Python. If ``source`` is in polling mode, the call looks at the ring all the time;
        otherwise it sleeps while there are no packets. Meanwhile no other call may use the two queues: it raises
        ConfigError. Ctrl+C and other signal handlers work as usual, with a delay of some milliseconds.

        The runtime must handle its events in another thread, or the loop does not learn that a peer has left. The
        compiled queues then forward what the source's peer sent before it left.

        :param source: the receive queue. No burst of it may be held.
        :param until: ends the call: an fd, or an object with ``fileno()``, that becomes readable, such as an eventfd;
            or a buffer, such as a bytearray, when its first byte is no longer 0. The call looks at it about every
            millisecond.
        :param packets: send at most this many packets, then return.
        :param timeout: return after this many seconds.
        :param limit: forward at most this many buffers at a time, as in :meth:`forward`.
        :returns: the number of packets sent.
        :raises ConfigError: an argument is wrong, or buffers of one of the queues are held.
        :raises Disconnected: one of the interfaces has no peer, or loses it. The counters tell what was sent before.
        """
        raise NotImplementedError

    @abstractmethod
    def alloc(self, count: int, size: int | None = None) -> Burst:
        """Allocate buffers to fill in place and send with :meth:`transmit`.

        Closing the burst gives back the buffers that were not transmitted.

        :param count: the number of packets; fewer are allocated if the ring is full.
        :param size: the size of each packet in bytes; None: one whole buffer. A larger size gives chains.
        :raises ConfigError: a packet of ``size`` bytes does not fit into the whole ring, or needs a chain while chains
            are switched off.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def enqueue(self, burst: Burst, first: int = 0, count: int | None = None) -> Burst:
        """Swap buffers of a received burst into this ring, ready for :meth:`transmit`. Slaves only.

        :param first: index of the first buffer.
        :param count: number of buffers; None: all from ``first`` on.
        :raises ConfigError: the interface is a master, or the burst belongs to another interface.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def transmit(self, burst: Burst, count: int | None = None) -> int:
        """Send the next buffers of an allocated burst.

        :param count: number of buffers; None: all.
        :returns: the number of buffers sent.
        :raises ConfigError: the burst is not the oldest allocated one.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    @abstractmethod
    def rewind(self, burst: Burst, index: int) -> None:
        """Give back the buffers of an allocated burst from ``index`` on, and those of every burst allocated after it.

        :raises ConfigError: the buffer is not allocated, or it is already sent.
        :raises Disconnected: the interface has no peer.
        """
        raise NotImplementedError

    # --- called by the runtime's timer, on the control thread ---------------------------------------------------

    @abstractmethod
    def glance(self) -> Glance | None:
        """Return the state of the ring; None without a connection."""
        raise NotImplementedError

    @abstractmethod
    def kick_again(self) -> None:
        """Kick the peer, and count the kick in ``counters.repeated_kicks``."""
        raise NotImplementedError

    @abstractmethod
    def stop_watching(self) -> None:
        """Note that the timer no longer checks this queue. The next send that leaves packets starts a new watch."""
        raise NotImplementedError
