"""What an impairment costs beside a plain forward: ``python -m benchmarks.impair``.

A source, the bridge's direction and a sink take turns in this process. A figure is the direction's CPU time for each
packet: no scheduler and no other program is in it. Packets come at full rate, in bursts of 512.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass, field

from memifrt import Interface, Role, Runtime, RxMode
from memifrt.impairments import Impairment
from memifrt.options import InterfaceConfig
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.forwarding import Direction, direction
from memifrt.ports.impaired import Impaired
from memifrt.ports.port import MemifPort

_AT_ONCE = 512


@dataclass
class Case:
    """An impairment, by the settings; None for the plain forward."""

    name: str
    settings: dict[str, str] | None
    figures: list[float] = field(default_factory=list)


def cases() -> list[Case]:
    """Return the cases, the plain forward first."""
    return [
        Case("plain forward", None),
        Case("--delay 10ms", {"delay": "10ms"}),
        Case("--loss 1%", {"loss": "1%"}),
        Case("--delay 10ms --loss 1%", {"delay": "10ms", "loss": "1%"}),
        Case("--loss 'gemodel 1% 10%'", {"loss": "gemodel 1% 10%"}),
        Case("--delay 10ms --jitter 2ms", {"delay": "10ms", "jitter": "2ms"}),
        Case("--delay 10ms --reorder 25%", {"delay": "10ms", "reorder": "25%"}),
        Case("--rate 10gbit", {"rate": "10gbit"}),
    ]


def nanoseconds(case: Case, size: int, seconds: float) -> float:
    """Return the CPU time that the direction takes for a packet."""
    socket = f"@memifrt-benchmark-impair-{os.getpid()}"
    ends = [MemifEndpoint(socket, InterfaceConfig(id=id, role=Role.MASTER, rx_mode=RxMode.POLLING)) for id in (0, 1)]
    with Runtime("benchmark", reconnect_interval=0.05) as runtime:
        near, far = (MemifPort(runtime, end) for end in ends)
        source, sink = (runtime.create_interface(socket=socket, id=id, rx_mode="polling") for id in (0, 1))
        while not (source.connected and sink.connected and near.connected and far.connected):
            runtime.poll_event(0.1)
        if case.settings is None:
            return _cost(direction(near, far), source, sink, size, seconds)
        impairment = Impairment(seed=1, **case.settings)  # type: ignore[arg-type]  # texts are taken for all of them
        return _cost(Impaired(near, far, impairment), source, sink, size, seconds)


def _cost(way: Direction, source: Interface, sink: Interface, size: int, seconds: float) -> float:
    tx, rx = source.tx_queues[0], sink.rx_queues[0]
    used, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(16):
            tx.transmit(tx.alloc(_AT_ONCE, size))
            before = time.thread_time_ns()
            way.step()
            used += time.thread_time_ns() - before
            while True:  # packets of several bursts may leave at once
                with rx.burst(_AT_ONCE) as burst:
                    if not len(burst):
                        break
    return used / way.source.received.packets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure; default 0.5")
    parser.add_argument("--rounds", type=int, default=5, help="in which the cases take turns; default 5")
    parser.add_argument("--size", type=int, default=64, help="of packets; default 64")
    arguments = parser.parse_args()
    measured = cases()
    for _ in range(arguments.rounds):
        for case in measured:
            case.figures.append(nanoseconds(case, arguments.size, arguments.seconds))
    for case in measured:
        cost, best = statistics.median(case.figures), min(case.figures)
        print(f"{case.name:28} {cost:7.1f} ns/packet, {1e3 / cost:6.2f} Mpps; best {1e3 / best:6.2f} Mpps", flush=True)


if __name__ == "__main__":
    main()
