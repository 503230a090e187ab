"""The soak and the figures of scale in short: that they run, that they count, and that they tell what is wrong."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.traffic import LONGEST, Checker, Sequence
from tests.lib.support import DEADLINE

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,
        check=False,
    )


# --- packets that prove themselves ----------------------------------------------------------------------------------


def test_packets_are_right_in_their_order_whatever_their_length() -> None:
    sequence, checker = Sequence(random.Random(1)), Checker()
    lengths = set()
    for _ in range(100):
        packets = sequence.packets(40)
        assert packets == sequence.packets(40), "what was not sent comes again"
        sequence.sent(20)
        lengths |= {len(packet) for packet in packets}
        assert [checker.check(packet) for packet in packets[:20]] == [""] * 20
    assert min(lengths) < 64
    assert 4 * LONGEST / 5 < max(lengths) <= LONGEST


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (lambda packets: packets[1:], "packet 1 where 0 was due"),
        (lambda packets: [packets[0], packets[2]], "packet 2 where 1 was due"),
        (lambda packets: [packets[0], packets[0]], "packet 0 where 1 was due"),
        (lambda packets: [packets[0] + b"\0"], "wrong checksum where 0 was due"),
        (lambda packets: [packets[0], packets[1][:-1] + b"\0"], "wrong checksum where 1 was due"),
        (lambda packets: [packets[0], b"short"], "a packet of 5 bytes where 1 was due"),
        (lambda packets: [packets[0], Sequence(random.Random(2)).packets(2)[1]], "packet 1 of another connection"),
    ],
    ids=["lost first", "lost", "doubled", "longer", "changed", "cut", "left over"],
)
def test_a_packet_that_is_not_the_one_due_is_told(change: Callable[[list[bytes]], list[bytes]], trouble: str) -> None:
    checker = Checker()
    troubles = [checker.check(packet) for packet in change(Sequence(random.Random(1)).packets(4))]
    assert [found for found in troubles if found] == [found for found in troubles if trouble in found]
    assert any(troubles)


# --- the programs ---------------------------------------------------------------------------------------------------


def test_soak_makes_trouble_and_nothing_is_lost() -> None:
    done = run("-m", "benchmarks.soak", "2", "--seed=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(r"^2 s, \d+ troubles", done.stdout)
    assert re.search(r"master: \d+ connections, [1-9]\d* packets received and checked, [1-9]\d* checked", done.stdout)
    assert "nothing lost, doubled or changed" in done.stdout


def test_soak_tells_of_a_wrong_packet() -> None:
    program = (
        "import sys; from benchmarks import soak, traffic\n"
        "right = traffic.Checker.check\n"
        "traffic.Checker.check = lambda self, packet: 'wrong on purpose' if self._next == 50 else right(self, packet)\n"
        "sys.argv = ['soak', '5']; sys.exit(soak.main())"
    )
    done = run("-c", program)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
    assert "wrong packets" in done.stdout
    assert "wrong on purpose" in done.stderr


def test_soak_tells_of_an_fd_that_is_kept() -> None:
    program = (
        "import os, sys; from benchmarks import soak, traffic\n"
        "traffic.End._on_disconnect = lambda self, interface, reason: os.dup(0)\n"
        "sys.argv = ['soak', '5']; sys.exit(soak.main())"
    )
    done = run("-c", program)
    assert done.returncode == 1
    assert re.search(r"BROKEN.* where Held\(fds=\d+", done.stdout)


@pytest.mark.parametrize(
    ("figure", "arguments", "words"),
    [
        ("reconnects", ["--reconnects=150"], r"150 reconnects in .* the same \d+ fds and 2 mappings"),
        ("kills", ["--kills=12"], r"12 times kill -9 and recovery in .* \d+ packets checked, 0 wrong"),
        ("half-open", ["--half-open=100"], r"100 half-open connectors: a good peer among them is connected"),
    ],
    ids=["reconnects", "kills", "half-open"],
)
def test_figures_of_scale(figure: str, arguments: list[str], words: str) -> None:
    done = run("-m", "benchmarks.scale", figure, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(words, done.stdout)
