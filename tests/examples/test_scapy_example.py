"""The scapy example, run as programs: the probe against the host, memifrt's responder, and testpmd."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.programs import Program, end, read_until, responder
from tests.lib.support import DEADLINE, wait_until
from tests.lib.testpmd import DpdkTestpmd, missing

pytest.importorskip("scapy")

EXAMPLE = Path(__file__).parents[2] / "examples" / "scapy"
PING = r"ping \d: \d+ bytes, \d+\.\d\d ms"


def command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "default::ResourceWarning", str(EXAMPLE / f"{program}.py"), *arguments]


def probe(*arguments: str) -> tuple[int, list[str], str]:
    """Run it to its end: status, lines, standard error."""
    done = subprocess.run(
        command("probe", *arguments), capture_output=True, text=True, timeout=2 * DEADLINE, check=False
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@contextlib.contextmanager
def started(name: str, *arguments: str) -> Iterator[Program]:
    """A program of the example as master."""
    with subprocess.Popen(
        command(name, "--role", "master", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            yield program
        finally:
            program.kill()


@contextlib.contextmanager
def host(*arguments: str) -> Iterator[Program]:
    """A host that listens already."""
    with started("host", *arguments) as program:
        read_until(program, "192.168.1.2 is up")
        yield program


def assert_lines(lines: list[str], *patterns: str) -> None:
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"


def test_probe_asks_pings_and_shakes_hands_with_a_host_of_scapy(socket_path: str) -> None:
    with host("--socket", socket_path) as program:
        patient = ("--socket", socket_path, "--timeout", str(DEADLINE))
        status, lines, errors = probe(*patient)
        assert_lines(
            lines,
            r"<MemifSocket memif0: memif 0 \(slave\) on .*, connected>",
            "arp: 192.168.1.2 is at 02:fe:00:00:00:02",
            *[PING] * 3,
            "tcp: connected to port 80",
            "tcp: closed",
        )
        assert (status, errors) == (0, "")
        # The host has outlived its peer, and answers the next; then Ctrl+C ends it in order.
        status, lines, _ = probe(*patient, "--port", "81", "--count", "1")
        assert (status, lines[-1]) == (1, "tcp: port 81 answers with RA")
        status, said, errors = end(program, signal.SIGINT)
        assert (status, "Traceback" in errors, "ResourceWarning" in errors) == (0, False, False)
        assert "TCP 192.168.1.1" in said
    assert not os.path.exists(socket_path)


def test_ctrl_c_ends_a_probe_that_waits_for_its_peer_quietly(socket_path: str) -> None:
    with started("probe", "--socket", socket_path) as program:
        wait_until(lambda: os.path.exists(socket_path))
        assert end(program, signal.SIGINT) == (130, "", "")


def test_probe_in_ip_mode_needs_no_arp(socket_path: str) -> None:
    with host("--socket", socket_path, "--mode", "ip") as program:
        status, lines, errors = probe(
            "--socket", socket_path, "--timeout", str(DEADLINE), "--mode", "ip", "--count", "1"
        )
        assert_lines(lines, "<MemifSocket .*", PING, "tcp: connected to port 80", "tcp: closed")
        assert (status, errors) == (0, "")
        assert end(program, signal.SIGTERM)[0] == 0


def test_probe_against_the_responder_which_knows_no_tcp(socket_path: str) -> None:
    with responder("--role", "master", "--socket", socket_path) as program:
        patient = ("--socket", socket_path, "--timeout", str(DEADLINE))
        status, lines, errors = probe(*patient, "--port", "0")
        assert_lines(lines, "<MemifSocket .*", "arp: 192.168.1.2 is at .*", *[PING] * 3)
        assert (status, errors) == (0, "")
        status, lines, _ = probe("--socket", socket_path, "--timeout", "4", "--count", "0")
        assert (status, lines[-1]) == (1, "tcp: no answer from port 80")
        status, lines, _ = probe("192.168.1.9", "--socket", socket_path, "--timeout", "0.1")
        assert (status, lines[1:]) == (1, ["arp: nobody has 192.168.1.9"])
        end(program)


@pytest.mark.testpmd
@pytest.mark.xdist_group("testpmd")
def test_probe_against_testpmd(socket_path: str) -> None:
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with DpdkTestpmd(socket_path, forward="icmpecho") as testpmd:
        program = subprocess.Popen(
            command("probe", "--socket", socket_path, "--port", "0", "--timeout", str(DEADLINE)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with program:
            testpmd.start_forwarding()
            lines, errors = program.communicate(timeout=DEADLINE)
        assert_lines(lines.splitlines(), "<MemifSocket .*", "arp: 192.168.1.2 is at .*", *[PING] * 3)
        assert (program.returncode, errors) == (0, "")
        testpmd.kill()
    os.unlink(socket_path)


@pytest.mark.parametrize(
    ("program", "wrong", "words"),
    [
        ("probe", ["--id", "-1"], "id is -1;"),
        ("host", ["--id", "-1"], "id is -1;"),
        ("probe", ["router"], "'router' is not an IPv4 address;"),
        ("host", ["--ip", "router"], "'router' is not an IPv4 address;"),
        ("host", ["--ip", "fe80::1"], "'fe80::1' is not an IPv4 address;"),
    ],
)
def test_wrong_option_is_one_line(program: str, wrong: list[str], words: str, socket_path: str) -> None:
    done = subprocess.run(
        command(program, "--socket", socket_path, *wrong),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{program}: {words}")
    assert done.stderr.count("\n") == 1
