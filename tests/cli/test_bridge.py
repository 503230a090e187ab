"""``memifrt bridge``: its endpoints, what it does to frames of the kernel, and the kernel's own tools through it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from memifrt import ConfigError, Interface, MemifOSError, Mode, Role, Runtime, RxMode
from memifrt.cli.command_line import main
from memifrt.cli.endpoint import check_pair, parse_endpoint, parse_memif_endpoint
from memifrt.options import InterfaceConfig
from memifrt.packets import checksum
from memifrt.ports import packet_socket
from memifrt.ports.endpoint import MemifEndpoint, PacketEndpoint, TapEndpoint
from memifrt.ports.forwarding import Carry
from memifrt.ports.netdev import KernelInterface, mode_of_hardware
from memifrt.ports.offload import NotPossible, Offload, finished, insert_vlan
from memifrt.ports.packet_socket import PacketPort
from memifrt.ports.port import LOST, LossWarning, Port, Traffic
from memifrt.ports.tap import TapPort
from memifrt.system.netns import network_namespace
from tests.lib.namespaces import Namespace, missing, namespaces
from tests.lib.programs import Program, end, finish, read_until, running
from tests.lib.support import DEADLINE, wait_until

# --- endpoints ------------------------------------------------------------------------------------------------------

ENDPOINTS = {
    "memif:": MemifEndpoint(),
    "memif:@lab": MemifEndpoint("@lab"),
    "memif:socket=/run/x,role=server,id=7,secret=s,queues=2,ring-size=64,buffer-size=512,rx-mode=polling,mode=ip": (
        MemifEndpoint("/run/x", InterfaceConfig(7, "", Role.MASTER, Mode.IP, b"s", 2, 2, 6, 512, RxMode.POLLING))
    ),
    "tap:tap0": TapEndpoint("tap0"),
    "tap:name=mif,mtu=9000,mac=02:00:00:00:00:01,mode=ip,netns=/proc/1/ns/net": (
        TapEndpoint("mif", Mode.IP, 9000, bytes([2, 0, 0, 0, 0, 1]), "/proc/1/ns/net")
    ),
    "packet:eth1,netns=red": PacketEndpoint("eth1", "red"),
    "packet:wg0,mode=ip": PacketEndpoint("wg0", "", Mode.IP),
}


@pytest.mark.parametrize("text", ENDPOINTS)
def test_an_endpoint_is_what_is_written(text: str) -> None:
    assert parse_endpoint(text) == ENDPOINTS[text]


def test_between_two_memifs_the_kind_goes_without_saying() -> None:
    assert parse_memif_endpoint("@lab,id=3") == MemifEndpoint("@lab", InterfaceConfig(id=3, rx_mode=RxMode.ADAPTIVE))
    with pytest.raises(ConfigError, match="'tap:x' is not a memif"):
        parse_memif_endpoint("tap:x")


WRONG = {
    "eth0": ["'eth0'", "memif:", "tap:", "packet:"],
    "usb:1": ["'usb'", "memif:"],
    "tap:": ["tap: needs a name"],
    "packet:netns=x": ["packet: needs a name"],
    "tap:seventeen-letters": ["'seventeen-letters'", "15 bytes"],
    "tap:a b": ["'a b'", "spaces"],
    "tap:mif,mtu=9": ["mtu", "'9'", "68 to 65521"],
    "tap:mif,colour=red": ["'colour'", "mtu", "netns"],
    "tap:mif,mtu=100,mtu=200": ["mtu is given twice"],
    "tap:mif,netns=": ["netns", "empty"],
    "packet:mif,mode=raw": ["mode", "'raw'", "ethernet or ip"],
    "memif:@a,role=boss": ["role", "'boss'", "master"],
    "memif:@a,id=-1": ["id", "'-1'", "4294967295"],
    "memif:@a,mode=punt-inject": ["mode", "ethernet or ip"],
    "memif:@a,again": ["'again'"],
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_endpoint_is_one_line_that_says_what_is_right(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bridge", text, "tap:x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err[:-1].isprintable()
    assert [word for word in WRONG[text] if word not in err] == []


@pytest.mark.parametrize(
    "arguments",
    [["memif:@a,secret=hunter2hunter2,id=x", "tap:mif"], ["memif:@a,secret=hunter2hunter2", "hunter2hunter2", "third"]],
)
def test_no_error_shows_a_secret_of_an_endpoint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bridge", *arguments]) == 2
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ("memif:@a,mode=ip", "tap:mif", "IP packets and mif Ethernet frames"),
        ("memif:@a,mode=ip", "packet:mif", "IP packets and mif Ethernet frames"),
        ("memif:@a", "packet:wg0,mode=ip", "Ethernet frames and wg0 IP packets"),
        ("memif:@a", "memif:@a", "both ends are memif0 on @a"),
        ("memif:@a", "memif:@a,queues=2", "both ends are memif0 on @a"),
        ("tap:mif", "tap:mif", "both ends are mif"),
    ],
)
def test_ends_that_do_not_go_together_are_refused(a: str, b: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_pair(parse_endpoint(a), parse_endpoint(b))


def test_an_interface_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bridge", "packet:nosuchif0", "memif:@memifrt-test-none"]) == 2
    assert capsys.readouterr().err == "memifrt bridge: there is no interface nosuchif0; ip link lists the interfaces\n"


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("end", ["packet:nosuchif0", "tap:mif,netns=nosuchns", "tap:mif,netns=/nowhere,mode=ip"])
def test_a_device_that_cannot_be_had_is_one_line_and_no_peer_sees_us(
    end: str, turned: bool, runtime: Runtime, socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listening = runtime.create_interface(socket=socket_name, role="master")
    ends = [f"memif:{socket_name}" + (",mode=ip" if "mode=ip" in end else ""), end]
    assert main(["bridge", *(ends[::-1] if turned else ends)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    runtime.poll_event(0)
    assert not listening.connected


def test_a_namespace_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bridge", "tap:mif,netns=nosuchns", "memif:@memifrt-test-none"]) == 2
    assert "cannot enter network namespace nosuchns (ip netns list shows them)" in capsys.readouterr().err


# --- what a card would have done ------------------------------------------------------------------------------------

PAYLOAD = bytes(range(256)) * 20


def scapy() -> Any:
    return pytest.importorskip("scapy.all")


def frames() -> dict[str, tuple[Any, int, int, int]]:
    """Scapy's packet without Ethernet, segmentation, where the checksum starts, and its offset."""
    s = scapy()
    tcp = {"sport": 1, "dport": 2, "seq": 0xFFFFFF00, "flags": "FPAC", "options": [("NOP", None)] * 4}
    return {
        "tcp4": (s.IP(src="10.0.0.1", dst="10.0.0.2", id=0xFFFF) / s.TCP(**tcp) / PAYLOAD, 1, 20, 16),
        "tcp6": (s.IPv6(src="fe80::1", dst="fe80::2") / s.TCP(**tcp) / PAYLOAD, 4, 40, 16),
        "udp4": (s.IP(src="10.0.0.1", dst="10.0.0.2") / s.UDP(sport=1, dport=2) / PAYLOAD, 5, 20, 6),
        "udp6": (s.IPv6(src="fe80::1", dst="fe80::2") / s.UDP(sport=1, dport=2) / PAYLOAD, 5, 40, 6),
    }


