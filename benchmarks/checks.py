"""What it costs that nothing in shared memory is trusted: the compiled rings against a build of them without checks.

    python -m benchmarks.checks [--seconds N]

Owns that build, which exists nowhere else: a copy of the package in a temporary folder, whose checks never fail. Three
figures for each way to echo, of each build: the time that a packet takes in the queues of one process, with nothing to
wait for; the instructions of that, and of the peer that faces it and has the same checks, if valgrind is there to count
them; and packets per second of ``memifrt bench echo``, which wants two idle cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

from benchmarks.ends import Load, bench_device, measure
from memifrt.errors import Disconnected, RingViolation
from memifrt.queue import RxQueue, TxQueue, reference
from memifrt.ring import RingImplementation
from memifrt.system.fds import EventFd
from memifrt.types import QueueCounters, RxMode
from tests.lib.rings import Ends

_ROOT = Path(__file__).resolve().parent.parent
_VARIANTS = ("checked", "unchecked")
_BURST = 256
#: Bursts that are timed in one go, too short to be interrupted often, and that callgrind counts the instructions of.
_BURSTS, _COUNTED = 20, 300
#: Fewer of them than this in the source, and it is no longer what this script knows.
_LEAST_CHECKS = 12

Echo = Callable[[], object]


# --- a build without checks -------------------------------------------------------------------------------------------


def remove_checks(folder: Path) -> None:
    """Rewrite the parts of the compiled rings so that no ``if`` that leads to a violation ever holds, and every
    descriptor is inside its region.

    :raises ValueError: the sources are not what this function knows.
    """
    checks = bounds = 0
    for path in folder.glob("_native_*.pxi"):
        text, found, holds = without_checks(path.read_text())
        path.write_text(text)
        checks += found
        bounds += holds
    if checks < _LEAST_CHECKS or bounds != 1:
        raise ValueError("these rings are not those that this script knows")


def without_checks(source: str) -> tuple[str, int, int]:
    """Return a part of the rings without its checks, how many checks there were, and how many bounds of regions."""
    lines = source.split("\n")
    found = 0
    for number, line in enumerate(lines):
        if re.match(r" +(raise|return) self\.(violation|violated|outside|out_of_bounds|outside_its_buffer)\(", line):
            found += _switch_off(lines, number)
    text = "\n".join(lines)
    text, holds = re.subn(r"(cdef inline bint holds\(.*\n *\"\"\".*\"\"\"\n)", r"\1        return True\n", text)
    return text, found, holds


def _switch_off(lines: list[str], number: int) -> bool:
    """Let the ``if`` around a line never hold; return whether there is one. Functions that only raise have none."""
    indent = len(lines[number]) - len(lines[number].lstrip())
    while number:
        number -= 1
        line = lines[number]
        if not line.strip() or len(line) - len(line.lstrip()) >= indent:
            continue
        if line.lstrip().startswith(("cdef ", "def ")):
            return False
        if line.lstrip().startswith("if "):
            head, condition = line.split("if ", 1)
            if condition.endswith(":"):
                condition = f"({condition[:-1]}):"
            lines[number] = f"{head}if False and {condition}"
            return True
    return False


def build(folder: Path) -> dict[str, Path]:
    """The package twice, each with its rings compiled in place, by the same compiler with the same flags."""
    trees = {variant: folder / variant for variant in _VARIANTS}
    for variant, tree in trees.items():
        if tree.exists():
            continue
        shutil.copytree(
            _ROOT / "memifrt", tree / "memifrt", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__")
        )
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(_ROOT / name, tree)
        if variant == "unchecked":
            remove_checks(tree / "memifrt" / "ring")
        print(f"building the {variant} rings", file=sys.stderr)
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return trees


def load(tree: Path) -> RingImplementation:
    """The rings of a tree, beside those of others."""
    (path,) = (tree / "memifrt" / "ring").glob("_native*.so")
    spec = importlib.util.spec_from_file_location(f"{tree.name}._native", path)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(RingImplementation, module)


# --- in one process ---------------------------------------------------------------------------------------------------


class Echoes:
    """One side that echoes bursts of small packets, and what faces it, over plain memory."""

    def __init__(self, implementation: RingImplementation, role: str, api: str) -> None:
        ends = Ends(implementation, log2_size=10, buffer_size=2048)
        self._there, self._back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
        self._packets = [bytes(64)] * _BURST
        self._back.rx.set_mask(True)
        rx, tx = ends.crossing(role)
        self._event = EventFd.create("eventfd that nobody uses")
        # Not make_rx_queue: that takes the rings of the installed package alone for compiled ones.
        rx_queue = getattr(implementation, "RxQueue", reference.RxQueue)
        tx_queue = getattr(implementation, "TxQueue", reference.TxQueue)
        self.echo = _ECHOES[api](
            rx_queue(0, rx, self._event, QueueCounters(), _violated, RxMode.POLLING, lambda queue: None),
            tx_queue(0, tx, self._event, QueueCounters(), _violated, True, lambda queue: None),
        )

    def close(self) -> None:
        self._event.close()

    def run(self, bursts: int) -> float:
        """Seconds that the echoing side took."""
        clock, echo, spent = time.perf_counter, self.echo, 0.0
        for _ in range(bursts):
            self._there.tx.send(self._packets)
            start = clock()
            echo()
            spent += clock() - start
            with self._back.rx.burst(_BURST) as burst:
                assert len(burst) == _BURST
        return spent


def _violated(violation: RingViolation) -> Disconnected:
    raise violation


def _echo_packets(rx: RxQueue, tx: TxQueue) -> Echo:
    return lambda: tx.send(rx.recv(_BURST))


def _echo_burst(rx: RxQueue, tx: TxQueue) -> Echo:
    return lambda: tx.forward(rx, _BURST)


def _echo_vector(rx: RxQueue, tx: TxQueue) -> Echo:
    matrix, lengths = memoryview(bytearray(_BURST * 64)).cast("B", (_BURST, 64)), array("I", bytes(4 * _BURST))

    def echo() -> None:
        rx.recv_into(matrix, lengths)
        tx.send_from(matrix, lengths)

    return echo


#: As the choices of ``memifrt bench --api``.
_ECHOES: dict[str, Callable[[RxQueue, TxQueue], Echo]] = {
    "burst": _echo_burst,
    "packets": _echo_packets,
    "vector": _echo_vector,
}


def nanoseconds(trees: dict[str, Path], role: str, api: str, seconds: float) -> dict[str, float]:
    """Per packet: the medians of runs that take turns."""
    echoes = {variant: Echoes(load(trees[variant]), role, api) for variant in _VARIANTS}
    spent: dict[str, list[float]] = {variant: [] for variant in _VARIANTS}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for variant in _VARIANTS:
            spent[variant].append(echoes[variant].run(_BURSTS))
    for echo in echoes.values():
        echo.close()
    return {variant: statistics.median(spent[variant]) / _BURSTS / _BURST * 1e9 for variant in _VARIANTS}


def instructions(tree: Path, role: str, api: str) -> float:
    """Per packet, as callgrind counts them: those of a longer run less those of a shorter one."""
    counted = []
    for bursts in (1, 1 + _COUNTED):
        command = [
            "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=yes",
            sys.executable, "-m", "benchmarks.checks", f"--count={tree}:{role}:{api}:{bursts}",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "0"}
        )
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found is not None, done.stderr
        counted.append(int(found[1]))
    return (counted[1] - counted[0]) / _COUNTED / _BURST


# --- as a user has them -----------------------------------------------------------------------------------------------


def packets_per_second(trees: dict[str, Path], role: str, api: str, seconds: float, rounds: int) -> dict[str, float]:
    """Of ``memifrt bench echo``, each variant in turn facing the same generator: the medians."""
    device = bench_device("echo", role, Load(), 0, api=api)
    rates: dict[str, list[float]] = {variant: [] for variant in _VARIANTS}
    for _ in range(rounds):
        for variant in _VARIANTS:
            result = measure(replace(device, folder=trees[variant]), "gen", Load(), seconds, 1, "--check=count")
            rates[variant].append(float(result["pps"]))
    return {variant: statistics.median(rates[variant]) for variant in _VARIANTS}


def _loss(fast: float, slow: float) -> str:
    return f"{(1 - slow / fast) * 100:6.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure's runs, of each variant; default 2")
    parser.add_argument("--rounds", type=int, default=5, help="of memifrt bench echo; 0 leaves it out; default 5")
    parser.add_argument("--only", metavar="ROLE:API", help="one way to echo, such as slave:burst; default: all")
    parser.add_argument("--builds", type=Path, help="a folder that keeps the builds, or has them from an earlier run")
    parser.add_argument("--no-instructions", action="store_true", help="do without valgrind, which takes minutes")
    parser.add_argument("--count", metavar="TREE:ROLE:API:BURSTS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        tree, role, api, bursts = arguments.count.split(":")
        echoes = Echoes(load(Path(tree)), role, api)
        echoes.run(int(bursts))
        echoes.close()
        return
    with tempfile.TemporaryDirectory() as folder:
        trees = build(arguments.builds or Path(folder))
        print(f"{'':18}{'checked':>14}{'unchecked':>14}{'cost':>9}")
        for role in ("slave", "master"):
            for api in _ECHOES:
                if arguments.only in (None, f"{role}:{api}"):
                    _report(trees, role, api, arguments)


def _report(trees: dict[str, Path], role: str, api: str, arguments: argparse.Namespace) -> None:
    """The cost is always what the throughput loses to the checks."""
    took = nanoseconds(trees, role, api, arguments.seconds)
    _line(f"{role} {api}", "ns", took, _loss(1 / took["unchecked"], 1 / took["checked"]))
    if shutil.which("valgrind") and not arguments.no_instructions:
        counted = {variant: instructions(trees[variant], role, api) for variant in _VARIANTS}
        _line("", "instr", counted, _loss(1 / counted["unchecked"], 1 / counted["checked"]))
    if arguments.rounds:
        rates = packets_per_second(trees, role, api, arguments.seconds, arguments.rounds)
        _line("", "pkt/s", rates, _loss(rates["unchecked"], rates["checked"]))


def _line(name: str, unit: str, figures: dict[str, float], cost: str) -> None:
    shown = "".join(f"{figures[variant]:14,.2f}" for variant in _VARIANTS)
    print(f"{name:14} {unit:5}{shown} {cost}", flush=True)


if __name__ == "__main__":
    main()
