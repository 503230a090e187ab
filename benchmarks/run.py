"""``make bench``: everything that is measured, side by side in one run, as a table, ``docs/benchmarks.md`` and a plot.

Each group's cases take turns, round after round, so that whatever else the machine does hits all of them; a figure is
the median of the rounds, and what the project promises are ratios of medians.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import memifrt
from benchmarks import alternatives, bridge, dump, faces, scale
from benchmarks.ends import Device, Load, PmdDevice, bench_device, measure, program_device
from memifrt.cli.run_in_loop import LOOPS
from tests.lib import namespaces, testpmd

DOCS = Path(__file__).resolve().parent.parent / "docs"
DEVICE_CPU, FACING_CPU = 0, 1
CPUS = (DEVICE_CPU, FACING_CPU)
BASE = Load()

# Names that the promises refer to.
NATIVE_SLAVE = "memifrt native, zero copy, slave"
NATIVE_MASTER = "memifrt native, copying, master"
PMD_ZERO_COPY = "testpmd io, zero-copy client"
PMD_SERVER = "testpmd io, server"
RECV, RECV_REFERENCE, PMD_RX = "memifrt native recv, master", "memifrt reference recv, master", "testpmd rxonly, server"
SEND, SEND_REFERENCE = "memifrt native send, slave", "memifrt reference send, slave"
BURST, PACKETS = "memifrt native, burst API", "memifrt native, send and recv"
PER_PACKET, VECTORISED, PMD_ICMP = (
    "a Python function for each packet",
    "NumPy, bursts of 1024",
    "testpmd icmpecho, server",
)
CROWD_POLL, CROWD_TURNS = "poll, one of {} interfaces busy", "poll, {} interfaces busy in turn"
CROWD_CONNECT = "connect, {} interfaces"
WAKE_UP = "{} recv, {}"
RR_INTERRUPT, RR_SOCKET = "memifrt native, interrupt", "AF_UNIX SEQPACKET, Python"


@dataclass
class Case:
    """One figure: how to take it once, in its group's unit."""

    name: str
    take: Callable[[], float]
    figures: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


@dataclass
class Group:
    title: str
    unit: str
    cases: list[Case]


@dataclass(frozen=True)
class Promise:
    """What must be reached: a ratio of two cases' medians, or (``against`` empty) a median itself."""

    what: str
    case: str
    against: str
    floor: float | None = None
    ceiling: float | None = None

    def kept(self, value: float) -> bool:
        return (self.floor is None or value >= self.floor) and (self.ceiling is None or value <= self.ceiling)


# --- taking a figure ------------------------------------------------------------------------------------------------


def _figure(
    make: Callable[[], Device], mode: str, load: Load, seconds: float, extra: Iterable[str], key: str, scale: float
) -> float:
    value = measure(make(), mode, load, seconds, FACING_CPU, *extra)
    for part in key.split("."):
        value = value[part]
    return float(value) * scale  # type: ignore[arg-type]


def _case(
    name: str,
    make: Callable[[], Device],
    mode: str,
    load: Load,
    seconds: float,
    *extra: str,
    key: str = "pps",
    scale: float = 1e-6,
) -> Case:
    """A device and the mode of the end that faces it."""
    return Case(name, functools.partial(_figure, make, mode, load, seconds, extra, key, scale))


def _ours(mode: str, role: str, load: Load = BASE, api: str = "burst", ring: str = "native") -> Callable[[], Device]:
    return functools.partial(bench_device, mode, role, load, DEVICE_CPU, api=api, ring=ring)


def _theirs(mode: str, role: str, load: Load = BASE, zero_copy: bool = False) -> Callable[[], Device]:
    return functools.partial(PmdDevice, mode, role, load, DEVICE_CPU, zero_copy)


# --- the groups -----------------------------------------------------------------------------------------------------


def echo(seconds: float) -> Group:
    check = "--check=count"
    cases = [
        _case(NATIVE_SLAVE, _ours("echo", "slave"), "gen", BASE, seconds, check),
        _case(NATIVE_MASTER, _ours("echo", "master"), "gen", BASE, seconds, check),
        _case(
            "memifrt native, send and recv, slave", _ours("echo", "slave", api="packets"), "gen", BASE, seconds, check
        ),
        _case("memifrt native, matrices, slave", _ours("echo", "slave", api="vector"), "gen", BASE, seconds, check),
        _case("memifrt reference, slave", _ours("echo", "slave", ring="python"), "gen", BASE, seconds, check),
        _case("memifrt reference, master", _ours("echo", "master", ring="python"), "gen", BASE, seconds, check),
    ]
    if not testpmd.missing():
        cases += [
            _case(PMD_ZERO_COPY, _theirs("io", "slave", zero_copy=True), "gen", BASE, seconds, check),
            _case("testpmd io, client", _theirs("io", "slave"), "gen", BASE, seconds, check),
            _case(PMD_SERVER, _theirs("io", "master"), "gen", BASE, seconds, check),
        ]
    return Group("Echo: 64-byte packets there and back, bursts of 256, polling", "Mpps", cases)


