"""A short run of every fuzzer, under atheris and on random bytes; and that they get far, and find what is wrong."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from fuzz import control, leaks, worker
from fuzz.captures import CaptureTarget
from fuzz.control import ControlTarget
from fuzz.parsers import ParserTarget
from fuzz.rings import RingTarget
from fuzz.script import Script
from memifrt import Disconnected
from memifrt.capture import pcap
from memifrt.ring.reference.descriptor import Regions
from memifrt.types import Role
from tests.lib.support import DEADLINE

ROOT = Path(__file__).resolve().parents[2]
#: Inputs of a short run; those led by coverage cost an interpreter and its instrumentation besides.
RANDOM, LED = 300, 200


@pytest.fixture(params=worker.TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[Role.MASTER, Role.SLAVE], ids=["master", "slave"])
def target(request: pytest.FixtureRequest) -> Iterator[ControlTarget]:
    """The control channel of one role."""
    with worker.strict():
        made = ControlTarget(request.param)
        yield made
        made.close()


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m fuzz`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,
        check=False,
    )


def require_atheris() -> None:
    if worker.has_atheris():
        return
    has_wheel = sys.version_info < (3, 15) and platform.machine() == "x86_64"
    reason = (
        "atheris is not installed (pip install -e '.[fuzz]')" if has_wheel else "atheris has no wheel for this Python"
    )
    if has_wheel and os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


# --- short runs -----------------------------------------------------------------------------------------------------


def test_random_inputs_break_nothing(name: str) -> None:
    with worker.strict() as check:
        target = worker.make(name)
        try:
            for data in islice(worker.random_inputs(seed=1), RANDOM):
                target(data)
                check()
            target.check()
        finally:
            target.close()


def test_inputs_led_by_coverage_break_nothing(name: str, tmp_path: Path) -> None:
    require_atheris()
    done = fuzz(name, f"--inputs={LED}", "--seed=1", "--engine=atheris", f"--folder={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / f"{name}.log").read_text()[-2000:]
    assert f"{name}: {LED} inputs" in done.stdout
    assert "edges covered" in done.stdout
    assert "no crash, no hang, no leak" in done.stdout


def _step(name: str) -> int:
    """The byte that makes a peer do this in its traffic."""
    return [step.__name__ for step in control._MEMORY].index(name)


def test_an_input_that_takes_too_long_breaks_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SLOW", 0.0)
    busy = worker.Worker(ParserTarget(), "parsers", 1.0, 1, lambda: None)
    with pytest.raises(AssertionError, match="an input of 0 bytes took"):
        busy.feed(b"")
    assert busy.slowest > 0


# --- what the targets do --------------------------------------------------------------------------------------------


def test_no_bytes_at_all_are_a_peer_that_does_everything_right(target: ControlTarget) -> None:
    target(b"")
    assert target.established == 1
    assert target.reasons == {"peer closed the connection without a reason": 1}


def test_random_conversations_get_far_and_end_in_many_ways(target: ControlTarget) -> None:
    for data in islice(worker.random_inputs(seed=2), 1000):
        target(data)
    assert target.established > 200
    assert len(target.reasons) > 15, target.reasons
    assert {"interface deleted", "disconnected by the application"} <= set(target.reasons), "what callbacks do"


@pytest.mark.parametrize("target", [Role.MASTER], indirect=True)  # a slave's own memory is sealed
def test_memory_is_truncated_under_a_connection(target: ControlTarget) -> None:
    # In the traffic: truncate, then let the runtime receive and send. Where the traffic starts is for the sweep to hit.
    traffic = bytes([6, _step("_take_the_memory_away"), 0, 0, _step("_let_it_receive"), 0, 0, _step("_let_it_send")])
    for before in range(60):
        target(b"\xff" + bytes(before) + traffic)
    assert "region N is gone" in target.reasons


def test_rings_are_used_and_found_to_be_broken() -> None:
    target = RingTarget(Role.MASTER, "python")
    for data in islice(worker.random_inputs(seed=1), 100):
        target(data)
    assert target.steps > 1000
    assert target.violations > 100


def test_behind_its_end_a_script_decides_for_what_is_ordinary() -> None:
    script = Script(b"\x07\x08")
    assert (script.byte(), script.over) == (7, False)
    assert (script.number(2), script.over) == (8, True)
    assert (script.byte(), script.number(4), script.edge(8), script.below(3), script.pick("ab")) == (0, 0, 0, 0, "a")
    assert not script.rarely()


# --- that they find something ---------------------------------------------------------------------------------------


def test_an_fd_that_is_kept_is_found(target: ControlTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(leaks, "_PATIENCE", 0.05)
    monkeypatch.setattr(target.interface, "on_disconnect", lambda interface, reason: kept.append(os.dup(0)))
    try:
        with pytest.raises(AssertionError, match="an fd is still open"):
            target(b"")
    finally:
        os.close(*kept)


def test_an_end_that_is_told_twice_is_found(target: ControlTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(interface: object, reason: Disconnected) -> None:
        target._reasons += [reason, reason]

    monkeypatch.setattr(target.interface, "on_disconnect", twice)
    with pytest.raises(AssertionError):
        target(b"")


def test_a_witness_that_is_disturbed_is_found(target: ControlTarget) -> None:
    target._witness.slave.delete()
    with pytest.raises(AssertionError):
        target.check()


def test_a_check_that_the_reference_leaves_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Regions, "holds", lambda self, entry: True)
    target = RingTarget(Role.SLAVE, "native")

    def run() -> None:
        for data in islice(worker.random_inputs(seed=1), 2000):
            target(data)

    with pytest.raises(AssertionError, match="the implementations differ"):
        run()


def test_a_reader_whose_work_is_quadratic_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(reader: pcap._PcapngReader, body: bytes, at: int, start: int) -> Iterator[tuple[int, bytes]]:
        rest = body[at:]
        while len(rest) >= 4:
            code, size = reader._unpack("HH", rest)
            yield code, rest[4 : 4 + size]
            rest = rest[4 + size :]

    monkeypatch.setattr(pcap._PcapngReader, "_options", options)
    target = CaptureTarget()

    def run() -> None:
        for data in islice(worker.random_inputs(seed=1), 2000):
            target(data)

    with pytest.raises(AssertionError, match="bytes copied of"):
        run()


def test_what_breaks_a_target_is_told_and_kept(tmp_path: Path) -> None:
    """A hang, even one that no handler of Python's interrupts."""
    program = (
        "import sys, time; from fuzz import rings, worker\n"
        "worker.HANG = 1\n"
        "rings.RingTarget.__call__ = lambda self, data: time.sleep(60)\n"
        f"sys.argv = ['worker', 'ring-slave-python', '--folder={tmp_path}']\n"
        "worker.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == -signal.SIGALRM
    assert "most recent call first" in done.stderr
    assert (tmp_path / "ring-slave-python-last").read_bytes() == b""


def test_an_input_can_be_run_again(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"\x00")
    done = fuzz("ring-master-native", str(tmp_path / "input"))
    assert (done.returncode, done.stderr) == (0, "")
    assert '"inputs": 1' in done.stdout
    assert fuzz("all", str(tmp_path / "input")).returncode == 2
