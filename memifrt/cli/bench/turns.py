"""Turns: the work that a measurement repeats on a pair of queues."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator

from memifrt.cli.bench import limits
from memifrt.cli.bench.options import IMIX, SEQUENCE_BYTES, Options
from memifrt.errors import ConfigError
from memifrt.queue import RxQueue, TxQueue


class Matrix:
    """Rows for packets and their lengths, for the vector calls. They are plain buffers, without NumPy."""

    def __init__(self, rows: int, width: int) -> None:
        self.rows = memoryview(bytearray(rows * width)).cast("B", (rows, width))
        self.lengths = memoryview(array("I", [width] * rows))


class Turn(ABC):
    """One turn on a pair of queues."""

    #: Packets that could not be sent, or did not come back.
    dropped = 0
    #: Packets that came back changed.
    corrupted = 0
    #: How often :meth:`repeat` has repeated it.
    calls = 0

    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        self.options = options
        self.rx = rx
        self.tx = tx
        self.burst = options.burst

    @abstractmethod
    def __call__(self) -> None: ...

    def repeat(self) -> None:
        """Do a number of turns."""
        for _ in range(limits.TURNS):
            self()
        self.calls += limits.TURNS

    def run_until(self, stop: bytearray) -> None:
        """Repeat turns until the byte is no longer 0, in a thread of its own."""
        while not stop[0]:
            self.repeat()


class SourcePackets(Turn):
    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        super().__init__(options, rx, tx)
        self._packets = [options.packet()] * options.burst

    def __call__(self) -> None:
        self.tx.send(self._packets)


class SourceBurst(Turn):
    """Publishes buffers without touching their data."""

    def __call__(self) -> None:
        self.tx.transmit(self.tx.alloc(self.burst, self.options.size))


class SourceVector(Turn):
    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        super().__init__(options, rx, tx)
        self._matrix = Matrix(min(options.burst, tx.ring_size), options.size)
        memoryview(self._matrix.rows).cast("B")[:] = options.packet() * len(self._matrix.lengths)

    def __call__(self) -> None:
        self.tx.send_from(self._matrix.rows, self._matrix.lengths)


class SinkPackets(Turn):
    def __call__(self) -> None:
        self.rx.recv(self.burst)


class SinkBurst(Turn):
    def __call__(self) -> None:
        with self.rx.burst(self.burst):
            pass


class SinkVector(Turn):
    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        super().__init__(options, rx, tx)
        self._matrix = Matrix(min(options.burst, rx.ring_size), max(options.size, options.buffer_size))

    def __call__(self) -> None:
        self.rx.recv_into(self._matrix.rows, self._matrix.lengths)


class EchoPackets(Turn):
    def __call__(self) -> None:
        packets = self.rx.recv(self.burst)
        if packets:
            self.dropped += len(packets) - self.tx.send(packets)


class EchoBurst(Turn):
    def __call__(self) -> None:
        self.tx.forward(self.rx, self.burst)

    def repeat(self) -> None:
        # With bursts of one packet, a call costs as much as the Python around it.
        forward, rx, burst = self.tx.forward, self.rx, self.burst
        for _ in range(limits.TURNS):
            forward(rx, burst)
        self.calls += limits.TURNS


class EchoLoop(EchoBurst):
    """Forwards in a loop of the queue's own, which needs no Python."""

    def run_until(self, stop: bytearray) -> None:
        self.tx.forward_from(self.rx, until=stop, limit=self.burst)


class EchoVector(SinkVector):
    def __call__(self) -> None:
        matrix = self._matrix
        count = self.rx.recv_into(matrix.rows, matrix.lengths)
        if count:
            try:
                self.dropped += count - self.tx.send_from(matrix.rows, matrix.lengths[:count])
            except ConfigError as error:  # a packet was cut to its row
                raise ConfigError(f"{error}: --size must be the size of the received packets") from error


class Gen(Turn):
    """Keeps a window of packets in flight."""

    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        super().__init__(options, rx, tx)
        # The packets in flight must fit into the ring on which they come back, or an echo has to drop some.
        fits = min(rx.ring_size, tx.ring_size) // options.buffers_per_packet
        self._window = options.window or max(1, min(4 * options.burst, fits))
        self._sent = 0
        self._returned = 0

    def stop(self) -> None:
        """Send no more packets."""
        self._window = 0

    def is_complete(self) -> bool:
        """Return whether all packets have come back."""
        return self._returned + self.corrupted >= self._sent

    @abstractmethod
    def write_off(self) -> None:
        """Count the packets in flight as lost."""

    @abstractmethod
    def _on_its_way(self) -> int:
        """Return the number of packets in flight."""

    def _room(self) -> int:
        return min(self.burst, self._window - self._on_its_way())


