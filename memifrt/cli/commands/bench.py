"""``memifrt bench``: run one end of a measurement, on one of the three levels of the data plane.

Owns the loops of source, sink, echo, gen and rr, and their counters. It prints the figures of this process: packets a
second since the first packet, and CPU time for each packet. An echo, a source or a sink may have a thread for each
queue.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from memifrt.cli.arguments import (
    Command,
    Parser,
    add_loop_argument,
    add_ring_arguments,
    interface_config,
    seconds_or_zero,
    session_options,
    whole,
)
from memifrt.cli.program import SessionOptions
from memifrt.cli.run_in_loop import LOOPS, Waiter, run
from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.interface import Interface
from memifrt.options import DEFAULT_BUFFER_SIZE, DEFAULT_RING_SIZE, RoleName, RxModeName, parse_rx_mode
from memifrt.packets import echo_request, parse_ip
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import __impl__
from memifrt.types import MAX_LOG2_RING_SIZE, Mode, QueueCounters, Role, RxMode, check_range

MODES = ("source", "sink", "echo", "gen", "rr")
APIS = ("packets", "burst", "vector", "loop")
CHECKS = ("content", "count")
PAYLOADS = ("zeros", "icmp")
#: The target of the echo requests of ``payload="icmp"``.
ICMP_TARGET = "192.168.1.2"
#: ``size="imix"``: the simple Internet mix, as pairs of packet size in bytes and number of packets.
IMIX = ((64, 7), (570, 4), (1518, 1))
#: Modes that may have a thread for each queue.
THREAD_MODES = ("source", "sink", "echo")

#: The number of turns between two looks at the clock.
_TURNS = 32
#: Seconds between two samples of the counters, and between two looks at the control channel while a loop polls.
_SAMPLE = 0.05
#: Seconds without a first packet after which gen and rr give up: a testpmd may need nine until it forwards.
_PATIENCE = 10.0
#: Seconds without a packet after which gen and rr count the packets in flight as lost. The time is long, because an
#: echo that only waited for its core must not find more packets than fit into the ring.
_LOST = 1.0
#: Seconds that gen waits for its last packets.
_LINGER = 1.0
_SEQUENCE_BYTES = 8
#: Ethernet, IPv4 and ICMP headers of an echo request.
_ECHO_HEADERS = 14 + 20 + 8


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. ``seconds`` counts from the first packet; 0 goes on until the peer disconnects.

    ``size`` is in bytes. With ``imix``, gen sends :data:`IMIX`, and ``size`` is that of the longest packet.
    ``burst`` counts buffers when receiving, and packets when sending. ``window`` is the number of packets of gen that
    may be in flight on each queue; 0 means as many as the ring holds, at most four bursts.
    ``api="loop"`` is an echo by ``TxQueue.forward_from``. It has a thread for each queue, as ``threads`` gives to the
    other levels. ``cpu`` pins the process to these cores, and each thread to one of them.
    """

    mode: str
    socket: str
    role: Role | RoleName = "slave"
    id: int = 0
    size: int = 64
    burst: int = 256
    seconds: float = 3.0
    num_s2m_rings: int = 1
    num_m2s_rings: int = 1
    ring_size: int = DEFAULT_RING_SIZE
    buffer_size: int = DEFAULT_BUFFER_SIZE
    rx_mode: RxMode | RxModeName = "polling"
    api: str = "burst"
    check: str = "content"
    payload: str = "zeros"
    window: int = 0
    imix: bool = False
    threads: bool = False
    cpu: tuple[int, ...] = ()
    loop: str = "internal"
    session_options: SessionOptions = field(default_factory=SessionOptions)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, MODES),
            ("api", self.api, APIS),
            ("check", self.check, CHECKS),
            ("payload", self.payload, PAYLOADS),
            ("loop", self.loop, LOOPS),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        check_range("size", self.size, 1 if self.payload == "zeros" else _ECHO_HEADERS, 65535)
        check_range("burst", self.burst, 1, 1 << 14)
        check_range("window", self.window, 0, 1 << 16)
        if self.payload == "icmp" and self.mode == "gen" and self.check == "content":
            raise ConfigError("payload is icmp; the reply is another packet, so check must be count")
        if self.mode == "gen" and self.check == "content" and self.size < _SEQUENCE_BYTES:
            raise ConfigError(
                f"size is {self.size}; a packet whose content is checked has at least {_SEQUENCE_BYTES} bytes"
            )
        self._check_imix()
        self._check_threads()
        if not self.seconds >= 0:
            raise ConfigError(f"seconds is {self.seconds}; it must be 0 or more")
        for cpu in self.cpu:
            if cpu not in os.sched_getaffinity(0):
                raise ConfigError(f"cpu is {cpu}; this process may run on {sorted(os.sched_getaffinity(0))}")

    def _check_imix(self) -> None:
        if not self.imix or self.mode in ("sink", "echo"):
            return
        if self.mode != "gen" or self.check != "count" or self.payload != "zeros":
            raise ConfigError("size is imix; only gen with check=count and payload=zeros sends such a mix")

    def _check_threads(self) -> None:
        if self.api == "loop" and self.mode in ("source", "sink"):
            raise ConfigError(f"api is loop; {self.mode} has no such loop, only echo")
        if self.threads and self.mode not in THREAD_MODES:
            raise ConfigError(f"{self.mode} cannot have threads; {', '.join(THREAD_MODES)} can")
        if self.threads and self.api != "loop" and parse_rx_mode(self.rx_mode) is not RxMode.POLLING:
            raise ConfigError(
                f"rx_mode is {parse_rx_mode(self.rx_mode).name.lower()}; threads poll, except with --api=loop"
            )

    @property
    def has_threads(self) -> bool:
        return self.threads or (self.api == "loop" and self.mode == "echo")

    @property
    def buffers_per_packet(self) -> int:
        return -(-self.size // self.buffer_size)

    def packet(self) -> bytes:
        """Return the packet to send."""
        return bytes(self.size) if self.payload == "zeros" else _echo_request(self.size)


@dataclass(slots=True)
class Result:
    """The result of a measurement.

    ``packets`` counts all packets that were sent (source), received (sink), sent back (echo), or came back (gen, rr).
    ``pps`` is their rate, and ``cpu_ns`` the CPU time of this process for each; both are measured over ``seconds``,
    from the first packets on. ``calls_ps`` is the rate of turns, each of which is one call (or a pair of calls) on a
    queue, whether it finds packets or not; 0 for rr and api=loop, which do not count them.
    ``rtt_us`` are percentiles of round trips (rr only), in microseconds.
    """

    mode: str
    impl: str
    packets: int = 0
    bytes: int = 0
    seconds: float = 0.0
    pps: float = 0.0
    cpu_ns: float = 0.0
    calls_ps: float = 0.0
    sent: int = 0
    dropped: int = 0
    corrupted: int = 0
    rtt_us: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        bits = 8 * self.bytes / max(self.packets, 1)
        text = [
            f"{self.mode} ({self.impl} rings): {self.packets} packets in {self.seconds:.2f} s: "
            f"{self.pps / 1e6:.3f} Mpps, {self.pps * bits / 1e9:.2f} Gbit/s, {self.cpu_ns:.1f} ns of CPU a packet",
        ]
        if self.sent:
            text.append(f"sent {self.sent}, dropped {self.dropped}, corrupted {self.corrupted}")
        if self.rtt_us:
            text.append("round trip: " + ", ".join(f"{name} {value:.1f} us" for name, value in self.rtt_us.items()))
        return text

    def json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment; ``time`` and ``cpu`` in seconds."""

    time: float = 0.0
    cpu: float = 0.0
    packets: int = 0
    calls: int = 0


class Meter:
    """Takes samples of time, CPU time, packets and calls. The rates are measured from the first to the last packet."""

    def __init__(self, live: bool) -> None:
        self.started = False
        self._first = self._last = self._shown = Sample()
        self._live = live

    def sample(self, packets: int, calls: int = 0) -> float:
        """Take a sample; return the seconds since the first packet."""
        now = Sample(time.monotonic(), time.process_time(), packets, calls)
        if not self.started:
            if packets:
                self.started = True
                self._first = self._last = self._shown = now
            return 0.0
        if packets > self._last.packets:
            self._last = now
        if self._live and now.time - self._shown.time >= 1.0:
            rate = (packets - self._shown.packets) / (now.time - self._shown.time)
            print(f"\r{rate / 1e6:9.3f} Mpps", end="", file=sys.stderr, flush=True)
            self._shown = now
        return now.time - self._first.time

    def close(self) -> None:
        if self._live:
            print("\r" + " " * 20 + "\r", end="", file=sys.stderr, flush=True)

    def fill(self, result: Result) -> None:
        first, last = self._first, self._last
        packets = last.packets - first.packets
        if packets:
            result.seconds = last.time - first.time
            result.pps = packets / result.seconds
            result.cpu_ns = (last.cpu - first.cpu) / packets * 1e9
            result.calls_ps = (last.calls - first.calls) / result.seconds


# --- turns: the work that is repeated on a pair of queues -----------------------------------------------------------


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
        for _ in range(_TURNS):
            self()
        self.calls += _TURNS

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
        for _ in range(_TURNS):
            forward(rx, burst)
        self.calls += _TURNS


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
        self._mix = _mix(options.burst) if options.imix else None
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
        """Send packets of the mix, a size at a time, where the last call has ended."""
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


def _mix(burst: int) -> Iterator[tuple[int, int]]:
    """Yield sizes of :data:`IMIX` and how many packets of each to send, about ``burst`` packets a cycle."""
    cycles = max(1, burst // sum(count for _, count in IMIX))
    while True:
        for size, count in IMIX:
            yield size, count * cycles


class GenContent(Gen):
    """Numbers every packet, and checks that each one comes back unchanged and in order. A gap counts as dropped."""

    def __init__(self, options: Options, rx: RxQueue, tx: TxQueue) -> None:
        super().__init__(options, rx, tx)
        self._rest = bytes(options.size - _SEQUENCE_BYTES)
        self._expected = 0
        self._written_off = 0

    def __call__(self) -> None:
        start, room, rest = self._sent, self._room(), self._rest
        if room > 0:
            self._sent += self.tx.send([(start + i).to_bytes(_SEQUENCE_BYTES, "big") + rest for i in range(room)])
        for packet in self.rx.recv(self.burst):
            number = int.from_bytes(packet[:_SEQUENCE_BYTES], "big")
            if self._expected <= number < self._sent and packet[_SEQUENCE_BYTES:] == rest:
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
            for _ in range(_TURNS):
                self()

    def write_off(self) -> None:
        """Count the packet as lost if it has been away for too long."""
        if self._started and time.perf_counter_ns() - self._started > _LOST * 1e9 and not self.rx.pending():
            self._started = 0
            self.dropped += 1


_TURNS_OF: dict[tuple[str, str], type[Turn]] = {
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


# --- the measurement ------------------------------------------------------------------------------------------------


class Worker(threading.Thread):
    """Turns on one pair of queues, until ``stop`` is set or the peer is gone."""

    def __init__(self, turn: Turn, cpu: int | None, stop: bytearray) -> None:
        super().__init__(name="bench", daemon=True)
        self._turn = turn
        self._cpu = cpu
        self._until = stop
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            if self._cpu is not None:
                os.sched_setaffinity(0, {self._cpu})
            self._turn.run_until(self._until)
        except Disconnected:
            pass
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """:raises BaseException: the exception that ended the thread."""
        if self._error is not None:
            raise self._error


class Bench:
    """One end of a measurement: an interface, and turns on its queues until the time is over or the peer is gone."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._turns: list[Turn] = []
        self._gens: list[Gen] = []
        self._interface: Interface | None = None
        self._trips: RoundTrips | None = None

    def run(self, *, live: bool = False) -> Result:
        options = self.options
        if options.cpu:
            os.sched_setaffinity(0, options.cpu)
        meter = Meter(live)

        async def main(waiter: Waiter) -> Result:
            interface = self._interface = waiter.runtime.create_interface(
                socket=options.socket,
                id=options.id,
                role=options.role,
                num_s2m_rings=options.num_s2m_rings,
                num_m2s_rings=options.num_m2s_rings,
                ring_size=options.ring_size,
                buffer_size=options.buffer_size,
                rx_mode=options.rx_mode,
                on_connect=self._on_connect,
                on_interrupt=None if options.has_threads else self._on_interrupt,
            )
            try:
                while not interface.connected:
                    await waiter.wait(None)
                if options.mode == "rr":
                    await self._rr(waiter, interface, meter)
                elif options.has_threads:
                    await self._watch_threads(waiter, interface, meter)
                else:
                    await self._loop(waiter, interface, meter)
            except (Disconnected, PollCancelled):  # Ctrl+C, or the peer is gone: report what was measured so far
                pass
            finally:
                meter.sample(self._counted().packets, self._calls())
                meter.close()
            return self._result(meter)

        return run("bench", main, loop=options.loop, reconnect_interval=0.1, session_options=options.session_options)

    def _on_connect(self, interface: Interface) -> None:
        rx, tx = interface.rx_queues, interface.tx_queues
        if not rx or not tx:
            raise ConfigError(f"{interface}: the peer gave {len(rx)} and {len(tx)} queues; one each way is needed")
        options = self.options
        if options.has_threads and len(rx) != len(tx):
            raise ConfigError(
                f"{interface}: the peer gave {len(rx)} and {len(tx)} queues; threads need as many each way"
            )
        if options.mode == "rr":
            self._trips = RoundTrips(options, rx[0], tx[0])
            return
        make = _TURNS_OF[options.mode, options.check if options.mode == "gen" else options.api]
        # A peer may offer fewer queues, and different numbers in the two directions.
        pairs = (min if options.mode == "gen" else max)(len(rx), len(tx))
        self._turns = [make(options, rx[qid % len(rx)], tx[qid % len(tx)]) for qid in range(pairs)]
        self._gens = [turn for turn in self._turns if isinstance(turn, Gen)]

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        if self._trips is not None:
            self._trips()
        elif self.options.mode in ("sink", "echo"):
            self._turns[qid]()
            self._turns[qid].calls += 1

    def _counted(self) -> QueueCounters:
        """Return the counters behind ``Result.packets``. Queues count packets, not buffers."""
        if self.options.mode == "rr":
            trips = 0 if self._trips is None else len(self._trips.took)
            return QueueCounters(trips, trips * self.options.size)
        return _sum(self._interface, sends=self.options.mode in ("source", "echo"))

    def _calls(self) -> int:
        return sum(turn.calls for turn in self._turns)

    def _result(self, meter: Meter) -> Result:
        result = Result(self.options.mode, __impl__)
        meter.fill(result)
        counted = self._counted()
        result.corrupted = sum(turn.corrupted for turn in self._turns)
        result.packets = counted.packets - result.corrupted
        result.bytes = counted.bytes
        result.sent = _sum(self._interface, sends=True).packets
        result.dropped = sum(turn.dropped for turn in self._turns) + (self._trips.dropped if self._trips else 0)
        ranked = sorted(self._trips.took) if self._trips else []
        if ranked:
            result.rtt_us = {
                name: ranked[min(len(ranked) - 1, int(share * len(ranked)))] / 1e3
                for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
            }
        return result

    # --- loops --------------------------------------------------------------------------------------------------

    async def _loop(self, waiter: Waiter, interface: Interface, meter: Meter) -> None:
        """Repeat turns, and look at the clock and the control channel now and then."""
        polling = parse_rx_mode(self.options.rx_mode) is RxMode.POLLING or self.options.mode in ("source", "gen")
        rounds = range(max(1, _TURNS // len(self._turns)))
        seen, last_progress, next_sample = 0, 0.0, 0.0
        gives_up = self._gives_up()
        while interface.connected:
            if polling:
                self._repeat(rounds)
            else:
                await waiter.run_for(_SAMPLE)
            now = time.monotonic()
            if now < next_sample and meter.started:
                continue
            packets = self._counted().packets
            if meter.sample(packets, self._calls()) >= self.options.seconds > 0 or (
                not meter.started and now >= gives_up
            ):
                await self._drain(waiter, interface)
                return
            if now >= next_sample:
                next_sample = now + _SAMPLE
                if packets > seen:
                    seen, last_progress = packets, now
                elif meter.started and now - last_progress > _LOST:
                    last_progress = now
                    for gen in self._gens:
                        gen.write_off()
                if polling:
                    await waiter.wait(0)

    def _repeat(self, rounds: range) -> None:
        """Do turns on every queue. Several queues take turns one by one."""
        if len(self._turns) == 1:
            self._turns[0].repeat()
            return
        for _ in rounds:
            for turn in self._turns:
                turn()
        for turn in self._turns:
            turn.calls += len(rounds)

    async def _watch_threads(self, waiter: Waiter, interface: Interface, meter: Meter) -> None:
        """Let a thread for each queue do the turns, and look at the clock and the control channel."""
        stop = bytearray(1)
        cpus = self.options.cpu
        workers = [
            Worker(turn, cpus[number % len(cpus)] if cpus else None, stop) for number, turn in enumerate(self._turns)
        ]
        for worker in workers:
            worker.start()
        try:
            while interface.connected:
                await waiter.run_for(_SAMPLE)
                for worker in workers:
                    worker.check()
                if meter.sample(self._counted().packets, self._calls()) >= self.options.seconds > 0:
                    return
        finally:
            stop[0] = 1
            for worker in workers:
                worker.join()

    def _gives_up(self) -> float:
        """Return the time at which to stop without a packet. Only the modes that send first have such a limit."""
        waits = self.options.mode not in ("gen", "rr") or not self.options.seconds
        return float("inf") if waits else time.monotonic() + _PATIENCE

    async def _drain(self, waiter: Waiter, interface: Interface) -> None:
        """Receive the packets in flight, and then count the missing ones as lost."""
        for gen in self._gens:
            gen.stop()
        deadline = time.monotonic() + _LINGER
        while interface.connected and time.monotonic() < deadline and not all(gen.is_complete() for gen in self._gens):
            for gen in self._gens:
                gen()
            await waiter.wait(0)
        for gen in self._gens:
            gen.write_off()

    async def _rr(self, waiter: Waiter, interface: Interface, meter: Meter) -> None:
        """Make round trips. The reply is taken in the callback, or by polling."""
        trips = self._trips
        assert trips is not None
        polling = parse_rx_mode(self.options.rx_mode) is RxMode.POLLING
        gives_up = self._gives_up()
        next_sample = time.monotonic()
        while interface.connected and (trips.under_way or not trips.stopping):
            if not trips.under_way and not trips.start():  # the slave may not have posted its buffers yet
                await waiter.run_for(0.001)
            elif polling:
                trips.look_until(next_sample)
                await waiter.wait(0)
            else:
                await waiter.run_for(_SAMPLE)
            now = time.monotonic()
            if now >= next_sample:
                next_sample = now + _SAMPLE
                trips.write_off()
                elapsed = meter.sample(len(trips.took))
                if elapsed >= self.options.seconds > 0 or (not meter.started and now >= gives_up):
                    trips.stopping = True


def _sum(interface: Interface | None, *, sends: bool) -> QueueCounters:
    queues = () if interface is None else interface.tx_queues if sends else interface.rx_queues
    return sum((queue.counters for queue in queues), QueueCounters())


def _echo_request(size: int) -> bytes:
    return echo_request(
        source_mac=bytes.fromhex("02fe00000001"),
        source_ip=parse_ip("192.168.1.1"),
        target_mac=bytes.fromhex("02fec0a80102"),
        target_ip=parse_ip(ICMP_TARGET),
        identifier=1,
        sequence=1,
        payload=bytes(size - _ECHO_HEADERS),
        mode=Mode.ETHERNET,
    )


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("what", choices=MODES, metavar="WHAT", help=", ".join(MODES))
    add(
        "--size",
        type=_size,
        default=64,
        metavar="N",
        help="bytes of a packet; imix: gen sends 64, 570 and 1518 bytes as 7:4:1; default 64",
    )
    add(
        "--burst",
        type=whole(1, 1 << MAX_LOG2_RING_SIZE),
        default=256,
        metavar="N",
        help="packets a call, of this end alone; default 256",
    )
    add(
        "--seconds",
        type=seconds_or_zero,
        default=3.0,
        metavar="N",
        help="how long to measure, from the first packet; 0: until the peer disconnects; default 3",
    )
    add("--api", choices=APIS, default="burst", help="level of the data plane for source, sink, echo; default burst")
    add(
        "--threads", action="store_true", help="source, sink, echo: a thread for each queue; --api=loop always has them"
    )
    add("--check", choices=CHECKS, default="content", help="what gen checks; default content")
    add("--payload", choices=PAYLOADS, default="zeros", help=f"icmp: echo requests to {ICMP_TARGET}; default zeros")
    add("--window", type=whole(0, 1 << 16), default=0, metavar="N", help="gen: packets in flight; default 4 bursts")
    add(
        "--cpu",
        type=_cpus,
        default=(),
        metavar="N[,N]",
        help="pin this process to these cores, and each of its threads to one of them",
    )
    add("--json", action="store_true", help="print one line of JSON")
    add_loop_argument(parser)
    add_ring_arguments(parser, "polling")


def _size(text: str) -> int | str:
    try:
        return text if text == "imix" else whole(1, 65535)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or imix") from error


def _cpus(text: str) -> tuple[int, ...]:
    return tuple(whole(0, 4095)(number) for number in text.split(","))


def _run(arguments: argparse.Namespace) -> int:
    given = {**vars(arguments), "mode": arguments.what, "session_options": session_options(arguments)}
    given["imix"] = arguments.size == "imix"
    if given["imix"]:
        given["size"] = max(size for size, _ in IMIX)
    config = interface_config(arguments)
    given |= {name: getattr(config, name) for name in ("num_s2m_rings", "num_m2s_rings", "ring_size")}
    options = Options(**{name: given[name] for name in Options.__dataclass_fields__})
    result = Bench(options).run(live=sys.stderr.isatty() and not arguments.json)
    print(result.json() if arguments.json else "\n".join(result.lines()))
    return 0


COMMAND = Command(
    "bench",
    "measure packets a second, CPU time for each packet, and round trips",
    """example, in two terminals, with packets sent and echoed:
  memifrt bench echo --role slave --socket @lab --cpu 0 --seconds 0
  memifrt bench gen --role master --socket @lab --cpu 1

source sends, sink receives, echo sends packets back, gen sends packets and checks the returned ones,
rr sends one packet at a time and waits for it: p50, p99, p99.9""",
    _add_arguments,
    _run,
)
