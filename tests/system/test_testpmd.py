"""memifrt and DPDK's testpmd: an implementation that is not ours, in each role, with and without zero copy."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from memifrt import Disconnected, ErrorCode, Interface, Runtime, RxMode
from memifrt.options import RoleName
from memifrt.packets import arp_request, echo_request, parse_arp_reply, parse_echo_reply
from tests.lib.support import DEADLINE, Recorder, wait_until
from tests.lib.testpmd import DpdkTestpmd, missing

# One testpmd at a time: each keeps a core busy.
pytestmark = [pytest.mark.testpmd, pytest.mark.xdist_group("testpmd")]

#: A stream of 100,000 packets on a machine that has other things to do.
STREAM_DEADLINE = 60.0
#: Packets in flight on a queue: testpmd drops what its transmit ring cannot take.
WINDOW = 256

MAC, IP = bytes.fromhex("02fe00000001"), bytes([192, 168, 1, 1])
TARGET_IP = bytes([192, 168, 1, 2])


@dataclass(frozen=True)
class Kind:
    """What testpmd is to us; our role is the other one."""

    role: RoleName
    zero_copy: bool = False

    @property
    def our_role(self) -> RoleName:
        return "slave" if self.role == "server" else "master"


SERVER, CLIENT, ZERO_COPY_CLIENT = Kind("server"), Kind("client"), Kind("client", zero_copy=True)
KINDS = [
    pytest.param(SERVER, id="server"),
    pytest.param(CLIENT, id="client"),
    pytest.param(ZERO_COPY_CLIENT, id="zero-copy-client"),
]
every_kind = pytest.mark.parametrize("kind", KINDS)

Start = Callable[..., DpdkTestpmd]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(socket, **options)``: a running :class:`DpdkTestpmd`, killed afterwards."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield lambda socket, **options: stack.enter_context(DpdkTestpmd(socket, **options))


@dataclass
class Link:
    """Our interface and the testpmd that it is connected to."""

    runtime: Runtime
    interface: Interface
    testpmd: DpdkTestpmd

    def spin_until(self, predicate: Callable[[], object], timeout: float = DEADLINE) -> None:
        """Look again and again: for what changes in shared memory without an interrupt."""
        deadline = time.monotonic() + timeout
        while not predicate():
            assert time.monotonic() < deadline, f"not within {timeout} s: {predicate}"
            self.runtime.poll_event(0)

    def wait_until(self, predicate: Callable[[], object], timeout: float = DEADLINE) -> None:
        """Wait for interrupts and messages."""
        wait_until(predicate, self.runtime, timeout=timeout)

    def on_interrupt(self, callback: Callable[[Interface, int], object]) -> None:
        """From now on, call this for every interrupt."""
        self.interface.on_interrupt = callback
        for queue in self.interface.rx_queues:
            queue.set_rx_mode("interrupt")  # watches the eventfd, now that there is somebody to tell

    def wait_until_connected(self) -> None:
        """Until packets may flow in both directions."""
        self.wait_until(lambda: self.interface.connected)
        self.testpmd.start_forwarding()
        # A client posts its receive buffers when it begins to forward, and tells nobody.
        self.spin_until(lambda: all(queue.free() for queue in self.interface.tx_queues))


Connect = Callable[..., Link]


@pytest.fixture
def connect(start: Start, runtime: Runtime, socket_name: str) -> Connect:
    """``connect(kind, forward=..., queues=..., ...)``: a testpmd of a kind, and our interface connected to it.

    Options are ``create_interface``'s; sizes are told to both ends, for it is the slave whose sizes count.
    """

    def connect(
        kind: Kind,
        *,
        forward: str = "io",
        queues: int = 1,
        socket: str = socket_name,
        log2_ring_size: int = 10,
        buffer_size: int = 2048,
        **options: Any,
    ) -> Link:
        def start_testpmd() -> DpdkTestpmd:
            return start(
                socket,
                role=kind.role,
                zero_copy=kind.zero_copy,
                forward=forward,
                queues=queues,
                log2_ring_size=log2_ring_size,
                buffer_size=buffer_size,
            )

        if kind.role == "server":
            testpmd = start_testpmd()
        interface = runtime.create_interface(
            socket=socket,
            role=kind.our_role,
            num_s2m_rings=queues,
            num_m2s_rings=queues,
            log2_ring_size=log2_ring_size,
            buffer_size=buffer_size,
            **options,
        )
        if kind.role == "client":
            testpmd = start_testpmd()
        link = Link(runtime, interface, testpmd)
        link.wait_until_connected()
        return link

    return connect


# --- packets with a number and a checksum ---------------------------------------------------------------------------

# number, queue, length, checksum of all the rest
_HEADER = struct.Struct("<IHHI")
_NOISE = random.Random(1).randbytes(4096)
#: Every size of an Ethernet frame without its checksum, in no order.
SIZES = random.Random(2).sample(range(60, 1501), 1441)


def numbered(number: int, qid: int, sizes: list[int] = SIZES) -> bytes:
    """The packet with this number."""
    length = sizes[number % len(sizes)]
    start = number % 2048
    body = _NOISE[start : start + length - _HEADER.size]
    return _HEADER.pack(number, qid, length, _checksum(number, qid, body)) + body


def check_numbered(packet: bytes, number: int, qid: int) -> None:
    """It is this packet of this queue, and whole."""
    found, found_qid, length, checksum = _HEADER.unpack_from(packet)
    body = packet[_HEADER.size :]
    assert (found, found_qid, length) == (number, qid, len(packet)), f"queue {qid}: packet {number} was due"
    assert checksum == _checksum(number, qid, body), f"queue {qid}: packet {number} has changed"


def _checksum(number: int, qid: int, body: bytes) -> int:
    return zlib.crc32(body, number ^ qid << 20)


class Stream:
    """Numbered packets out on every queue, and back on the same queue in the same order.

    ``window`` is how many may be in flight on a queue. What a ring has not taken is offered again.
    """

    def __init__(self, packets: int, window: int = WINDOW, sizes: list[int] = SIZES) -> None:
        self._window = window
        self._sizes = sizes
        self._left = packets
        self._sent: dict[int, int] = {}
        self._back: dict[int, int] = {}

    @property
    def done(self) -> bool:
        return not self._left and self._back == self._sent

    @property
    def back(self) -> int:
        return sum(self._back.values())

    def begin(self, interface: Interface) -> None:
        for qid in range(len(interface.rx_queues)):
            self._sent[qid] = self._back[qid] = 0
        for qid in self._sent:
            self._send(interface, qid)

    def go_on(self, interface: Interface, qid: int) -> None:
        """Take what has come on a queue, and send as much. An ``on_interrupt``."""
        for packet in interface.rx_queues[qid].recv():
            check_numbered(packet, self._back[qid], qid)
            self._back[qid] += 1
        self._send(interface, qid)

    def go_on_everywhere(self, interface: Interface) -> bool:
        for qid in self._sent:
            self.go_on(interface, qid)
        return self.done

    def _send(self, interface: Interface, qid: int) -> None:
        sent = self._sent[qid]
        count = min(self._left, self._window - (sent - self._back[qid]))
        packets = [numbered(number, qid, self._sizes) for number in range(sent, sent + count)]
        taken = interface.tx_queues[qid].send(packets)
        self._sent[qid] += taken
        self._left -= taken

    def run(self, link: Link) -> None:
        """All of it, in the mode of the interface's queues."""
        interface = link.interface
        self.begin(interface)
        if interface.rx_queues[0].rx_mode is RxMode.POLLING:
            link.spin_until(lambda: self.go_on_everywhere(interface), STREAM_DEADLINE)
        else:
            link.on_interrupt(self.go_on)
            link.wait_until(lambda: self.done, STREAM_DEADLINE)


