"""memif as a socket of scapy: everything that scapy does with a socket, over a pair of them and against others."""

from __future__ import annotations

import functools
import gc
import os
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scapy")

from scapy.ansmachine import AnsweringMachine
from scapy.config import conf
from scapy.error import log_runtime
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether, arping
from scapy.packet import Packet, Raw
from scapy.sendrecv import AsyncSniffer, bridge_and_sniff, send, sendp, sniff, sr, srp, srp1
from scapy.supersocket import SuperSocket
from scapy.utils import rdpcap, wrpcap

from memifrt import ConfigError, Disconnected, ErrorCode, FdEvent, Interface, MemifError, Runtime
from memifrt.cli.commands.responder import serve
from memifrt.packets import echo_request, parse_ip, parse_mac, reply_in_place
from memifrt.queue import reference
from memifrt.scapy import MemifSocket
from memifrt.threaded.runtime_thread import Background
from tests.lib.forked import in_child
from tests.lib.patched import PATCHED
from tests.lib.support import DEADLINE, Recorder, wait_until
from tests.lib.testpmd import DpdkTestpmd, missing
from tests.lib.threads import Thread

MAC, IP_ADDRESS = "02:fe:00:00:00:01", "192.168.1.1"
TARGET_MAC, TARGET_IP = "02:fe:c0:a8:01:02", "192.168.1.2"
MANY = 10_000
#: For scapy to take ten thousand packets apart on a machine that has other things to do.
MANY_DEADLINE = 80.0

Make = Callable[..., MemifSocket]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "verb", 0)


@pytest.fixture
def make(socket_name: str) -> Iterator[Make]:
    """``make(role, **options)``: a socket on the test's own name, closed afterwards. A master does not wait."""
    sockets: list[MemifSocket] = []

    def make(role: str = "slave", **options: Any) -> MemifSocket:
        options = {"socket": socket_name, "role": role, "timeout": 0 if role == "master" else DEADLINE, **options}
        sockets.append(MemifSocket(**options))
        return sockets[-1]

    yield make
    for each in sockets:
        each.close()


@pytest.fixture
def pair(make: Make) -> tuple[MemifSocket, MemifSocket]:
    """A master and a slave that are connected to each other."""
    return connected_pair(make)


def connected_pair(make: Make, **options: Any) -> tuple[MemifSocket, MemifSocket]:
    master, slave = make("master", **options), make("slave", **options)
    eventually(lambda: master.connected)
    return master, slave


@pytest.fixture
def responder(socket_name: str) -> Iterator[Interface]:
    """memifrt's own, a master on the test's name, for Ethernet and (id 1) IP."""

    def on_interrupt(interface: Interface, qid: int) -> None:
        ip, mac = parse_ip(TARGET_IP), parse_mac(TARGET_MAC)
        serve(interface, qid, lambda packet: reply_in_place(packet, ip, mac, mode=interface.mode))

    with Background(Runtime("responder")) as background:

        def create() -> Interface:
            make = functools.partial(
                background.runtime.create_interface, socket=socket_name, role="master", on_interrupt=on_interrupt
            )
            make(id=1, mode="ip")
            return make()

        yield background.call(create)
        assert background.failure is None


def eventually(predicate: Callable[[], object], timeout: float = DEADLINE) -> None:
    """Wait for what a background thread does."""
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, f"not within {timeout} s: {predicate}"
        time.sleep(0.002)


def readable(*sockets: Any, timeout: float = 0) -> list[Any]:
    return select.select(sockets, [], [], timeout)[0]


# scapy's operators and fields have no types of use: Any stands for a packet below.


def numbered(number: int) -> Any:
    return Ether(src=MAC, dst=TARGET_MAC) / IP(src=IP_ADDRESS, dst=TARGET_IP, id=number & 0xFFFF) / UDP() / b"data"


def frames(count: int) -> list[bytes]:
    frame = bytes(numbered(0))
    return [frame[:-4] + number.to_bytes(4, "big") for number in range(count)]


def numbers(packets: Any) -> list[int]:
    return [int.from_bytes(bytes(packet)[-4:], "big") for packet in packets]


def echo(**fields: Any) -> Any:
    return Ether(src=MAC, dst=TARGET_MAC) / IP(src=IP_ADDRESS, dst=TARGET_IP) / ICMP(id=9, **fields)


# --- packets --------------------------------------------------------------------------------------------------------