def one_way(seconds: float) -> Group:
    cases = [
        _case(RECV, _ours("sink", "master", api="packets"), "source", BASE, seconds),
        _case("memifrt native recv, slave", _ours("sink", "slave", api="packets"), "source", BASE, seconds),
        _case("memifrt native recv_into, master", _ours("sink", "master", api="vector"), "source", BASE, seconds),
        _case("memifrt native burst, master", _ours("sink", "master"), "source", BASE, seconds),
        _case(RECV_REFERENCE, _ours("sink", "master", api="packets", ring="python"), "source", BASE, seconds),
        _case(SEND, _ours("source", "slave", api="packets"), "sink", BASE, seconds),
        _case("memifrt native send, master", _ours("source", "master", api="packets"), "sink", BASE, seconds),
        _case("memifrt native send_from, slave", _ours("source", "slave", api="vector"), "sink", BASE, seconds),
        _case(SEND_REFERENCE, _ours("source", "slave", api="packets", ring="python"), "sink", BASE, seconds),
    ]
    if not testpmd.missing():
        cases += [
            _case(PMD_RX, _theirs("rxonly", "master"), "source", BASE, seconds),
            _case("testpmd txonly, client", _theirs("txonly", "slave"), "sink", BASE, seconds),
        ]
    return Group("One way: source to sink, 64-byte packets, bursts of 256, polling", "Mpps", cases)


def round_trip(seconds: float) -> Group:
    interrupt, polling = BASE.with_(rx_mode="interrupt", burst=1), BASE.with_(burst=1)
    cases = [
        _case(RR_INTERRUPT, _ours("echo", "slave", interrupt), "rr", interrupt, seconds, key="rtt_us.p50", scale=1.0),
        _case(
            "memifrt reference, interrupt",
            _ours("echo", "slave", interrupt, ring="python"),
            "rr",
            interrupt,
            seconds,
            key="rtt_us.p50",
            scale=1.0,
        ),
        _case(
            "memifrt native, polling",
            _ours("echo", "slave", polling),
            "rr",
            polling,
            seconds,
            key="rtt_us.p50",
            scale=1.0,
        ),
        Case(RR_SOCKET, functools.partial(alternatives.seqpacket_round_trip, 64, seconds, CPUS)),
    ]
    if not testpmd.missing():
        cases.append(
            _case(
                "testpmd io, client, polling",
                _theirs("io", "slave"),
                "rr",
                polling,
                seconds,
                key="rtt_us.p50",
                scale=1.0,
            )
        )
    return Group("Round trip: one 64-byte packet there and back, median", "us", cases)


def instead(seconds: float) -> Group:
    cases = [
        _case(BURST, _ours("sink", "master"), "source", BASE, seconds),
        _case(PACKETS, _ours("sink", "master", api="packets"), "source", BASE, seconds, "--api=packets"),
    ]
    for name, transport in alternatives.available().items():
        cases.append(Case(name, functools.partial(_millions, transport, 64, seconds)))
    return Group("What else a Python program could take: one way, 64-byte payloads, process to process", "Mpps", cases)


def _millions(transport: alternatives.Transport, size: int, seconds: float) -> float:
    return transport(size, seconds, CPUS) / 1e6


def growth(seconds: float) -> Group:
    cases = []
    for size in (64, 512, 1500, 9000):
        load = BASE.with_(size=size)
        cases.append(
            _case(f"{size}-byte packets", _ours("echo", "master", load), "gen", load, seconds, "--check=count")
        )
    for burst in (1, 32, 256):
        load = BASE.with_(burst=burst)
        cases.append(_case(f"bursts of {burst}", _ours("echo", "master", load), "gen", load, seconds, "--check=count"))
    for queues in (1, 2, 4):
        load = BASE.with_(queues=queues)
        cases.append(_case(f"{queues} queue(s)", _ours("echo", "master", load), "gen", load, seconds, "--check=count"))
    return Group(
        "How cost grows: echo, copying, master; 64 bytes, bursts of 256 and 1 queue where not said", "Mpps", cases
    )


