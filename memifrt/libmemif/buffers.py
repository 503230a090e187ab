"""``memif_buffer_t``: a handle of one buffer, which stays the same while its burst shrinks or its queue changes.

Owns the position of the buffer in its burst. The burst owns the data and checks every access.
"""

from __future__ import annotations

from memifrt.errors import ConfigError
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import Burst, implementation
from memifrt.types import BufferFlag


class MemifBuffer:
    """``memif_buffer_t``: one buffer of a queue.

    It is valid until it is sent or given back. After that its properties raise ``ValueError``.
    """

    __slots__ = ("_burst", "_number", "_queue")

    def __init__(self, queue: RxQueue | TxQueue, burst: Burst, number: int) -> None:
        self._queue = queue
        self._burst = burst
        self._number = number

    @property
    def queue(self) -> RxQueue | TxQueue:
        """The queue of the buffer."""
        return self._queue

    @property
    def desc_index(self) -> int:
        """The slot of the buffer's descriptor."""
        return self._burst.slot(self.burst_index)

    @property
    def flags(self) -> BufferFlag:
        """``MEMIF_BUFFER_FLAG_NEXT`` if the packet continues in the next buffer, otherwise 0.

        The flag can be set on an allocated buffer, before it is sent: ``tx.flags = rx.flags``.

        :raises ConfigError: the buffer was received, or there is no such flag.
        """
        return self._burst.flags(self.burst_index)

    @flags.setter
    def flags(self, flags: int) -> None:
        self._burst.set_flags(self.burst_index, flags)

    @property
    def data(self) -> memoryview:
        """The ``len`` bytes of data, in shared memory. Setting ``len`` and ``advance`` end the view: read it again."""
        return self._burst[self.burst_index]

    @property
    def len(self) -> int:
        """The number of bytes of data. Set it before the buffer is sent.

        The data can shrink. On a slave it can grow to the end of the buffer. On a master an allocated buffer can grow
        to the length that the slave posted, and a received buffer cannot grow.

        :raises ConfigError: the buffer has no room for this length, or the length is less than 1.
        """
        return self._burst.length(self.burst_index)

    @len.setter
    def len(self, length: int) -> None:
        self._burst.set_length(self.burst_index, length)

    def advance(self, count: int) -> None:
        """Move the start of the data ``count`` bytes forward: C's ``data += count; len -= count``.

        On a slave a negative count moves the start back into the headroom, to prepend a header.

        :raises ConfigError: no byte would be left, the headroom is too small, or this is a transmit buffer of a
            master.
        """
        self._burst.advance(self.burst_index, count)

    # --- for the functions of this package ----------------------------------------------------------------------

    @property
    def burst(self) -> Burst:
        """The burst that the buffer is in."""
        return self._burst

    @property
    def number(self) -> int:
        """The buffer's place in its burst, counted from the first buffer that the burst ever had."""
        return self._number

    @property
    def burst_index(self) -> int:
        """The buffer's index in its burst.

        :raises ValueError: the buffer has been sent or given back.
        """
        index = self._number - self._burst.sent
        if index < 0:
            raise ValueError("this buffer has been sent or given back: it belongs to the peer")
        return index

    def move(self, queue: RxQueue | TxQueue, burst: Burst, number: int) -> None:
        """Note that the buffer is in a burst of another queue now."""
        self._queue, self._burst, self._number = queue, burst, number

    def exchange(self, other: MemifBuffer) -> None:
        """Swap the places of two buffers of one slave.

        :raises ConfigError: they are not of one slave.
        """
        implementation.exchange(self.burst, self.burst_index, other.burst, other.burst_index)
        place = self._queue, self._burst, self._number
        self.move(other.queue, other.burst, other.number)
        other.move(*place)

    def check_held(self) -> None:
        """Check that the application holds the buffer.

        :raises ConfigError: the buffer was sent, or was given back to the peer.
        """
        try:
            self._burst.length(self.burst_index)
        except (ValueError, IndexError) as error:
            raise ConfigError(str(error)) from error