def test_packet_that_is_sent_is_the_packet_that_comes(pair: tuple[MemifSocket, MemifSocket]) -> None:
    for sender, receiver in (pair, pair[::-1]):
        packet = numbered(7)
        before = time.time()
        assert sender.send(packet) == len(packet)
        received = receiver.recv()
        assert received == Ether(bytes(packet))
        assert packet.sent_time is not None
        assert before <= packet.sent_time <= received.time <= time.time()


@pytest.mark.parametrize("rings", ["python"], indirect=True)  # the compiled queue takes no patches
def test_a_packet_is_no_older_than_the_moment_when_it_was_taken(
    pair: tuple[MemifSocket, MemifSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or an answer could be older than its question."""
    recv, taken = reference.RxQueue.recv, []

    def recv_and_note(queue: reference.RxQueue) -> list[bytes]:
        packets = recv(queue)
        taken.append(time.time())
        return packets

    monkeypatch.setattr(reference.RxQueue, "recv", recv_and_note)
    pair[0].send(numbered(7))
    received = pair[1].recv()
    assert received is not None
    assert received.time >= taken[0]


def test_bytes_can_be_sent_and_longer_packets_than_a_buffer(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    for data in (b"x" * 60, bytearray(5000), os.urandom(9000)):
        assert slave.send(data) == len(data)
        assert bytes(master.recv_raw()[1]) == data


def test_packet_with_the_wrong_first_layer_is_refused_and_bytes_are_not(make: Make) -> None:
    _, frames_only = connected_pair(make, id=0)
    _, ip_only = connected_pair(make, id=1, mode="ip")
    with pytest.raises(ConfigError, match=r"Ethernet mode, and this packet starts with IP: put Ether\(\) in front"):
        frames_only.send(numbered(1)[IP])
    with pytest.raises(ConfigError, match="IP mode, and this packet starts with Ethernet"):
        ip_only.send(numbered(1))
    assert frames_only.send(bytes(numbered(1)[IP])) == len(numbered(1)[IP])
    assert ip_only.send(bytes(numbered(1))) == len(numbered(1))


def test_recv_cuts_a_packet_where_it_is_told(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    slave.send(frames(1)[0])
    assert len(master.recv_raw(20)[1]) == 20


def test_ip_mode_tells_classes_by_the_first_nibble(make: Make) -> None:
    master, slave = connected_pair(make, mode="ip")
    four: Any = IP(src=IP_ADDRESS, dst=TARGET_IP)
    six: Any = IPv6(src="fe80::1", dst="fe80::2")
    sent = [four / UDP() / b"data", six / UDP() / b"data", Raw(b"\x10neither")]
    for packet in sent:
        slave.send(packet)
    received: list[Any] = [master.recv() for _ in sent]
    assert [type(packet) for packet in received] == [IP, IPv6, Raw]
    assert [bytes(packet) for packet in received] == [bytes(packet) for packet in sent]


def test_class_of_packets_can_be_chosen(make: Make) -> None:
    master, slave = connected_pair(make, basecls=Raw)
    slave.send(numbered(1))
    assert type(master.recv()) is Raw


def test_packets_of_one_burst_have_the_time_at_which_they_were_found(make: Make, runtime: Runtime) -> None:
    master = make("master")
    peer = runtime.create_interface(socket=master.interface.socket.path)
    wait_until(lambda: peer.connected and master.connected, runtime)
    times = []
    for _ in range(3):
        before = time.time()
        assert peer.tx_queues[0].send(frames(5)) == 5
        eventually(lambda: master.waiting == 5)
        after = time.time()
        burst = {float(packet.time) for packet in master.sniff(count=5)}
        assert len(burst) == 1
        times += sorted(burst)
        assert before <= times[-1] <= after  # however late they are asked for
    assert times == sorted(times)


# --- readiness ------------------------------------------------------------------------------------------------------


def test_fd_is_readable_exactly_while_there_is_a_packet(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    assert not readable(master)
    assert master.nonblock_recv() is None
    for frame in frames(3):
        slave.send(frame)
    eventually(lambda: master.waiting == 3)
    for _ in range(3):
        assert readable(master) == [master]
        assert master.nonblock_recv() is not None
    assert not readable(master)
    assert master.nonblock_recv() is None


def test_control_events_do_not_make_the_fd_readable(make: Make) -> None:
    master = make("master")
    for _ in range(3):
        slave = make("slave")
        eventually(lambda: master.connected)
        slave.close()
        eventually(lambda: not master.connected)
    assert not readable(master)


def test_recv_waits_for_a_packet(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    received: list[Packet | None] = []
    thread = threading.Thread(target=lambda: received.append(master.recv()))
    thread.start()
    slave.send(numbered(1))
    thread.join(DEADLINE)
    assert received == [Ether(bytes(numbered(1)))]


def test_close_ends_a_recv_that_waits(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, _ = pair
    ended = threading.Event()

    def receive() -> None:
        with pytest.raises(EOFError):
            master.recv()
        ended.set()

    thread = Thread(target=receive)
    thread.start()
    master.close()
    assert ended.wait(DEADLINE)
    thread.join()
    assert master.fileno() == -1
    with pytest.raises(EOFError):
        master.recv()
    with pytest.raises(MemifError, match="this socket is closed") as failure:
        master.send(b"late")
    assert failure.value.code is ErrorCode.BAD_FD


# --- sniff ----------------------------------------------------------------------------------------------------------


def test_sniff_ends_with_the_count_and_loses_nothing_for_the_next(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    for frame in frames(300):
        slave.send(frame)
    for start in (0, 100, 200):
        assert numbers(sniff(opened_socket=master, count=100, timeout=DEADLINE)) == list(range(start, start + 100))
    assert not readable(master)


def test_sniff_ends_with_its_timeout(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    assert len(master.sniff(timeout=0.02)) == 0
    slave.send(numbered(1))
    assert len(master.sniff(timeout=DEADLINE, count=1)) == 1


def test_sniff_filters_and_stops_where_it_is_told(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    seen: list[int] = []
    for frame in frames(20):
        slave.send(frame)
    packets = master.sniff(
        lfilter=lambda packet: numbers([packet])[0] % 2 == 0,
        prn=lambda packet: seen.extend(numbers([packet])),
        stop_filter=lambda packet: numbers([packet])[0] == 10,
        timeout=DEADLINE,
    )
    assert numbers(packets) == seen == [0, 2, 4, 6, 8, 10]


def test_async_sniffer_runs_while_others_send(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    seen: list[Packet] = []
    sniffer = AsyncSniffer(opened_socket=master, prn=seen.append)
    sniffer.start()
    for frame in frames(50):
        slave.send(frame)
    eventually(lambda: len(seen) == 50)
    assert numbers(sniffer.stop()) == list(range(50))
    slave.send(numbered(1))  # the socket lives on
    assert master.recv() is not None


def test_several_sockets_in_one_sniff(make: Make) -> None:
    pairs = [connected_pair(make, id=number) for number in range(3)]
    for number, (_, slave) in enumerate(pairs):
        slave.send(numbered(number))
    labels = {master: f"port {number}" for number, (master, _) in enumerate(pairs)}
    packets = sniff(opened_socket=labels, count=3, timeout=DEADLINE)
    assert {(packet.sniffed_on, packet[IP].id) for packet in packets} == {("port 0", 0), ("port 1", 1), ("port 2", 2)}


class _Datagrams(SuperSocket):
    """A socket of another kind."""

    def __init__(self, ours: socket.socket) -> None:
        self.ins = self.outs = ours

    def recv_raw(self, x: int = 65535) -> tuple[type[Packet], bytes, float | None]:
        return Ether, self.ins.recv(x), None


@pytest.mark.parametrize("first", ["memif", "other"])
def test_sniff_mixed_with_a_socket_of_another_kind(pair: tuple[MemifSocket, MemifSocket], first: str) -> None:
    """The first one's select() is used for all."""
    master, slave = pair
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs, ours:
        other = _Datagrams(ours)
        sockets = {master: "memif", other: "other"} if first == "memif" else {other: "other", master: "memif"}
        sniffer = AsyncSniffer(opened_socket=sockets, count=6)
        sniffer.start()
        for number, frame in enumerate(frames(6)):
            slave.send(frame) if number % 2 else theirs.send(frame)
        sniffer.join(DEADLINE)
        assert sniffer.results is not None
        received = {name: numbers(p for p in sniffer.results if p.sniffed_on == name) for name in ("memif", "other")}
        assert received == {"memif": [1, 3, 5], "other": [0, 2, 4]}


def test_ten_thousand_packets_while_sniff_runs_and_none_is_lost(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    sniffer = AsyncSniffer(opened_socket=master, count=MANY)
    sniffer.start()
    for frame in frames(MANY):
        slave.send(frame)
    sniffer.join(MANY_DEADLINE)
    assert sniffer.results is not None
    assert numbers(sniffer.results) == list(range(MANY))
    times = [float(packet.time) for packet in sniffer.results]
    assert times == sorted(times)


def test_packets_are_written_to_a_capture_and_sent_from_it(
    pair: tuple[MemifSocket, MemifSocket], tmp_path: Path
) -> None:
    master, slave = pair
    sendp([Ether(frame) for frame in frames(10)], socket=slave)
    wrpcap(str(tmp_path / "a.pcap"), master.sniff(count=10, timeout=DEADLINE))
    slave.sniff(timeout=0)
    sendp(rdpcap(str(tmp_path / "a.pcap")), socket=master)
    assert numbers(slave.sniff(count=10, timeout=DEADLINE)) == list(range(10))


# --- send and receive -----------------------------------------------------------------------------------------------


def test_arp_and_ping_against_the_responder(make: Make, responder: Interface) -> None:
    slave = make()
    answer = slave.sr1(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=IP_ADDRESS, pdst=TARGET_IP), timeout=DEADLINE)
    assert answer is not None
    assert answer[ARP].hwsrc == TARGET_MAC
    requests = [echo(seq=number) / os.urandom(20) for number in range(20)]
    answered, unanswered = slave.sr(requests, timeout=DEADLINE)
    assert len(unanswered) == 0
    assert sorted(reply[ICMP].seq for _, reply in answered) == list(range(20))
    for sent, reply in answered:
        assert reply[Raw].load == sent[Raw].load
        assert sent.sent_time is not None
        assert reply.time >= sent.sent_time


def test_ping_in_ip_mode(make: Make, responder: Interface) -> None:
    slave = make(id=1, mode="ip")
    answer = slave.sr1(echo(seq=1)[IP], timeout=DEADLINE)
    assert isinstance(answer, IP)
    assert (answer.src, answer[ICMP].type) == (TARGET_IP, 0)


def test_unanswered_request_ends_with_the_timeout(make: Make, responder: Interface) -> None:
    slave = make()
    answered, unanswered = slave.sr(echo(seq=1, type=13), timeout=0.02)
    assert (len(answered), len(unanswered)) == (0, 1)


def test_scapy_s_own_functions_use_the_memif_that_they_are_given(
    make: Make, responder: Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    slave = make()
    monkeypatch.setattr(conf, "L2socket", slave)
    monkeypatch.setattr(conf, "L2listen", slave)
    for _ in range(2):  # srp closes what it opened; the socket stays
        answered, _ = srp(echo(seq=3), timeout=DEADLINE)
        assert answered[0][1][ICMP].seq == 3
    answer = srp1(echo(seq=4), timeout=DEADLINE)
    assert answer is not None
    assert answer[ICMP].seq == 4
    who_has = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=IP_ADDRESS, pdst=TARGET_IP)
    assert srp(who_has, timeout=DEADLINE)[0][0][1][ARP].hwsrc == TARGET_MAC
    assert arping(TARGET_IP, timeout=int(DEADLINE))[0][0][1][ARP].hwsrc == TARGET_MAC
    sendp(echo(seq=5))
    assert sniff(count=1, timeout=DEADLINE)[0][ICMP].seq == 5
    with pytest.raises(ConfigError, match=r"filter is 'icmp'.*lfilter"):
        sniff(filter="icmp", count=1)
    assert slave.connected


def test_scapy_s_own_functions_in_ip_mode(make: Make, responder: Interface, monkeypatch: pytest.MonkeyPatch) -> None:
    slave = make(id=1, mode="ip")
    monkeypatch.setattr(conf, "L3socket", slave)
    answered, _ = sr(echo(seq=6)[IP], timeout=DEADLINE)
    assert answered[0][1][ICMP].seq == 6
    send(echo(seq=7)[IP])
    received = slave.recv()
    assert received is not None
    assert received[ICMP].seq == 7


class _Syn(AnsweringMachine[Packet]):
    """Answers SYN with SYN and ACK."""

    function_name = "synd"

    def is_request(self, req: Packet) -> int:
        return int(TCP in req and req[TCP].flags == "S")

    def make_reply(self, req: Packet, address_family: int | None = None) -> Packet:
        ip, tcp = req[IP], req[TCP]
        return (
            Ether(src=req.dst, dst=req.src)
            / IP(src=ip.dst, dst=ip.src)
            / TCP(sport=tcp.dport, dport=tcp.sport, flags="SA", seq=1000, ack=tcp.seq + 1)
        )


def test_answering_machine_on_a_memif(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    machine = master.am(_Syn, verbose=False)
    machine.bg()
    eventually(lambda: machine.sniffer is not None and machine.sniffer.running)
    base = Ether(src=MAC, dst=TARGET_MAC) / IP(src=IP_ADDRESS, dst=TARGET_IP)
    answer = slave.sr1(base / TCP(sport=4000, dport=80, flags="S", seq=7), timeout=DEADLINE)
    machine.sniffer.stop()
    assert answer is not None
    assert (answer[TCP].flags, answer[TCP].ack, answer[TCP].dport) == ("SA", 8, 4000)


def test_bridge_and_sniff_forwards_both_ways_and_transforms(make: Make) -> None:
    (left, near), (right, far) = connected_pair(make, id=0), connected_pair(make, id=1)

    def count_down(packet: Any) -> Any:
        packet[IP].ttl -= 1
        del packet[IP].chksum
        return packet

    results: list[Any] = []
    ends: Any = (left, right)  # scapy's annotation knows names of interfaces alone
    options: dict[str, Any] = {"xfrm12": count_down, "xfrm21": lambda _: True, "count": 40, "timeout": DEADLINE}
    thread = threading.Thread(target=lambda: results.extend(bridge_and_sniff(*ends, **options)))
    thread.start()
    for frame in frames(20):
        near.send(frame)
        far.send(frame)
    there, back = far.sniff(count=20, timeout=DEADLINE), near.sniff(count=20, timeout=DEADLINE)
    thread.join(DEADLINE)
    assert numbers(there) == numbers(back) == list(range(20))
    assert {packet[IP].ttl for packet in there} == {63}
    assert {packet[IP].ttl for packet in back} == {64}
    assert len(results) == 40


# --- peers that go and come -----------------------------------------------------------------------------------------


def test_sniff_goes_on_when_the_peer_comes_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    # Not from the log: scapy's filter leaves out what comes often.
    monkeypatch.setattr(log_runtime, "warning", lambda text, *values: warnings.append(text % values))
    slave = make("slave", timeout=0)
    seen: list[Packet] = []
    sniffer = AsyncSniffer(opened_socket=slave, count=2, prn=seen.append)
    sniffer.start()
    for number in range(2):
        master = make("master", timeout=DEADLINE)
        master.send(numbered(number))
        eventually(lambda expected=number + 1: len(seen) == expected)  # type: ignore[misc]
        master.close()
        eventually(lambda: not slave.connected)
    sniffer.join(DEADLINE)
    assert sniffer.results is not None
    assert [packet[IP].id for packet in sniffer.results] == [0, 1]
    assert len(warnings) == 2
    assert warnings[0].endswith("peer disconnected: interface deleted; waiting for the peer to come back")


def test_without_reconnect_sniff_ends_with_the_peer_and_has_what_came(make: Make) -> None:
    master = make("master")
    slave = make("slave", reconnect=False)
    for frame in frames(10):
        master.send(frame)
    eventually(lambda: slave.waiting == 10)
    master.close()
    assert numbers(sniff(opened_socket=slave, timeout=DEADLINE)) == list(range(10))
    assert slave.closed
    assert slave.interface.deleted


def test_send_without_a_peer_says_why(make: Make) -> None:
    slave = make("slave", timeout=0)
    with pytest.raises(Disconnected, match=r"memif 0 \(slave\) on @.*: not connected: cannot connect to .*REFUSED"):
        slave.send(numbered(1))
    master = make("master", timeout=DEADLINE)
    eventually(lambda: slave.connected)
    slave.send(numbered(1))
    master.close()
    eventually(lambda: not slave.connected)
    with pytest.raises(Disconnected, match="not connected: peer disconnected: interface deleted"):
        slave.send(numbered(1))
    with pytest.raises(Disconnected, match="not connected"):
        slave.sr1(numbered(1), timeout=DEADLINE, chainEX=True, threaded=False)


def test_send_waits_for_room_and_says_when_none_comes(make: Make, runtime: Runtime) -> None:
    slave = make("slave", timeout=0, log2_ring_size=3, send_timeout=0.02)
    peer = runtime.create_interface(socket=slave.interface.socket.path, role="master")
    wait_until(lambda: peer.connected and slave.connected, runtime)
    for frame in frames(8):
        slave.send(frame)
    with pytest.raises(MemifError, match=r"the ring is full: the peer took no packet for 0\.02 s") as failure:
        slave.send(numbered(1))
    assert failure.value.code is ErrorCode.NOBUF_RING
    slave._send_timeout = DEADLINE
    thread = Thread(target=slave.send, args=(frames(9)[8],))
    thread.start()
    assert numbers(peer.rx_queues[0].recv()) == list(range(8))
    thread.join(DEADLINE)
    assert numbers(peer.rx_queues[0].recv()) == [8]


def test_full_backlog_is_left_in_the_ring_and_nothing_is_lost(make: Make, runtime: Runtime) -> None:
    master = make("master", backlog=16)
    peer = runtime.create_interface(socket=master.interface.socket.path, log2_ring_size=3)
    wait_until(lambda: peer.connected, runtime)
    tx, rest = peer.tx_queues[0], frames(200)
    received: list[Packet] = []

    def push() -> None:
        del rest[: tx.send(rest)]

    def stuck() -> bool:
        push()
        return master.interface.on_interrupt is None and tx.free() == 0

    def pull() -> bool:
        push()
        packet = master.nonblock_recv()
        received.extend([] if packet is None else [packet])
        return len(received) == 200

    eventually(stuck)
    assert 16 <= master.waiting < 16 + 8
    eventually(pull)
    assert numbers(received) == list(range(200))


def test_what_a_full_backlog_left_in_the_ring_comes_before_the_end(make: Make, runtime: Runtime) -> None:
    master = make("master", backlog=16)
    peer = runtime.create_interface(socket=master.interface.socket.path, log2_ring_size=6)
    wait_until(lambda: peer.connected, runtime)
    sent = frames(64)
    assert peer.tx_queues[0].send(sent[:16]) == 16
    eventually(lambda: master.waiting == 16)
    assert peer.tx_queues[0].send(sent[16:]) == 48
    eventually(lambda: master.interface.on_interrupt is None)
    peer.disconnect("enough")
    eventually(lambda: not master.connected)
    assert numbers([master.recv() for _ in sent]) == list(range(64))


# --- life -----------------------------------------------------------------------------------------------------------


def test_repr_tells_interface_socket_and_state(make: Make, socket_name: str) -> None:
    slave = make("slave", id=3, timeout=0)
    assert slave.iface == "memif3"
    assert repr(slave) == f"<MemifSocket memif3: memif 3 (slave) on {socket_name}, not connected>"
    make("master", id=3, timeout=DEADLINE)
    eventually(lambda: slave.connected)
    assert repr(slave).endswith(", connected>")
    slave.close()
    assert repr(slave).endswith(", closed>")
    assert make("slave", name="east", timeout=0).iface == "east"


def test_context_manager_closes_and_a_second_close_is_harmless(socket_name: str) -> None:
    with MemifSocket(socket_name, role="master", timeout=0) as master:
        assert master.fileno() >= 0
    assert master.fileno() == -1
    master.close()


def test_constructor_says_what_the_last_attempt_to_connect_met(make: Make, socket_path: str) -> None:
    with pytest.raises(Disconnected, match=r"not connected within 0\.02 s: .*No such file or directory") as failure:
        make("slave", socket=socket_path, timeout=0.02)
    assert failure.value.code is ErrorCode.NO_FILE
    with pytest.raises(Disconnected, match=r"not connected within 0\.02 s: nobody has connected to it yet"):
        make("master", socket=socket_path, timeout=0.02)
    make("master", socket=socket_path, secret="right")
    with pytest.raises(Disconnected, match="secret"):
        make("slave", socket=socket_path, secret="wrong", timeout=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"role": "boss"}, "role is 'boss'"),
        ({"mode": "token ring"}, "mode is 'token ring'"),
        ({"id": -1}, "id is -1"),
        ({"timeout": -1}, "timeout is -1; it must be a number of seconds"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"send_timeout": None}, "send_timeout is None"),
        ({"backlog": 0}, "backlog is 0"),
        ({"queues": 0}, "queues is 0"),
    ],
)
def test_wrong_argument_is_named_and_leaves_nothing(make: Make, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**options)


