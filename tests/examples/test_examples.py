"""The examples, run as programs: a runtime in the test is their peer, and what they print is what we wait for."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memifrt import Disconnected, Interface, Runtime
from memifrt.options import RoleName
from memifrt.packets import (
    arp_request,
    echo_request,
    format_ip,
    parse_arp_reply,
    parse_echo_reply,
    parse_ip,
    parse_mac,
    reply_in_place,
)
from memifrt.system.fds import EventFd
from tests.lib.support import DEADLINE, Pair, wait_until

ROOT = Path(__file__).parents[2]
OUR_MAC, OUR_IP = parse_mac("02:fe:00:00:00:99"), parse_ip("192.168.1.1")
THEIR_MAC, THEIR_IP = parse_mac("02:fe:00:00:01:02"), parse_ip("192.168.1.2")
MASK_INT = 1  # in a ring's flags: its receiver polls
#: Seconds between two looks at what no fd tells, such as room in a ring.
_TICK = 0.02


class Program:
    """An example as a process. Its warnings (a forgotten fd) show on standard error, where nothing may be."""

    def __init__(self, name: str, *arguments: str, stdin: int = subprocess.PIPE, options: tuple[str, ...] = ()) -> None:
        script = str(ROOT / "examples" / name / f"{name}.py")
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-W", "default", *options, script, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        #: Every line so far, and how many of them ``line`` has gone past.
        self.lines: list[str] = []
        self._seen = 0
        self._unfinished = b""

    def line(self, containing: str, *runtimes: Runtime) -> str:
        """The next line that contains this, while the runtimes' events are handled."""
        found: list[str] = []

        def look() -> bool:
            while not found and self._seen < len(self.lines):
                found.extend([self.lines[self._seen]] if containing in self.lines[self._seen] else [])
                self._seen += 1
            return bool(found)

        self.wait(look, *runtimes)
        return found[0]

    def wait(self, predicate: Callable[[], object], *runtimes: Runtime) -> None:
        """Read its output and handle the runtimes' events until the predicate holds."""
        assert self.process.stdout is not None
        stdout = self.process.stdout.fileno()
        deadline = time.monotonic() + DEADLINE
        poll = select.poll()
        for fd in (stdout, *(runtime.fileno() for runtime in runtimes)):
            poll.register(fd, select.POLLIN)
        while not predicate():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {DEADLINE} s; it printed {self.lines}"
            ready = dict(poll.poll(_TICK * 1000))
            if stdout in ready:
                data = os.read(stdout, 65536)
                assert data, f"it ended, with {self.finish()}, and printed {self.lines}"
                *lines, self._unfinished = (self._unfinished + data).split(b"\n")
                self.lines += [line.decode() for line in lines]
            for runtime in runtimes:
                runtime.poll_event(0)

    def tell(self, *commands: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{command}\n" for command in commands).encode())
        self.process.stdin.flush()

    def finish(self) -> tuple[int, str]:
        """Its exit status and what it wrote to standard error, once it has ended.

        Without the warnings of a slave that finds nobody listening: these programs leave logging as it is.
        """
        out, err = self.process.communicate(timeout=DEADLINE)
        self.lines += (self._unfinished + out).decode().splitlines()
        self._unfinished = b""
        told = [line for line in err.decode().splitlines(keepends=True) if "; retrying every " not in line]
        return self.process.returncode, "".join(told)

    def interrupt(self, number: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.finish()


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """``start(name, *arguments)``: a running example; whatever happens, it is gone after the test."""
    programs: list[Program] = []

    def start(name: str, *arguments: str, **options: Any) -> Program:
        programs.append(Program(name, *arguments, **options))
        return programs[-1]

    yield start
    for program in programs:
        with program.process:  # closes the pipes and waits
            program.process.kill()


class Peer:
    """The other end of an example's connection: sends requests and keeps what comes back, with its queue."""

    def __init__(
        self, runtime: Runtime, socket: str, role: RoleName, *, listening: bool = True, **options: Any
    ) -> None:
        self.runtime = runtime
        self.received: list[tuple[int, bytes]] = []
        self.reason: Disconnected | None = None
        self.interface = runtime.create_interface(
            socket=socket,
            role=role,
            on_disconnect=self._on_disconnect,
            on_interrupt=self._on_interrupt if listening else None,
            **options,
        )

    def _on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        self.reason = reason

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        self.received += [(qid, packet) for packet in interface.rx_queues[qid].recv()]

    def connect(self, program: Program) -> None:
        program.line("connected to 'test'", self.runtime)
        program.wait(lambda: self.interface.connected, self.runtime)

    def replies(self, program: Program, count: int = 1) -> list[tuple[int, bytes]]:
        """Wait for this many packets."""
        program.wait(lambda: len(self.received) >= count, self.runtime)
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def ping(self, program: Program, ip: bytes = THEIR_IP, *, qid: int = 0, size: int = 56) -> int:
        """One request and its reply; the queue that the reply came on."""
        assert self.interface.tx_queues[qid].send([request(7, ip, size)]) == 1
        ((back, packet),) = self.replies(program)
        assert is_reply(packet, 7, ip, size)
        return back


def request(sequence: int, ip: bytes = THEIR_IP, size: int = 56) -> bytes:
    return echo_request(
        source_mac=OUR_MAC,
        source_ip=OUR_IP,
        target_mac=THEIR_MAC,
        target_ip=ip,
        identifier=99,
        sequence=sequence,
        payload=bytes(index & 0xFF for index in range(size)),
    )


def is_reply(packet: bytes, sequence: int, ip: bytes = THEIR_IP, size: int = 56) -> bool:
    reply = parse_echo_reply(packet)
    return (
        reply is not None
        and (reply.source_ip, reply.identifier, reply.sequence) == (ip, 99, sequence)
        and reply.payload == bytes(index & 0xFF for index in range(size))
    )


def sequences(received: list[tuple[int, bytes]]) -> list[int]:
    replies = [parse_echo_reply(packet) for _, packet in received]
    return [reply.sequence for reply in replies if reply is not None]


# --- all three ------------------------------------------------------------------------------------------------------

NAMES = ("icmp_responder", "libmemif_responder", "custom_fd", "multithread")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        *[
            (name, arguments, words)
            for name in ("icmp_responder", "libmemif_responder", "multithread")
            for arguments, words in (
                (["--ip", "1.2.3"], "'1.2.3' is not an IP address"),
                (["--id", "x"], "invalid int value: 'x'"),
                (["--id", "-1"], "id is -1"),
                (["--role", "boss"], "invalid choice: 'boss'"),
                (["--socket", ""], "socket is ''"),
                (["--socket", "/nowhere/memif.sock", "--role", "master"], "the directory /nowhere does not exist"),
            )
        ],
        *[(name, ["--frob"], "--frob") for name in NAMES],
        ("icmp_responder", ["x"], "invalid int value: 'x'"),
        ("icmp_responder", ["-1"], "there is no queue -1"),
        ("icmp_responder", ["255"], "there is no queue 255"),
        ("multithread", ["--queues", "0"], "--queues"),
        ("multithread", ["--queues", "256"], "--queues"),
    ],
)
def test_wrong_argument_is_one_line_on_stderr(
    start: Callable[..., Program], name: str, arguments: list[str], words: str
) -> None:
    program = start(name, *arguments)
    status, err = program.finish()
    assert status == 2
    assert err.startswith((f"{name}: ", f"{name}.py: "))
    assert words in err
    assert err.count("\n") == 1
    assert program.lines == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_without_a_peer_ends_it_with_0(
    start: Callable[..., Program], socket_path: str, name: str, number: int
) -> None:
    program = start(name, "--socket", socket_path)
    program.line("help" if name == "custom_fd" else "answers for")
    assert program.interrupt(number) == (0, "")