def unfinished(kind: str, vlan: bool, size: int) -> tuple[bytes, Offload]:
    """A frame as the kernel hands it over: its checksum field holds the sum of the pseudo header alone."""
    s = scapy()
    packet, segmentation, start, offset = frames()[kind]
    link = s.Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
    frame = bytearray(bytes((link / s.Dot1Q(vlan=5) if vlan else link) / packet))
    start += 18 if vlan else 14
    frame[start + offset : start + offset + 2] = bytes(2)
    addresses = frame[start - 8 : start] if kind.endswith("4") else frame[start - 32 : start]
    pseudo = bytes(addresses) + struct.pack("!II", len(frame) - start, 6 if kind.startswith("tcp") else 17)
    struct.pack_into("!H", frame, start + offset, 0xFFFF - checksum(pseudo))
    return bytes(frame), Offload(True, segmentation if size else 0, size, start, offset)


def recomputed(frame: bytes) -> bytes:
    """With every length and checksum that scapy finds right."""
    s = scapy()
    packet = s.Ether(frame)
    for layer in (s.IP, s.IPv6, s.TCP, s.UDP):
        if layer in packet:
            for field in ("len", "plen", "chksum"):
                if field in packet[layer].fields:
                    packet[layer].delfieldval(field)
    return bytes(packet)