def test_masters_share_a_listener(make: Make) -> None:
    first, second = connected_pair(make, id=1), connected_pair(make, id=2)
    first[1].send(numbered(1))
    second[1].send(numbered(2))
    assert [numbers(sniff(opened_socket=s, count=1, timeout=DEADLINE)) for s, _ in (first, second)] == [
        numbers([numbered(1)]),
        numbers([numbered(2)]),
    ]
    with pytest.raises(ConfigError, match=r"a master with id 1 on .* already"):
        make("master", id=1)


def test_packets_of_every_queue_are_received(make: Make, runtime: Runtime) -> None:
    master = make("master")
    peer = runtime.create_interface(socket=master.interface.socket.path, num_s2m_rings=3)
    wait_until(lambda: peer.connected and master.connected, runtime)
    for queue, frame in zip(peer.tx_queues, frames(3), strict=True):
        queue.send([frame])
    assert sorted(numbers(master.sniff(count=3, timeout=DEADLINE))) == [0, 1, 2]


def test_forgotten_socket_is_closed(make: Make, socket_name: str) -> None:
    master = make("master")
    slave = MemifSocket(socket_name)
    eventually(lambda: master.connected)
    del slave
    gc.collect()
    eventually(lambda: not master.connected)


def test_last_forgotten_socket_takes_the_thread_with_it(socket_name: str) -> None:
    before = threading.active_count()
    MemifSocket(socket_name, role="master", timeout=0)
    gc.collect()
    eventually(lambda: threading.active_count() == before)


