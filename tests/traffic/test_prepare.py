"""Prepared packets: each one is what scapy would build, checksums and lengths included."""

from __future__ import annotations

import importlib.util
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from memifrt import ConfigError
from memifrt.packets import parse_mac
from memifrt.traffic import Field, Stream, prepare, signature
from memifrt.traffic.layout import layout_of
from memifrt.traffic.prepare import Lane
from memifrt.types import Mode

if TYPE_CHECKING or importlib.util.find_spec("memifrt._packets") is not None:
    from memifrt import _packets


def lane(stream: Stream, *, mark: bool = False, mode: Mode = Mode.ETHERNET, **options: Any) -> Lane:
    made = Lane(stream.templates(mode, mark=mark), stream.varied, number=0 if mark else None, **options)
    made.begin(77)
    return made


def rebuilt(data: bytes, first: type = Ether) -> bytes:
    """The packet as scapy builds it when it computes all checksums and lengths."""
    packet = first(data)
    layer = packet
    while layer:
        for name in ("chksum", "len", "plen", "cksum"):
            if name in layer.fields and layer.name != "Raw":
                del layer.fields[name]
        layer = layer.payload
    return bytes(packet.__class__(bytes(packet)))


FIELDS = [
    "ipv4.src=10.0.0.250..10.0.3.10",
    "ipv4.dst=1.2.3.4..250.2.3.4 random seed 5",
    "udp.src=1024..65535 step 999",
    "udp.dst=5,6,7",
]
CASES = {
    "four fields": ("Ether()/IP()/UDP()", FIELDS),
    "tcp": (
        'Ether()/IP()/TCP(options=[("MSS", 1460)])',
        ["tcp.src=0..65535 random seed 1"],
    ),
    "ipv6": ("Ether()/IPv6()/UDP()", ["ipv6.src=::1..::ffff:ffff", "ipv6.dst=1::fffe..1::1:5", "udp.dst=0..9"]),
    "ipv6 options": ("Ether()/IPv6()/IPv6ExtHdrHopByHop()/IPv6ExtHdrDestOpt()/UDP()", ["ipv6.dst=::1..::ffff"]),
    "ipv6 atomic fragment": ("Ether()/IPv6()/IPv6ExtHdrFragment()/TCP()", ["tcp.src=0..65535", "ipv6.src=::1..::ffff"]),
    "ipv6 segments": (
        'Ether()/IPv6()/IPv6ExtHdrSegmentRouting(addresses=["2001::9", "2001::8"], segleft=1, lastentry=1)/UDP()',
        ["ipv6.src=::1..::ffff", "ipv6.dst=::1..::7777 step 3", "@80:2=0..65535"],
    ),
    "vlan": (
        "Ether()/Dot1Q(prio=5)/Dot1Q(vlan=9)/IP()/UDP()",
        ["vlan.id=0..4095", "ipv4.ttl=1..255"],
    ),
    "priority": ("Ether()/Dot1Q(vlan=9)/IP()/UDP()", ["vlan.priority=0..7"]),
    "a whole tag": ("Ether()/Dot1Q()/IP()/UDP()", ["vlan.priority=0..7", "vlan.id=0..4095 step 5", "vlan.dei=0..1"]),
    "tos": ("Ether()/IP()/UDP()", ["ipv4.ecn=0..3", "ipv4.dscp=0..63 random seed 3", "ipv4.ttl=9..99"]),
    "flags and offset": ("Ether()/IP()/ICMP()", ["ipv4.flags=0..7", "ipv4.fragment_offset=0..8191 random seed 1"]),
    "flow label": ("Ether()/IPv6()/UDP()", ["ipv6.flow_label=0..0xfffff step 77", "ipv6.traffic_class=0..255"]),
    "tcp header": ("Ether()/IP()/TCP()", ["tcp.flags=0..255", "tcp.seq=0..0xffffffff random seed 2", "tcp.window=9,8"]),
    "macs": (
        "Ether()/IP()/ICMP()",
        ["eth.src=02:00:00:00:00:fe..02:00:00:00:01:02", "eth.dst=0..0xffffffffffff random seed 2"],
    ),
    "dscp": ("Ether()/IP(tos=3)/UDP()", ["ipv4.dscp=0..63", "ipv4.id=65530..65535"]),
    "odd bytes": ("Ether()/IP()/UDP()", ["@33:5=0..0xffffffffff random seed 1", "@43:3=0..0xffffff random seed 4"]),
    "payload": ("Ether()/IP()/UDP()", ["@50:8=0..0xffffffffffffffff random seed 1", "@59:1=0..255"]),
    "across headers": ("Ether()/IP()/UDP()", ["@31:4=0..0xffffffff random seed 1", "@35:2=0..65535 random seed 9"]),
    "icmp": ("Ether()/IP()/ICMP()", ["@38:2=0..65535", "ipv4.src=0..0xffffffff random seed 1"]),
    "icmpv6": ("Ether()/IPv6()/ICMPv6EchoRequest()", ["ipv6.src=::1..::ffff", "@60:2=0..65535"]),
}


