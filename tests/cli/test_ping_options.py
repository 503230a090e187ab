"""The options of ``memifrt ping`` that have the meaning they have in the usual ping."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from memifrt import Interface, Runtime
from memifrt.cli.command_line import main
from memifrt.cli.commands.ping import Statistics
from memifrt.packets import parse_ip, parse_mac, reply_in_place
from tests.lib.programs import finish, responder, running
from tests.lib.support import wait_until

TARGET = "192.168.1.2"


@pytest.fixture
def peer(socket_name: str) -> Iterator[str]:
    """A responder on the socket."""
    with responder("--role", "master", "--socket", socket_name):
        yield socket_name


def ping(capsys: pytest.CaptureFixture[str], socket: str, *arguments: str) -> tuple[int, str]:
    status = main(["ping", "--socket", socket, "--connect-timeout", "30", *arguments])
    return status, capsys.readouterr().out


def test_quiet_prints_the_first_line_and_the_totals_alone(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = ping(capsys, peer, "-q", "-c2", "-i0.01", TARGET)
    assert status == 0
    assert "bytes from" not in out
    lines = out.splitlines()
    assert lines[0].startswith("PING")
    assert lines[1:3] == ["", f"--- {TARGET} ping statistics ---"]
    assert len(lines) == 5


def test_quiet_hides_unreachable_too(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = ping(capsys, peer, "-q", "-c1", "-W0.05", "192.168.1.77")
    assert status == 1
    assert "From" not in out
    assert "+1 errors" in out


def test_timestamps_stand_before_each_reply(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = ping(capsys, peer, "-D", "-n", "-c2", "-i0.01", TARGET)
    assert status == 0
    assert len(re.findall(r"^\[\d{10}\.\d{6}\] 64 bytes from 192\.168\.1\.2: icmp_seq=", out, re.M)) == 2


def test_flood_prints_a_dot_for_each_request_and_takes_it_back(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = ping(capsys, peer, "-f", "-c20", TARGET)
    assert status == 0
    marks = out.splitlines()[1]
    assert (marks.count("."), marks.count("\b \b")) == (20, 20)
    assert "bytes from" not in out
    assert re.search(r"^rtt min/avg/max/mdev = .* ms, ipg/ewma \d+\.\d{3}/\d+\.\d{3} ms$", out, re.M)


def test_quiet_flood_prints_no_dots(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = ping(capsys, peer, "-fq", "-c20", TARGET)
    assert status == 0
    assert out.splitlines()[1] == ""


def test_deadline_ends_a_ping_that_gets_no_reply(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = ping(capsys, peer, "-w0.3", "-i0.01", "192.168.1.77")
    assert status == 1
    assert re.search(r"packets transmitted, 0 received, .*100% packet loss", out)


def test_deadline_without_a_count_ends_with_status_0_if_any_reply_came(
    peer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = ping(capsys, peer, "-q", "-w1.5", "-i0.01", TARGET)
    assert status == 0
    assert re.search(r"^\d+ packets transmitted, [1-9]\d* received", out, re.M)


def test_count_and_deadline_end_with_the_last_reply(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = ping(capsys, peer, "-w600", "-c3", "-i0.01", TARGET)
    assert status == 0
    # As in ping, -c counts replies if there is a deadline: on a slow machine more requests may be under way.
    found = re.search(r" (\d+) received", out)
    assert found
    assert int(found[1]) >= 3


def test_fewer_replies_than_the_count_at_the_deadline_are_status_1(
    peer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = ping(capsys, peer, "-w1.5", "-c1000000000", "-i0.01", "-q", TARGET)
    assert status == 1
    assert " 0 received" not in out


def test_deadline_counts_while_there_is_no_peer(socket_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = ping(capsys, socket_name, "-w0.1", TARGET)
    assert status == 1
    assert "0 packets transmitted, 0 received" in out


class Recorder:
    """A peer that answers, and keeps the requests."""

    def __init__(self, runtime: Runtime, socket: str) -> None:
        self.requests: list[bytes] = []
        runtime.create_interface(socket=socket, role="master", mode="ip", on_interrupt=self._on_interrupt)

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        with interface.rx_queues[qid].burst() as burst:
            for packet in burst.packets():
                self.requests.append(bytes(packet))
                target = self.requests[-1][24:40] if self.requests[-1][0] >> 4 == 6 else self.requests[-1][16:20]
                reply_in_place(packet.views[0], ip=target, mac=parse_mac("02:00:00:00:00:02"), mode=interface.mode)
            interface.tx_queues[qid].forward(burst)


@pytest.mark.parametrize(
    ("arguments", "source", "ttl", "payload", "first"),
    [
        (["-t", "7", TARGET], "192.168.1.3", 7, bytes(range(56)), f"PING {TARGET} ({TARGET}) 56(84) bytes of data."),
        (["-p", "ff0", "-s", "5", TARGET], "192.168.1.3", 64, b"\xff\0\xff\0\xff", "PATTERN: 0xff00"),
        (["-p", "ff", "-s", "0", TARGET], "192.168.1.3", 64, b"", "PATTERN: 0xff"),
        (
            ["-I", "10.0.0.9", TARGET],
            "10.0.0.9",
            64,
            bytes(range(56)),
            f"PING {TARGET} ({TARGET}) from 10.0.0.9 : 56(84) bytes of data.",
        ),
        (
            ["-I", "memif0", TARGET],
            "192.168.1.3",
            64,
            bytes(range(56)),
            f"PING {TARGET} ({TARGET}) from 192.168.1.3 memif0: 56(84) bytes of data.",
        ),
        (
            ["--ip", "10.0.0.1", "--ip", "10.0.0.2", "-I", "10.0.0.2", "-s", "0", TARGET],
            "10.0.0.2",
            64,
            b"",
            f"PING {TARGET} ({TARGET}) from 10.0.0.2 : 0(28) bytes of data.",
        ),
        (
            ["-I", "fe80::9", "-t", "255", "-s", "1", "fe80::2"],
            "fe80::9",
            255,
            b"\0",
            "PING fe80::2(fe80::2) from fe80::9 : 1 data bytes",
        ),
    ],
)
def test_request_has_the_ttl_the_pattern_and_the_source(
    arguments: list[str], source: str, ttl: int, payload: bytes, first: str, runtime: Runtime, socket_name: str
) -> None:
    recorder = Recorder(runtime, socket_name)
    with running("ping", "--socket", socket_name, "--mode", "ip", "-c1", *arguments) as program:
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
    assert status == 0, err
    assert out.splitlines()[0] == first
    request = recorder.requests[0]
    if request[0] >> 4 == 6:
        assert (request[7], request[8:24], request[48:]) == (ttl, parse_ip(source), payload)
    else:
        assert (request[8], request[12:16], request[28:]) == (ttl, parse_ip(source), payload)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-w", "0"], "argument -w: '0' is not a number of seconds"),
        (["-w", "x"], "argument -w: 'x' is not a number of seconds"),
        (["-W", "-1"], "argument -W: "),
        (["-t", "256"], "argument -t: '256' is not a whole number from 1 to 255"),
        (["-t", "0"], "argument -t: '0' is not"),
        (["-p", "xy"], "argument -p: 'xy' is not a pattern"),
        (["-p", ""], "argument -p: '' is not a pattern"),
        (["-p", "0" * 33], "it must be 1 to 32 hexadecimal digits"),
        (["-I", "eth0"], "give an own address, or memifN"),
        (["-I", "memif4294967296"], "argument -I: '4294967296' is not a whole number"),
        (["-I", "224.0.0.1"], "argument -I: '224.0.0.1' is not the address of one host"),
        (["-I", "memif1", "--id", "2"], "memif1 is not the interface with --id 2"),
        (["-I", "10.0.0.1", "--ip", "10.0.0.2"], "10.0.0.1 is not an own address; --ip gives 10.0.0.2"),
        (["-I", "fe80::1"], "-I fe80::1 is not; give an IPv4 address, like -I 192.168.1.3"),
    ],
)
def test_bad_value_is_one_line_and_status_2(
    arguments: list[str], named: str, socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ping", "--socket", socket_name, *arguments, TARGET]) == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1


def test_moving_average_favours_the_latest_replies() -> None:
    statistics = Statistics(transmitted=2, started=1.0, last_request=1.5)
    statistics.add(0.008)
    statistics.add(0.016)
    assert statistics.text(TARGET, 2.0, flood=True).endswith("ms, ipg/ewma 500.000/9.000 ms")
    assert "ipg" not in statistics.text(TARGET, 2.0)