def test_program_that_closes_nothing_ends_in_order(make: Make, socket_name: str) -> None:
    program = textwrap.dedent(f"""
        from memifrt.scapy import MemifSocket
        s = MemifSocket({socket_name!r})
        s.send(b"last words")
    """)
    master = make("master")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert bytes(master.recv_raw()[1]) == b"last words"
    eventually(lambda: not master.connected)
    assert "interface deleted" in str(master.interface.last_error)


def test_forked_child_neither_reads_nor_closes_what_is_its_parent_s(pair: tuple[MemifSocket, MemifSocket]) -> None:
    master, slave = pair
    slave.send(numbered(1))
    eventually(lambda: master.waiting == 1)

    def child() -> None:
        with pytest.raises(EOFError, match="belongs to process"):
            master.recv()
        with pytest.raises(MemifError):
            MemifSocket(interface=master.interface)
        master.close()
        name = f"@memifrt-child-{os.getpid()}"
        with MemifSocket(name, role="master", timeout=0) as own, MemifSocket(name) as other:
            other.send(b"own")
            assert own.recv_raw()[1] == b"own"

    in_child(child)
    assert master.recv() is not None
    slave.send(numbered(2))
    assert numbers([master.recv()]) == numbers([numbered(2)])
    assert not readable(master)