@every_kind
@pytest.mark.parametrize("queues", [1, 4])
@pytest.mark.parametrize("rx_mode", ["interrupt", "polling"])
def test_every_packet_comes_back_whole_in_order_and_on_its_queue(
    connect: Connect, kind: Kind, queues: int, rx_mode: str
) -> None:
    link = connect(kind, queues=queues, rx_mode=rx_mode)
    Stream(100_000).run(link)
    # Nothing came twice, or comes unasked.
    assert not any(queue.pending() for queue in link.interface.rx_queues)
    details = link.interface.details()
    assert len(details.rx_queues) == len(details.tx_queues) == queues
    assert all(queue.counters.packets for queue in details.rx_queues)
    for counters in (details.rx_queues, details.tx_queues):
        assert sum(queue.counters.packets for queue in counters) == 100_000
        assert not any(queue.counters.bad_descriptors for queue in counters)
    counted = link.testpmd.stop()
    assert (counted.rx_packets, counted.tx_packets, counted.tx_dropped) == (100_000, 100_000, 0)


@every_kind
@pytest.mark.parametrize("log2_ring_size", [5, 6, 14])
def test_small_and_large_rings_carry_packets_round_many_times(
    connect: Connect, kind: Kind, log2_ring_size: int
) -> None:
    link = connect(kind, log2_ring_size=log2_ring_size, rx_mode="polling")
    ring_size = 1 << log2_ring_size
    assert {queue.ring_size for queue in link.interface.details().rx_queues} == {ring_size}
    Stream((4 << log2_ring_size) + 10_000, window=ring_size // 2, sizes=[60, 1500]).run(link)


def test_packets_longer_than_a_buffer_go_and_come_as_chains(connect: Connect) -> None:
    link = connect(SERVER, buffer_size=128)
    Stream(10_000, window=64).run(link)
    (tx,) = link.interface.details().tx_queues
    assert tx.head != 10_000  # or they were no chains


def test_a_client_sends_chains(connect: Connect) -> None:
    link = connect(CLIENT, buffer_size=128)
    # A client never takes the flag NEXT off a descriptor that it has once set it on: its packets of different
    # numbers of buffers run into each other, the second time round the ring. So each has four.
    Stream(10_000, window=64, sizes=[400, 512, 385, 511]).run(link)


def test_a_socket_file_serves_a_client_and_is_removed(connect: Connect, socket_path: str) -> None:
    link = connect(CLIENT, socket=socket_path)
    Stream(1_000).run(link)
    link.interface.delete()
    assert not os.path.exists(socket_path)


# --- zero copy on our side ------------------------------------------------------------------------------------------


@every_kind
def test_forwarded_bursts_are_counted_alike_on_both_sides(connect: Connect, kind: Kind) -> None:
    link = connect(kind, forward="flowgen", rx_mode="polling")
    rx, tx = link.interface.rx_queues[0], link.interface.tx_queues[0]
    flows: set[bytes] = set()

    def forward() -> bool:
        with rx.burst() as burst:
            flows.update(bytes(packet[30:34]) for packet in burst)  # the destination's address
            tx.forward(burst)
        return tx.counters.packets >= 20_000

    link.spin_until(forward)
    # What we sent has arrived, though none of it came back in a form that we could look at.
    link.spin_until(lambda: link.testpmd.statistics().rx_packets == tx.counters.packets)
    counted = link.testpmd.stop()
    link.spin_until(lambda: not rx.recv())
    assert counted.tx_packets == rx.counters.packets
    assert counted.rx_packets == tx.counters.packets
    assert rx.counters.bytes == 60 * rx.counters.packets
    assert len(flows) > 100


# --- icmpecho -------------------------------------------------------------------------------------------------------


@every_kind
def test_icmpecho_answers_arp_and_echo_requests(connect: Connect, kind: Kind) -> None:
    link = connect(kind, forward="icmpecho")
    received: list[bytes] = []
    link.on_interrupt(lambda interface, qid: received.extend(interface.rx_queues[qid].recv()))

    link.interface.tx_queues[0].send([arp_request(MAC, IP, TARGET_IP)])
    link.wait_until(lambda: received)
    arp = parse_arp_reply(received.pop())
    assert arp is not None
    assert arp[0] == TARGET_IP

    for sequence, size in enumerate((0, 1, 56, 1400)):
        request = echo_request(
            source_mac=MAC,
            source_ip=IP,
            target_mac=arp[1],
            target_ip=TARGET_IP,
            identifier=4711,
            sequence=sequence,
            payload=_NOISE[:size],
        )
        link.interface.tx_queues[0].send([request])
        link.wait_until(lambda: received)
        reply = parse_echo_reply(received.pop())
        assert reply is not None
        assert (reply.source_ip, reply.identifier, reply.sequence) == (TARGET_IP, 4711, sequence)
        assert reply.payload == _NOISE[:size]


@every_kind
@pytest.mark.parametrize("queues", [1, 4])
def test_icmpecho_answers_our_ping(start: Start, socket_name: str, kind: Kind, queues: int) -> None:
    def start_testpmd() -> DpdkTestpmd:
        return start(socket_name, role=kind.role, zero_copy=kind.zero_copy, forward="icmpecho", queues=queues)

    command = [sys.executable, "-m", "memifrt", "ping", "--role", kind.our_role, "--socket", socket_name]
    command += ["--queues", str(queues), "-c", "10", "-i", "0.02", "-s", "1400", "192.168.1.2"]
    if kind.role == "server":
        testpmd = start_testpmd()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ping:
        try:
            assert ping.stdout is not None
            assert ping.stdout.readline().startswith("PING 192.168.1.2")  # and listens, if it is a master
            if kind.role == "client":
                testpmd = start_testpmd()
            testpmd.start_forwarding()
            output, errors = ping.communicate(timeout=DEADLINE)
        finally:
            ping.kill()
    assert ping.returncode == 0, errors
    assert "10 packets transmitted, 10 received, 0% packet loss" in output


# --- testpmd dies ---------------------------------------------------------------------------------------------------


@every_kind
def test_a_killed_testpmd_is_noticed_and_its_successor_is_served(
    connect: Connect, start: Start, kind: Kind, socket_name: str
) -> None:
    recorder = Recorder()
    link = connect(kind, on_connect=recorder.on_connect, on_disconnect=recorder.on_disconnect)
    stream = Stream(1_000_000)

    def kill_it_amid_the_stream(interface: Interface, qid: int) -> None:
        stream.go_on(interface, qid)
        if stream.back >= 5_000:
            link.testpmd.kill()

    link.on_interrupt(kill_it_amid_the_stream)
    stream.begin(link.interface)
    link.wait_until(lambda: recorder.reasons)
    (reason,) = recorder.reasons
    assert reason.established
    assert "closed the connection" in reason.message
    with pytest.raises(Disconnected, match="closed the connection"):
        link.interface.tx_queues[0].send([b"too late"])

    link.testpmd = start(socket_name, role=kind.role, zero_copy=kind.zero_copy)
    link.wait_until_connected()
    assert recorder.count("connect") == 2
    Stream(1_000).run(link)


def test_a_testpmd_that_quits_is_noticed(connect: Connect) -> None:
    recorder = Recorder()
    link = connect(SERVER, on_disconnect=recorder.on_disconnect)
    link.testpmd.quit()
    link.wait_until(lambda: recorder.reasons)
    assert recorder.reasons[0].established


# --- terms that differ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        pytest.param({"secret": "right"}, {"secret": "wrong"}, "Incorrect secret", id="wrong-secret"),
        pytest.param({"secret": "right"}, {}, "Secret required", id="no-secret"),
        pytest.param({"id": 5}, {"id": 6}, "ID not found", id="unknown-id"),
        pytest.param({}, {"mode": "ip"}, "mode", id="mode"),
        pytest.param({}, {"num_s2m_rings": 2}, "ring index", id="too-many-s2m-rings"),
        pytest.param({}, {"num_m2s_rings": 2}, "ring index", id="too-many-m2s-rings"),
    ],
)
def test_a_server_that_refuses_us_gives_its_reason(
    start: Start, runtime: Runtime, socket_name: str, theirs: dict[str, Any], ours: dict[str, Any], reason: str
) -> None:
    start(socket_name, **theirs)
    recorder = Recorder()
    interface = runtime.create_interface(socket=socket_name, on_disconnect=recorder.on_disconnect, **ours)
    wait_until(lambda: recorder.reasons, runtime)
    assert reason in recorder.reasons[0].message
    assert recorder.reasons[0].code is ErrorCode.DISCONNECT
    assert not recorder.reasons[0].established
    assert interface.last_error is not None
    assert interface.last_error.message == recorder.reasons[0].message


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        pytest.param({"secret": "wrong"}, {"secret": "right"}, "wrong secret for interface 0", id="wrong-secret"),
        pytest.param({}, {"secret": "right"}, "interface 0 requires a secret", id="no-secret"),
        pytest.param({"id": 5}, {"id": 6}, "there is no interface with id 5", id="unknown-id"),
        pytest.param({}, {"mode": "ip"}, "mode mismatch", id="mode"),
    ],
)
def test_a_client_that_we_refuse_is_told_our_reason(
    start: Start,
    runtime: Runtime,
    socket_name: str,
    caplog: pytest.LogCaptureFixture,
    theirs: dict[str, Any],
    ours: dict[str, Any],
    reason: str,
) -> None:
    with caplog.at_level(logging.WARNING, logger="memifrt"):
        interface = runtime.create_interface(socket=socket_name, role="master", **ours)
        testpmd = start(socket_name, role="client", **theirs)
        wait_until(lambda: reason in caplog.text, runtime)
    assert not interface.connected
    testpmd.wait_for(reason)


@every_kind
def test_the_same_secret_on_both_sides_connects(start: Start, runtime: Runtime, socket_name: str, kind: Kind) -> None:
    def create() -> Interface:
        return runtime.create_interface(socket=socket_name, role=kind.our_role, secret="open sesame", id=7)

    def start_testpmd() -> None:
        start(socket_name, role=kind.role, zero_copy=kind.zero_copy, secret="open sesame", id=7)

    if kind.role == "server":
        start_testpmd()
        interface = create()
    else:
        interface = create()
        start_testpmd()
    wait_until(lambda: interface.connected, runtime)
    assert interface.details().remote_app_name.startswith("DPDK")


def test_a_second_client_with_the_same_id_is_told_so(
    connect: Connect, start: Start, socket_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    link = connect(CLIENT)
    second = start(socket_name, role="client")
    link.wait_until(lambda: "already connected" in caplog.text)
    second.wait_for("already connected")
    Stream(1_000).run(link)