@pytest.mark.parametrize("size", [None, 101, (90, 64 + 27, 300), "imix"], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_packet_has_the_lengths_and_checksums_that_scapy_computes(name: str, size: Any) -> None:
    packet, fields = CASES[name]
    if size is None and name in ("odd bytes", "payload", "across headers"):
        size = 120
    size = (92, 570, 64 + 28, 1518) if size == "imix" else size
    size = 131 if size is not None and name == "ipv6 segments" else size
    stream = Stream(packet, size=size, fields=fields)
    packets = lane(stream).packets(9000)
    chosen = [*range(12), *random.Random(1).sample(range(9000), 25)]
    for index in chosen:
        assert rebuilt(packets[index]) == packets[index], index
    assert len({packets[index] for index in chosen}) > 5


@pytest.mark.parametrize("name", CASES)
def test_marked_packets_have_the_checksums_that_scapy_computes(name: str) -> None:
    packet, fields = CASES[name]
    stream = Stream(packet, size=(160, 161, 500), fields=fields)
    made = lane(stream, mark=True)
    packets = made.packets(3000, now=123456789) + made.packets(3000, now=2**36 - 1)
    for index in random.Random(2).sample(range(6000), 40):
        assert rebuilt(packets[index]) == packets[index], index


def test_zero_is_sent_as_ffff_by_udp_alone() -> None:
    stream = Stream("Ether()/IP()/UDP()", size=80, fields=["udp.src=0..65535"])
    packets = lane(stream).packets(65536)
    sums = {data[40:42] for data in packets}
    assert b"\0\0" not in sums
    assert b"\xff\xff" in sums
    for data in packets:
        if data[40:42] == b"\xff\xff":
            assert rebuilt(data) == data


def test_a_udp_packet_without_checksum_stays_without() -> None:
    stream = Stream("Ether()/IP()/UDP(chksum=0)", size=80, fields=["udp.src=0..65535", "ipv4.src=1..500"])
    for data in lane(stream).packets(100):
        assert data[40:42] == b"\0\0"
        assert IP(data[14:]).src != "198.18.0.1"


def test_fields_have_the_values_that_they_say() -> None:
    stream = Stream("Ether()/IP()/UDP()", size=64, fields=[*FIELDS[:1], "eth.src=02:00:00:00:00:05,02:00:00:00:01:06"])
    for index, data in enumerate(lane(stream).packets(300)):
        packet = Ether(data)
        value = 0x0A0000FA + index % (0x0A00030A - 0x0A0000FA + 1)
        assert packet[IP].src == ".".join(map(str, value.to_bytes(4, "big")))
        assert parse_mac(packet.src)[-2:] == (b"\0\5", b"\1\6")[index % 2]


def test_several_queues_share_the_values_of_a_field() -> None:
    stream = Stream("Ether()/IP()/UDP()", size=64, fields=["udp.src=1..1000", "udp.dst=10,20,30"])
    lanes = [lane(stream, start=queue, stride=3) for queue in range(3)]
    packets = [made.packets(100) for made in lanes]
    mixed = [packets[index % 3][index // 3] for index in range(300)]
    assert [Ether(data)[UDP].sport for data in mixed] == [1 + index % 1000 for index in range(300)]
    assert [Ether(data)[UDP].dport for data in mixed] == [(10, 20, 30)[index % 3] for index in range(300)]


def test_sizes_take_turns_and_count_the_fcs() -> None:
    stream = Stream("Ether()/IP()/UDP()", size="imix")
    packets = lane(stream).packets(1200)
    sizes = [len(data) + 4 for data in packets]
    assert [sizes.count(size) for size in (64, 570, 1518)] == [700, 400, 100]
    assert {len(data) for data in lane(stream.with_(fcs=False)).packets(12)} == {64, 570, 1518}
    assert {len(data) for data in lane(Stream("IP()/UDP()", size=64), mode=Mode.IP).packets(5)} == {64}


def test_a_capture_s_packets_take_turns_and_have_the_fields_that_their_headers_have(tmp_path: Any) -> None:
    from memifrt.capture.pcap import LinkType, create_capture

    captured = [
        bytes(Ether() / IP(src="1.1.1.1", dst="2.2.2.2") / UDP() / Raw(b"x" * 50)),
        bytes(Ether() / Dot1Q(vlan=3) / IP(src="1.1.1.1", dst="2.2.2.2") / TCP() / Raw(b"y" * 70)),
        bytes(Ether() / IPv6(src="::1", dst="::2") / UDP() / Raw(b"z" * 20)),
    ]
    with create_capture(str(tmp_path / "x.pcap"), [("x", LinkType.ETHERNET)]) as writer:
        writer.write(captured, 0)
    stream = Stream(pcap=str(tmp_path / "x.pcap"), fields=["ipv4.src=10.0.0.1..10.0.0.7", "udp.dst=1..65535 random"])
    for mark in (False, True):
        for index, data in enumerate(lane(stream, mark=mark).packets(120)):
            packet = Ether(data)
            assert rebuilt(data) == data
            assert len(data) == len(captured[index % 3])
            if index % 3 < 2:
                assert packet[IP].src == f"10.0.0.{1 + index % 7}"
            if not mark:
                assert bytes(packet.lastlayer()) == bytes(Ether(captured[index % 3]).lastlayer())


def test_packets_of_an_ip_memif_have_no_ethernet_header() -> None:
    stream = Stream("IP()/UDP()", size=60, fields=["ipv4.src=10.0.0.1..10.0.0.9"])
    for index, data in enumerate(lane(stream, mode=Mode.IP, mark=True).packets(50)):
        assert IP(data).src == f"10.0.0.{1 + index % 9}"
        assert rebuilt(data, IP) == data


#: The fields of one packet that do not overlap, with the largest value of each.
RANGES = {
    "eth.src": 48,
    "vlan.id": 12,
    "vlan.priority": 3,
    "vlan.dei": 1,
    "ipv4.dscp": 6,
    "ipv4.ecn": 2,
    "ipv4.ttl": 8,
    "ipv4.src": 32,
    "udp.dst": 16,
    "@46:8": 64,
    "@54:5": 40,
    "@61:3": 24,
}


@st.composite
def varied(draw: st.DrawFn) -> Field:
    """A field with a range, a step and an order of any size, its edges among them."""
    name = draw(st.sampled_from(sorted(RANGES)))
    most = (1 << RANGES[name]) - 1
    ends = st.integers(0, most) | st.sampled_from([0, most, most - 1, most // 2])
    first, last = sorted((draw(ends), draw(ends)))
    step = draw(st.integers(1, 300) | st.integers(1, most + 5))
    return Field(name, first, last, step, draw(st.sampled_from(["increment", "decrement"])))


@given(st.lists(varied(), min_size=1, unique_by=lambda field: field.name), st.integers(88, 131), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_ranges_give_their_values_and_right_checksums(fields: list[Field], size: int, mark: bool) -> None:
    stream = Stream("Ether()/Dot1Q(prio=5)/IP()/UDP()", size=size, fields=fields)
    packets = lane(stream, mark=mark).packets(600)
    for index in (0, 1, 2, 255, 256, 257, 599):
        data = packets[index]
        assert rebuilt(data) == data
        for field in fields:
            first, last = field.range()
            count = (last - first) // field.step + 1
            number = index % count if field.order == "increment" else count - 1 - index % count
            place = field.place(layout_of(data, Mode.ETHERNET), data)
            assert place is not None
            begin, end = place.span
            value = int.from_bytes(data[begin:end], "big")
            if RANGES[field.name] < 8 * (end - begin):
                value = (value & place.own) >> place.shift
            assert value == first + number * field.step


@pytest.mark.parametrize(
    "fields",
    [
        ["ipv4.src=10.0.0.1..10.0.0.9", "@26:1=0..255"],
        ["@26:1=0..255", "ipv4.src=10.0.0.1..10.0.0.9"],
        ["ipv4.src=10.0.0.1", "ipv4.src=10.0.0.2"],
        ["vlan.id=1..2", "vlan.priority=1..2", "@15:1=1..2"],
        ["vlan.id=1..2", "vlan.dei=1", "vlan.dei=0"],
    ],
)
def test_fields_that_share_bits_are_refused_even_if_these_bits_are_always_the_same(fields: list[str]) -> None:
    packet = "Ether()/Dot1Q()/IP()/UDP()" if "vlan" in fields[0] else "Ether()/IP()/UDP()"
    with pytest.raises(ConfigError, match="vary the same bits"):
        Stream(packet, size=64, fields=fields).templates(Mode.ETHERNET, mark=False)


def test_fields_that_share_a_word_leave_each_other_and_the_rest_of_it_alone() -> None:
    stream = Stream(
        "Ether()/Dot1Q(prio=1, dei=1, vlan=7)/IP(tos=0xff)/UDP()",
        fields=["vlan.id=100..400", "vlan.priority=2..6", "ipv4.ecn=1,2"],
    )
    for index, data in enumerate(lane(stream).packets(1000)):
        packet = Ether(data)
        tag = packet[Dot1Q]
        assert (tag.prio, tag.dei, tag.vlan) == (2 + index % 5, 1, 100 + index % 301)
        assert packet[IP].tos == 0xFC | 1 + index % 2
    both = Stream(
        "Ether()/IPv6()/UDP()", fields=["ipv6.version=4..7", "ipv6.flow_label=9", "ipv6.traffic_class=0..255"]
    )
    for index, data in enumerate(lane(both).packets(1000)):
        word = (4 + index % 4) << 28 | index % 256 << 20 | 9
        assert data[14:18] == word.to_bytes(4, "big")
    header = Stream("Ether()/IP()/UDP()", fields=["ipv4.version=4,6", "ipv4.ihl=5..15"])
    assert [data[14] for data in lane(header).packets(12)] == [
        (64, 96)[index % 2] + 5 + index % 11 for index in range(12)
    ]


# --- the compiled writer --------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(
    importlib.util.find_spec("memifrt._packets") is None,
    reason="memifrt._packets is not compiled here: install memifrt where there is a C compiler",
)
MANY = [f"@{at}:1=0..250 random seed {at}" for at in range(50, 70)]


@compiled
@pytest.mark.parametrize("size", [160, (161, 500)], ids=str)
@pytest.mark.parametrize("name", [*CASES, "more fields than it takes"])
def test_readable_and_compiled_code_write_the_same(name: str, size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packet, fields = CASES.get(name, ("Ether()/IP()/UDP()", MANY))
    stream = Stream(packet, size=size, fields=fields)
    written = []

    def write_fields(*arguments: Any) -> bool:
        written.append(_packets.write_fields(*arguments))
        return written[-1]

    monkeypatch.setattr(prepare, "write_fields", write_fields)
    fast = lane(stream, start=7).packets(9000)
    assert set(written) == {name in CASES}
    monkeypatch.setattr(prepare, "write_fields", None)
    assert lane(stream, start=7).packets(9000) == fast


@compiled
@pytest.mark.parametrize(
    ("columns", "sums", "part"),
    [
        ([(np.zeros(9, np.uint32), 0, 4, 0, 0)], [], "there are fewer values than rows"),
        ([(np.zeros(10, np.uint16), 0, 2, 0, 0)], [], "the numbers have 2 bytes, not 8"),
        ([(np.zeros(10, np.uint32), 61, 4, 0, 0)], [], "a field of 4 bytes at 61 is not in rows of 64"),
        ([(np.zeros(10, np.uint64), 0, 9, 0, 0)], [], "a field of 9 bytes at 0 is not in rows of 64"),
        ([(np.zeros(10, np.uint32), -1, 4, 0, 0)], [], "a field of 4 bytes at -1 is not in rows of 64"),
        ([(np.zeros(10, np.uint32), 0, 4, 32, 0)], [], "a field of 4 bytes at 0 is not in rows of 64"),
        ([], [(63, 0, False, [])], "a checksum at 63 is not in rows of 64"),
        ([], [(10, np.zeros(9, np.uint32), False, [])], "there are fewer sums than rows"),
        ([], [(10, 0, False, [(0, 0, 65535, 0)])], "there is no field 0"),
    ],
)
def test_the_compiled_writer_refuses_what_is_not_in_the_rows(columns: Any, sums: Any, part: str) -> None:
    matrix = np.zeros((10, 64), np.uint8)
    with pytest.raises(ValueError, match=part):
        _packets.write_fields(matrix, columns, sums)
    assert not matrix.any()
    with pytest.raises(ValueError, match="the rows must be a matrix of bytes"):
        _packets.write_fields(np.zeros(64, np.uint8), columns, sums)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (["tcp.src=1..2"], "field tcp.src: the packet has no such bytes"),
        (["ipv4.src=1..900", "@28:2=1..2"], "the fields ipv4.src and @28:2 vary the same bits"),
        (["@300:2=1..2"], "field @300:2: the packet has no such bytes"),
    ],
)
def test_fields_that_the_packet_cannot_have_are_refused(fields: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        lane(Stream("Ether()/IP()/UDP()", size=100, fields=fields))
    assert part in str(error.value)


def test_a_field_in_the_mark_is_refused() -> None:
    stream = Stream("Ether()/IP()/UDP()", size=104, fields=["@90:2=1..2"])
    assert lane(stream)
    with pytest.raises(ConfigError, match="field @90:2: it is in the last 18 of 100 bytes"):
        lane(stream, mark=True)


def test_a_packet_without_room_for_the_mark_is_refused_with_the_size_that_has_room() -> None:
    stream = Stream("Ether()/IP()/TCP()", size=64)
    with pytest.raises(ConfigError, match="give it a size of at least 76"):
        stream.templates(Mode.ETHERNET, mark=True)
    assert stream.with_(size=76).templates(Mode.ETHERNET, mark=True)
    assert signature.SIZE == 18
