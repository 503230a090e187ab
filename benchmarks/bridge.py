"""What passes ``memifrt bridge`` between two network namespaces: ``python -m benchmarks.bridge``, as root.

Two bridges, joined by a memif, each with a TAP device or an interface of the kernel on its other side; ``iperf3`` and
``ping`` of the kernel run through both. Everything shares the machine's cores: two bridges, iperf3's two ends, and the
kernel's own work for them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lib.namespaces import Namespace, missing, namespaces
from tests.lib.programs import end, read_until, running

_LEFT, _RIGHT = "10.99.0.1", "10.99.0.2"


@dataclass(frozen=True)
class Case:
    """What stands on both sides of the memif."""

    name: str
    kind: str
    mtu: int = 1500


CASES = (
    Case("TAP - memif - TAP, MTU 1500", "tap"),
    Case("TAP - memif - TAP, MTU 9000", "tap", 9000),
    Case("veth - memif - veth, MTU 1500", "packet"),
)


@contextlib.contextmanager
def joined(case: Case) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces with a case between them."""
    with namespaces(3) as (left, right, host), tempfile.TemporaryDirectory() as folder:
        ends = [_endpoint(case, namespace, host, name) for namespace, name in ((left, "va"), (right, "vb"))]
        with (
            running("bridge", f"memif:{folder}/s,role=master", ends[0]) as a,
            running("bridge", f"memif:{folder}/s", ends[1]) as b,
        ):
            for program in (a, b):
                read_until(program, "connected to", stderr=True)
            left.ip("address", "add", f"{_LEFT}/24", "dev", "mif")
            right.ip("address", "add", f"{_RIGHT}/24", "dev", "mif")
            # The kernel acts on a carrier some time after it is there.
            left.run("ping", "-n", "-q", "-c", "1", "-i", "0.1", "-w", "15", _RIGHT)
            yield left, right
            for program in (a, b):
                end(program)


def _endpoint(case: Case, inside: Namespace, host: Namespace, name: str) -> str:
    if case.kind == "tap":
        return f"tap:mif,mtu={case.mtu},netns={inside.name}"
    inside.ip("link", "add", "name", "mif", "type", "veth", "peer", "name", name, "netns", host.name)
    inside.ip("link", "set", "mif", "up")
    host.ip("link", "set", name, "up")
    return f"packet:{name},netns={host.name}"


def gigabits(left: Namespace, right: Namespace, seconds: float, *arguments: str) -> float:
    """An iperf3 TCP run from left to right."""
    with right.running("iperf3", "-s", "-1", "--forceflush") as server:
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            pass
        command = ("iperf3", "-c", _RIGHT, "-J", "-t", f"{seconds:g}", *arguments)
        result = json.loads(left.run(*command, timeout=seconds + 30))
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9


def round_trip(left: Namespace) -> float:
    """The kernel's ping: the mean in microseconds."""
    said = left.run("ping", "-n", "-q", "-c", "200", "-i", "0.002", _RIGHT)
    found = re.search(r"= [\d.]+/([\d.]+)/", said)
    assert found, said
    return float(found[1]) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="of each iperf3 run; default 2")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    arguments = parser.parse_args()
    if reason := missing("iperf3", "ping"):
        sys.exit(reason)
    for case in CASES:
        figures = []
        for _ in range(arguments.rounds):
            with joined(case) as (left, right):
                there = gigabits(left, right, arguments.seconds)
                back = gigabits(left, right, arguments.seconds, "-R")
                figures.append((there, back, round_trip(left)))
        there, back, rtt = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{case.name:30} {there:6.2f} Gbit/s, back {back:6.2f} Gbit/s, ping {rtt:6.0f} us", flush=True)


if __name__ == "__main__":
    main()