@pytest.mark.parametrize("name", ["icmp_responder", "libmemif_responder", "multithread"])
@pytest.mark.parametrize("role", ["master", "slave"])
def test_signal_with_a_peer_ends_it_with_0_and_a_goodbye(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, name: str, role: RoleName
) -> None:
    ours: RoleName = "slave" if role == "master" else "master"
    peer = Peer(runtime, socket_path, ours)
    program = start(name, "--socket", socket_path, "--role", role)
    peer.connect(program)
    peer.ping(program)
    assert program.interrupt() == (0, "")
    wait_until(lambda: peer.reason, runtime)
    assert "interface deleted" in str(peer.reason)
    assert os.path.exists(socket_path) == (ours == "master")


@pytest.mark.parametrize("name", NAMES)
def test_peer_that_never_connected_is_not_called_disconnected(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, name: str
) -> None:
    listener = Peer(runtime, socket_path, "master", id=7)
    program = start(name, "--socket", socket_path)
    if name == "custom_fd":
        program.tell("conn 0 0")
    program.line("not connected: ", runtime)
    assert [line for line in program.lines if re.search("(^|: )disconnected", line)] == []
    listener.interface.delete()
    program.interrupt()


@pytest.mark.parametrize("name", ["icmp_responder", "libmemif_responder", "multithread"])
def test_slave_finds_a_master_that_comes_later(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, name: str
) -> None:
    program = start(name, "--socket", socket_path, "--id", "5", "--ip", "10.1.2.3")
    assert program.line("answers for 10.1.2.3").endswith("; Ctrl+C ends it")  # logging has said why it is not connected
    peer = Peer(runtime, socket_path, "master", id=5)
    peer.connect(program)
    peer.ping(program, parse_ip("10.1.2.3"))
    assert program.interrupt() == (0, "")


