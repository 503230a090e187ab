"""The groups of figures of ``make bench``: what runs, and what faces it.

Owns the names of the cases, to which the promises refer.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import memifrt
from benchmarks import alternatives, bridge, calls, dump, faces, generate, impair, scale, switch, threads
from benchmarks.cases import BASE, CPUS, DEVICE_CPU, Case, Group, Plan, case, ours, theirs
from benchmarks.ends import ROOT, Device, Load, PmdDevice, bench_device, program_device
from memifrt.cli.run_in_loop import LOOPS
from tests.lib import namespaces, testpmd

ROLES = ("slave", "master")
NATIVE_SLAVE = "memifrt native, zero copy, slave"
NATIVE_MASTER = "memifrt native, copying, master"
PMD_CLIENT = "testpmd io, zero-copy client"
PMD_SERVER = "testpmd io, server"
#: The curves of each role, ours and theirs.
OURS = {"slave": "memifrt, zero copy, slave", "master": "memifrt, copying, master"}
THEIRS = {"slave": PMD_CLIENT, "master": PMD_SERVER}
CALLS_A_SECOND = {role: f"{name}: calls of forward" for role, name in OURS.items()}
SIZED = "{}: {}"
INSIDE, FREE_THREADED = "{}, {} thread(s)", "forward in Python, free-threaded, {} thread(s)"
#: What is compared with another version, and the name of that one's case.
NOW = (
    *(f"echo, bursts of {burst}, {role}" for burst in (32, 256) for role in ROLES),
    "recv to bytes",
    "send of bytes",
    "sink of bursts",
    "NumPy responder",
)
BASELINE = "{}, baseline"
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
GENERATE, GENERATE_SAME = "memifrt generate, four fields", "memifrt generate, all packets alike"
GENERATE_SIGNED = "memifrt generate, four fields, signed"
GENERATE_CHECKED = {
    role: f"memifrt generate, four fields, signed, sent back and checked, {role}" for role in ("slave", "master")
}
PMD_TXONLY, PMD_FLOWGEN = "testpmd txonly, client, one flow", "testpmd flowgen, client, 1024 flows"
IDLE = "memifrt, both ends in one process"
BURSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


# --- the groups -----------------------------------------------------------------------------------------------------


_COUNT = "--check=count"


def burst_sizes(plan: Plan) -> list[Group]:
    cases = []
    for burst in BURSTS:
        for role in ROLES:
            make = ours("echo", role, BASE.with_(burst=burst))
            cases.append(_burst_case(OURS[role], burst, make, plan))
        if not testpmd.missing():
            for role in ROLES:
                make = theirs("io", role, zero_copy=role == "slave", burst=burst)
                cases.append(_burst_case(THEIRS[role], burst, make, plan))
    curve = Group(
        "Burst sizes: echo, 64-byte packets, polling",
        "Mpps",
        cases,
        note="How many packets the device takes at most in one call: `forward(rx, N)`, and testpmd's `--burst=N`, "
        "which is 32 in the other tables. The process that faces it sends and takes up to 256 at a "
        "time, so that the device's bursts are measured.",
        x="burst",
        plot="burst-sizes",
    )
    return [curve, _call_rate(plan)]


def _burst_case(series: str, burst: int, make: Callable[[], Device], plan: Plan) -> Case:
    return case(f"{series}, bursts of {burst}", make, "gen", BASE, plan.seconds, _COUNT, series=series, x=burst)


def _call_rate(plan: Plan) -> Group:
    cases = [
        case(
            CALLS_A_SECOND[role],
            ours("echo", role, BASE.with_(burst=1)),
            "gen",
            BASE,
            plan.seconds,
            _COUNT,
            key="device.calls_ps",
        )
        for role in ROLES
    ]
    return Group(
        "Calls a second: the echo of bursts of 1",
        "M/s",
        cases,
        note="Calls of `forward(rx, 1)` in a Python loop, counted by the device. A call that comes too early finds no "
        "packet, so there are a few more calls than packets.",
    )


def sizes(plan: Plan) -> list[Group]:
    loads = {
        "64 bytes": BASE,
        "512 bytes": BASE.with_(size=512),
        "1500 bytes": BASE.with_(size=1500),
        "9000 bytes, chained": BASE.with_(size=9000),
        "9000 bytes, one buffer of 16 KiB": BASE.with_(size=9000, buffer_size=16384),
        "IMIX": BASE.with_(size="imix"),
    }
    cases = []
    for label, load in loads.items():
        for role in ROLES:
            cases.append(_sized_case(label, OURS[role], ours("echo", role, load), load, plan))
        if not testpmd.missing() and load.size in (64, 512, 1500):
            for role in ROLES:
                make = theirs("io", role, load, zero_copy=role == "slave")
                cases.append(_sized_case(label, THEIRS[role], make, load, plan))
    return [
        Group(
            "Sizes: echo, bursts of 256, polling",
            "Mpps",
            cases,
            note="Buffers have 2048 bytes where not said, so 9000 bytes are a chain of five. IMIX is 7 packets of 64 "
            "bytes, 4 of 570 and 1 of 1518, and so on.",
            x="size",
        )
    ]


def _sized_case(label: str, series: str, make: Callable[[], Device], load: Load, plan: Plan) -> Case:
    name = SIZED.format(label, series)
    return case(name, make, "gen", load, plan.seconds, _COUNT, series=series, x=label)


def call_times(plan: Plan) -> list[Group]:
    cases = [
        Case(name, functools.partial(calls.nanoseconds, name, min(plan.seconds, 0.3), DEVICE_CPU))
        for name in calls.CALLS
    ]
    return [
        Group(
            "Calls: one call on a polling queue, both ends in one process",
            "ns",
            cases,
            note="In a Python loop; its own time is in the figure. The memory stays in the core's cache, which a real "
            "peer would take from it.",
        )
    ]


def thread_counts() -> list[int]:
    """Return 1, 2, 4, ... and the number of cores."""
    cores = len(os.sched_getaffinity(0))
    return sorted({cores, *(1 << power for power in range(cores.bit_length()) if 1 << power <= cores)})


def thread_curves(plan: Plan) -> list[Group]:
    cores = sorted(os.sched_getaffinity(0))
    cases = []
    for count in thread_counts():
        for series, make in _threaded_devices(count, tuple(cores[:count])):
            load = BASE.with_(queues=count)
            name = f"{series}, {count} thread(s)"
            cases.append(case(name, make, "gen", load, plan.seconds, _COUNT, series=series, x=count, cpu=cores[-1]))
    curve = Group(
        "Threads: echo, one queue a thread, 64 bytes, bursts of 256, polling",
        "Mpps",
        cases,
        note="Thread N runs on core N; testpmd has as many threads with `--nb-cores`. One process on the last core "
        "faces all of them, so it is the bound where they are faster than it. In the last row the last thread shares "
        "its core with that process, and they wait for each other's time slices: with two cores, that is the row of "
        "two threads. The next table shows threads without such a bound.",
        x="threads",
        plot="threads",
    )
    return [curve, _threads_inside(plan)]


def _threaded_devices(count: int, cpus: tuple[int, ...]) -> list[tuple[str, Callable[[], Device]]]:
    load = BASE.with_(queues=count)
    devices: list[tuple[str, Callable[[], Device]]] = [
        (f"{OURS[role]}, forward_from", functools.partial(bench_device, "echo", role, load, *cpus, api="loop"))
        for role in ROLES
    ]
    python = functools.partial(bench_device, "echo", "slave", load, *cpus, extra=("--threads",))
    devices.append((f"{OURS['slave']}, forward in Python", python))
    if not testpmd.missing():
        devices += [
            (THEIRS[role], functools.partial(PmdDevice, "io", role, load, cpus, role == "slave")) for role in ROLES
        ]
    return devices


def _threads_inside(plan: Plan) -> Group:
    kinds = [("forward_from", "loop", ""), ("forward in Python", "burst", "")]
    if plan.free_threaded:
        kinds.append(("forward in Python, free-threaded", "burst", plan.free_threaded))
    cases = []
    for count in thread_counts():
        for series, api, python in kinds:
            name = INSIDE.format(series, count)
            cases.append(Case(name, functools.partial(_circling, api, count, plan, python), series=series, x=count))
    return Group(
        "Threads that nothing faces: 64-byte packets in a circle, in one process",
        "Mpps",
        cases,
        note="Each thread forwards the packets of a ring into the same ring, on a core of its own. No other process "
        "bounds it, and the threads share no memory: they can only wait for the GIL.",
        x="threads",
        plot="threads-inside",
    )


def _circling(api: str, count: int, plan: Plan, python: str) -> float:
    return threads.measure(api, count, plan.seconds, *([python] if python else [])) / 1e6


def baseline(plan: Plan) -> list[Group]:
    """What must not get worse, against another version."""
    if plan.baseline is None:
        return []
    trees = {"{}": ROOT, BASELINE: plan.baseline.resolve()}
    cases = [_version_case(label, name.format(label), plan, tree) for label in NOW for name, tree in trees.items()]
    return [Group("This version beside the baseline", "Mpps", cases, is_public=False)]


def _version_case(label: str, name: str, plan: Plan, tree: Path) -> Case:
    if label.startswith("echo"):
        _, bursts, role = label.split(", ")
        load = BASE.with_(burst=int(bursts.rpartition(" ")[2]))
        device = functools.partial(bench_device, "echo", role, load, DEVICE_CPU, folder=tree)
        return case(name, device, "gen", BASE, plan.seconds, _COUNT)
    if label == "NumPy responder":
        responder = functools.partial(program_device, *_VECTORISED, folder=tree)
        return case(name, responder, "gen", _WIDE, plan.seconds, *_ICMP)
    mode, role, api = {
        "recv to bytes": ("sink", "master", "packets"),
        "send of bytes": ("source", "slave", "packets"),
        "sink of bursts": ("sink", "master", "burst"),
    }[label]
    device = functools.partial(bench_device, mode, role, BASE, DEVICE_CPU, api=api, folder=tree)
    return case(name, device, "source" if mode == "sink" else "sink", BASE, plan.seconds)


def echo(plan: Plan) -> list[Group]:
    cases = [
        case(NATIVE_SLAVE, ours("echo", "slave"), "gen", BASE, plan.seconds, _COUNT),
        case(NATIVE_MASTER, ours("echo", "master"), "gen", BASE, plan.seconds, _COUNT),
        case(
            "memifrt native, send and recv, slave",
            ours("echo", "slave", api="packets"),
            "gen",
            BASE,
            plan.seconds,
            _COUNT,
        ),
        case("memifrt native, matrices, slave", ours("echo", "slave", api="vector"), "gen", BASE, plan.seconds, _COUNT),
        case("memifrt reference, slave", ours("echo", "slave", ring="python"), "gen", BASE, plan.seconds, _COUNT),
        case("memifrt reference, master", ours("echo", "master", ring="python"), "gen", BASE, plan.seconds, _COUNT),
    ]
    if not testpmd.missing():
        cases += [
            case(PMD_CLIENT, theirs("io", "slave", zero_copy=True), "gen", BASE, plan.seconds, _COUNT),
            case("testpmd io, client", theirs("io", "slave"), "gen", BASE, plan.seconds, _COUNT),
            case(PMD_SERVER, theirs("io", "master"), "gen", BASE, plan.seconds, _COUNT),
        ]
    return [Group("Echo: 64-byte packets there and back, bursts of 256, polling", "Mpps", cases)]


def one_way(plan: Plan) -> list[Group]:
    cases = [
        case(RECV, ours("sink", "master", api="packets"), "source", BASE, plan.seconds),
        case("memifrt native recv, slave", ours("sink", "slave", api="packets"), "source", BASE, plan.seconds),
        case("memifrt native recv_into, master", ours("sink", "master", api="vector"), "source", BASE, plan.seconds),
        case("memifrt native burst, master", ours("sink", "master"), "source", BASE, plan.seconds),
        case(RECV_REFERENCE, ours("sink", "master", api="packets", ring="python"), "source", BASE, plan.seconds),
        case(SEND, ours("source", "slave", api="packets"), "sink", BASE, plan.seconds),
        case("memifrt native send, master", ours("source", "master", api="packets"), "sink", BASE, plan.seconds),
        case("memifrt native send_from, slave", ours("source", "slave", api="vector"), "sink", BASE, plan.seconds),
        case(SEND_REFERENCE, ours("source", "slave", api="packets", ring="python"), "sink", BASE, plan.seconds),
    ]
    if not testpmd.missing():
        cases += [
            case(PMD_RX, theirs("rxonly", "master"), "source", BASE, plan.seconds),
            case("testpmd txonly, client", theirs("txonly", "slave"), "sink", BASE, plan.seconds),
        ]
    return [Group("One way: source to sink, 64-byte packets, bursts of 256, polling", "Mpps", cases)]


def generators(plan: Plan) -> list[Group]:
    def sent(*arguments: str, fields: tuple[str, ...] = ()) -> Callable[[], Device]:
        return functools.partial(generate.device, "slave", DEVICE_CPU, BASE, fields, *arguments)

    def checked(role: str) -> Callable[[], float]:
        return functools.partial(generate.checked_pps, role, CPUS, BASE, generate.FIELDS, plan.seconds)

    cases = [
        case(GENERATE_SAME, sent(), "sink", BASE, plan.seconds),
        case(GENERATE, sent(fields=generate.FIELDS), "sink", BASE, plan.seconds),
        case(GENERATE_SIGNED, sent("--signed", fields=generate.FIELDS), "sink", BASE, plan.seconds),
        *(Case(name, checked(role)) for role, name in GENERATE_CHECKED.items()),
    ]
    if not testpmd.missing():
        cases += [
            case(PMD_TXONLY, theirs("txonly", "slave"), "sink", BASE, plan.seconds),
            case(PMD_FLOWGEN, theirs("flowgen", "slave"), "sink", BASE, plan.seconds),
        ]
    return [
        Group(
            "Generators: 64-byte packets as fast as it goes",
            "Mpps",
            cases,
            note="`memifrt generate` on one core. Its four fields are source and destination addresses and ports, with "
            "checksums kept right, and no two packets in a row are alike. In the rows *sent back and checked* the same "
            "core sends, receives and checks, and `memifrt bench echo` is the device. It copies each packet for a "
            "slave, and none for a master. testpmd checks nothing.",
        )
    ]


def round_trip(plan: Plan) -> list[Group]:
    interrupt, polling = BASE.with_(rx_mode="interrupt", burst=1), BASE.with_(burst=1)
    cases = [
        case(
            RR_INTERRUPT, ours("echo", "slave", interrupt), "rr", interrupt, plan.seconds, key="rtt_us.p50", scale=1.0
        ),
        case(
            "memifrt reference, interrupt",
            ours("echo", "slave", interrupt, ring="python"),
            "rr",
            interrupt,
            plan.seconds,
            key="rtt_us.p50",
            scale=1.0,
        ),
        case(
            "memifrt native, polling",
            ours("echo", "slave", polling),
            "rr",
            polling,
            plan.seconds,
            key="rtt_us.p50",
            scale=1.0,
        ),
        Case(RR_SOCKET, functools.partial(alternatives.seqpacket_round_trip, 64, plan.seconds, CPUS)),
    ]
    if not testpmd.missing():
        cases.append(
            case(
                "testpmd io, client, polling",
                theirs("io", "slave"),
                "rr",
                polling,
                plan.seconds,
                key="rtt_us.p50",
                scale=1.0,
            )
        )
    return [Group("Round trip: one 64-byte packet there and back, median", "us", cases)]


def instead(plan: Plan) -> list[Group]:
    cases = [
        case(BURST, ours("sink", "master"), "source", BASE, plan.seconds),
        case(PACKETS, ours("sink", "master", api="packets"), "source", BASE, plan.seconds, "--api=packets"),
    ]
    for name, transport in alternatives.available().items():
        if transport is None:
            cases.append(Case(name, None, why="not installed here"))
        else:
            cases.append(Case(name, functools.partial(_millions, transport, 64, plan.seconds)))
    title = "What else a Python program could take: one way, 64-byte payloads, process to process"
    return [Group(title, "Mpps", cases)]


def _millions(transport: alternatives.Transport, size: int, seconds: float) -> float:
    return transport(size, seconds, CPUS) / 1e6


def queues(plan: Plan) -> list[Group]:
    cases = []
    for count in (1, 2, 4):
        load = BASE.with_(queues=count)
        cases.append(case(f"{count} queue(s)", ours("echo", "master", load), "gen", load, plan.seconds, _COUNT))
    return [Group("Queues: one thread serves several, echo, copying, master, 64 bytes, bursts of 256", "Mpps", cases)]


_ICMP = ("--payload=icmp", _COUNT)
_WIDE = BASE.with_(burst=1024, log2_ring_size=11)
_VECTORISED = ("examples/vectorized/vectorized.py", "master", DEVICE_CPU, "--burst=1024", "--rx-mode=polling")


def responders(plan: Plan) -> list[Group]:
    each = functools.partial(program_device, "examples/icmp_responder/icmp_responder.py", "master", DEVICE_CPU)
    cases = [
        case(PER_PACKET, each, "gen", BASE, plan.seconds, *_ICMP),
        case(VECTORISED, functools.partial(program_device, *_VECTORISED), "gen", _WIDE, plan.seconds, *_ICMP),
    ]
    if not testpmd.missing():
        cases.append(case(PMD_ICMP, theirs("icmpecho", "master", _WIDE), "gen", _WIDE, plan.seconds, *_ICMP))
    return [Group("ICMP echo answered: 64-byte requests", "Mpps", cases)]


def loops_round_trip(plan: Plan) -> list[Group]:
    """The end that takes the times lives in the loop."""
    load = BASE.with_(rx_mode="interrupt", burst=1)
    cases = [
        case(
            f"{loop}, {unit}",
            ours("echo", "slave", load),
            "rr",
            load,
            plan.seconds,
            f"--loop={loop}",
            key=key,
            scale=scale,
        )
        for key, unit, scale in (("rtt_us.p50", "median round trip", 1.0), ("cpu_ns", "CPU a packet", 1e-3))
        for loop in LOOPS
    ]
    return [Group("Loops: one 64-byte packet there and back, interrupt mode", "us", cases)]


def loops_echo(plan: Plan) -> list[Group]:
    """The echo lives in the loop; what faces it is the generator that the other figures have."""
    load = BASE.with_(rx_mode="interrupt")
    cases = [
        case(
            f"{loop}, echo",
            functools.partial(bench_device, "echo", "slave", load, DEVICE_CPU, extra=(f"--loop={loop}",)),
            "gen",
            BASE,
            plan.seconds,
            "--check=count",
        )
        for loop in LOOPS
    ]
    return [Group("Loops: echo, zero copy, 64-byte packets, bursts of 256, interrupt mode", "Mpps", cases)]


def loops_cpu(plan: Plan) -> list[Group]:
    """The echo measures itself, and the generator is what it faces."""
    load = BASE.with_(rx_mode="interrupt")
    cases = [
        case(
            f"{loop}, CPU of the echo a packet",
            functools.partial(bench_device, "gen", "master", BASE, DEVICE_CPU, extra=("--check=count",)),
            "echo",
            load,
            plan.seconds,
            f"--loop={loop}",
            key="cpu_ns",
            scale=1.0,
        )
        for loop in LOOPS
    ]
    return [Group("Loops: echo as above, the echo's own CPU time", "ns", cases)]


def wake_ups(plan: Plan) -> list[Group]:
    cases = [
        Case(
            WAKE_UP.format(loop, transport),
            functools.partial(faces.wake_up_microseconds, loop, transport, plan.seconds),
        )
        for loop in faces.LOOPS
        for transport in faces.TRANSPORTS
    ]
    return [Group("Faces: recv of one packet a wake-up, beside a socket's, CPU time", "us", cases)]


def idle(plan: Plan) -> list[Group]:
    return [
        Group(
            "Idle: connected, interrupt mode, share of a core",
            "%",
            [Case(IDLE, functools.partial(_idle_share, plan.seconds))],
        )
    ]


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


def crowd_poll(plan: Plan) -> list[Group]:
    cases = [
        Case(name.format(count), functools.partial(scale.poll_microseconds, count, all_busy=all_busy))
        for name, all_busy in ((CROWD_POLL, False), (CROWD_TURNS, True))
        for count in scale.CROWDS
    ]
    return [Group("Interfaces in one runtime: a poll that finds one packet for one of them", "us", cases)]


def crowd_connect(plan: Plan) -> list[Group]:
    cases = [
        Case(CROWD_CONNECT.format(count), functools.partial(scale.connect_microseconds, count))
        for count in scale.CROWDS
    ]
    return [Group("Interfaces in one runtime: CPU time to create and connect both ends of one", "us", cases)]


def captures(plan: Plan) -> list[Group]:
    """The device's own cost; what the kernel takes for the file alone stands in ``python -m benchmarks.dump``."""
    folder = tempfile.gettempdir()
    return [
        Group(
            "dump --between two memifs beside a plain forward: a packet's cost in the device",
            "ns",
            [
                Case(f"{size} bytes, {case.name}", functools.partial(_dumped, case, plan.seconds))
                for size in (64, 1500)
                for case in dump.cases(size, folder)
            ],
        )
    ]