# --- an interface of the application's ------------------------------------------------------------------------------


def test_existing_interface_becomes_a_socket_and_is_left_as_it_was(
    make: Make, runtime: Runtime, socket_name: str
) -> None:
    recorder = Recorder()
    interface = runtime.create_interface(
        socket=socket_name, role="master", on_connect=recorder.on_connect, on_disconnect=recorder.on_disconnect
    )
    with MemifSocket(interface=interface, timeout=0) as adopted:
        assert adopted.interface is interface
        slave = make("slave")
        eventually(lambda: adopted.connected)
        slave.send(numbered(5))
        received = adopted.recv()
        assert received is not None
        assert received[IP].id == 5
        with pytest.raises(ConfigError, match="has a MemifSocket already"):
            MemifSocket(interface=interface)
    assert recorder.events == [("connect", "master")]
    assert interface.on_interrupt is None
    assert interface.on_connect == recorder.on_connect
    with MemifSocket(interface=interface):  # once more, and connected already
        pass
    # The runtime is the application's again.
    slave.send(numbered(6))
    wait_until(interface.rx_queues[0].pending, runtime)
    slave.close()
    wait_until(lambda: recorder.count("disconnect"), runtime)


def test_connected_interface_is_connected_as_a_socket(make: Make, runtime: Runtime) -> None:
    master = make("master")
    interface = runtime.create_interface(socket=master.interface.socket.path)
    wait_until(lambda: interface.connected and master.connected, runtime)
    master.send(numbered(1))
    with MemifSocket(interface=interface) as adopted:  # what was in the ring already comes too
        assert numbers(adopted.sniff(count=1, timeout=DEADLINE)) == numbers([numbered(1)])


