"""``memifrt ping`` and ``memifrt responder`` with each other, and with peers that misbehave."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memifrt import Interface, Mode, Runtime
from memifrt.cli.command_line import main
from memifrt.cli.commands.ping import Statistics, _milliseconds
from memifrt.cli.commands.responder import serve
from memifrt.options import RoleName
from memifrt.packets import (
    arp_request,
    echo_request,
    parse_arp_reply,
    parse_echo_reply,
    parse_ip,
    parse_mac,
    reply_in_place,
)
from tests.lib.programs import Program, end, finish, read_until, responder, run, running
from tests.lib.support import Pair, wait_until

TARGET = "192.168.1.2"
TARGET_IP, TARGET_MAC = parse_ip(TARGET), parse_mac("02:00:00:00:00:02")
OWN_IP, OWN_MAC = parse_ip("192.168.1.3"), parse_mac("02:fe:c0:a8:01:03")
LINE = r"^{size} bytes from 192\.168\.1\.2: icmp_seq={sequence} ttl=64 time=\d+(\.\d+)? ms$"


def assert_all_answered(out: str, count: int, size: int = 56) -> None:
    """The whole output of a ping whose every request was answered."""
    lines = out.splitlines()
    assert lines[0] == f"PING {TARGET} ({TARGET}) {size}({size + 28}) bytes of data."
    replies = sorted(lines[1 : count + 1], key=lambda line: line.partition("icmp_seq=")[2])  # queues have no order
    for sequence, reply in enumerate(replies, 1):
        assert re.match(LINE.format(size=size + 8, sequence=sequence), reply)
    assert lines[count + 1 : count + 3] == ["", f"--- {TARGET} ping statistics ---"]
    assert re.match(rf"^{count} packets transmitted, {count} received, 0% packet loss, time \d+ms$", lines[count + 3])
    assert re.match(r"^rtt min/avg/max/mdev = \d+\.\d{3}/\d+\.\d{3}/\d+\.\d{3}/\d+\.\d{3} ms$", lines[count + 4])
    assert len(lines) == count + 5


# --- the two with each other ----------------------------------------------------------------------------------------

#: What both are given, and what ping is given.
TOGETHER: dict[str, tuple[list[str], list[str]]] = {
    "defaults": ([], []),
    "ip mode": (["--mode", "ip"], []),
    "secret": (["--secret", "open sesame"], []),
    "id": (["--id", "4294967295"], []),
    "several queues": (["--queues", "4"], []),
    "polling": (["--rx-mode", "polling"], []),
    "polling, several queues": (["--rx-mode", "polling", "--queues", "3"], []),
    "largest payload": ([], ["-s", "65507"]),
    "largest payload in ip mode": (["--mode", "ip"], ["-s", "65507"]),
    # Room for all that may be on its way at once: a full ring loses replies.
    "small buffers": (["--buffer-size", "256", "--ring-size", "32"], ["-s", "1000"]),
    "few slots": (["--ring-size", "4"], []),
    "no payload": ([], ["-s", "0"]),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_slave_pings_a_master_responder(case: str, socket_name: str) -> None:
    common, own = TOGETHER[case]
    with responder("--role", "master", "--socket", socket_name, *common) as peer:
        done = run("ping", "--role", "slave", "--socket", socket_name, "-c3", "-i0.01", *common, *own, TARGET)
        status, _, err = end(peer)
    assert done.returncode == 0, done.stderr
    assert_all_answered(done.stdout, 3, int(own[1]) if own else 56)
    assert status == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("case", TOGETHER)
def test_master_pings_a_slave_responder(case: str, socket_path: str) -> None:
    common, own = TOGETHER[case]
    arguments = ["--role", "server", "--socket", socket_path, "-c3", "-i0.01", *common, *own, TARGET]
    with running("ping", *arguments) as program:
        first = read_until(program, "^PING")  # it listens now
        with responder("--role", "client", "--socket", socket_path, *common) as peer:
            status, out, err = finish(program)
            assert status == 0, err
            assert_all_answered(first + out, 3, int(own[1]) if own else 56)
            assert end(peer)[0] == 0
    assert not Path(socket_path).exists()


def test_one_slot_is_enough_for_one_ping_at_a_time(socket_name: str) -> None:
    with responder("--role", "master", "--socket", socket_name):
        done = run("ping", "--socket", socket_name, "-c1", "--ring-size", "1", TARGET)
    assert done.returncode == 0, done.stderr
    assert_all_answered(done.stdout, 1)


def test_ping_in_process_leaves_signals_and_logging_as_they_were(
    socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("memifrt")
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), list(logger.handlers), logger.level
    with responder("--role", "master", "--socket", socket_name):
        assert main(["ping", "--socket", socket_name, "-c", "2", "-i", "0.01", TARGET]) == 0
    assert_all_answered(capsys.readouterr().out, 2)
    assert before == (
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        list(logger.handlers),
        logger.level,
    )


# --- exit statuses --------------------------------------------------------------------------------------------------


def test_address_that_nobody_has_is_unreachable_and_status_1(socket_name: str) -> None:
    with responder("--role", "master", "--socket", socket_name):
        done = run("ping", "--socket", socket_name, "-c2", "-i0.01", "-W0.1", "192.168.1.77")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[1:3] == [f"From 192.168.1.3 icmp_seq={sequence} Destination Host Unreachable" for sequence in (1, 2)]
    assert re.match(r"^2 packets transmitted, 0 received, \+2 errors, 100% packet loss, time \d+ms$", lines[-1])


def test_requests_that_nobody_answers_are_lost_and_status_1(socket_name: str) -> None:
    with responder("--role", "master", "--socket", socket_name, "--mode", "ip"):
        done = run("ping", "--socket", socket_name, "-c2", "-i0.01", "-W0.1", "--mode", "ip", "192.168.1.77")
    assert done.returncode == 1
    assert re.search(r"^2 packets transmitted, 0 received, 100% packet loss, time \d+ms\n\Z", done.stdout, re.M)


def test_payload_longer_than_the_whole_ring_is_an_error_and_status_2(socket_name: str) -> None:
    done = run("ping", "--socket", socket_name, "--ring-size", "4", "--buffer-size", "64", "-s", "1000", TARGET)
    assert done.returncode == 2
    assert done.stderr == (
        "memifrt ping: a payload of 1000 bytes makes a packet of 1042; a ring of 4 buffers of 64 bytes holds 256: "
        "use a larger ring or larger buffers\n"
    )


def test_master_that_learns_of_too_small_a_ring_ends_with_an_error_and_status_2(
    runtime: Runtime, socket_path: str
) -> None:
    with running("ping", "--role", "master", "--socket", socket_path, "--mode", "ip", "-s", "1000", TARGET) as program:
        read_until(program, "^PING")
        runtime.create_interface(socket=socket_path, role="slave", mode="ip", log2_ring_size=2, buffer_size=64)
        wait_until(lambda: program.poll() is not None, runtime)
        status, _, err = finish(program)
    assert status == 2
    assert err.endswith("memifrt ping: a packet of 1028 bytes is longer than all 4 buffers of the ring together\n")


def test_waiting_for_a_reply_does_not_spin(
    socket_name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []
    poll_event = Runtime.poll_event

    def counted(runtime: Runtime, timeout: float | None = None) -> int:
        turns.append(timeout)
        return poll_event(runtime, timeout)

    monkeypatch.setattr(Runtime, "poll_event", counted)
    with responder("--role", "master", "--socket", socket_name):
        assert main(["ping", "--socket", socket_name, "-c", "1", "-W", "0.5", "192.168.1.77"]) == 1
    # The messages of the handshake, ARP, the deadline: each wakes it once.
    assert 1 <= len(turns) < 30


# --- Ctrl+C and what stands on standard error -----------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_ping_prints_its_statistics_and_ends_with_0(how: signal.Signals, socket_name: str) -> None:
    with (
        responder("--role", "master", "--socket", socket_name),
        running("ping", "--socket", socket_name, TARGET) as ping,
    ):
        read_until(ping, "icmp_seq=1 ")
        status, out, err = end(ping, how)
    assert status == 0
    assert re.search(r"^\d+ packets transmitted, [1-9]\d* received", out, re.M)
    assert "Traceback" not in err


def test_ping_says_why_it_cannot_connect_and_connects_when_it_can(socket_path: str) -> None:
    with running("ping", "--socket", socket_path, "-c1", TARGET) as ping:
        line = read_until(ping, "cannot connect", stderr=True)
        assert line.startswith("memifrt ping: ")
        assert socket_path in line
        assert "No such file or directory" in line
        with responder("--role", "master", "--socket", socket_path):
            status, out, err = finish(ping)
    assert status == 0
    assert "1 packets transmitted, 1 received" in out
    assert "connected to 'memif0' of 'memifrt responder'" in err


def test_ping_interrupted_before_it_connects_ends_with_1(socket_path: str) -> None:
    with running("ping", "--socket", socket_path, TARGET) as ping:
        read_until(ping, "cannot connect", stderr=True)
        status, out, err = end(ping)
    assert status == 1
    assert out.splitlines()[-1] == "0 packets transmitted, 0 received"
    assert err == ""


def test_reason_that_comes_with_every_attempt_is_told_once(
    runtime: Runtime, socket_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.create_interface(socket=socket_name, role="master", secret="right")
    with running("ping", "--socket", socket_name, "--secret", "letmein", TARGET) as ping:
        wait_until(lambda: sum("wrong secret" in line for line in caplog.messages) >= 3, runtime)
        status, out, err = end(ping)
    assert status == 1
    assert err.count("\n") == err.count("wrong secret") == 1
    assert "letmein" not in out + err


def test_responder_reports_every_connection_and_its_end(socket_name: str) -> None:
    with responder("--role", "master", "--socket", socket_name) as peer:
        for _ in range(2):
            assert run("ping", "--socket", socket_name, "-c1", TARGET).returncode == 0
        for _ in range(2):
            assert "memif 0 (master)" in read_until(peer, "connected to 'memif0' of 'memifrt ping'", stderr=True)
            read_until(peer, "disconnected: peer disconnected: interface deleted", stderr=True)
        status, _, err = end(peer)
    assert (status, err) == (0, "")


# --- ping with a peer of the test's own -----------------------------------------------------------------------------


class Peer:
    """A master in this process that answers with what ``twist`` makes of each reply."""

    def __init__(self, runtime: Runtime, socket: str, twist: Callable[[bytearray], list[bytes]], mode: Mode) -> None:
        self.twist = twist
        self.mode = mode
        self.arp_requests = 0
        self.replies: list[bytes] = []
        self.interface = runtime.create_interface(
            socket=socket, role="master", mode=mode, on_interrupt=self.on_interrupt
        )

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        for data in interface.rx_queues[qid].recv():
            packet = bytearray(data)
            if not reply_in_place(memoryview(packet), TARGET_IP, TARGET_MAC, mode=self.mode):
                self.replies.append(data)
            elif parse_echo_reply(packet, self.mode) is None:
                self.arp_requests += 1
                interface.tx_queues[qid].send([packet])
            else:
                interface.tx_queues[qid].send(self.twist(packet))


@contextlib.contextmanager
def pinging(peer_runtime: Runtime, peer: Peer, *arguments: str) -> Iterator[Program]:
    with running("ping", "--socket", peer.interface.socket.path, "-i0.01", *arguments, TARGET) as program:
        wait_until(lambda: peer.interface.connected, peer_runtime)
        yield program
        wait_until(lambda: program.poll() is not None, peer_runtime)


def outcome(runtime: Runtime, peer: Peer, *arguments: str) -> tuple[int, str, str]:
    with pinging(runtime, peer, *arguments) as program:
        wait_until(lambda: program.poll() is not None, runtime)
        return finish(program)


def test_changed_payload_is_shown_and_does_not_count_as_received(runtime: Runtime, socket_name: str) -> None:
    def swap_words(packet: bytearray) -> list[bytes]:  # which leaves the checksum right
        packet[-4:] = packet[-2:] + packet[-4:-2]
        return [bytes(packet)]

    status, out, _ = outcome(runtime, Peer(runtime, socket_name, swap_words, Mode.ETHERNET), "-c1", "-s8")
    assert status == 1
    assert "\nwrong data byte #4 should be 0x4 but was 0x6\n" in out
    assert "1 packets transmitted, 0 received, +1 corrupted, 100% packet loss" in out


def test_cut_payload_is_shown_and_does_not_count_as_received(runtime: Runtime, socket_name: str) -> None:
    def cut(packet: bytearray) -> list[bytes]:
        asked = echo_request(
            source_mac=OWN_MAC, source_ip=OWN_IP, target_mac=TARGET_MAC, target_ip=TARGET_IP, payload=b"\0",
            identifier=int.from_bytes(packet[38:40], "big"), sequence=int.from_bytes(packet[40:42], "big"),
        )  # fmt: skip
        shorter = bytearray(asked)
        assert reply_in_place(memoryview(shorter), TARGET_IP, TARGET_MAC)
        return [bytes(shorter)]

    status, out, _ = outcome(runtime, Peer(runtime, socket_name, cut, Mode.ETHERNET), "-c1")
    assert status == 1
    assert "\nwrong data size 1 should be 56\n" in out


def wrong_checksum(packet: bytearray) -> bytes:
    """The reply as libmemif's icmp_responder sends it, which sums up no more than the header."""
    return bytes(packet[:36]) + bytes([packet[36] ^ 0x55]) + bytes(packet[37:])