@pytest.mark.parametrize("vlan", [False, True])
@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "udp4", "udp6"])
def test_a_checksum_is_filled_in(kind: str, vlan: bool) -> None:
    frame, offload = unfinished(kind, vlan, 0)
    (whole,) = finished(frame, offload)
    assert whole == recomputed(frame)
    assert whole != frame


@pytest.mark.parametrize("vlan", [False, True])
@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "udp4", "udp6"])
def test_a_frame_is_cut_into_segments(kind: str, vlan: bool) -> None:
    s = scapy()
    frame, offload = unfinished(kind, vlan, 1448)
    segments = finished(frame, offload)
    assert segments == [recomputed(segment) for segment in segments]
    layer = s.TCP if kind.startswith("tcp") else s.UDP
    parsed = [s.Ether(segment) for segment in segments]
    assert b"".join(bytes(each[layer].payload) for each in parsed) == PAYLOAD
    assert [len(each[layer].payload) for each in parsed] == [1448, 1448, 1448, 776]
    if layer is s.TCP:
        assert [each.seq for each in parsed] == [(0xFFFFFF00 + i * 1448) & 0xFFFFFFFF for i in range(4)]
        assert [str(each[layer].flags) for each in parsed] == ["AC", "A", "A", "FPA"]
    if kind.endswith("4"):
        first = s.Ether(frame)[s.IP].id
        assert [each[s.IP].id for each in parsed] == [first + i & 0xFFFF for i in range(4)]


@pytest.mark.parametrize(
    "change",
    [
        {"checksum_start": 9000},
        {"checksum_offset": 60000},
        {"segmentation": 3, "size": 100},
        {"segmentation": 1, "size": 0},
        {"segmentation": 1, "size": 100, "checksum_start": 20},
        {"segmentation": 1, "size": 100, "checksum_start": 5170},
        {"segmentation": 1, "size": 1, "checksum_start": 1000},
    ],
)
def test_what_is_no_frame_to_finish_is_said_so(change: dict[str, int]) -> None:
    frame, offload = unfinished("tcp4", False, 0)
    values = {name: change.get(name, getattr(offload, name)) for name in Offload.__slots__}
    with pytest.raises(NotPossible):
        finished(frame, Offload(**values))


def test_a_tcp_header_that_claims_less_than_it_has_is_no_frame_to_finish() -> None:
    frame, offload = unfinished("tcp4", False, 0)
    at = offload.checksum_start + 12
    with pytest.raises(NotPossible, match="headers of 34 bytes"):
        finished(frame[:at] + b"\0" + frame[at + 1 :], Offload(True, 1, 1, offload.checksum_start, 16))


def test_a_vlan_tag_is_put_back() -> None:
    frame, _ = unfinished("tcp4", True, 0)
    without = frame[:12] + frame[16:]
    assert insert_vlan(without, 0x8100, 5) == frame


# --- ports ----------------------------------------------------------------------------------------------------------


class Shelf(Port):
    """A port of lists, with room for so many packets."""

    def __init__(self, packets: Sequence[bytes] = (), space: int = 1000) -> None:
        super().__init__("shelf")
        self.packets, self.taken, self.space, self.up = [*packets], list[bytes](), space, True

    @property
    def can_send(self) -> bool:
        return self.up

    @property
    def received(self) -> Traffic:
        return Traffic()

    @property
    def sent(self) -> Traffic:
        return Traffic(len(self.taken), sum(map(len, self.taken)))

    def fileno(self) -> int:
        return -1

    def room(self, qid: int = 0) -> int:
        return min(self.space, 5)

    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        found, self.packets = self.packets[:limit], self.packets[limit:]
        return found

    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        fits = min(len(packets), self.space)
        self.taken += packets[:fits]
        self.space -= fits
        return fits

    def discard(self, limit: int, *, qid: int = 0) -> int:
        return len(self.recv(limit, qid=qid))

    def close(self) -> None:
        pass


def test_what_finds_no_room_waits_in_its_source_and_keeps_its_order() -> None:
    packets = [b"%d" % number for number in range(20)]
    recorded: list[bytes] = []
    source, target = Shelf(packets), Shelf(space=3)
    way = Carry(source, target, recorded.extend)
    assert way.step()
    assert not way.step()
    assert (way.blocked, target.taken, len(source.packets)) == (True, packets[:3], 17)
    while way.step() or way.blocked:
        target.space = 2
    assert target.taken == recorded == packets


