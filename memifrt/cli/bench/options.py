"""The options of one end of a measurement, their checks, and its result."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

from memifrt.cli.program import SessionOptions
from memifrt.cli.run_in_loop import LOOPS
from memifrt.errors import ConfigError
from memifrt.options import (
    DEFAULT_BUFFER_SIZE,
    DEFAULT_RING_SIZE,
    InterfaceConfig,
    RoleName,
    RxModeName,
    parse_rx_mode,
)
from memifrt.packets import echo_request, parse_ip
from memifrt.types import Mode, Role, RxMode, check_range

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
#: The shortest time between two lines about the rate, in seconds, as in iperf3.
SHORTEST_INTERVAL = 0.1
#: Bytes of the number that gen writes into each packet that is checked.
SEQUENCE_BYTES = 8
#: Ethernet, IPv4 and ICMP headers of an echo request.
_ECHO_HEADERS = 14 + 20 + 8


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. ``seconds`` counts from the first packet; 0 goes on until the peer disconnects.

    ``size`` is in bytes. With ``imix``, gen sends :data:`IMIX`, and ``size`` is that of the longest packet.
    ``burst`` counts buffers when receiving, and packets when sending. ``window`` is the number of packets of gen that
    may be in flight on each queue; 0 means as many as the ring holds, at most four bursts.
    ``interval`` is the time in seconds between two lines about the rate; 0 for none. ``plot`` is the file of a plot.
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
    interval: float = 0.0
    plot: str | None = None
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
        if self.mode == "gen" and self.check == "content" and self.size < SEQUENCE_BYTES:
            raise ConfigError(f"size is {self.size}; a packet that is checked has at least {SEQUENCE_BYTES} bytes")
        if self.mode in ("source", "gen", "rr"):
            config = InterfaceConfig.of(role=self.role, ring_size=self.ring_size, buffer_size=self.buffer_size)
            config.check_length(f"size is {self.size}", self.size)
        self._check_imix()
        self._check_threads()
        if self.interval and not self.interval >= SHORTEST_INTERVAL:
            raise ConfigError(f"interval is {self.interval}; it must be 0, or {SHORTEST_INTERVAL} or more")
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


@dataclass(frozen=True, slots=True)
class Interval:
    """The figures between two moments, in seconds since the first packet. ``lost`` counts packets."""

    start: float
    end: float
    pps: float
    bits_ps: float
    lost: int

    def line(self) -> str:
        """Return the figures as a line of text."""
        rate = f"{self.pps / 1e6:8.3f} Mpps" if self.pps >= 1e5 else f"{self.pps / 1e3:8.3f} kpps"
        return f"{self.start:7.2f}-{self.end:.2f} s: {rate}, {self.bits_ps / 1e9:7.2f} Gbit/s, lost {self.lost}"


@dataclass(slots=True)
class Result:
    """The result of a measurement.

    ``packets`` counts all packets that were sent (source), received (sink), sent back (echo), or came back (gen, rr).
    ``pps`` is their rate, and ``cpu_ns`` the CPU time of this process for each; both are measured over ``seconds``,
    from the first packets on. ``calls_ps`` is the rate of turns. Each turn is one call (or a pair of calls) on a
    queue, whether it finds packets or not; 0 for rr and api=loop, which do not count them.
    ``dropped`` counts the packets that could not be sent on (echo), or did not come back (gen, rr). ``loss`` is their
    share in percent.
    ``intervals`` are the figures of each ``--interval``.
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
    loss: float = 0.0
    rtt_us: dict[str, float] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        bits = 8 * self.bytes / max(self.packets, 1)
        text = [
            f"{self.mode} ({self.impl} rings): {self.packets} packets in {self.seconds:.2f} s: "
            f"{self.pps / 1e6:.3f} Mpps, {self.pps * bits / 1e9:.2f} Gbit/s, {self.cpu_ns:.1f} ns of CPU a packet",
        ]
        if self.sent:
            text.append(f"sent {self.sent}, lost {self.dropped} ({self.loss:.3g} %), corrupted {self.corrupted}")
        if self.rtt_us:
            text.append("round trip: " + ", ".join(f"{name} {value:.1f} us" for name, value in self.rtt_us.items()))
        return text

    def json(self) -> str:
        return json.dumps(asdict(self))


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