def responders(seconds: float) -> Group:
    extra = ("--payload=icmp", "--check=count")
    wide = BASE.with_(burst=1024, log2_ring_size=11)
    cases = [
        _case(
            PER_PACKET,
            functools.partial(program_device, "examples/icmp_responder/icmp_responder.py", "master", DEVICE_CPU),
            "gen",
            BASE,
            seconds,
            *extra,
        ),
        _case(
            VECTORISED,
            functools.partial(
                program_device, "examples/vectorized/vectorized.py", "master", DEVICE_CPU,
                "--burst=1024", "--rx-mode=polling",
            ),
            "gen",
            wide,
            seconds,
            *extra,
        ),
    ]  # fmt: skip
    if not testpmd.missing():
        cases.append(_case(PMD_ICMP, _theirs("icmpecho", "master", wide), "gen", wide, seconds, *extra))
    return Group("ICMP echo answered: 64-byte requests", "Mpps", cases)


def loops_round_trip(seconds: float) -> Group:
    """The end that takes the times lives in the loop."""
    load = BASE.with_(rx_mode="interrupt", burst=1)
    cases = [
        _case(
            f"{loop}, {unit}",
            _ours("echo", "slave", load),
            "rr",
            load,
            seconds,
            f"--loop={loop}",
            key=key,
            scale=scale,
        )
        for key, unit, scale in (("rtt_us.p50", "median round trip", 1.0), ("cpu_ns", "CPU a packet", 1e-3))
        for loop in LOOPS
    ]
    return Group("Loops: one 64-byte packet there and back, interrupt mode", "us", cases)


def loops_echo(seconds: float) -> Group:
    """The echo lives in the loop; what faces it is the generator that the other figures have."""
    load = BASE.with_(rx_mode="interrupt")
    cases = [
        _case(
            f"{loop}, echo",
            functools.partial(bench_device, "echo", "slave", load, DEVICE_CPU, extra=(f"--loop={loop}",)),
            "gen",
            BASE,
            seconds,
            "--check=count",
        )
        for loop in LOOPS
    ]
    return Group("Loops: echo, zero copy, 64-byte packets, bursts of 256, interrupt mode", "Mpps", cases)


def loops_cpu(seconds: float) -> Group:
    """The echo measures itself, and the generator is what it faces."""
    load = BASE.with_(rx_mode="interrupt")
    cases = [
        _case(
            f"{loop}, CPU a packet",
            functools.partial(bench_device, "gen", "master", BASE, DEVICE_CPU, extra=("--check=count",)),
            "echo",
            load,
            seconds,
            f"--loop={loop}",
            key="cpu_ns",
            scale=1.0,
        )
        for loop in LOOPS
    ]
    return Group("Loops: echo as above, the echo's own CPU time", "ns", cases)


def wake_ups(seconds: float) -> Group:
    cases = [
        Case(WAKE_UP.format(loop, transport), functools.partial(faces.wake_up_microseconds, loop, transport, seconds))
        for loop in faces.LOOPS
        for transport in faces.TRANSPORTS
    ]
    return Group("Faces: recv of one packet a wake-up, beside a socket's, CPU time", "us", cases)


def idle(seconds: float) -> Group:
    return Group(
        "Idle: connected, interrupt mode, share of a core",
        "%",
        [Case("memifrt, both ends in one process", functools.partial(_idle_share, seconds))],
    )


def _idle_share(seconds: float) -> float:
    """CPU time of this process while two connected interfaces wait for packets that do not come."""
    with memifrt.Runtime("bench") as runtime:
        ends = [
            runtime.create_interface(socket=f"@memifrt-idle-{os.getpid()}", role=role, on_interrupt=lambda i, q: None)
            for role in ("master", "slave")
        ]
        while not all(end.connected for end in ends):
            runtime.poll_event(1)
        runtime.poll_event(0)
        start, cpu = time.monotonic(), time.process_time()
        while (left := start + seconds - time.monotonic()) > 0:
            runtime.poll_event(left)
        return 100 * (time.process_time() - cpu) / seconds


