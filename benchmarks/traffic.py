"""Packets that prove themselves, and an interface that sends and checks them all the time.

Every packet carries its connection's number, its place in the sequence and a checksum: one that is lost, doubled, out
of order, changed or left over from an earlier connection is told.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from memifrt import Disconnected, Interface, Runtime

#: Checksum of all that follows; the connection's random number; the place in the sequence; the length of the packet.
_HEADER = struct.Struct("<IIQI")
#: Bytes of a packet's body come from here.
_BLOCK = random.Random(0).randbytes(1 << 16)
#: Both ends of a test have these: packets of several buffers, and rings that are full at times.
OPTIONS: dict[str, Any] = {"num_s2m_rings": 2, "num_m2s_rings": 2, "log2_ring_size": 7, "buffer_size": 2048}
LONGEST = 5000


class Sequence:
    """The packets that one queue sends in one connection."""

    def __init__(self, numbers: random.Random) -> None:
        self._numbers = numbers
        self._connection = numbers.randrange(1 << 32)
        self._next = 0

    def packets(self, count: int) -> list[bytes]:
        """The next packets; ask for the same ones again unless they are :meth:`sent`."""
        return [self._packet(place) for place in range(self._next, self._next + count)]

    def sent(self, count: int) -> None:
        self._next += count

    def _packet(self, place: int) -> bytes:
        start, length = place * 257 % 40000, self._length(place)
        rest = _HEADER.pack(0, self._connection, place, length)[4:] + _BLOCK[start : start + length - _HEADER.size]
        return zlib.crc32(rest).to_bytes(4, "little") + rest

    def _length(self, place: int) -> int:
        """Mostly short, now and then of several buffers; the same whenever the place is asked for."""
        span = LONGEST if place % 16 == 0 else 200
        return _HEADER.size + place * 7919 % (span - _HEADER.size)


class Checker:
    """What one queue must receive in one connection."""

    def __init__(self) -> None:
        self._connection: int | None = None
        self._next = 0

    def check(self, packet: bytes) -> str:
        """What is wrong with the packet; nothing if it is the one that was due."""
        if len(packet) < _HEADER.size:
            return f"a packet of {len(packet)} bytes where {self._next} was due"
        checksum, connection, place, length = _HEADER.unpack_from(packet)
        due, self._next = self._next, place + 1
        if zlib.crc32(memoryview(packet)[4:]) != checksum or length != len(packet):
            return f"a packet of {len(packet)} bytes with a wrong checksum where {due} was due"
        if self._connection is None:
            self._connection = connection
        if connection != self._connection:
            return f"packet {place} of another connection where {due} was due"
        return "" if place == due else f"packet {place} where {due} was due"


class End:
    """An interface that sends on every queue and checks what it receives.

    :param wrong: told what is wrong with a packet.
    """

    def __init__(self, runtime: Runtime, wrong: Callable[[str], None], seed: int, **options: Any) -> None:
        self._numbers = random.Random(seed)
        self._wrong = wrong
        self._sequences: list[Sequence] = []
        self._checkers: list[Checker] = []
        self.received = self.sent = self.connections = 0
        #: Received in this connection.
        self.received_now = 0
        self.reasons: dict[str, int] = {}
        self._options = options
        self.interface = self.create(runtime)

    def create(self, runtime: Runtime) -> Interface:
        """The interface, anew."""
        self.interface = runtime.create_interface(
            **{**OPTIONS, **self._options},
            on_connect=self._on_connect,
            on_disconnect=self._on_disconnect,
            on_interrupt=self._on_interrupt,
        )
        return self.interface

    def work(self, most: int = 48) -> int:
        """Send some packets; how many were taken."""
        taken = 0
        if self.interface.connected:
            for queue, sequence in zip(self.interface.tx_queues, self._sequences, strict=True):
                count = queue.send(sequence.packets(self._numbers.randint(1, most)))
                sequence.sent(count)
                taken += count
        self.sent += taken
        return taken

    def _on_connect(self, interface: Interface) -> None:
        self.connections += 1
        self.received_now = 0
        self._sequences = [Sequence(self._numbers) for _ in interface.tx_queues]
        self._checkers = [Checker() for _ in interface.rx_queues]

    def _on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        self.reasons[reason.message] = self.reasons.get(reason.message, 0) + 1

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        packets = interface.rx_queues[qid].recv()
        checker = self._checkers[qid]
        for packet in packets:
            if trouble := checker.check(packet):
                self._wrong(f"{interface}, queue {qid}: {trouble}")
        self.received += len(packets)
        self.received_now += len(packets)