class GenCount(Gen):
    """Sends without touching the data and counts the returned packets, with as little work as possible."""

    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        super().__init__(options, rx, tx)
        # A peer that works in bursts of one gives packets back one by one. Sent again one by one, they would make both
        # ends wait for the same cache lines all the time, and that would be measured.
        self._least = max(1, min(options.burst, self._window) // 4)
        self._icmp = options.payload == "icmp"
        self._packets = [options.packet()] * options.burst
        self._alloc, self._transmit, self._send, self._take = tx.alloc, tx.transmit, tx.send, rx.burst
        self._chain = options.buffers_per_packet
        self._mix = mix(options.burst) if options.imix else None
        self._size, self._left = next(self._mix) if self._mix else (options.size, 0)
        self._earlier = rx.counters.packets

    def __call__(self) -> None:
        # Inlined, with as few calls as possible: the cost of this end limits what can be measured at the other end.
        room = self._window - self._sent + self._returned + self.dropped
        if room >= self._least:
            if room > self.burst:
                room = self.burst
            if self._icmp:  # the peer may answer in place, so write the data each time
                self._sent += self._send(self._packets[:room])
            elif self._mix:
                self._send_mix(room)
            else:
                allocated = self._alloc(room, self._size)
                self._sent += len(allocated) // self._chain
                self._transmit(allocated)
        with self._take(self.burst) as burst:
            self._returned += len(burst)
        if self._chain > 1:  # the peer may split packets differently: the queue counts packets, not buffers
            self._returned = self.rx.counters.packets - self._earlier
        if self.dropped:  # packets that counted as lost may still come
            self.dropped = min(self.dropped, self._sent - self._returned)

    def _send_mix(self, room: int) -> None:
        """Send packets of the mix, one size after the other. Continue where the last call stopped."""
        assert self._mix is not None
        while room > 0:
            wanted = min(room, self._left)
            allocated = self._alloc(wanted, self._size)
            count = len(allocated) // -(-self._size // self.options.buffer_size)
            self._transmit(allocated)
            self._sent += count
            self._left -= count
            if not self._left:
                self._size, self._left = next(self._mix)
            if count < wanted:
                return
            room -= count

    def _on_its_way(self) -> int:
        return self._sent - self._returned - self.dropped

    def write_off(self) -> None:
        self.dropped = self._sent - self._returned


def mix(burst: int) -> Iterator[tuple[int, int]]:
    """Yield sizes of :data:`IMIX` and how many packets of each to send, about ``burst`` packets a cycle."""
    cycles = max(1, burst // sum(count for _, count in IMIX))
    while True:
        for size, count in IMIX:
            yield size, count * cycles


class GenContent(Gen):
    """Numbers every packet, and checks that each one comes back unchanged and in order. A gap counts as dropped."""

    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        super().__init__(options, rx, tx)
        self._rest = bytes(options.size - SEQUENCE_BYTES)
        self._expected = 0
        self._written_off = 0

    def __call__(self) -> None:
        start, room, rest = self._sent, self._room(), self._rest
        if room > 0:
            self._sent += self.tx.send([(start + i).to_bytes(SEQUENCE_BYTES, "big") + rest for i in range(room)])
        for packet in self.rx.recv(self.burst):
            number = int.from_bytes(packet[:SEQUENCE_BYTES], "big")
            if self._expected <= number < self._sent and packet[SEQUENCE_BYTES:] == rest:
                self._returned += 1
                self._expected = number + 1
            else:
                self.corrupted += 1
        self._count_dropped()

    def _on_its_way(self) -> int:
        return self._sent - max(self._expected, self._written_off)

    def write_off(self) -> None:
        self._written_off = self._sent
        self._count_dropped()

    def _count_dropped(self) -> None:
        self.dropped = max(0, self._sent - self._returned - self.corrupted - self._on_its_way())


class RoundTrips(Turn):
    """Sends one packet at a time and waits for it. A turn takes the reply and sends the next packet."""

    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        super().__init__(options, rx, tx)
        #: The time of each round trip in nanoseconds.
        self.took = array("Q")
        #: Whether the current round trip is the last one.
        self.stopping = False
        self._packet = [options.packet()]
        self._started = 0

    @property
    def under_way(self) -> bool:
        return self._started > 0

    def start(self) -> bool:
        """Send a packet; return False if there was no room."""
        if self.dropped:  # a late reply must not count as the reply to the next packet
            while self.rx.recv(self.burst):
                pass
        self._started = time.perf_counter_ns()
        if not self.tx.send(self._packet):
            self._started = 0
        return self._started > 0

    def __call__(self) -> None:
        if self.rx.recv(1) and self._started:
            self.took.append(time.perf_counter_ns() - self._started)
            self._started = 0
            if not self.stopping:
                self.start()

    def look_until(self, end: float) -> None:
        """Repeat turns, and look at the clock now and then."""
        while self._started and time.monotonic() < end:
            for _ in range(limits.TURNS):
                self()

    def write_off(self) -> None:
        """Count the packet as lost if it has been away for too long."""
        if self._started and time.perf_counter_ns() - self._started > limits.LOST * 1e9 and not self.rx.pending():
            self._started = 0
            self.dropped += 1


TURNS_OF: dict[tuple[str, str], type[Turn]] = {
    ("source", "packets"): SourcePackets,
    ("source", "burst"): SourceBurst,
    ("source", "vector"): SourceVector,
    ("sink", "packets"): SinkPackets,
    ("sink", "burst"): SinkBurst,
    ("sink", "vector"): SinkVector,
    ("echo", "packets"): EchoPackets,
    ("echo", "burst"): EchoBurst,
    ("echo", "vector"): EchoVector,
    ("echo", "loop"): EchoLoop,
    ("gen", "count"): GenCount,
    ("gen", "content"): GenContent,
}