def test_a_wrong_checksum_is_shown_and_counted_and_is_no_reply(runtime: Runtime, socket_name: str) -> None:
    peer = Peer(runtime, socket_name, lambda packet: [wrong_checksum(packet)], Mode.ETHERNET)
    status, out, _ = outcome(runtime, peer, "-c2", "-i0.01")
    assert status == 1
    assert re.search(r"^64 bytes from \S+: icmp_seq=1 ttl=64 time=\S+ ms \(BAD CHECKSUM!\)$", out, re.M)
    assert "2 packets transmitted, 0 received, +2 corrupted, 100% packet loss" in out


def test_a_good_reply_counts_beside_one_with_a_wrong_checksum(runtime: Runtime, socket_name: str) -> None:
    def both(packet: bytearray) -> list[bytes]:
        return [wrong_checksum(packet), wrong_checksum(packet), bytes(packet)]

    status, out, _ = outcome(runtime, Peer(runtime, socket_name, both, Mode.ETHERNET), "-c2", "-i0.01")
    assert status == 0
    assert re.search(r"2 packets transmitted, 2 received, \+[34] corrupted, 0% packet loss", out)


def test_foreign_identifier_unknown_sequence_and_a_broken_ip_header_are_no_replies(
    runtime: Runtime, socket_name: str
) -> None:
    def spoil(packet: bytearray) -> list[bytes]:
        spoilt = []
        for at, flip in ((24, 1), (38, 1), (40, 0x40)):
            copy = bytearray(packet)
            copy[at] ^= flip
            if at in (38, 40):  # these two come with a right checksum
                checksum = int.from_bytes(copy[36:38], "big") + ((packet[at] - copy[at]) << 8)
                copy[36:38] = (checksum % 0xFFFF).to_bytes(2, "big")
                assert parse_echo_reply(copy) is not None
            spoilt.append(bytes(copy))
        return spoilt

    status, out, _ = outcome(runtime, Peer(runtime, socket_name, spoil, Mode.ETHERNET), "-c1", "-W0.2")
    assert status == 1
    assert "bytes from" not in out
    assert "1 packets transmitted, 0 received, 100% packet loss" in out


