"""What memifrt must reach: ratios of medians of one run, and a few medians themselves."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import alternatives
from benchmarks import groups as g
from benchmarks.cases import Group
from memifrt.cli.run_in_loop import LOOPS


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


#: Stands for the best of what else a Python program could take.
_BEST = "best"

#: Against the baseline. For the others "not worse" leaves room for what two runs of the same code differ.
_FLOORS = {f"echo, bursts of {burst}, {role}": floor for burst, floor in ((32, 2.0), (256, 1.0)) for role in g.ROLES}

PROMISES = (
    *(
        Promise(f"echo, bursts of 1, {role}: millions of calls of forward a second", g.CALLS_A_SECOND[role], "", 5.0)
        for role in g.ROLES
    ),
    *(
        Promise(f"{name}, polling queue, ns", name, "", None, 80.0)
        for name in ("recv() of nothing", "forward(rx, 1) of nothing")
    ),
    *(
        Promise(f"{name}: against the baseline", name, g.BASELINE.format(name), _FLOORS.get(name, 0.95))
        for name in g.NOW
    ),
    Promise("echo, zero copy, slave, polling: against testpmd io, zero-copy client", g.NATIVE_SLAVE, g.PMD_CLIENT, 2.0),
    Promise("echo, copying, master, polling: against testpmd io, server", g.NATIVE_MASTER, g.PMD_SERVER, 2.0),
    Promise(
        "1500 bytes, copying, master: against testpmd io, server",
        g.SIZED.format("1500 bytes", "memifrt, copying, master"),
        g.SIZED.format("1500 bytes", g.PMD_SERVER),
        2.5,
    ),
    Promise(
        "two threads, two queues, forward_from: against one thread",
        g.INSIDE.format("forward_from", 2),
        g.INSIDE.format("forward_from", 1),
        1.9,
    ),
    Promise(
        "two threads, two queues, forward in Python, free-threaded: against one thread",
        g.FREE_THREADED.format(2),
        g.FREE_THREADED.format(1),
        1.8,
    ),
    Promise(
        "one thread, forward in Python, free-threaded: against a Python with a GIL",
        g.FREE_THREADED.format(1),
        g.INSIDE.format("forward in Python", 1),
        0.8,
    ),
    Promise("generate, four varying fields, Mpps", g.GENERATE, "", 20.0),
    *(
        Promise(f"generate, signed, sent back and checked, {role}: against plain", checked, g.GENERATE, 0.5)
        for role, checked in g.GENERATE_CHECKED.items()
    ),
    Promise("bridge with a delay, ns a packet (1 Mpps)", "--delay 10ms", "", None, 1000.0),
    Promise("per-packet Python ICMP responder, Mpps", g.PER_PACKET, "", 2.5),
    Promise("round trip, interrupt mode, p50: against a SEQPACKET ping-pong", g.RR_INTERRUPT, g.RR_SOCKET, None, 1.0),
    Promise(
        "one packet a wake-up, callback in poll_event, CPU time: against plain epoll and a datagram socket",
        g.WAKE_UP.format("callback", "memif"),
        g.WAKE_UP.format("callback", "datagram"),
        None,
        1.2,
    ),
    Promise("recv to bytes: against the reference", g.RECV, g.RECV_REFERENCE, 10.0),
    Promise("send of bytes: against the reference", g.SEND, g.SEND_REFERENCE, 10.0),
    Promise("sink with recv: against testpmd rxonly, server", g.RECV, g.PMD_RX, 0.5),
    Promise("vectorised ICMP responder: against testpmd icmpecho", g.VECTORISED, g.PMD_ICMP, 0.7),
    Promise("burst API: against the best of the others", g.BURST, _BEST, 50.0),
    Promise("send and recv: against the best of the others", g.PACKETS, _BEST, 15.0),
    Promise("idle, connected, interrupt mode, % of a core", g.IDLE, "", None, 0.5),
    Promise(
        "a poll among 500 interfaces: against one among 10",
        g.CROWD_POLL.format(500),
        g.CROWD_POLL.format(10),
        None,
        1.5,
    ),
    Promise(
        "a poll of 500 interfaces in turn, their memory in no cache: against 10 in turn",
        g.CROWD_TURNS.format(500),
        g.CROWD_TURNS.format(10),
        None,
        2.0,
    ),
    Promise(
        "connecting one of 500 interfaces: against one of 10",
        g.CROWD_CONNECT.format(500),
        g.CROWD_CONNECT.format(10),
        None,
        1.5,
    ),
    Promise("connecting one of 500 interfaces, us: all within 10 s", g.CROWD_CONNECT.format(500), "", None, 10e6 / 500),
    Promise(
        "recv of one packet a wake-up in gevent, CPU time: against a gevent socket's recv of a datagram",
        g.WAKE_UP.format("gevent", "memif"),
        g.WAKE_UP.format("gevent", "datagram"),
        None,
        1.3,
    ),
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


def promises(groups: list[Group]) -> tuple[list[str], bool]:
    """Return the table of what is reached, and whether every promise is kept. What was not measured is left out."""
    medians = {case.name: case.median for group in groups for case in group.cases if case.figures}
    if others := [medians[name] for name in alternatives.TRANSPORTS if name in medians]:
        medians[_BEST] = max(others)
    lines = ["| what | reached | must be | |", "|---|---:|---:|---|"]
    all_kept = True
    for promise in PROMISES:
        if promise.case not in medians or (promise.against and promise.against not in medians):
            continue
        value = medians[promise.case] / (medians[promise.against] if promise.against else 1.0)
        bound = f"≥ {promise.floor}" if promise.floor is not None else f"≤ {promise.ceiling}"
        kept = promise.kept(value)
        all_kept = all_kept and kept
        lines.append(f"| {promise.what} | {value:.2f} | {bound} | {'reached' if kept else 'missed'} |")
    return lines, all_kept