def test_interface_that_its_owner_deletes_ends_the_socket(make: Make, runtime: Runtime) -> None:
    master = make("master")
    interface = runtime.create_interface(socket=master.interface.socket.path)
    with MemifSocket(interface=interface, timeout=DEADLINE) as adopted:
        adopted._background.call(interface.delete)
        with pytest.raises(EOFError):
            adopted.recv()


def test_interface_that_cannot_be_a_socket_is_refused(runtime: Runtime, socket_name: str) -> None:
    polled = runtime.create_interface(socket=socket_name, role="master", rx_mode="polling")
    with pytest.raises(ConfigError, match="rx_mode polling"):
        MemifSocket(interface=polled)
    polled.delete()
    with pytest.raises(ConfigError, match="is deleted"):
        MemifSocket(interface=polled)

    def hook(fd: int, events: FdEvent) -> None:
        return None

    with Runtime("external", control_fd_update=hook) as external:
        interface = external.create_interface(socket=socket_name, role="master")
        with pytest.raises(ConfigError, match="internal mode"):
            MemifSocket(interface=interface)


# --- testpmd --------------------------------------------------------------------------------------------------------


@pytest.fixture
def testpmd(socket_path: str) -> Iterator[DpdkTestpmd]:
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    if PATCHED:
        pytest.skip("a thread reads testpmd's output; gevent's patches make it a greenlet")
    with DpdkTestpmd(socket_path, forward="icmpecho") as testpmd:
        yield testpmd
        testpmd.kill()
        os.unlink(socket_path)