def test_reply_that_comes_twice_counts_once(runtime: Runtime, socket_name: str) -> None:
    peer = Peer(runtime, socket_name, lambda packet: [bytes(packet)] * 2, Mode.ETHERNET)
    status, out, _ = outcome(runtime, peer, "-c2")
    assert status == 0
    assert re.search(r"icmp_seq=1 ttl=64 time=\S+ ms \(DUP!\)$", out, re.M)
    assert re.search(r"2 packets transmitted, 2 received, \+[12] duplicates, 0% packet loss", out)


def test_ping_answers_the_questions_of_its_peer(runtime: Runtime, socket_name: str) -> None:
    peer = Peer(runtime, socket_name, lambda packet: [], Mode.ETHERNET)
    with pinging(runtime, peer) as program:
        wait_until(lambda: peer.interface.tx_queues[0].send([arp_request(TARGET_MAC, TARGET_IP, OWN_IP)]), runtime)
        wait_until(lambda: (OWN_IP, OWN_MAC) in map(parse_arp_reply, peer.replies), runtime)
        program.send_signal(signal.SIGINT)
        wait_until(lambda: program.poll() is not None, runtime)
        assert finish(program)[0] == 1


def test_ping_goes_on_after_a_disconnect(runtime: Runtime, socket_name: str) -> None:
    ends: list[bytearray] = []

    def twist(packet: bytearray) -> list[bytes]:
        if not ends:
            ends.append(packet)
            peer.interface.disconnect("once is enough")
            return []
        return [bytes(packet)]

    class Hanging(Peer):
        def on_interrupt(self, interface: Interface, qid: int) -> None:
            with contextlib.suppress(Exception):
                super().on_interrupt(interface, qid)

    peer = Hanging(runtime, socket_name, twist, Mode.ETHERNET)
    status, out, err = outcome(runtime, peer, "-c3", "-W0.5")
    assert status == 0
    assert "3 packets transmitted, 2 received, 33.3333% packet loss" in out
    assert peer.arp_requests == 2  # asked anew: another peer may have come
    assert "disconnected: peer disconnected: once is enough" in err
    assert err.count(" connected to ") == 2


