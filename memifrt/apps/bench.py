"""``memifrt bench``: one end of a measurement, over any of the three levels of the data plane.

Owns the loops of source, sink, echo, gen and rr, and what is counted in them. What it prints are this process's own
figures: packets a second between the first and the last packet, and CPU time a packet.
"""

from __future__ import annotations

import json
import os
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from memifrt.apps.packets import echo_request, parse_ip
from memifrt.apps.session import session
from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.interface import Interface
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import __impl__
from memifrt.runtime import Runtime
from memifrt.types import Mode, Role, RxMode, check_range, parse_rx_mode

MODES = ("source", "sink", "echo", "gen", "rr")
APIS = ("packets", "burst", "vector")
CHECKS = ("content", "count")
PAYLOADS = ("zeros", "icmp")
#: Whom the echo requests of ``payload="icmp"`` are for; any MAC address.
ICMP_TARGET = "192.168.1.2"

#: Rounds over the queues between two looks at the clock.
_ROUNDS = 32
#: Seconds between two samples of the counters, and two looks at the control channel while a loop polls.
_SAMPLE = 0.05
_SEQUENCE_BYTES = 8
#: Ethernet, IPv4 and ICMP headers of an echo request.
_ECHO_HEADERS = 14 + 20 + 8


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. ``seconds`` counts from the first packet; 0 goes on until the peer disconnects."""

    mode: str
    socket: str
    role: Role | str = "slave"
    id: int = 0
    size: int = 64
    burst: int = 256
    seconds: float = 3.0
    queues: int = 1
    log2_ring_size: int = 10
    buffer_size: int = 2048
    rx_mode: RxMode | str = "polling"
    api: str = "burst"
    check: str = "content"
    payload: str = "zeros"
    window: int = 0
    cpu: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, MODES),
            ("api", self.api, APIS),
            ("check", self.check, CHECKS),
            ("payload", self.payload, PAYLOADS),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        check_range("size", self.size, 1 if self.payload == "zeros" else _ECHO_HEADERS, 65535)
        check_range("burst", self.burst, 1, 1 << 14)
        check_range("window", self.window, 0, 1 << 16)
        if self.payload == "icmp" and self.mode == "gen" and self.check == "content":
            raise ConfigError("payload is icmp; what comes back is another packet, so check must be count")
        if self.mode == "gen" and self.check == "content" and self.size < _SEQUENCE_BYTES:
            raise ConfigError(
                f"size is {self.size}; a packet whose content is checked has at least {_SEQUENCE_BYTES} bytes"
            )
        if not self.seconds >= 0:
            raise ConfigError(f"seconds is {self.seconds}; it must be 0 or more")
        if self.cpu is not None and self.cpu not in os.sched_getaffinity(0):
            raise ConfigError(f"cpu is {self.cpu}; this process may run on {sorted(os.sched_getaffinity(0))}")


@dataclass(slots=True)
class Result:
    """What was measured. ``cpu_ns`` is this process's CPU time a packet; ``rtt_us`` are percentiles (rr only)."""

    mode: str
    impl: str
    packets: int = 0
    bytes: int = 0
    seconds: float = 0.0
    pps: float = 0.0
    cpu_ns: float = 0.0
    sent: int = 0
    dropped: int = 0
    corrupted: int = 0
    rtt_us: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people."""
        text = [
            f"{self.mode} ({self.impl} rings): {self.packets} packets in {self.seconds:.2f} s: "
            f"{self.pps / 1e6:.3f} Mpps, {8 * self.bytes / max(self.seconds, 1e-9) / 1e9:.2f} Gbit/s, "
            f"{self.cpu_ns:.1f} ns of CPU a packet",
        ]
        if self.sent:
            text.append(f"sent {self.sent}, dropped {self.dropped}, corrupted {self.corrupted}")
        if self.rtt_us:
            text.append("round trip: " + ", ".join(f"{name} {value:.1f} us" for name, value in self.rtt_us.items()))
        return text

    def json(self) -> str:
        return json.dumps(asdict(self))


class Meter:
    """Samples of (time, CPU time, packets): the rate is that between the first and the last packet seen."""

    def __init__(self, live: bool) -> None:
        self.first: tuple[float, float, int] | None = None
        self.last = self.shown = (0.0, 0.0, 0)
        self._live = live

    def sample(self, packets: int) -> float:
        """Note where we are; the seconds since the first packet."""
        now = (time.monotonic(), time.process_time(), packets)
        if self.first is None:
            if packets:
                self.first = self.last = self.shown = now
            return 0.0
        if packets > self.last[2]:
            self.last = now
        if self._live and now[0] - self.shown[0] >= 1.0:
            rate = (packets - self.shown[2]) / (now[0] - self.shown[0])
            print(f"\r{rate / 1e6:9.3f} Mpps", end="", file=sys.stderr, flush=True)
            self.shown = now
        return now[0] - self.first[0]

    def close(self) -> None:
        if self._live:
            print("\r" + " " * 20 + "\r", end="", file=sys.stderr, flush=True)

    def fill(self, result: Result, size: int) -> None:
        if self.first is not None and self.last[0] > self.first[0]:
            packets = self.last[2] - self.first[2]
            result.seconds = self.last[0] - self.first[0]
            result.pps = packets / result.seconds
            result.cpu_ns = (self.last[1] - self.first[1]) / max(packets, 1) * 1e9
            result.packets, result.bytes = packets, packets * size


class Matrix:
    """Rows for packets and their lengths, as the vector calls want them: plain buffers, no NumPy needed."""

    def __init__(self, rows: int, width: int) -> None:
        self.rows = memoryview(bytearray(rows * width)).cast("B", (rows, width))
        self.lengths = memoryview(array("I", [width] * rows))


Step = Callable[[RxQueue, TxQueue], int]


class Bench:
    """One end: an interface, and what a turn on a pair of queues does."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.sent = self.dropped = self.corrupted = 0
        self._matrix = Matrix(options.burst, max(options.size, 64 if options.mode == "source" else 2048))
        self._packet = bytes(options.size) if options.payload == "zeros" else _echo_request(options.size)
        self._packets = [self._packet] * options.burst
        if options.mode == "source":
            self._matrix = Matrix(options.burst, options.size)
        self._next: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        self._returned: dict[int, int] = {}
        self.window = options.window or min(4 * options.burst, 1 << options.log2_ring_size)
        self._done = self._seen = 0
        self._turn: Step = self._choose()

    def run(self, *, live: bool = False) -> Result:
        options = self.options
        if options.cpu is not None:
            os.sched_setaffinity(0, {options.cpu})
        meter = Meter(live)
        result = Result(options.mode, __impl__)
        with session("bench", reconnect_interval=0.1) as runtime:
            interface = runtime.create_interface(
                socket=options.socket,
                id=options.id,
                role=options.role,
                num_s2m_rings=options.queues,
                num_m2s_rings=options.queues,
                log2_ring_size=options.log2_ring_size,
                buffer_size=options.buffer_size,
                rx_mode=options.rx_mode,
                on_interrupt=self._on_interrupt,
            )
            try:
                while not interface.connected:
                    runtime.poll_event(None)
                if options.mode == "rr":
                    result.rtt_us = self._round_trips(runtime, interface, meter)
                else:
                    self._loop(runtime, interface, meter)
            except (Disconnected, PollCancelled):  # Ctrl+C: what was measured until then counts
                meter.sample(self._done)
            finally:
                meter.close()
        meter.fill(result, options.size)
        result.sent, result.corrupted = self.sent, self.corrupted
        result.dropped = self.dropped
        return result

    # --- loops --------------------------------------------------------------------------------------------------

    def _loop(self, runtime: Runtime, interface: Interface, meter: Meter) -> None:
        """Turn after turn; the clock and the control channel are looked at now and then."""
        queues = list(zip(interface.rx_queues, interface.tx_queues, strict=False))
        polling = parse_rx_mode(self.options.rx_mode) is RxMode.POLLING or self.options.mode in ("source", "gen")
        turn, seconds = self._turn, self.options.seconds
        next_sample = 0.0
        while interface.connected:
            if polling:
                for _ in range(_ROUNDS):
                    for rx, tx in queues:
                        self._done += turn(rx, tx)
            else:
                runtime.poll_event(_SAMPLE)
            now = time.monotonic()
            if now >= next_sample:
                next_sample = now + _SAMPLE
                self._write_off()
                if meter.sample(self._done) >= seconds > 0:
                    return
                if polling:
                    runtime.poll_event(0)

    def _write_off(self) -> None:
        """What has not come back although nothing else came for a while is lost: the window must open again."""
        stalled, self._seen = self._seen == self._done, self._done
        if not stalled:
            return
        for qid, sent in self._next.items():
            known = self._expected if self.options.check == "content" else self._returned
            self.dropped += sent - known.get(qid, 0)
            known[qid] = sent

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        if self.options.mode in ("sink", "echo"):
            self._done += self._turn(interface.rx_queues[qid], interface.tx_queues[qid])

    def _round_trips(self, runtime: Runtime, interface: Interface, meter: Meter) -> dict[str, float]:
        rx, tx = interface.rx_queues[0], interface.tx_queues[0]
        packet, seconds = [self._packet], self.options.seconds
        times = array("Q")
        polling = rx.mode is RxMode.POLLING
        clock = time.perf_counter_ns
        while interface.connected:
            start = clock()
            while not tx.send(packet):  # the slave may not have posted its buffers yet
                runtime.poll_event(0.001)
                start = clock()
            while not rx.recv(1):
                if polling:
                    if clock() - start > 1e9:
                        runtime.poll_event(0)
                        start = clock()
                else:
                    runtime.poll_event(1.0)
            times.append(clock() - start)
            if meter.sample(len(times)) >= seconds > 0:
                break
        self._done = len(times)
        ranked = sorted(times)
        return {
            name: ranked[min(len(ranked) - 1, int(share * len(ranked)))] / 1e3
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
        }

    # --- turns --------------------------------------------------------------------------------------------------

    def _choose(self) -> Step:
        if self.options.mode == "rr":
            return lambda rx, tx: 0
        if self.options.mode == "gen":
            return self._gen_content if self.options.check == "content" else self._gen_count
        step: Step = getattr(self, f"_{self.options.mode}_{self.options.api}")
        return step

    def _source_packets(self, rx: RxQueue, tx: TxQueue) -> int:
        return tx.send(self._packets)

    def _source_burst(self, rx: RxQueue, tx: TxQueue) -> int:
        sent = tx.transmit(tx.alloc(self.options.burst, self.options.size))
        return (
            sent
            if self.options.size <= self.options.buffer_size
            else sent // -(-self.options.size // self.options.buffer_size)
        )

    def _source_vector(self, rx: RxQueue, tx: TxQueue) -> int:
        return tx.send_from(self._matrix.rows, self._matrix.lengths)

    def _sink_packets(self, rx: RxQueue, tx: TxQueue) -> int:
        return len(rx.recv(self.options.burst))

    def _sink_burst(self, rx: RxQueue, tx: TxQueue) -> int:
        with rx.burst(self.options.burst) as burst:
            return len(burst)

    def _sink_vector(self, rx: RxQueue, tx: TxQueue) -> int:
        return rx.recv_into(self._matrix.rows, self._matrix.lengths)

    def _echo_packets(self, rx: RxQueue, tx: TxQueue) -> int:
        packets = rx.recv(self.options.burst)
        if not packets:
            return 0
        sent = tx.send(packets)
        self.dropped += len(packets) - sent
        return sent

    def _echo_burst(self, rx: RxQueue, tx: TxQueue) -> int:
        return tx.forward(rx, self.options.burst)

    def _echo_vector(self, rx: RxQueue, tx: TxQueue) -> int:
        matrix = self._matrix
        count = rx.recv_into(matrix.rows, matrix.lengths)
        if not count:
            return 0
        sent = tx.send_from(matrix.rows, matrix.lengths[:count])
        self.dropped += count - sent
        return sent

    def _gen_count(self, rx: RxQueue, tx: TxQueue) -> int:
        """Send without touching the data, count what comes back: as little of our own as can be."""
        in_flight = self._next.get(rx.qid, 0) - self._returned.get(rx.qid, 0)
        room = min(self.options.burst, self.window - in_flight)
        if room > 0:
            if self.options.payload == "icmp":  # the peer may answer in place: each time anew
                sent = tx.send(self._packets[:room])
            else:
                sent = tx.transmit(tx.alloc(room, self.options.size))
            self._next[rx.qid] = self._next.get(rx.qid, 0) + sent
            self.sent += sent
        with rx.burst(self.options.burst) as burst:
            count = len(burst)
        self._returned[rx.qid] = self._returned.get(rx.qid, 0) + count
        return count

    def _gen_content(self, rx: RxQueue, tx: TxQueue) -> int:
        """Number every packet, and check that each comes back whole and in order; a gap is a drop."""
        qid, size = rx.qid, self.options.size
        start, expected = self._next.get(qid, 0), self._expected.get(qid, 0)
        room = min(self.options.burst, self.window - (start - expected))
        if room > 0:
            tail = bytes(size - _SEQUENCE_BYTES)
            sent = tx.send([(start + i).to_bytes(_SEQUENCE_BYTES, "big") + tail for i in range(room)])
            self._next[qid] = start + sent
            self.sent += sent
        count = 0
        for packet in rx.recv(self.options.burst):
            number = int.from_bytes(packet[:_SEQUENCE_BYTES], "big")
            if len(packet) != size or number < expected or any(packet[_SEQUENCE_BYTES:]):
                self.corrupted += 1
                continue
            self.dropped += number - expected
            expected = number + 1
            count += 1
        self._expected[qid] = expected
        return count


def _echo_request(size: int) -> bytes:
    payload = bytes(size - _ECHO_HEADERS)
    return echo_request(
        source_mac=bytes.fromhex("02fe00000001"),
        source_ip=parse_ip("192.168.1.1"),
        target_mac=bytes.fromhex("02fec0a80102"),
        target_ip=parse_ip(ICMP_TARGET),
        identifier=1,
        sequence=1,
        payload=payload,
        mode=Mode.ETHERNET,
    )