@pytest.mark.parametrize("name", ["icmp_responder", "libmemif_responder", "multithread"])
def test_peer_that_comes_again_is_answered_again(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, name: str
) -> None:
    program = start(name, "--socket", socket_path, "--role", "master")
    program.line("answers for")
    for _ in range(3):
        peer = Peer(runtime, socket_path, "slave", num_s2m_rings=2, num_m2s_rings=2)
        peer.connect(program)
        assert [peer.ping(program, qid=qid) for qid in (0, 1)] == ([0, 0] if name == "icmp_responder" else [0, 1])
        peer.interface.delete()
        program.line("disconnected: ")
    assert program.interrupt() == (0, "")


# --- icmp_responder -------------------------------------------------------------------------------------------------


# The program with libmemif's names looks at each buffer alone, as those in C do.
@pytest.mark.parametrize(("name", "chains"), [("icmp_responder", True), ("libmemif_responder", False)])
@pytest.mark.parametrize("role", ["master", "slave"])
def test_arp_and_icmp_are_answered_and_nothing_else(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, role: RoleName, name: str, chains: bool
) -> None:
    peer = Peer(runtime, socket_path, "slave" if role == "master" else "master")
    program = start(name, "--socket", socket_path, "--role", role)
    peer.connect(program)
    stranger = parse_ip("192.168.1.3")
    requests = [
        arp_request(OUR_MAC, OUR_IP, stranger),
        arp_request(OUR_MAC, OUR_IP, THEIR_IP),
        b"\xff" * 60,
        request(1, stranger),
        request(2, THEIR_IP),
        request(3, THEIR_IP, 5000),  # a chain, in buffers of 2048
        request(4, THEIR_IP),
    ]
    assert peer.interface.tx_queues[0].send(requests) == len(requests)
    wanted = [(2, 56), (3, 5000), (4, 56)] if chains else [(2, 56), (4, 56)]
    (_, arp), *echoes = peer.replies(program, 1 + len(wanted))
    assert parse_arp_reply(arp) == (THEIR_IP, THEIR_MAC)
    assert all(is_reply(echo, which, size=size) for (_, echo), (which, size) in zip(echoes, wanted, strict=True))
    assert program.interrupt() == (0, "")
    assert peer.received == []