def test_question_for_the_address_is_asked_again(runtime: Runtime, socket_name: str) -> None:
    """The first may have come before there was somebody to answer."""

    class Late(Peer):
        def on_interrupt(self, interface: Interface, qid: int) -> None:
            if self.arp_requests:
                super().on_interrupt(interface, qid)
            else:
                self.arp_requests += len(interface.rx_queues[qid].recv())

    peer = Late(runtime, socket_name, lambda packet: [bytes(packet)], Mode.ETHERNET)
    status, out, _ = outcome(runtime, peer, "-c1")
    assert status == 0
    assert "1 packets transmitted, 1 received, 0% packet loss" in out
    assert peer.arp_requests == 2


def test_request_that_finds_no_room_is_reported_and_not_waited_for(runtime: Runtime, socket_name: str) -> None:
    interface = runtime.create_interface(socket=socket_name, role="master", mode="ip")  # it never receives
    arguments = ["-i0.01", "-c3", "-W0.1", "--mode", "ip", "--ring-size", "1"]
    with running("ping", "--socket", socket_name, *arguments, TARGET) as program:
        wait_until(lambda: interface.connected, runtime)
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
    assert status == 1
    assert "memifrt ping: icmp_seq=2 was not sent: the peer takes no packets\n" in err
    assert "3 packets transmitted, 0 received, +2 errors, 100% packet loss" in out