def ping(addresses: tuple[bytes, bytes, bytes, bytes], number: int) -> bytes:
    """An echo request; scapy would take longer to build it than testpmd to answer."""
    source_mac, source_ip, target_mac, target_ip = addresses
    return echo_request(
        source_mac=source_mac,
        source_ip=source_ip,
        target_mac=target_mac,
        target_ip=target_ip,
        identifier=9,
        sequence=number,
        payload=b"ping",
    )


def counted(socket: MemifSocket) -> int:
    """Packets taken from the ring so far."""
    return socket.interface.rx_queues[0].counters.packets


@pytest.mark.testpmd
@pytest.mark.xdist_group("testpmd")
def test_testpmd_answers_arp_and_ten_thousand_pings_and_none_is_lost(testpmd: DpdkTestpmd, socket_path: str) -> None:
    with MemifSocket(socket_path) as slave:
        testpmd.start_forwarding()
        who_has = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=IP_ADDRESS, pdst=TARGET_IP)
        answer = slave.sr1(who_has, timeout=DEADLINE)
        assert answer is not None
        mac = answer[ARP].hwsrc
        request = Ether(src=MAC, dst=mac) / IP(src=IP_ADDRESS, dst=TARGET_IP) / ICMP(id=9)
        answered, unanswered = slave.sr([request / bytes([number]) for number in range(50)], timeout=DEADLINE)
        assert (len(answered), len(unanswered)) == (50, 0)
        sniffer = AsyncSniffer(opened_socket=slave, count=MANY, lfilter=lambda packet: ICMP in packet)
        sniffer.start()
        addresses = (parse_mac(MAC), parse_ip(IP_ADDRESS), parse_mac(mac), parse_ip(TARGET_IP))
        for number in range(MANY):
            slave.send(ping(addresses, number))
            if number % 512 == 0:  # testpmd drops what finds no room: no more than half a ring is under way
                eventually(lambda sent=number: counted(slave) >= sent - 1024)  # type: ignore[misc]
        eventually(lambda: counted(slave) >= MANY + 51)  # and the answers before
        sniffer.join(MANY_DEADLINE)
        assert sniffer.results is not None
        assert [packet[ICMP].seq for packet in sniffer.results] == list(range(MANY))
        assert {packet[ICMP].type for packet in sniffer.results} == {0}


# --- what it costs those who do not use it --------------------------------------------------------------------------


def test_scapy_is_imported_by_this_module_alone() -> None:
    program = (
        "import sys, memifrt.libmemif, memifrt.threaded.runtime_thread, memifrt.cli, memifrt.pytest_plugin\n"
        "print(sorted({'scapy', 'numpy', 'rich', 'gevent', 'trio'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert done.stdout == "[]\n"