@pytest.mark.parametrize(("arguments", "qid"), [([], 0), (["0"], 0), (["1"], 1), (["3"], 3)])
def test_argument_sets_the_transmit_queue(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, arguments: list[str], qid: int
) -> None:
    peer = Peer(runtime, socket_path, "master")
    program = start("icmp_responder", *arguments, "--socket", socket_path)
    peer.connect(program)
    assert len(peer.interface.rx_queues) == len(peer.interface.tx_queues) == qid + 1
    assert [peer.ping(program, qid=asked) for asked in range(qid + 1)] == [qid] * (qid + 1)
    assert program.interrupt() == (0, "")


def test_transmit_queue_that_the_peer_does_not_offer_is_an_error(
    start: Callable[..., Program], runtime: Runtime, socket_path: str
) -> None:
    program = start("icmp_responder", "1", "--socket", socket_path, "--role", "master")
    program.line("answers for")
    peer = Peer(runtime, socket_path, "slave", num_m2s_rings=1)
    wait_until(lambda: peer.reason, runtime)
    assert program.finish() == (2, "icmp_responder: transmit queue 1: the peer allows 1, counted from 0\n")


# --- custom_fd ------------------------------------------------------------------------------------------------------


def connection_ip(index: int) -> bytes:
    return parse_ip(f"192.168.{index + 1}.2")


@pytest.fixture
def prompt(start: Callable[..., Program], socket_path: str) -> Program:
    program = start("custom_fd", "--socket", socket_path)
    program.line("help")
    return program


def end(program: Program) -> None:
    program.tell("exit")
    assert program.finish() == (0, "")


@pytest.mark.parametrize("path", ["/dev/null", __file__])
def test_standard_input_that_epoll_refuses_is_an_error(start: Callable[..., Program], path: str) -> None:
    with open(path) as file:
        status, err = start("custom_fd", stdin=file.fileno()).finish()
    assert status == 2
    assert "must be a terminal or a pipe" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("loop", ["poll", "select", "fileno"])
def test_commands_come_from_a_file_where_the_loop_takes_it(
    start: Callable[..., Program], tmp_path: Path, loop: str
) -> None:
    path = tmp_path / "commands"
    path.write_text("show\n")
    with path.open() as file:
        program = start("custom_fd", "--loop", loop, stdin=file.fileno())
        assert program.finish() == (0, "")
    assert program.lines[-1] == "0 connection(s)"


@pytest.mark.parametrize("last", [b"", b"exit", b"exit\nconn 0 0\n", b"conn 0 0\n", b"conn 0"])
def test_end_of_input_ends_it(prompt: Program, last: bytes) -> None:
    assert prompt.process.stdin is not None
    prompt.process.stdin.write(last)
    assert prompt.finish() == (0, "")
    assert any("answers for" in line for line in prompt.lines) == (last == b"conn 0 0\n")


