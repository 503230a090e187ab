"""What one call costs: the time of calls on polling queues that find nothing or one packet, in one process.

    python -m benchmarks.calls [--seconds N]

Each call is one of a Python loop, made through ``functools.partial``; both are in the figure. Nothing else touches the
memory, so no cache line comes from another core: a real peer adds that.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable

from benchmarks.inside import Wires

#: Calls that are timed in one go: as many as a ring has slots.
_CALLS = 1024
_PACKET = bytes(64)

#: Prepares the rings for ``_CALLS`` calls, and the call to time.
Step = tuple[Callable[[], object], Callable[[], object]]


def nanoseconds(name: str, seconds: float, cpu: int) -> float:
    """Return the time of one call: the median of many runs of 1024 calls, few of which are interrupted."""
    wires = Wires()
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
        return _median(*CALLS[name](wires), seconds) / _CALLS
    finally:
        os.sched_setaffinity(0, before)
        wires.close()


def _median(prepare: Callable[[], object], call: Callable[[], object], seconds: float) -> float:
    clock, taken = time.perf_counter_ns, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        prepare()
        times = itertools.repeat(None, _CALLS)
        start = clock()
        for _ in times:
            call()
        taken.append(clock() - start)
    return statistics.median(taken)


def _nothing() -> None:
    pass


def _empty_recv(wires: Wires) -> Step:
    return _nothing, wires.crossing("slave")[0].recv


def _empty_burst(wires: Wires) -> Step:
    rx, _ = wires.crossing("slave")

    def burst() -> None:
        with rx.burst(1):
            pass

    return _nothing, burst


def _empty_forward(wires: Wires) -> Step:
    rx, tx = wires.crossing("slave")
    return _nothing, functools.partial(tx.forward, rx, 1)


def _forward(wires: Wires, role: str) -> Step:
    rx, tx = wires.crossing(role)
    lane, back = wires.ends.lane("master" if role == "slave" else "slave"), wires.ends.lane(role)
    packets = [_PACKET] * _CALLS

    def fill() -> None:
        back.rx.recv(_CALLS)
        back.post()
        lane.post()
        lane.tx.send(packets)

    return fill, functools.partial(tx.forward, rx, 1)


def _receive(wires: Wires, call: Callable[[Wires], Callable[[], object]]) -> Step:
    lane, packets = wires.ends.s2m, [_PACKET] * _CALLS
    return lambda: lane.tx.send(packets), call(wires)


def _burst_of_one(wires: Wires) -> Callable[[], object]:
    rx = wires.rx(wires.ends.s2m.rx)

    def burst() -> None:
        with rx.burst(1):
            pass

    return burst


def _recv_of_one(wires: Wires) -> Callable[[], object]:
    return functools.partial(wires.rx(wires.ends.s2m.rx).recv, 1)


def _send(wires: Wires) -> Step:
    lane = wires.ends.s2m
    return functools.partial(lane.rx.recv, _CALLS), functools.partial(wires.tx(lane.tx).send, [_PACKET])


CALLS: dict[str, Callable[[Wires], Step]] = {
    "recv() of nothing": _empty_recv,
    "burst(1) of nothing, and its block": _empty_burst,
    "forward(rx, 1) of nothing": _empty_forward,
    "forward(rx, 1) of 1 packet, slave": lambda wires: _forward(wires, "slave"),
    "forward(rx, 1) of 1 packet, master": lambda wires: _forward(wires, "master"),
    "burst(1) of 1 packet, and its block": lambda wires: _receive(wires, _burst_of_one),
    "recv(1) of 1 packet": lambda wires: _receive(wires, _recv_of_one),
    "send of 1 packet": _send,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure; default 0.5")
    arguments = parser.parse_args()
    for name in CALLS:
        print(f"{name:40} {nanoseconds(name, arguments.seconds, 0):8.1f} ns", flush=True)


if __name__ == "__main__":
    main()