def test_without_a_peer_packets_are_recorded_and_dropped() -> None:
    recorded: list[bytes] = []
    source, target = Shelf([b"a", b"b"]), Shelf()
    target.up = False
    way = Carry(source, target, recorded.extend)
    assert way.step()
    assert (recorded, target.taken, way.report().reasons) == ([b"a", b"b"], [], {"without a peer": 2})


# --- memif to memif -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bridging(*arguments: str) -> Iterator[Program]:
    with running("bridge", *arguments) as program:
        read_until(program, "^bridging ")
        yield program


def endpoint(runtime: Runtime, path: str, into: list[bytes], **options: Any) -> Interface:
    """A memif that keeps what it receives."""

    def on_interrupt(interface: Interface, qid: int) -> None:
        into.extend(interface.rx_queues[qid].recv())

    return runtime.create_interface(socket=path, on_interrupt=on_interrupt, **options)


def try_until(predicate: Callable[[], object], *runtimes: Runtime) -> None:
    """Until it holds, for what no event tells: room in a ring."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {predicate}"
        for runtime in runtimes:
            runtime.poll_event(0.001)


def send_all(interface: Interface, packets: Sequence[bytes], runtime: Runtime, queue: int = 0) -> None:
    """Send as the ring has room, and handle events meanwhile."""
    rest = [*packets]

    def sent() -> bool:
        del rest[: interface.tx_queues[queue].send(rest)]
        return not rest

    try_until(sent, runtime)


@pytest.mark.parametrize("rx_mode", ["adaptive", "polling"])
def test_memif_to_memif_both_ways(rx_mode: str, runtime: Runtime, socket_path: str) -> None:
    left, right = list[bytes](), list[bytes]()
    ends = [f"memif:{socket_path},role=master,id={id},queues=2,rx-mode={rx_mode}" for id in (0, 1)]
    with bridging(*ends) as program:
        a = endpoint(runtime, socket_path, left, id=0, num_s2m_rings=2, num_m2s_rings=2)
        b = endpoint(runtime, socket_path, right, id=1, num_s2m_rings=2, num_m2s_rings=2)
        wait_until(lambda: a.connected and b.connected, runtime)
        there = [number.to_bytes(4, "big") + bytes(number % 3000) for number in range(5000)]
        back = [b"back", b"again"]
        send_all(a, there, runtime)
        send_all(b, back, runtime, 1)
        wait_until(lambda: len(right) == len(there) and len(left) == 2, runtime)
        status, out, err = end(program)
        wait_until(lambda: not a.connected and not b.connected, runtime)
    assert (right, left) == (there, back)
    assert status == 0, err
    size = sum(map(len, there))
    assert f"memif0 on {socket_path} -> memif1 on {socket_path}: 5000 packets, {size} bytes, 0 dropped\n" in out
    assert f"memif1 on {socket_path} -> memif0 on {socket_path}: 2 packets, 9 bytes, 0 dropped\n" in out
    assert "Traceback" not in err


def test_bridge_outlives_its_peers(runtime: Runtime, peer_runtime: Runtime, socket_path: str) -> None:
    received = list[bytes]()
    with bridging(*(f"memif:{socket_path},role=master,id={id}" for id in (0, 1))) as program:
        a = endpoint(runtime, socket_path, [], id=0)
        wait_until(lambda: a.connected, runtime)
        send_all(a, [b"lost"], runtime)
        for number in range(3):
            with endpoint(peer_runtime, socket_path, received, id=1) as b:
                wait_until(lambda b=b: b.connected, runtime, peer_runtime)  # type: ignore[misc]
                send_all(a, [b"%d" % number], runtime)
                wait_until(lambda number=number: b"%d" % number in received, runtime, peer_runtime)  # type: ignore[misc]
        status, out, err = end(program)
    assert status == 0
    assert "Traceback" not in err
    assert re.search(r"memif0 .* -> memif1 .*: [34] packets", out)


# --- the kernel -----------------------------------------------------------------------------------------------------

NAMESPACES = missing("ping")
needs_namespaces = pytest.mark.skipif(bool(NAMESPACES), reason=NAMESPACES)
IPERF3 = missing("ping", "iperf3")
LEFT, RIGHT = "10.99.0.1", "10.99.0.2"


@contextlib.contextmanager
def joined(left: str, right: str, socket: str, options: str = "") -> Iterator[tuple[Program, Program]]:
    """Two bridges, joined by a memif, each with an endpoint of the kernel on its other side."""
    with (
        bridging(f"memif:{socket},role=master{options}", left) as a,
        bridging(f"memif:{socket}{options}", right) as b,
    ):
        read_until(a, "connected to", stderr=True)
        read_until(b, "connected to", stderr=True)
        yield a, b


def ended(*programs: Program) -> str:
    """What they print at their end."""
    said = ""
    for program in programs:
        status, out, err = end(program)
        assert status == 0, err
        assert "Traceback" not in err
        said += out
    return said


def address(left: Namespace, right: Namespace) -> None:
    """Give both an address, and wait until they reach each other."""
    left.ip("address", "add", f"{LEFT}/24", "dev", "mif")
    right.ip("address", "add", f"{RIGHT}/24", "dev", "mif")
    # The kernel acts on a carrier some time after it is there: until one packet has come back.
    left.run("ping", "-n", "-q", "-c", "1", "-i", "0.1", "-w", "15", RIGHT)


def ping(namespace: Namespace, size: int = 56, count: int = 3) -> None:
    arguments = ["ping", "-n", "-q", "-c", str(count), "-i", "0.05", "-W", "5", "-M", "do", "-s", str(size), RIGHT]
    assert f"{count} received" in namespace.run(*arguments)


def transfer(left: Namespace, right: Namespace, *arguments: str) -> float:
    """An iperf3 run from left to right; gigabits a second."""
    if IPERF3:
        pytest.skip(IPERF3)
    with right.running("iperf3", "-s", "-1", "--forceflush") as server:
        assert server.stdout is not None
        while "listening" not in (line := server.stdout.readline()):
            assert line, "iperf3 did not start"
        result = json.loads(left.run("iperf3", "-c", RIGHT, "-J", *arguments, timeout=60))
    assert "error" not in result
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9


@needs_namespaces
def test_ping_and_tcp_between_two_tap_devices(socket_path: str) -> None:
    with namespaces(2) as (left, right):
        with joined(f"tap:mif,netns={left.name}", f"tap:mif,netns={right.name}", socket_path) as programs:
            address(left, right)
            ping(left)
            ping(left, 1472)
            reached = transfer(left, right, "-n", "20M"), transfer(left, right, "-n", "20M", "-R")
            said = ended(*programs)
        print(f"memif<->TAP on both sides, iperf3: {reached[0]:.2f} Gbit/s, back {reached[1]:.2f} Gbit/s")
        assert re.search(r"^mif -> memif0 on \S+: \d{4,} packets, \d{8,} bytes", said, re.M)
        assert "No such device" not in said


@needs_namespaces
def test_jumbo_frames_pass_as_chains(socket_path: str) -> None:
    with namespaces(2) as (left, right):
        ends = [f"tap:mif,mtu=9000,netns={namespace.name}" for namespace in (left, right)]
        with joined(ends[0], ends[1], socket_path, ",buffer-size=2048,ring-size=64") as programs:
            address(left, right)
            ping(left, 8972)
            transfer(left, right, "-n", "20M")
            ended(*programs)


@needs_namespaces
def test_ip_mode_goes_with_a_tun_device(socket_path: str) -> None:
    with namespaces(2) as (left, right):
        ends = [f"tap:mif,mode=ip,netns={namespace.name}" for namespace in (left, right)]
        with joined(ends[0], ends[1], socket_path, ",mode=ip") as programs:
            address(left, right)
            ping(left)
            ended(*programs)


def veth(inside: Namespace, host: Namespace, name: str) -> str:
    """A pair whose other end is an endpoint."""
    inside.ip("link", "add", "name", "mif", "type", "veth", "peer", "name", name, "netns", host.name)
    inside.ip("link", "set", "mif", "up")
    host.ip("link", "set", name, "up")
    return f"packet:{name},netns={host.name}"


@needs_namespaces
def test_ping_and_tcp_between_two_interfaces_whose_checksums_and_segments_are_left_to_a_card(socket_path: str) -> None:
    with namespaces(3) as (left, right, host):
        ends = veth(left, host, "va"), veth(right, host, "vb")
        with joined(*ends, socket_path) as programs:
            address(left, right)
            ping(left)
            ping(left, 1472)
            transfer(left, right, "-n", "20M")
            transfer(left, right, "-n", "5M", "-u", "-b", "100M")
            said = ended(*programs)
        assert "Message too long" not in said
        assert "card" not in said


@needs_namespaces
def test_vlan_tags_pass_through_an_interface(runtime: Runtime, socket_path: str) -> None:
    """The kernel takes them out of what it receives, and tells of them beside the frame."""
    received = list[bytes]()
    tagged = bytes.fromhex("0200000000010200000000028100200588b5") + bytes(50)
    with (
        namespaces(2) as (left, host),
        bridging(f"memif:{socket_path},role=master", veth(left, host, "va")) as program,
        endpoint(runtime, socket_path, received) as interface,
    ):
        wait_until(lambda: interface.connected, runtime)
        with network_namespace(left.name):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        with sock:
            sock.bind(("mif", 0x88B5))
            sock.send(tagged)
            wait_until(lambda: tagged in received, runtime)  # among what the kernel says of itself
            plain = tagged[:12] + tagged[16:]
            send_all(interface, [plain], runtime)
            sock.settimeout(DEADLINE)
            while sock.recv(2048) != plain:
                pass
        ended(program)


@needs_namespaces
def test_carrier_of_a_tap_device_follows_the_memif(runtime: Runtime, socket_path: str) -> None:
    with (
        namespaces(1) as (left,),
        bridging(f"memif:{socket_path},role=master", f"tap:mif,netns={left.name}") as program,
    ):
        show = ("ip", "-j", "link", "show", "mif")
        assert "NO-CARRIER" in json.loads(left.run(*show))[0]["flags"]
        with endpoint(runtime, socket_path, []) as interface:
            wait_until(lambda: interface.connected, runtime)
            wait_until(lambda: "LOWER_UP" in json.loads(left.run(*show))[0]["flags"], timeout=DEADLINE)
        wait_until(lambda: "NO-CARRIER" in json.loads(left.run(*show))[0]["flags"], timeout=DEADLINE)
        ended(program)


@needs_namespaces
@pytest.mark.parametrize("kind", ["tap", "packet"])
def test_an_interface_that_goes_away_ends_the_bridge_with_one_line(kind: str, socket_path: str) -> None:
    with namespaces(2) as (left, host):
        end_of_kernel = f"tap:va,netns={host.name}" if kind == "tap" else veth(left, host, "va")
        with bridging(f"memif:{socket_path},role=master", end_of_kernel) as program:
            host.ip("link", "delete", "va")
            status, _, err = finish(program)
    assert status == 2
    assert re.search(rf"^memifrt bridge: {'TAP device' if kind == 'tap' else 'interface'} va is gone: ", err, re.M)
    assert "Traceback" not in err


@needs_namespaces
def test_an_interface_that_is_down_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with namespaces(1) as (host,):
        host.ip("link", "add", "name", "va", "type", "veth", "peer", "name", "vb")
        assert main(["bridge", f"packet:va,netns={host.name}", "memif:@memifrt-test-down"]) == 2
    assert capsys.readouterr().err == "memifrt bridge: interface va is down; ip link set va up brings it up\n"


@needs_namespaces
def test_a_name_that_is_taken_by_another_kind_of_interface_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with namespaces(1) as (host,):
        host.ip("link", "add", "name", "va", "type", "veth", "peer", "name", "vb")
        assert main(["bridge", f"tap:va,netns={host.name}", "memif:@memifrt-test-taken"]) == 2
    assert "TAP device va: an interface of this name exists and is of another kind" in capsys.readouterr().err


# --- losses in the kernel -------------------------------------------------------------------------------------------

#: Of a type for experiments, which nobody else sends.
FRAME = b"\xff" * 6 + bytes.fromhex("02000000000188b5") + bytes(1000)


def flood(namespace: Namespace, name: str, count: int) -> None:
    """Send so many frames on an interface, whatever becomes of them."""
    with network_namespace(namespace.name):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sock:
        sock.bind((name, 0))
        for _ in range(count):
            sock.send(FRAME)


def accounted(port: Port, way: Carry) -> int:
    """Frames of :func:`flood` that have come, and packets that are said to be lost."""
    while way.step():
        pass
    assert isinstance(way.target, Shelf)
    return way.target.taken.count(FRAME) + way.report().reasons.get(LOST, 0)


@needs_namespaces
@pytest.mark.parametrize("kind", ["packet", "tap"])
def test_what_the_kernel_drops_for_want_of_room_is_counted(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packet_socket, "_BACKLOG", 20_000)
    with namespaces(2) as (left, host):
        if kind == "packet":
            veth(left, host, "va")
            port: Port = PacketPort(PacketEndpoint("va", host.name))
        else:
            port = TapPort(TapEndpoint("mif", netns=left.name))
        with contextlib.closing(port):
            way = Carry(port, Shelf(space=1 << 20))
            flood(left, "mif", 2000)
            try_until(lambda: accounted(port, way) >= 2000)
            report = way.report()
    assert 0 < report.reasons[LOST] <= report.dropped <= 2000 + 100
    assert f"({report.reasons[LOST]} lost in the kernel" in report.line()


def test_losses_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    losses = LossWarning("interface va", "what helps")
    assert losses.is_due()
    losses.lost(0)
    assert caplog.messages == []
    assert not losses.is_due(), "within a second"
    losses.lost(7)
    assert caplog.messages == ["interface va: the kernel has dropped 7 packets, and may drop more: what helps"]
    assert not losses.is_due()


@needs_namespaces
def test_a_packet_socket_has_more_room_than_the_system_allows_everybody() -> None:
    with namespaces(2) as (left, host):
        veth(left, host, "va")
        port = PacketPort(PacketEndpoint("va", host.name))
        with contextlib.closing(port), socket.socket(fileno=os.dup(port.fileno())) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= packet_socket._BACKLOG


# --- interfaces without Ethernet ------------------------------------------------------------------------------------

IP4 = bytes.fromhex("450000180000000040110000 0a000001 0a000002") + b"four"
IP6 = bytes.fromhex("6000000000043b40") + bytes(32) + b"six!"


@contextlib.contextmanager
def tun(namespace: Namespace, name: str = "tu0") -> Iterator[TapPort]:
    """A TUN device, and the program behind it."""
    with contextlib.closing(TapPort(TapEndpoint(name, Mode.IP, netns=namespace.name))) as port:
        yield port


@contextlib.contextmanager
def tun_and_port() -> Iterator[tuple[Namespace, TapPort, PacketPort]]:
    """A TUN device, and a packet socket on it."""
    with namespaces(1) as (host,), tun(host) as device:
        port = PacketPort(PacketEndpoint("tu0", host.name, Mode.IP))
        with contextlib.closing(port):
            yield host, device, port


def arrived(port: Port, count: int) -> list[bytes]:
    """Packets that come to a port, but for what the kernel says of itself."""
    found: list[bytes] = []

    def enough() -> bool:
        found.extend(packet for packet in port.recv(64) if packet in (IP4, IP6))
        return len(found) >= count

    try_until(enough)
    return found


@needs_namespaces
def test_an_interface_without_ethernet_is_a_port_in_mode_ip() -> None:
    with tun_and_port() as (_, device, port):
        assert device.send([IP4, IP6]) == 2
        assert arrived(port, 2) == [IP4, IP6]
        assert port.send([IP6, b"\x10 no IP", b"", IP4]) == 4
        assert arrived(device, 2) == [IP6, IP4]
        assert (port.sent, port.refused) == (Traffic(2, len(IP4 + IP6)), {"no IP packet": 2})


@needs_namespaces
def test_an_interface_without_ethernet_may_be_renamed() -> None:
    with tun_and_port() as (host, device, port):
        host.ip("link", "set", "tu0", "name", "tu1")
        assert port.send([IP4]) == 1
        assert arrived(device, 1) == [IP4]


@needs_namespaces
def test_an_interface_that_does_not_carry_what_its_mode_says_is_refused() -> None:
    with namespaces(2) as (left, host), tun(host):
        veth(left, host, "va")
        for end, words in {
            "packet:tu0": "interface tu0 carries IP packets without Ethernet headers .*use packet:tu0,mode=ip",
            "packet:va,mode=ip": "interface va carries Ethernet frames; use packet:va without mode=ip",
            "tap:tu9,mode=ip,mac=02:00:00:00:00:01": "mac: tu9 is a TUN device .mode=ip., which has no MAC address",
            "tap:tu0": "tu0 is a TUN device; use tap:tu0,mode=ip, and mode=ip on the other end",
        }.items():
            with pytest.raises(ConfigError, match=words):
                bridge_port(f"{end},netns={host.name}")
        host.ip("tuntap", "add", "dev", "tp0", "mode", "tap")
        with pytest.raises(ConfigError, match="tp0 is a TAP device; use tap:tp0,mode=ethernet"):
            bridge_port(f"tap:tp0,mode=ip,netns={host.name}")


def bridge_port(text: str) -> Port:
    end = parse_endpoint(text)
    assert not isinstance(end, MemifEndpoint)
    return TapPort(end) if isinstance(end, TapEndpoint) else PacketPort(end)


def test_hardware_types_are_ethernet_ip_or_neither() -> None:
    kinds = {"ether": 1, "loopback": 772, "none": 65534, "ppp": 512, "ipip": 768, "sit": 776, "gre": 778, "can": 280}
    modes = {name: mode_of_hardware(number) for name, number in kinds.items()}
    ip = dict.fromkeys(("none", "ppp", "ipip", "sit", "gre"), Mode.IP)
    assert modes == {"ether": Mode.ETHERNET, "loopback": Mode.ETHERNET, **ip, "can": None}


@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "udp4", "udp6"])
def test_packets_without_ethernet_are_finished_as_frames_are(kind: str) -> None:
    for size in (0, 1448):
        frame, offload = unfinished(kind, False, size)
        packets = finished(frame[14:], offload.moved(-14), 0)
        assert packets == [whole[14:] for whole in finished(frame, offload)]


# --- devices that somebody has prepared -----------------------------------------------------------------------------


@needs_namespaces
def test_what_is_as_wanted_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may attach to the device, and set nothing."""

    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("set_mac", "set_mtu", "bring_up"):
        monkeypatch.setattr(KernelInterface, name, refuse)
    mac, other = "02:00:00:00:00:01", "02:00:00:00:00:02"
    with namespaces(1) as (host,):
        host.ip("tuntap", "add", "dev", "tp0", "mode", "tap")
        host.ip("link", "set", "tp0", "up", "mtu", "1400", "address", mac)
        for end in ("", ",mtu=1400", f",mac={mac},mtu=1400"):
            bridge_port(f"tap:tp0,netns={host.name}{end}").close()
        for end, words in {
            ",mtu=1500": "its MTU is 1400, and cannot be set to 1500: Operation not permitted",
            f",mac={other}": f"its MAC address is {mac}, and cannot be set to {other}: Operation not permitted",
        }.items():
            with pytest.raises(MemifOSError, match=f"cannot set up TAP device tp0: {words}"):
                bridge_port(f"tap:tp0,netns={host.name}{end}")
        host.ip("link", "set", "tp0", "down")
        with pytest.raises(MemifOSError, match="it is down, and cannot be brought up"):
            bridge_port(f"tap:tp0,netns={host.name}")


@needs_namespaces
def test_a_device_of_somebody_else_is_refused_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    with namespaces(1) as (host,):
        host.ip("tuntap", "add", "dev", "tp0", "mode", "tap", "user", "12345")

        def refuse(*arguments: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr("memifrt.ports.tap.fcntl.ioctl", refuse)
        with pytest.raises(MemifOSError, match="tp0: it belongs to user 12345, and we are 0; it needs root"):
            bridge_port(f"tap:tp0,netns={host.name}")


@needs_namespaces
def test_a_device_with_several_queues_is_refused_with_the_reason() -> None:
    with namespaces(1) as (host,):
        host.ip("tuntap", "add", "dev", "tp0", "mode", "tap", "multi_queue")
        with pytest.raises(MemifOSError, match="tp0: it has several queues; make it without multi_queue"):
            bridge_port(f"tap:tp0,netns={host.name}")


def test_the_namespace_that_we_are_in_is_not_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """To enter one needs a capability."""
    monkeypatch.setattr("memifrt.system.netns._enter", lambda fd: pytest.fail("entered"))
    with network_namespace("/proc/self/ns/net"):
        pass