def test_help_names_every_command(prompt: Program) -> None:
    prompt.tell("help")
    prompt.line("send <index>")
    words = {line.split()[0] for line in prompt.lines[1:]}
    assert words == {"help", "exit", "conn", "del", "show", "ip-set", "rx-mode", "sh-count", "cl-count", "send"}
    end(prompt)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("frob", "frob: no such command"),
        ("help me", "usage: help"),
        ("conn", "usage: conn <index> <0 slave|1 master> [<interrupt-desc>]"),
        ("conn 1", "usage: conn"),
        ("conn 1 0 0 0", "usage: conn"),
        ("conn x 0", "index is 'x'"),
        ("conn -1 0", "index is '-1'"),
        ("conn 65536 0", "index is '65536'"),
        ("conn 1 2", "the role is '2'; it must be 0 or 1"),
        ("conn 1 0 2", "interrupt-desc is '2'; it must be 0 or 1"),
        ("conn 0 1", "connection 0 exists already"),
        ("del", "usage: del <index>"),
        ("del 1", "there is no connection 1"),
        ("ip-set 0 1.2.3", "'1.2.3' is not an IP address"),
        ("ip-set 1 1.2.3.4", "there is no connection 1"),
        ("rx-mode 0 0 polling", "connection 0 is not connected"),
        ("rx-mode 0 0", "usage: rx-mode"),
        ("send 0 1 1.2.3.4 02:00:00:00:00:01", "connection 0 is not connected"),
        ("send 0 1 1.2.3.4", "usage: send"),
        ("show 0", "usage: show"),
        ("sh-count 0", "usage: sh-count"),
        ("cl-count 0", "usage: cl-count"),
    ],
)
def test_bad_command_gives_one_line_and_changes_nothing(prompt: Program, command: str, words: str) -> None:
    prompt.tell("conn 0 0", "show")
    prompt.line("1 connection(s)")
    before = prompt.lines[-2:]
    prompt.tell(command, "show")
    prompt.line("1 connection(s)")
    error, *after = prompt.lines[-3:]
    assert words in error
    assert after == before
    end(prompt)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rx-mode 0 2 polling", "qid is '2'; it must be a number from 0 to 1"),
        ("rx-mode 0 0 lazy", "rx_mode is 'lazy'; it must be one of interrupt, polling, adaptive"),
        ("send 0 0 1.2.3.4 02:00:00:00:00:01", "count is '0'"),
        ("send 0 1 1.2.3 02:00:00:00:00:01", "'1.2.3' is not an IPv4 address"),
        ("send 0 1 1.2.3.4 02:00", "'02:00' is not a MAC address"),
    ],
)
def test_bad_command_for_a_live_connection_changes_nothing(
    prompt: Program, runtime: Runtime, socket_path: str, command: str, words: str
) -> None:
    peer = Peer(runtime, socket_path, "master")
    prompt.tell("conn 0 0")
    peer.connect(prompt)
    prompt.tell(command)
    prompt.line(words)
    peer.ping(prompt, connection_ip(0))
    end(prompt)