@pytest.mark.parametrize("mode", [Mode.ETHERNET, Mode.IP])
def test_first_request_waits_for_the_buffers_of_a_slave(mode: Mode, runtime: Runtime, socket_path: str) -> None:
    def on_interrupt(interface: Interface, qid: int) -> None:
        serve(interface, qid, lambda packet: reply_in_place(packet, TARGET_IP, TARGET_MAC, mode=mode))

    arguments = ["--role", "master", "--socket", socket_path, "--mode", mode.name.lower(), "-c1"]
    with running("ping", *arguments, TARGET) as program:
        read_until(program, "^PING")
        slave = runtime.create_interface(socket=socket_path, mode=mode, auto_refill=False, on_interrupt=on_interrupt)
        wait_until(lambda: slave.connected, runtime)
        read_until(program, "connected to", stderr=True)
        assert slave.rx_queues[0].refill() == 1024
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
    assert status == 0, err
    assert "1 packets transmitted, 1 received, 0% packet loss" in out


# --- the responder's burst ------------------------------------------------------------------------------------------


def question(payload: bytes, sequence: int = 1, target: bytes = TARGET_IP) -> bytes:
    return echo_request(
        source_mac=OWN_MAC,
        source_ip=OWN_IP,
        target_mac=TARGET_MAC,
        target_ip=target,
        identifier=1,
        sequence=sequence,
        payload=payload,
    )


