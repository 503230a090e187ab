"""What ``memifrt dump --between`` costs beside a plain forward: ``python -m benchmarks.dump``.

A source, the device and a sink take turns in this process, and a figure is the device's CPU time for each packet: no
scheduler and no other program is in it. The device is what ``memifrt bridge`` has between two memifs (the plain
forward), or ``memifrt dump --between``. With ``--processes`` the device is the command itself, on a core of its own,
and a figure is the rate that arrives; that needs a machine with two idle cores. Figures are medians of rounds in which
the cases take turns. What the kernel takes for the file alone stands beside them, measured without any packet.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from memifrt import Interface, Role, Runtime, RxMode
from memifrt.capture.pcap import MAX_SNAPLEN
from memifrt.cli.commands.dump import between
from memifrt.cli.dump.capture import capturing
from memifrt.cli.dump.options import DumpOptions
from memifrt.options import InterfaceConfig
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.forwarding import Direction, Forward
from memifrt.ports.port import MemifPort

_ROOT = Path(__file__).resolve().parent.parent
_DEVICE_CPU, _FACING_CPU = 0, 1
#: A pcap record's header.
_RECORD = 16
#: Packets of a turn; bytes of a packet that a case keeps which is after headers alone.
_AT_ONCE, _SNAPLEN = 512, 96


@dataclass
class Case:
    """A device: its arguments behind ``dump --between A B``, None for the plain forward; nanoseconds a packet."""

    name: str
    size: int
    path: str | None
    snaplen: int = MAX_SNAPLEN
    figures: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def record(self) -> int:
        """Bytes in the file for each packet."""
        return min(self.size, self.snaplen) + _RECORD

    def remove_file(self) -> None:
        if self.path is not None and self.path != os.devnull:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def cases(size: int, disk: str) -> list[Case]:
    """The plain forward first."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else disk
    in_memory, on_disk = f"{memory}/memifrt-benchmark.pcap", f"{disk}/memifrt-benchmark.pcap"
    found = [
        Case("plain forward", size, None),
        Case("dump to /dev/null", size, os.devnull),
        Case("dump to a file in memory", size, in_memory),
        Case("dump to a file on a disk", size, on_disk),
        Case("dump as pcapng, to memory", size, f"{memory}/memifrt-benchmark.pcapng"),
    ]
    if size > _SNAPLEN:
        found.append(Case(f"dump to memory, snaplen {_SNAPLEN}", size, in_memory, _SNAPLEN))
    return found


# --- in turns -------------------------------------------------------------------------------------------------------


def in_turns(case: Case, seconds: float) -> float:
    """Nanoseconds of CPU time that the device takes for a packet."""
    socket = f"@memifrt-benchmark-{os.getpid()}"
    ends = [MemifEndpoint(socket, InterfaceConfig(id=id, role=Role.MASTER, rx_mode=RxMode.POLLING)) for id in (0, 1)]
    with Runtime("benchmark", reconnect_interval=0.05) as runtime:
        ports = [MemifPort(runtime, end) for end in ends]
        source, sink = _facing(runtime, socket)
        while not (source.connected and sink.connected and all(port.connected for port in ports)):
            runtime.poll_event(0.1)
        if case.path is None:
            return _cost(Forward(*ports), source, sink, case.size, seconds)
        options = DumpOptions(path=case.path, snaplen=case.snaplen)
        with capturing(options, ends, lambda: None) as capture:
            (way, back) = between(ports, capture)
            try:
                return _cost(way, source, sink, case.size, seconds)
            finally:
                way.close()
                back.close()


def _cost(way: Direction, source: Interface, sink: Interface, size: int, seconds: float) -> float:
    tx, rx = source.tx_queues[0], sink.rx_queues[0]
    used, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(16):
            tx.transmit(tx.alloc(_AT_ONCE, size))
            before = time.thread_time_ns()
            way.step()
            used += time.thread_time_ns() - before
            with rx.burst(_AT_ONCE):
                pass
    return used / sink.rx_queues[0].counters.packets


def _facing(runtime: Runtime, socket: str) -> list[Interface]:
    return [runtime.create_interface(socket=socket, id=id, rx_mode="polling") for id in (0, 1)]


# --- processes ------------------------------------------------------------------------------------------------------


def in_processes(case: Case, seconds: float) -> float:
    """Nanoseconds between two packets that arrive, at full rate."""
    with tempfile.TemporaryDirectory() as folder:
        ends = [f"memif:{folder}/s,role=master,rx-mode=polling,id={id}" for id in (0, 1)]
        command = ["bridge", *ends]
        if case.path is not None:
            command = ["dump", "--between", *ends, "-w", case.path, f"--snaplen={case.snaplen}"]
        with (
            _running("taskset", "-c", str(_DEVICE_CPU), sys.executable, "-m", "memifrt", *command) as device,
            Runtime("benchmark", reconnect_interval=0.05) as runtime,
        ):
            source, sink = _facing(runtime, f"{folder}/s")
            while not (source.connected and sink.connected):
                if device.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {device.returncode}")
                runtime.poll_event(0.1)
            _face(source, sink, case.size, seconds / 4)  # until caches and files are warm
            started = time.monotonic()
            packets = _face(source, sink, case.size, seconds)
            return (time.monotonic() - started) / packets * 1e9


def _face(source: Interface, sink: Interface, size: int, seconds: float) -> int:
    """Send as much as there is room for, and count what comes out at the other end."""
    tx, rx = source.tx_queues[0], sink.rx_queues[0]
    received, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(64):
            tx.transmit(tx.alloc(256, size))
            with rx.burst(256) as burst:
                received += len(burst)
    return received


def write_ns(path: str, size: int, seconds: float) -> float:
    """CPU time in which the kernel takes one record of this size, in a file that grows."""
    chunk = bytes(1 << 18)
    written, used = 0, time.process_time()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        while time.process_time() - used < seconds and written < 2 << 30:
            written += os.write(fd, chunk)
        return (time.process_time() - used) / written * size * 1e9
    finally:
        os.close(fd)
        if path != "/dev/null":
            os.unlink(path)


@contextlib.contextmanager
def _running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=_ROOT
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure; default 0.5")
    parser.add_argument("--rounds", type=int, default=5, help="in which the cases take turns; default 5")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 1500], help="of packets; default 64 1500")
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="folder of a file on a disk; default %(default)s")
    parser.add_argument("--processes", action="store_true", help="the commands at full rate, instead of turns")
    arguments = parser.parse_args()
    take = in_processes if arguments.processes else in_turns
    os.sched_setaffinity(0, {_FACING_CPU})
    for size in arguments.sizes:
        measured = cases(size, arguments.disk)
        for _ in range(arguments.rounds):
            for case in measured:
                try:
                    case.figures.append(take(case, arguments.seconds))
                finally:
                    case.remove_file()
        print(f"{size}-byte packets", flush=True)
        for case in measured:
            print(_line(case, measured[0].median, arguments.seconds), flush=True)


def _line(case: Case, plain: float, seconds: float) -> str:
    cost = case.median
    line = f"  {case.name:28} {cost:7.1f} ns/packet, {1e3 / cost:6.2f} Mpps: {plain / cost:5.0%} of the forward's rate"
    if case.path is None or case.path == os.devnull:
        return line
    return f"{line}; write() alone {write_ns(case.path, case.record, seconds):.0f} ns"


if __name__ == "__main__":
    main()