def test_listening_where_somebody_listens_is_one_line(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    Peer(runtime, socket_path, "master")
    prompt.tell("conn 0 1", "show")
    assert "somebody listens there already" in prompt.line("conn: ")
    prompt.line("0 connection(s)")
    end(prompt)


@pytest.mark.parametrize("loop", ["epoll", "poll", "select", "fileno"])
def test_many_connections_of_both_roles_in_every_loop(
    start: Callable[..., Program], runtime: Runtime, tmp_path: Path, loop: str
) -> None:
    theirs, ours = str(tmp_path / "theirs"), str(tmp_path / "ours")
    program = start("custom_fd", "--socket", ours, "--listen", theirs, "--loop", loop)
    peers = []
    turns: list[tuple[RoleName, bool]] = [("slave", True), ("master", False)] * 3
    for index, (role, theirs_first) in enumerate(turns):
        if not theirs_first:
            peers.append(Peer(runtime, ours, role, id=index))
        program.tell(f"conn {index} {int(theirs_first)}")
        program.line(f"connection {index}: memif {index}")
        if theirs_first:
            peers.append(Peer(runtime, theirs, role, id=index))
        peers[-1].connect(program)
    for index, peer in enumerate(peers):
        peer.ping(program, connection_ip(index))
    program.tell("show")
    program.line("6 connection(s)", runtime)
    shown = [line for line in program.lines if ", connected to 'test'" in line]
    assert [format_ip(connection_ip(index)) in line for index, line in enumerate(shown)] == [True] * 6
    runtime.set_reconnect_interval(0)  # the program would say that it has refused a peer
    program.tell("del 2")
    program.line("connection 2: deleted")
    program.wait(lambda: peers[2].reason, runtime)
    for index in (0, 1, 3, 4, 5):
        peers[index].ping(program, connection_ip(index))
    program.tell("conn 2 1")
    program.line("connection 2: memif 2")
    runtime.set_reconnect_interval(0.1)
    peers[2].connect(program)
    peers[2].ping(program, connection_ip(2))
    end(program)
    assert not os.path.exists(theirs)


def test_master_serves_a_peer_that_comes_again(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    prompt.tell("conn 0 1")
    prompt.line("answers for")
    for _ in range(2):
        peer = Peer(runtime, socket_path, "slave")
        peer.connect(prompt)
        peer.ping(prompt, connection_ip(0))
        peer.interface.delete()
        prompt.line("connection 0: disconnected: ")
    end(prompt)


def test_signal_ends_connections_and_a_sender(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    peer = Peer(runtime, socket_path, "master", listening=False)
    prompt.tell("conn 0 0")
    peer.connect(prompt)
    prompt.tell("send 0 1000000000 192.168.1.1 02:fe:00:00:00:99")
    prompt.wait(peer.interface.rx_queues[1].pending, runtime)
    assert prompt.interrupt() == (0, "")
    assert any("send 0: " in line and "of 1000000000 packets" in line for line in prompt.lines)


def test_ip_set_changes_the_address_that_is_answered_for(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    peer = Peer(runtime, socket_path, "master")
    prompt.tell("conn 0 0")
    peer.connect(prompt)
    prompt.tell("ip-set 0 10.0.0.7")
    prompt.line("answers for 10.0.0.7")
    peer.interface.tx_queues[0].send([request(1, connection_ip(0))])
    peer.ping(prompt, parse_ip("10.0.0.7"))  # its reply is the only one
    end(prompt)


def test_interrupt_desc_1_answers_arp_alone(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    peer = Peer(runtime, socket_path, "master")
    prompt.tell("conn 0 0 1")
    peer.connect(prompt)
    ip = connection_ip(0)
    peer.interface.tx_queues[0].send([request(1, ip), arp_request(OUR_MAC, OUR_IP, ip), request(2, ip)])
    ((_, arp),) = peer.replies(prompt)
    assert parse_arp_reply(arp) == (ip, bytes((0x02, 0xFE, 0, 0, 0, 0)))
    prompt.tell("sh-count")
    assert prompt.line("  rx 0:", runtime).startswith("  rx 0: packets 3, ")
    assert prompt.line("  tx 0:", runtime).startswith("  tx 0: packets 1, ")
    end(prompt)


@pytest.mark.parametrize(("interrupt_desc", "answered"), [("", 1024), ("0", 2000)])
def test_interrupt_desc_0_waits_while_the_ring_is_full(
    prompt: Program, runtime: Runtime, socket_path: str, interrupt_desc: str, answered: int
) -> None:
    peer = Peer(runtime, socket_path, "master", listening=False)
    prompt.tell(f"conn 0 0 {interrupt_desc}")
    peer.connect(prompt)
    requests = [request(number, connection_ip(0)) for number in range(2000)]
    tx, rx = peer.interface.tx_queues[0], peer.interface.rx_queues[0]

    def send() -> bool:
        del requests[: tx.send(requests)]
        return not requests

    prompt.wait(lambda: tx.free() == tx.ring_size, runtime)  # its buffers are posted
    prompt.wait(lambda: send() and rx.pending() == rx.ring_size, runtime)
    if not interrupt_desc:
        prompt.wait(lambda: tx.free() == tx.ring_size, runtime)  # it has taken all, and lost the rest
    prompt.tell("show")
    prompt.line("1 connection(s)")  # a full ring does not keep it from its prompt
    received: list[bytes] = []

    def receive() -> bool:
        received.extend(rx.recv())
        return len(received) >= answered

    prompt.wait(receive, runtime)
    assert sequences([(0, packet) for packet in received]) == list(range(answered))
    assert rx.pending() == 0
    end(prompt)


def test_rx_mode_changes_under_traffic_and_loses_nothing(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    peer = Peer(runtime, socket_path, "master")
    prompt.tell("conn 0 0")
    peer.connect(prompt)
    tx, sent = peer.interface.tx_queues[0], 0

    def keep_sending_until(said: str) -> None:
        """At least one packet is on its way while the mode changes."""
        nonlocal sent
        seen = len(prompt.lines)

        def send() -> bool:
            nonlocal sent
            sent += tx.send([request(sent, connection_ip(0))])
            return any(said in line for line in prompt.lines[seen:])

        prompt.wait(send, runtime)

    for mode, mask in [("polling", MASK_INT), ("interrupt", 0)] * 5:
        prompt.tell(f"rx-mode 0 0 {mode}")
        keep_sending_until(f"rx 0 is in {mode} mode")
        assert peer.interface.details().tx_queues[0].flags == mask
    assert sequences(peer.replies(prompt, sent)) == list(range(sent))
    prompt.tell("rx-mode 0 1 polling", "show")
    prompt.line("rx 0: 1024 slots, interrupt", runtime)
    prompt.line("rx 1: 1024 slots, polling", runtime)
    assert peer.ping(prompt, connection_ip(0), qid=1) == 0  # replies leave on queue 0
    end(prompt)


def test_send_reports_and_counters_are_shown_and_cleared(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    """More requests than the ring has slots, on a queue of their own; the peer answers each."""
    peer = Peer(runtime, socket_path, "master")
    prompt.tell("conn 0 0")
    peer.connect(prompt)
    prompt.tell("send 0 3000 192.168.1.1 02:fe:00:00:00:99")
    waiting: list[bytearray] = []

    def answer() -> bool:
        for qid, packet in peer.received:
            waiting.append(bytearray(packet))
            assert qid == 1
            assert reply_in_place(memoryview(waiting[-1]), OUR_IP, OUR_MAC)
        peer.received.clear()
        del waiting[: peer.interface.tx_queues[0].send(waiting)]
        return any(line.startswith("send 0: ") for line in prompt.lines) and not waiting

    prompt.wait(answer, runtime)
    report = prompt.line("send 0: ")
    assert report.startswith("send 0: 3000 of 3000 packets in ")
    assert report.endswith(" packets/s")

    def counted() -> bool:
        answer()
        prompt.tell("sh-count")
        return "connection 0: 3000 echo replies received" in prompt.line("echo replies", runtime)

    prompt.wait(counted, runtime)
    assert prompt.line("  rx 0:", runtime).startswith("  rx 0: packets 3000, ")
    assert prompt.line("  tx 0:", runtime).startswith("  tx 0: packets 0, ")
    assert prompt.line("  tx 1:", runtime).startswith("  tx 1: packets 3000, ")
    prompt.tell("cl-count", "sh-count")
    prompt.line("counters cleared", runtime)
    prompt.line("connection 0: 0 echo replies received", runtime)
    zeros = "packets 0, bytes 0, interrupts 0, ring_full 0, bad_descriptors 0, repeated_kicks 0"
    for name in ("rx 0", "rx 1", "tx 0", "tx 1"):
        assert prompt.line(f"  {name}:", runtime) == f"  {name}: {zeros}"
    end(prompt)


def test_one_sender_at_a_time_and_a_disconnect_ends_it(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    peer = Peer(runtime, socket_path, "master", listening=False)
    prompt.tell("conn 0 0")
    peer.connect(prompt)
    send = "send 0 1000000000 192.168.1.1 02:fe:00:00:00:99"
    prompt.tell(send, send)
    prompt.line("send: connection 0 is sending already", runtime)
    peer.interface.disconnect("enough of it")
    assert "of 1000000000 packets" in prompt.line("send 0: ", runtime)
    assert "enough of it" in prompt.line("connection 0: disconnected", runtime)
    prompt.line("connected to 'test'", runtime)
    prompt.tell(send)
    prompt.wait(peer.interface.rx_queues[1].pending, runtime)
    prompt.tell("del 0")
    prompt.line("send 0: ", runtime)
    prompt.line("connection 0: deleted", runtime)
    end(prompt)


def test_sender_needs_a_transmit_queue_of_its_own(prompt: Program, runtime: Runtime, socket_path: str) -> None:
    prompt.tell("conn 0 1")
    prompt.line("answers for")
    peer = Peer(runtime, socket_path, "slave", num_m2s_rings=1)
    peer.connect(prompt)
    prompt.tell("send 0 1 192.168.1.1 02:fe:00:00:00:99")
    prompt.line("send: the peer allows only one transmit queue, and the replies use it", runtime)
    peer.ping(prompt, connection_ip(0))
    end(prompt)


# --- multithread ----------------------------------------------------------------------------------------------------


def test_each_queue_has_its_thread(start: Callable[..., Program], runtime: Runtime, socket_path: str) -> None:
    peer = Peer(runtime, socket_path, "master")
    program = start("multithread", "--socket", socket_path)
    peer.connect(program)
    program.line("queue 0: a thread waits for interrupts")
    program.line("queue 1: a thread polls")
    assert [queue.flags for queue in peer.interface.details().tx_queues] == [0, MASK_INT]
    for size in (56, 3000):
        assert [peer.ping(program, qid=qid, size=size) for qid in (0, 1, 0, 1)] == [0, 1, 0, 1]
    numbers = range(300)
    for qid in (0, 1):
        assert peer.interface.tx_queues[qid].send([request(number) for number in numbers]) == len(numbers)
    received = peer.replies(program, 2 * len(numbers))
    for qid in (0, 1):
        assert sequences([pair for pair in received if pair[0] == qid]) == list(numbers)
    assert program.interrupt() == (0, "")
    assert program.lines[-3:-1] == [f"queue {qid}: 304 packets received, 304 answered in all" for qid in (0, 1)]


@pytest.mark.parametrize("rounds", [1, 2])
def test_threads_send_packets_back_without_python(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, rounds: int
) -> None:
    program = start("multithread", "--socket", socket_path, "--forward")
    program.line("sends packets back")
    for number in range(rounds):
        peer = Peer(runtime, socket_path, "master")
        peer.connect(program)
        program.line("queue 1: a thread polls")
        assert [queue.flags for queue in peer.interface.details().tx_queues] == [0, MASK_INT]
        packets = [bytes([number]) * 64 for number in range(200)]
        for tx in peer.interface.tx_queues:
            assert tx.send(packets) == len(packets)
        received = peer.replies(program, 2 * len(packets))
        for qid in (0, 1):
            assert [packet for queue, packet in received if queue == qid] == packets
        if number + 1 < rounds:
            peer.interface.close()
            program.line("disconnected: ")
    assert program.interrupt() == (0, "")
    assert program.lines[-3:-1] == [
        f"queue {qid}: {200 * rounds} packets received, {200 * rounds} answered in all" for qid in (0, 1)
    ]


@pytest.mark.parametrize(("s2m", "m2s", "threads"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (3, 3, 3)])
def test_thread_for_each_queue_that_the_peer_offers(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, s2m: int, m2s: int, threads: int
) -> None:
    program = start("multithread", "--socket", socket_path, "--role", "master")
    program.line("answers for")
    peer = Peer(runtime, socket_path, "slave", num_s2m_rings=s2m, num_m2s_rings=m2s)
    peer.connect(program)
    assert [peer.ping(program, qid=qid) for qid in range(threads)] == list(range(threads))
    assert program.interrupt() == (0, "")
    assert sum(": a thread " in line for line in program.lines) == threads


def test_thread_that_waits_on_a_queue_is_woken_even_if_it_drains_the_disconnect(
    readable_calls: None, make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disconnect comes after the thread has found the queue alive, and before it reads the eventfd."""
    queue = make_pair().slave.rx_queues[0]
    drain = EventFd.drain

    def disconnect_first(event: EventFd) -> bool:
        monkeypatch.undo()
        queue.disconnect(Disconnected("gone"))
        return drain(event)

    monkeypatch.setattr(EventFd, "drain", disconnect_first)
    assert queue.recv() == []
    poll = select.poll()
    poll.register(queue.fileno(), select.POLLIN)
    assert poll.poll(0) == [(queue.fileno(), select.POLLIN)]
    with pytest.raises(Disconnected, match="gone"):
        queue.recv()