def exchange(pair: Pair, role: RoleName, packets: list[bytes]) -> list[bytes]:
    """Send packets to the end in this role, let it serve one burst; what comes back."""
    answering, asking = pair.side(role), pair.side("slave" if role == "master" else "master")
    assert asking.tx_queues[0].send(packets) == len(packets)
    serve(answering, 0, lambda packet: reply_in_place(packet, TARGET_IP, TARGET_MAC))
    assert answering.rx_queues[0].pending() == 0
    return asking.rx_queues[0].recv()


def sequences(packets: list[bytes]) -> list[int]:
    replies = [parse_echo_reply(packet) for packet in packets]
    return [reply.sequence if reply else -1 for reply in replies]


roles = pytest.mark.parametrize("role", ["master", "slave"])


@roles
def test_burst_that_is_answered_whole_goes_back_in_order(role: RoleName, make_pair: Callable[..., Pair]) -> None:
    back = exchange(make_pair(), role, [question(b"x" * n, n) for n in range(1, 100)])
    assert sequences(back) == list(range(1, 100))


@roles
def test_of_a_mixed_burst_only_the_answers_go_back(role: RoleName, make_pair: Callable[..., Pair]) -> None:
    other = question(b"", target=OWN_IP)
    arp = arp_request(OWN_MAC, OWN_IP, TARGET_IP)
    back = exchange(make_pair(), role, [b"\0" * 60, question(b"a", 1), other, arp, question(b"b", 2), b"\1"])
    assert sequences(back) == [1, -1, 2]
    assert parse_arp_reply(back[1]) == (TARGET_IP, TARGET_MAC)


@roles
def test_burst_without_answers_sends_nothing(role: RoleName, make_pair: Callable[..., Pair]) -> None:
    assert exchange(make_pair(), role, [b"\0" * 60] * 3) == []


@roles
def test_chained_request_gets_a_chained_reply(role: RoleName, make_pair: Callable[..., Pair]) -> None:
    payload = bytes(range(256)) * 4
    back = exchange(make_pair(buffer_size=128), role, [question(payload, 1), question(b"", 2), question(payload, 3)])
    assert sequences(back) == [1, 2, 3]
    reply = parse_echo_reply(back[2])
    assert reply is not None
    assert reply.payload == payload


@roles
def test_answers_that_find_no_room_are_dropped(role: RoleName, make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(log2_ring_size=2)
    answering = pair.side(role)
    assert answering.tx_queues[0].send([b"\0" * 60] * 3) == 3  # the peer has not taken these
    back = exchange(pair, role, [question(b"", 1), question(b"", 2)])
    assert sequences(back) == [-1, -1, -1, 1]
    assert sequences(exchange(pair, role, [question(b"", 3)])) == [3]


def test_reply_longer_than_all_that_the_peer_takes_back_is_dropped(make_pair: Callable[..., Pair]) -> None:
    """A slave that posts less room than it fills must not end the responder."""
    pair = make_pair(log2_ring_size=2, buffer_size=512, slave_rx_headroom=500)
    assert exchange(pair, "master", [question(b"x" * 400, 1), b"\0" * 60]) == []
    assert exchange(pair, "master", [question(b"x" * 400, 1)]) == []
    assert pair.master.connected


# --- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_read_as_those_of_ping() -> None:
    statistics = Statistics(transmitted=4, duplicates=1, started=10.0)
    for trip in (0.001, 0.002, 0.003):
        statistics.add(trip)
    assert statistics.text("1.2.3.4", 13.0049) == (
        "\n--- 1.2.3.4 ping statistics ---\n"
        "4 packets transmitted, 3 received, +1 duplicates, 25% packet loss, time 3005ms\n"
        "rtt min/avg/max/mdev = 1.000/2.000/3.000/0.816 ms"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0000421, "0.042"), (0.00123, "1.23"), (0.0123, "12.3"), (0.1234, "123"), (1.5, "1500")]
)
def test_times_have_the_digits_of_ping(seconds: float, text: str) -> None:
    assert _milliseconds(seconds) == text
