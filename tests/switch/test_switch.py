"""The switch in process: between ports of lists, and between memifs."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from memifrt import ConfigError, Interface, Runtime, RxMode
from memifrt.capture.pcap import open_capture
from memifrt.errors import os_error
from memifrt.options import InterfaceConfig
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.port import MemifPort, Port, Traffic
from memifrt.switch import switch as switch_module
from memifrt.switch.mirror import Mirror
from memifrt.switch.storm import FloodLimits
from memifrt.switch.switch import Switch
from memifrt.switch.table import ForwardingTable
from memifrt.switch.vlan import PortVlans
from memifrt.types import Role
from tests.lib.support import wait_until

BROADCAST = b"\xff" * 6
MULTICAST = bytes.fromhex("01005e000001")


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def frame(to: bytes | int, by: bytes | int, payload: bytes = b"", vlan: int | None = None) -> bytes:
    addresses = (to if isinstance(to, bytes) else mac(to)) + (by if isinstance(by, bytes) else mac(by))
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
    return addresses + tag + b"\x88\xb5" + payload.ljust(46, b"\0")


class Shelf(Port):
    """A port of lists, with room for so many packets."""

    def __init__(self, name: str, space: int = 1 << 20) -> None:
        super().__init__(name)
        self.packets, self.taken, self.space, self.up = list[bytes](), list[bytes](), space, True
        self.failure: Exception | None = None

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
        return self.space

    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        if self.failure is not None:
            raise self.failure
        found, self.packets = self.packets[:limit], self.packets[limit:]
        return found

    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        if self.failure is not None:
            raise self.failure
        fits = min(len(packets), self.space)
        self.taken += packets[:fits]
        self.space -= fits
        return fits

    def discard(self, limit: int, *, qid: int = 0) -> int:
        return len(self.recv(limit, qid=qid))

    def close(self) -> None:
        pass


class Lab:
    """A switch between shelves, with a clock that the test sets."""

    def __init__(self, *vlans: PortVlans | None, ports: int = 3, space: int = 1 << 20, **options: object) -> None:
        self.now = 1000.0
        given = vlans or (None,) * ports
        self.shelves = [Shelf(f"p{number}", space) for number in range(len(given))]
        joined = [(shelf.name, shelf, each) for shelf, each in zip(self.shelves, given, strict=True)]
        self.switch = Switch(joined, clock=lambda: self.now, **options)  # type: ignore[arg-type]

    def comes(self, port: int, *frames: bytes) -> list[list[bytes]]:
        """Frames come to a port; what leaves each port then."""
        self.shelves[port].packets += frames
        while self.switch.step(self.switch.ports[port]):
            pass
        left = [shelf.taken for shelf in self.shelves]
        for shelf in self.shelves:
            shelf.taken = []
        return left

    def losses(self, port: int) -> dict[str, int]:
        return self.switch.ports[port].losses()


# --- learning -------------------------------------------------------------------------------------------------------


def test_a_packet_to_an_unknown_address_goes_everywhere_and_to_a_known_one_to_its_port() -> None:
    lab = Lab()
    there, back = frame(2, 1), frame(1, 2)
    assert lab.comes(0, there) == [[], [there], [there]]
    assert lab.comes(1, back) == [[back], [], []]
    assert lab.comes(0, there) == [[], [there], []]
    assert lab.comes(0, there, there) == [[], [there, there], []], "by the decision that was kept"
    assert lab.switch.ports[0].flooded == {"unknown": 1}


def test_a_burst_for_several_ports_is_divided_in_order() -> None:
    lab = Lab()
    lab.comes(1, frame(9, 2))
    lab.comes(2, frame(9, 3))
    burst = [frame(2 + number % 2, 1, b"%d" % number) for number in range(300)]
    everyone = frame(BROADCAST, 1)
    burst.insert(100, everyone)
    left = lab.comes(0, *burst)
    assert [packet for packet in left[1] if packet != everyone] == burst[::2][:50] + burst[101::2]
    assert (left[1].count(everyone), left[2].count(everyone), left[0]) == (1, 1, [])
    assert len(left[1]) + len(left[2]) == 302


#: How often packets have come with the same headers: their decision is new, kept, or was checked a moment ago.
repeated = pytest.mark.parametrize("times", [1, 2, 3])


@repeated
def test_an_address_that_moves_is_followed_at_once(times: int) -> None:
    lab = Lab()
    lab.comes(0, frame(9, 1))
    to_it = frame(1, 5)
    for _ in range(times):
        assert lab.comes(2, to_it) == [[to_it], [], []]
    lab.comes(1, frame(9, 1))
    assert lab.comes(2, to_it) == [[], [to_it], []]
    assert lab.switch.table.moved == 1


def test_a_packet_to_an_address_on_its_own_port_is_dropped() -> None:
    lab = Lab()
    lab.comes(0, frame(9, 1))
    assert lab.comes(0, frame(1, 2)) == [[], [], []]
    assert lab.losses(0) == {"to the port that they came from": 1}


def test_group_addresses_are_never_learned() -> None:
    lab = Lab()
    assert lab.comes(0, frame(9, MULTICAST), frame(9, BROADCAST), frame(9, bytes(6))) == [[], [], []]
    assert len(lab.switch.table) == 0
    assert lab.losses(0) == {"from a group address": 3}
    assert lab.comes(0, frame(MULTICAST, 1)) == [[], [frame(MULTICAST, 1)], [frame(MULTICAST, 1)]]


@pytest.mark.parametrize("last", [0x00, 0x02, 0x0E, 0x0F])
def test_frames_for_the_bridge_itself_are_not_forwarded(last: int) -> None:
    lab = Lab()
    assert lab.comes(0, frame(bytes.fromhex("0180c20000") + bytes((last,)), 1)) == [[], [], []]
    assert lab.losses(0) == {"to a reserved address": 1}
    beyond = frame(bytes.fromhex("0180c2000010"), 1)
    assert lab.comes(0, beyond) == [[], [beyond], [beyond]]


def test_what_is_shorter_than_a_header_is_dropped() -> None:
    lab = Lab()
    assert lab.comes(0, b"", b"x", frame(9, 1)[:13]) == [[], [], []]
    assert lab.losses(0) == {"too short": 3}


def test_an_address_is_forgotten_after_the_ageing_time_and_traffic_keeps_it() -> None:
    lab = Lab(table=ForwardingTable(ageing=300))
    there, back = frame(2, 1), frame(1, 2)
    lab.comes(1, back)
    for _ in range(4):
        lab.now += 200
        lab.comes(1, back)
        lab.switch.expire()
    assert lab.comes(0, there) == [[], [there], []]
    lab.now += 300
    assert lab.switch.expire() is None
    assert lab.comes(0, there) == [[], [there], [there]]


@repeated
def test_a_source_that_moves_is_learned_again(times: int) -> None:
    lab = Lab()
    lab.comes(1, frame(9, 2))
    for _ in range(times):
        lab.comes(0, frame(2, 1))
    lab.comes(2, frame(2, 1))
    assert lab.comes(1, frame(1, 2)) == [[], [], [frame(1, 2)]]
    lab.comes(0, frame(2, 1))
    assert lab.comes(1, frame(1, 2)) == [[frame(1, 2)], [], []]


def test_steady_traffic_keeps_an_address_and_its_age_small() -> None:
    lab = Lab(table=ForwardingTable(ageing=10))
    lab.comes(1, frame(9, 2))
    for _ in range(300):
        lab.now += 0.1
        lab.comes(1, frame(9, 2))
        lab.comes(0, frame(2, 1))
        lab.switch.expire()
        assert all(lab.now - entry.seen < 0.5 for entry in lab.switch.table), "within 5 % of the ageing time"
    assert len(lab.switch.table) == 2


@repeated
def test_a_decision_that_was_kept_ends_with_its_address(times: int) -> None:
    lab = Lab(table=ForwardingTable(ageing=300))
    there, back = frame(2, 1), frame(1, 2)
    lab.comes(1, back)
    for _ in range(times):
        lab.comes(0, there)
    lab.switch.link_changed(lab.switch.ports[1], False)
    assert lab.comes(0, there) == [[], [there], [there]]


def test_decisions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch_module, "_MAX_FLOWS", 50)
    lab = Lab()
    lab.comes(1, frame(9, 5))
    for number in range(100, 1100):
        lab.comes(0, frame(5, number))
        assert len(lab.switch.ports[0].flows) <= 50
        assert len(lab.switch.ports[0].checked) <= 50
    assert len(lab.switch.ports[0].groups) <= 4


def test_random_sources_do_not_push_out_the_addresses_of_other_ports() -> None:
    lab = Lab(table=ForwardingTable(limit=200, port_limit=200))
    lab.comes(1, *(frame(9, number) for number in range(20)))
    lab.comes(0, *(frame(9, number) for number in range(1000, 3000)))
    assert (lab.switch.table.count(1), lab.switch.table.count(0)) == (20, 180)
    assert lab.comes(2, frame(7, 5)) == [[], [frame(7, 5)], []]


# --- ports that are slow, or gone -----------------------------------------------------------------------------------


def test_a_slow_port_does_not_stall_the_others() -> None:
    lab = Lab(queue=10)
    lab.shelves[1].space = 3
    burst = [frame(BROADCAST, 1, b"%d" % number) for number in range(50)]
    left = lab.comes(0, *burst)
    assert (left[1], left[2]) == (burst[:3], burst)
    slow = lab.switch.ports[1]
    assert (slow.queued, lab.losses(1)) == (10, {"queue full": 37})
    assert not lab.switch.flush()
    lab.shelves[1].space = 4
    assert lab.switch.flush()
    assert (slow.queued, lab.shelves[1].taken) == (6, burst[3:7])
    lab.shelves[1].space = 100
    assert lab.comes(0, frame(BROADCAST, 1))[1] == burst[3:7], "what comes now waits behind what came before"
    lab.switch.flush()
    assert lab.shelves[1].taken == [*burst[7:13], frame(BROADCAST, 1)]
    assert slow.queued == 0


def test_a_queue_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memifrt.switch.port._QUEUE_BYTES", 1000)
    lab = Lab(space=0)
    lab.comes(0, *(frame(BROADCAST, 1, bytes(400)) for _ in range(5)))
    assert (lab.switch.ports[1].queued, lab.losses(1)) == (2, {"queue full": 3})


def test_a_port_that_loses_its_peer_loses_its_addresses_and_what_waits() -> None:
    lab = Lab(queue=10)
    lab.comes(1, frame(9, 2))
    lab.shelves[1].space = 0
    lab.comes(0, frame(2, 1))
    lab.shelves[1].up = False
    lab.switch.link_changed(lab.switch.ports[1], False)
    assert (lab.switch.table.count(1), lab.losses(1)) == (0, {"without a peer": 1})
    assert lab.comes(0, frame(2, 1)) == [[], [], [frame(2, 1)]], "nothing is flooded to a port without a peer"
    lab.shelves[2].up = False
    lab.comes(0, frame(2, 1))
    assert lab.losses(0) == {"without another port": 1}


@pytest.mark.parametrize("sends", [True, False])
def test_an_interface_that_is_gone_ends_its_port_alone(sends: bool) -> None:
    lab = Lab()
    lab.comes(1, frame(9, 2))
    lab.shelves[1].failure = os_error("interface p1 is gone", OSError(errno.ENODEV, "No such device"))
    if sends:
        lab.comes(0, frame(2, 1))
    else:
        assert not lab.switch.step(lab.switch.ports[1])
    assert lab.switch.ports[1].failure is not None
    assert lab.switch.table.count(1) == 0, "its hosts may come back at another port"
    assert lab.comes(0, frame(2, 1)) == [[], [], [frame(2, 1)]], "and packets for them are flooded"
    assert lab.comes(0, frame(BROADCAST, 1)) == [[], [], [frame(BROADCAST, 1)]]


# --- storm control --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "to", "kind"),
    [
        (FloodLimits(broadcast=10), BROADCAST, "broadcast"),
        (FloodLimits(multicast=10), MULTICAST, "multicast"),
        (FloodLimits(unknown=10), mac(99), "unknown"),
    ],
)
def test_each_port_floods_so_many_packets_a_second(limits: FloodLimits, to: bytes, kind: str) -> None:
    lab = Lab(limits=limits)
    assert [len(left) for left in lab.comes(0, *([frame(to, 1)] * 25))] == [0, 10, 10]
    assert lab.losses(0) == {f"over the limit of {kind} packets": 15}
    assert [len(left) for left in lab.comes(1, *([frame(to, 2)] * 25))] == [10, 0, 10], "by port"
    lab.now += 0.5
    assert [len(left) for left in lab.comes(0, *([frame(to, 1)] * 25))] == [0, 5, 5]
    lab.comes(2, frame(9, 3))
    assert len(lab.comes(0, *([frame(3, 1)] * 25))[2]) == 25, "packets to a known address are not limited"


# --- VLANs ----------------------------------------------------------------------------------------------------------

TEN, TWENTY, TRUNK = PortVlans(10), PortVlans(20), PortVlans(1, frozenset({10, 20}))


def test_frames_stay_in_their_vlan_and_have_tags_on_a_trunk_alone() -> None:
    lab = Lab(TEN, TEN, TWENTY, TRUNK)
    assert lab.comes(0, frame(BROADCAST, 1)) == [[], [frame(BROADCAST, 1)], [], [frame(BROADCAST, 1, vlan=10)]]
    assert lab.comes(3, frame(1, 5, vlan=10)) == [[frame(1, 5)], [], [], []]
    assert lab.comes(0, frame(5, 1)) == [[], [], [], [frame(5, 1, vlan=10)]]
    assert lab.comes(3, frame(BROADCAST, 5, vlan=20)) == [[], [], [frame(BROADCAST, 5)], []]
    assert lab.comes(3, frame(1, 5, vlan=20)) == [[], [], [frame(1, 5)], []], "unknown in this VLAN"
    assert lab.comes(3, frame(BROADCAST, 5)) == [[], [], [], []], "no other port has the native VLAN"


def test_frames_that_a_port_may_not_send_are_dropped_and_not_learned() -> None:
    lab = Lab(TEN, PortVlans(0, frozenset({10})))
    assert lab.comes(0, frame(BROADCAST, 1, vlan=20), frame(BROADCAST, 1, vlan=10)) == [[], []]
    assert lab.comes(1, frame(BROADCAST, 2), frame(BROADCAST, 2, vlan=30)) == [[], []]
    assert len(lab.switch.table) == 0
    assert lab.losses(0) == {"tagged on an access port": 2}
    assert lab.losses(1) == {
        "untagged on a trunk without a native VLAN": 1,
        "of a VLAN that the port does not carry": 1,
    }


def test_between_trunks_the_native_vlan_is_untagged_where_it_is_native() -> None:
    lab = Lab(TRUNK, PortVlans(10, frozenset({10, 20})), PortVlans(0, frozenset({10, 20})))
    tagged = frame(BROADCAST, 1, vlan=10)
    assert lab.comes(0, tagged) == [[], [frame(BROADCAST, 1)], [tagged]]


def test_without_vlans_tags_pass_unchanged() -> None:
    lab = Lab()
    tagged = frame(BROADCAST, 1, vlan=7)
    assert lab.comes(0, tagged) == [[], [tagged], [tagged]]


def test_vlans_on_some_ports_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="p1 has no VLAN, and other ports have"):
        Lab(TEN, None)


# --- mirroring ------------------------------------------------------------------------------------------------------


def captured(path: Path) -> list[bytes]:
    with open_capture(path) as reader:
        return [packet.data for packet in reader]


@pytest.mark.parametrize("name", ["a.pcapng", "a.pcap"])
def test_a_mirrored_port_is_captured_in_both_directions(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    mirror = Mirror(str(path), ["p0", "p1", "p2"], {1}, outgoing=True)
    with contextlib.closing(mirror):
        lab = Lab(mirror=mirror)
        one, two, three = frame(2, 1), frame(1, 2), frame(1, 3)
        lab.comes(0, one)
        lab.comes(1, two)
        lab.comes(2, three)
    assert captured(path) == [one, two]
    assert (b"p1 in" in path.read_bytes()) == name.endswith("ng")


def test_all_ports_are_captured_where_packets_come_in(tmp_path: Path) -> None:
    path = tmp_path / "all.pcapng"
    mirror = Mirror(str(path), ["p0", "p1", "p2"], {0, 1, 2}, outgoing=False)
    with contextlib.closing(mirror):
        lab = Lab(mirror=mirror)
        lab.comes(0, frame(BROADCAST, 1))
        lab.comes(2, frame(1, 3))
        mirror.flush()
        assert captured(path) == [frame(BROADCAST, 1), frame(1, 3)]
    assert mirror.packets == 2


def test_a_mirrored_frame_has_the_tag_that_it_leaves_with(tmp_path: Path) -> None:
    path = tmp_path / "tags.pcap"
    mirror = Mirror(str(path), ["p0", "p1"], {1}, outgoing=True)
    with contextlib.closing(mirror):
        Lab(TEN, TRUNK, mirror=mirror).comes(0, frame(BROADCAST, 1))
    assert captured(path) == [frame(BROADCAST, 1, vlan=10)]


def test_a_file_that_cannot_be_written_ends_mirroring_and_not_the_switch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = Mirror("/dev/full", ["p0", "p1", "p2"], {0}, outgoing=True)
    with contextlib.closing(mirror):
        lab = Lab(mirror=mirror)
        for _ in range(2):
            assert lab.comes(0, frame(BROADCAST, 1)) == [[], [frame(BROADCAST, 1)], [frame(BROADCAST, 1)]]
            mirror.flush()
    (message,) = caplog.messages
    assert message.startswith("cannot write /dev/full: No space left on device")
    assert all(port.failure is None for port in lab.switch.ports)


def test_tags_of_every_priority_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch_module, "_MAX_FLOWS", 50)
    lab = Lab(TRUNK, TRUNK)
    for value in range(0, 0x10000, 77):
        lab.comes(0, frame(99, 1, vlan=value & 0xF000 | 10), frame(99, 1, vlan=value))
    assert len(lab.switch.ports[0].groups) <= 51


# --- statistics -----------------------------------------------------------------------------------------------------


def test_the_statistics_have_the_table_and_each_port() -> None:
    lab = Lab(TEN, TRUNK)
    lab.comes(0, frame(BROADCAST, 1))
    lab.now += 7
    lab.comes(1, frame(1, 2, vlan=10), frame(1, 2))
    stats = lab.switch.stats()
    assert sorted(stats["addresses"], key=lambda address: (address["port"], -address["vlan"])) == [
        {"mac": "02:00:00:00:00:01", "vlan": 10, "port": 0, "age": 7.0},
        {"mac": "02:00:00:00:00:02", "vlan": 10, "port": 1, "age": 0.0},
        {"mac": "02:00:00:00:00:02", "vlan": 1, "port": 1, "age": 0.0},
    ]
    assert [(port["name"], port["vlans"], port["addresses"]) for port in stats["ports"]] == [
        ("p0", "vlan=10", 1),
        ("p1", "trunk=10+20,native=1", 2),
    ]
    assert stats["ports"][1]["losses"] == [{"reason": "without another port", "packets": 1}]


# --- between memifs -------------------------------------------------------------------------------------------------


class Memifs:
    """A switch between memifs, and the peer of each."""

    def __init__(self, runtime: Runtime, peer_runtime: Runtime, path: str, **options: int) -> None:
        config = InterfaceConfig(role=Role.MASTER, rx_mode=RxMode.POLLING)
        ports = [MemifPort(runtime, MemifEndpoint(path, config.replace(id=number))) for number in range(3)]
        self.switch = Switch([(port.name, port, None) for port in ports])
        for port, joined in zip(ports, self.switch.ports, strict=True):
            port.on_link = lambda up, joined=joined: self.switch.link_changed(joined, up)  # type: ignore[misc]
        self.peers: list[Interface] = [
            peer_runtime.create_interface(socket=path, id=number, rx_mode="polling", **options)  # type: ignore[arg-type]
            for number in range(3)
        ]
        both = [*self.peers, *(port.interface for port in ports)]
        wait_until(lambda: all(interface.connected for interface in both), runtime, peer_runtime)

    def comes(self, port: int, *frames: bytes) -> list[list[bytes]]:
        assert self.peers[port].tx_queues[0].send(frames) == len(frames)
        while self.switch.step(self.switch.ports[port]):
            pass
        return [peer.rx_queues[0].recv(1024) if peer.connected else [] for peer in self.peers]


@pytest.fixture
def memifs(runtime: Runtime, peer_runtime: Runtime, socket_name: str) -> Memifs:
    return Memifs(runtime, peer_runtime, socket_name, ring_size=256, buffer_size=256)


def test_memifs_exchange_packets_of_every_size_in_order(memifs: Memifs) -> None:
    memifs.comes(1, frame(9, 2))
    for sizes in ([50] * 100, range(46, 146), [2000, 50, 700, 46]):
        burst = [frame(2, 1, bytes(size)) for size in sizes]
        assert memifs.comes(0, *burst) == [[], burst, []]
    assert memifs.switch.ports[0].uniform


def test_a_burst_of_memifs_may_be_mixed_and_whole_again(memifs: Memifs) -> None:
    memifs.comes(1, frame(9, 2))
    memifs.comes(2, frame(9, 3))
    mixed = [frame(2 + number % 2, 1, b"%d" % number) for number in range(40)]
    short = [frame(2, 1), b"short", frame(2, 1)]
    for _ in range(2):
        assert memifs.comes(0, *mixed) == [[], mixed[::2], mixed[1::2]]
        assert memifs.comes(0, *short) == [[], [short[0], short[2]], []]
        assert memifs.comes(0, frame(3, 1)) == [[], [], [frame(3, 1)]]
    assert memifs.switch.ports[0].losses() == {"too short": 2}


def test_what_finds_no_room_in_a_memif_waits_and_the_rest_is_dropped(memifs: Memifs) -> None:
    memifs.comes(1, frame(9, 2))
    slow = memifs.switch.ports[1]
    packets = [frame(2, 1, b"%d" % number) for number in range(2048)]
    for start in range(0, len(packets), 128):
        assert memifs.peers[0].tx_queues[0].send(packets[start : start + 128]) == 128
        memifs.switch.step(memifs.switch.ports[0])
    received = list[bytes]()
    while more := memifs.peers[1].rx_queues[0].recv(64):
        received += more
        memifs.peers[1].rx_queues[0].refill()
        memifs.switch.flush()
    assert received == packets[: len(received)]
    assert len(received) + slow.losses()["queue full"] == len(packets)
    assert len(received) == 1024 + 256


def test_a_memif_whose_peer_leaves_is_forgotten_and_learned_again(
    memifs: Memifs, runtime: Runtime, peer_runtime: Runtime
) -> None:
    memifs.comes(1, frame(9, 2))
    assert memifs.comes(0, frame(2, 1)) == [[], [frame(2, 1)], []]
    socket = memifs.peers[1].socket.path
    memifs.peers[1].close()
    port = memifs.switch.ports[1].port
    wait_until(lambda: not port.can_send, runtime, peer_runtime)
    assert memifs.switch.table.count(1) == 0
    assert memifs.comes(0, frame(2, 1)) == [[], [], [frame(2, 1)]]
    memifs.peers[1] = peer_runtime.create_interface(socket=socket, id=1, rx_mode="polling")
    wait_until(lambda: port.can_send and memifs.peers[1].connected, runtime, peer_runtime)
    assert memifs.comes(0, frame(2, 1)) == [[], [frame(2, 1)], [frame(2, 1)]]
