"""Threads in one process, each with a pair of queues of its own: what two of them make of what one makes.

    python -m benchmarks.threads [--threads N] [--api loop|burst] [--seconds N]

Packets go round in a ring: each thread forwards what a ring holds into the same ring. So nothing faces the threads that
could be slower than they are, and they share no memory: what they lose to each other is the GIL, or the machine.
``loop`` is one call of ``forward_from``, ``burst`` calls of ``forward`` in a Python loop. Prints packets a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.inside import Wires

_ROOT = Path(__file__).resolve().parent.parent
APIS = ("loop", "burst")
#: Packets in each ring: half of its slots.
_PACKETS = 512
_BURST = 256
_TURNS = 32


class Forwarder(threading.Thread):
    """Lets packets go round in a ring until it is told to stop."""

    def __init__(self, api: str, cpu: int, start: threading.Barrier, stop: bytearray) -> None:
        super().__init__(daemon=True)
        self._api, self._cpu = api, cpu
        self._begin, self._until = start, stop
        self._wires = Wires()
        self._rx, self._tx = self._wires.circle()
        assert self._tx.send([bytes(64)] * _PACKETS) == _PACKETS
        self.packets = 0
        self.seconds = 0.0

    def run(self) -> None:
        os.sched_setaffinity(0, {self._cpu})
        forward, rx, until = self._tx.forward, self._rx, self._until
        before = self._tx.counters.packets
        self._begin.wait()
        started = time.perf_counter()
        if self._api == "loop":
            self._tx.forward_from(rx, until=until, limit=_BURST)
        else:
            while not until[0]:
                for _ in range(_TURNS):
                    forward(rx, _BURST)
        self.seconds = time.perf_counter() - started
        self.packets = self._tx.counters.packets - before
        self._wires.close()


def packets_a_second(api: str, threads: int, seconds: float) -> float:
    """Run the threads in this process, each on a core of its own as far as there are cores."""
    cpus = sorted(os.sched_getaffinity(0))
    stop, start = bytearray(1), threading.Barrier(threads + 1)
    forwarders = [Forwarder(api, cpus[number % len(cpus)], start, stop) for number in range(threads)]
    for forwarder in forwarders:
        forwarder.start()
    start.wait()
    time.sleep(seconds)
    stop[0] = 1
    for forwarder in forwarders:
        forwarder.join()
    return sum(forwarder.packets / forwarder.seconds for forwarder in forwarders)


def measure(api: str, threads: int, seconds: float, python: str = sys.executable) -> float:
    """Run the threads in a process of their own, and return packets a second.

    :param python: an interpreter, such as a free-threaded one, with memifrt installed.
    """
    command = [python, "-m", "benchmarks.threads", f"--api={api}", f"--threads={threads}", f"--seconds={seconds}"]
    with tempfile.TemporaryDirectory() as folder:
        # Not in the source tree, whose package would hide the installed one, and is built for one interpreter.
        for name in ("benchmarks", "tests"):
            os.symlink(_ROOT / name, f"{folder}/{name}")
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument("--api", choices=APIS, default="loop", help="default loop")
    parser.add_argument("--seconds", type=float, default=0.5, help="default 0.5")
    arguments = parser.parse_args()
    print(packets_a_second(arguments.api, arguments.threads, arguments.seconds))


if __name__ == "__main__":
    main()