def crowd_poll(seconds: float) -> Group:
    cases = [
        Case(name.format(count), functools.partial(scale.poll_microseconds, count, all_busy=all_busy))
        for name, all_busy in ((CROWD_POLL, False), (CROWD_TURNS, True))
        for count in scale.CROWDS
    ]
    return Group("Interfaces in one runtime: a poll that finds one packet for one of them", "us", cases)


def crowd_connect(seconds: float) -> Group:
    cases = [
        Case(CROWD_CONNECT.format(count), functools.partial(scale.connect_microseconds, count))
        for count in scale.CROWDS
    ]
    return Group("Interfaces in one runtime: CPU time to create and connect both ends of one", "us", cases)


def captures(seconds: float) -> Group:
    """The device's own cost; what the kernel takes for the file alone stands in ``python -m benchmarks.dump``."""
    folder = tempfile.gettempdir()
    return Group(
        "dump --between two memifs beside a plain forward: a packet's cost in the device",
        "ns",
        [
            Case(f"{size} bytes, {case.name}", functools.partial(_dumped, case, seconds))
            for size in (64, 1500)
            for case in dump.cases(size, folder)
        ],
    )


def _dumped(case: dump.Case, seconds: float) -> float:
    try:
        return dump.in_turns(case, seconds)
    finally:
        case.remove_file()


def bridges(seconds: float) -> Group:
    """As root, in network namespaces; iperf3's ends, both bridges and the kernel share the cores."""
    cases = [] if namespaces.missing("iperf3", "ping") else bridge.CASES
    return Group(
        "bridge: iperf3 TCP through two bridges and the memif between them",
        "Gbit/s",
        [Case(case.name, functools.partial(_bridged, case, seconds)) for case in cases],
    )


def _bridged(case: bridge.Case, seconds: float) -> float:
    with bridge.joined(case) as (left, right):
        return bridge.gigabits(left, right, max(1, round(seconds)))  # iperf3 counts in whole seconds


GROUPS: dict[str, Callable[[float], Group]] = {
    "echo": echo,
    "one-way": one_way,
    "round-trip": round_trip,
    "instead": instead,
    "growth": growth,
    "icmp": responders,
    "loops-rr": loops_round_trip,
    "loops-echo": loops_echo,
    "loops-cpu": loops_cpu,
    "wake-ups": wake_ups,
    "idle": idle,
    "dump": captures,
    "bridge": bridges,
    "crowd-poll": crowd_poll,
    "crowd-connect": crowd_connect,
}

PROMISES = (
    Promise("echo, zero copy, slave, polling: against testpmd io, zero-copy client", NATIVE_SLAVE, PMD_ZERO_COPY, 2.0),
    Promise("echo, copying, master, polling: against testpmd io, server", NATIVE_MASTER, PMD_SERVER, 2.0),
    Promise("recv to bytes: against the reference", RECV, RECV_REFERENCE, 10.0),
    Promise("send of bytes: against the reference", SEND, SEND_REFERENCE, 10.0),
    Promise("sink with recv: against testpmd rxonly, server", RECV, PMD_RX, 0.5),
    Promise("vectorised ICMP responder: against testpmd icmpecho", VECTORISED, PMD_ICMP, 0.7),
    Promise("per-packet Python ICMP responder, Mpps", PER_PACKET, "", 1.0),
    Promise("burst API: against the best of the others", BURST, "best", 50.0),
    Promise("send and recv: against the best of the others", PACKETS, "best", 15.0),
    Promise("idle, connected, interrupt mode, % of a core", "memifrt, both ends in one process", "", None, 0.5),
    Promise(
        "a poll among 500 interfaces: against one among 10", CROWD_POLL.format(500), CROWD_POLL.format(10), None, 1.5
    ),
    Promise(
        "a poll of 500 interfaces in turn, their memory in no cache: against 10 in turn",
        CROWD_TURNS.format(500),
        CROWD_TURNS.format(10),
        None,
        2.0,
    ),
    Promise(
        "connecting one of 500 interfaces: against one of 10",
        CROWD_CONNECT.format(500),
        CROWD_CONNECT.format(10),
        None,
        1.5,
    ),
    Promise("connecting one of 500 interfaces, us: all within 10 s", CROWD_CONNECT.format(500), "", None, 10e6 / 500),
    Promise(
        "recv of one packet a wake-up in gevent, CPU time: against a gevent socket's recv of a datagram",
        WAKE_UP.format("gevent", "memif"),
        WAKE_UP.format("gevent", "datagram"),
        None,
        1.3,
    ),
    Promise("round trip, interrupt mode, p50: against a SEQPACKET ping-pong", RR_INTERRUPT, RR_SOCKET, None, 2.0),
    *(
        Promise(
            f"round trip in {loop}: against the internal loop",
            f"{loop}, median round trip",
            "internal, median round trip",
            None,
            1.5,
        )
        for loop in LOOPS[1:]
    ),
    *(
        Promise(f"echo in {loop}: against the internal loop", f"{loop}, echo", "internal, echo", 0.909)
        for loop in LOOPS[1:]
    ),
)