def _dumped(case: dump.Case, seconds: float) -> float:
    try:
        return dump.in_turns(case, seconds)
    finally:
        case.remove_file()


def impairments(plan: Plan) -> list[Group]:
    return [
        Group(
            "bridge between two memifs with impairments beside a plain forward: the cost of a 64-byte packet",
            "ns",
            [Case(case.name, functools.partial(impair.nanoseconds, case, 64, plan.seconds)) for case in impair.cases()],
        )
    ]


def switches(plan: Plan) -> list[Group]:
    return [
        Group(
            "switch between three memifs: the cost of a 64-byte packet",
            "ns",
            [
                Case(name, functools.partial(switch.nanoseconds, flows, 64, plan.seconds))
                for name, flows in switch.CASES.items()
            ],
            note="The switch's own CPU time. Of 1024 flows, every second packet is for another port.",
        )
    ]


def bridges(plan: Plan) -> list[Group]:
    """As root, in network namespaces; iperf3's ends, both bridges and the kernel share the cores."""
    cases = [] if namespaces.missing("iperf3", "ping") else bridge.CASES
    return [
        Group(
            "bridge: iperf3 TCP through two bridges and the memif between them",
            "Gbit/s",
            [Case(case.name, functools.partial(_bridged, case, plan.seconds)) for case in cases],
        )
    ]


def _bridged(case: bridge.Case, seconds: float) -> float:
    with bridge.joined(case) as (left, right):
        return bridge.gigabits(left, right, max(1, round(seconds)))  # iperf3 counts in whole seconds


GROUPS: dict[str, Callable[[Plan], list[Group]]] = {
    "echo": echo,
    "burst-sizes": burst_sizes,
    "threads": thread_curves,
    "sizes": sizes,
    "calls": call_times,
    "baseline": baseline,
    "one-way": one_way,
    "generate": generators,
    "round-trip": round_trip,
    "instead": instead,
    "queues": queues,
    "icmp": responders,
    "loops-rr": loops_round_trip,
    "loops-echo": loops_echo,
    "loops-cpu": loops_cpu,
    "wake-ups": wake_ups,
    "idle": idle,
    "dump": captures,
    "impair": impairments,
    "switch": switches,
    "bridge": bridges,
    "crowd-poll": crowd_poll,
    "crowd-connect": crowd_connect,
}
