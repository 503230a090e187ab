"""Packets that a peer sent before it ended the connection, kept for callers that come too late for its ring.

Owns the packets between the end of a connection and the call that takes them. Knows no loop and no callers.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from memifrt.errors import Disconnected
from memifrt.queue import RxQueue
from memifrt.ring import Burst

_Taken = TypeVar("_Taken")


class KeptPackets:
    """The packets of one receive queue that no call has taken before the end of the connection.

    They stay in the shared memory, which stays mapped until they are taken. So only those of the last connection are
    kept: otherwise a peer that connects again and again could fill the address space.
    """

    def __init__(self) -> None:
        #: One burst for each packet, because the limit of the call that will take them is not known.
        self._bursts: deque[Burst] = deque()

    def __len__(self) -> int:
        return len(self._bursts)

    def keep(self, queue: RxQueue) -> None:
        """Take every packet out of a queue of a connection that ends. Drop those of the connection before it."""
        self.drop()
        with contextlib.suppress(Disconnected):  # the peer broke the ring: the packets before that are good
            while burst := queue.burst(1):
                self._bursts.append(burst)

    def drop(self) -> None:
        """Drop all packets."""
        while self._bursts:
            self._bursts.popleft().close()

    def burst(self, limit: int) -> Burst:
        """Take the next packet, without a copy, whatever the limit. There must be one."""
        return self._bursts.popleft()

    def recv(self, limit: int) -> list[bytes]:
        """Take the packets of up to ``limit`` buffers, and return a copy of each: at least one. There must be one."""
        packets: list[bytes] = []
        left = limit
        while self._bursts and (not packets or len(self._bursts[0]) <= left):
            with self._bursts.popleft() as burst:
                left -= len(burst)
                packets.append(b"".join(burst))
        return packets


class Take(Generic[_Taken]):
    """How a call takes packets.

    :ivar from_queue: ``from_queue(queue, limit)`` takes them out of a queue.
    :ivar from_kept: the same for packets that were kept.
    """

    __slots__ = ("from_kept", "from_queue")

    def __init__(
        self, from_queue: Callable[[RxQueue, int], _Taken], from_kept: Callable[[KeptPackets, int], _Taken]
    ) -> None:
        self.from_queue = from_queue
        self.from_kept = from_kept


def _take_packets(rx: RxQueue, limit: int) -> list[bytes]:
    """Take packets as bytes."""
    return rx.recv(limit)


def _take_burst(rx: RxQueue, limit: int) -> Burst:
    """Take a burst."""
    return rx.burst(limit)


RECV: Take[list[bytes]] = Take(_take_packets, KeptPackets.recv)
BURST: Take[Burst] = Take(_take_burst, KeptPackets.burst)

__all__ = ["BURST", "RECV", "KeptPackets", "Take"]