# --- running and writing --------------------------------------------------------------------------------------------


def run(groups: list[Group], rounds: int) -> None:
    for group in groups:
        for number in range(rounds):
            for case in group.cases:
                print(f"\r{group.title}: round {number + 1} of {rounds}, {case.name}\033[K", end="", file=sys.stderr)
                case.figures.append(case.take())
    print("\r\033[K", end="", file=sys.stderr)


def tables(groups: list[Group]) -> list[str]:
    lines = []
    for group in groups:
        lines += [
            f"## {group.title}",
            "",
            f"| case | median, {group.unit} | lowest | highest |",
            "|---|---:|---:|---:|",
        ]
        for case in group.cases:
            lines.append(f"| {case.name} | {case.median:.3f} | {min(case.figures):.3f} | {max(case.figures):.3f} |")
        lines.append("")
    return lines


def promises(groups: list[Group]) -> tuple[list[str], bool]:
    """The table of ratios, and whether each is kept."""
    medians = {case.name: case.median for group in groups for case in group.cases}
    others = [case.median for group in groups if group.title.startswith("What else") for case in group.cases[2:]]
    if others:
        medians["best"] = max(others)
    lines = ["## Ratios", "", "| what | reached | must be | |", "|---|---:|---:|---|"]
    all_kept = True
    for promise in PROMISES:
        if promise.case not in medians or (promise.against and promise.against not in medians):
            continue
        value = medians[promise.case] / (medians[promise.against] if promise.against else 1.0)
        bound = f"≥ {promise.floor}" if promise.floor is not None else f"≤ {promise.ceiling}"
        kept = promise.kept(value)
        all_kept = all_kept and kept
        lines.append(f"| {promise.what} | {value:.2f} | {bound} | {'reached' if kept else 'missed'} |")
    return [*lines, ""], all_kept


def machine(rounds: int, seconds: float) -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return [
        f"Measured on {datetime.date.today().isoformat()}: {model}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}, memifrt {memifrt.__version__}. "
        f"Medians of {rounds} rounds of {seconds:g} s, cases alternating, the device on core {DEVICE_CPU} and what "
        f"faces it on core {FACING_CPU}. Absolute figures drift with the machine: compare within one run.",
        "",
    ]


def plot(groups: list[Group], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    shown = [group for group in groups if group.unit == "Mpps"]
    if not shown:
        return
    rows = [len(group.cases) + 2 for group in shown]
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(9, 0.32 * sum(rows)), gridspec_kw={"height_ratios": rows}, squeeze=False
    )
    for axis, group in zip(axes[:, 0], shown, strict=True):
        names = [case.name for case in reversed(group.cases)]
        medians = [case.median for case in reversed(group.cases)]
        colors = ["#2a6f97" if "memifrt" in name or "testpmd" not in name else "#b5838d" for name in names]
        bars = axis.barh(names, medians, color=colors)
        axis.bar_label(bars, labels=[f"{value:.2f}" for value in medians], padding=3, fontsize=8)
        axis.set_title(f"{group.title} ({group.unit})", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="figures for each case; default 5")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure; default 1")
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="groups to run")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plot")
    arguments = parser.parse_args()
    if os.cpu_count() in (None, 1):
        parser.error("two cores are needed: one for the device, one for what faces it")
    if testpmd.missing():
        print(f"measured without testpmd: {testpmd.missing()}", file=sys.stderr)
    groups = [group for name in arguments.only if (group := GROUPS[name](arguments.seconds)).cases]
    run(groups, arguments.rounds)
    ratios, kept = promises(groups)
    text = "\n".join(["# Benchmarks", "", *machine(arguments.rounds, arguments.seconds), *ratios, *tables(groups)])
    print(text)
    if arguments.write:
        DOCS.mkdir(exist_ok=True)
        plot(groups, DOCS / "benchmarks.svg")
        (DOCS / "benchmarks.md").write_text(text.replace("## Ratios", "![All figures](benchmarks.svg)\n\n## Ratios", 1))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
