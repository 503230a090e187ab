"""Every function that reads the headers of packets, with headers that lie: nothing raises, and nothing lies in turn."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memifrt import Mode
from memifrt.capture.flows import flow_key
from memifrt.capture.lines import LinePrinter, LineStyle
from memifrt.capture.link_layer import LinkLayer, ethernet_to_ip
from memifrt.capture.rewrite import Rewriting, parse_maps
from memifrt.packets import checksum, parse_arp_reply, parse_echo_reply, parse_neighbour_advertisement, reply_in_place
from memifrt.packets.answering import reply
from memifrt.ports.offload import NotPossible, Offload, finished
from memifrt.switch.vlan import HEADER_BYTES, PortVlans, classify
from memifrt.traffic.layout import layout_of, resized, reversed_packet, with_checksums
from tests.lib.hostile import A4, A6, B4, B6, MACS, RIGHT, frame, hostile, ip4, ip6, protocols, tcp, udp

MAPS = parse_maps("192.168.0.0/16:172.16.0.0/12,[fe80::/16]:[fd00::/16]")
STYLES = [{}, {"link": True, "verbose": 2, "dump": "XX"}, {"quiet": True}]


def ip_checksum(packet: bytes) -> int:
    """0 if the transport checksum of a packet without options is right."""
    if packet[0] >> 4 == 4:
        return checksum(packet[12:20] + struct.pack("!HH", packet[9], len(packet) - 20) + packet[20:])
    return checksum(packet[8:40] + struct.pack("!II", len(packet) - 40, packet[6]) + packet[40:])


@given(st.one_of(hostile, protocols()))
def test_lines_are_printable(made: tuple[bytes, int]) -> None:
    data, start = made
    for style in STYLES:
        for link_type, packet in ((1, data), (101, data[start:]), (113, data), (276, data)):
            text = LinePrinter(LineStyle(**style)).text(packet, 0, len(packet), link_type)  # type: ignore[arg-type]
            assert all(sign.isprintable() or sign in "\n\t" for sign in text)


@given(hostile)
def test_a_flow_does_not_depend_on_padding(made: tuple[bytes, int]) -> None:
    data, start = made
    packet = ethernet_to_ip(data)
    key = flow_key(data, Mode.ETHERNET)
    if packet is None:
        assert key is None or len(data) <= start
        return
    assert flow_key(packet, Mode.IP) == flow_key(packet + b"\xff" * 46, Mode.IP) or not lengths(packet)
    assert (key is None) == (flow_key(packet, Mode.IP) is None)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x44" + ip4(17, udp(A4 + B4))[1:],  # ports inside the header
        ip4(17, udp(A4 + B4)[:2]) + b"padding",  # ports in the padding
        ip6(17, udp(A6 + B6)[:2]) + b"padding",
        ip6(60, b"\x11\0\1\4") + bytes(4) + udp(A6 + B6),
    ],
)
def test_a_packet_without_its_ports_is_of_no_flow(packet: bytes) -> None:
    assert flow_key(packet, Mode.IP) is None


def test_a_packet_that_is_not_what_its_frame_says_is_no_packet() -> None:
    for kind, packet in ((0x86DD, ip4(17, udp(A4 + B4))), (0x0800, ip6(17, udp(A6 + B6)))):
        assert ethernet_to_ip(frame(kind, packet)) is None
        assert flow_key(frame(kind, packet), Mode.ETHERNET) is None


def lengths(packet: bytes) -> bool:
    """Whether the IP header says where the packet ends, which is within its bytes."""
    if packet[0] >> 4 == 4 and len(packet) >= 20:
        return 20 <= int.from_bytes(packet[2:4], "big") <= len(packet)
    return len(packet) >= 40 and 0 < int.from_bytes(packet[4:6], "big") <= len(packet) - 40


@given(hostile)
def test_an_ip_packet_is_a_part_of_its_frame(made: tuple[bytes, int]) -> None:
    data, _ = made
    packet = ethernet_to_ip(data)
    if packet is not None:
        assert packet in data
        assert packet[0] >> 4 in (4, 6)
    for mode in (Mode.ETHERNET, Mode.IP):
        for link_type in (1, 101, 113, 276, 0):
            convert = LinkLayer(mode, convert=True).conversion(link_type)
            assert convert is None or isinstance(convert(data), bytes | None)


@given(hostile)
@example((frame(0x0800, ip4(17, udp(A4 + B4)[:4]) + b"\xff" * 22), 14))
@example((frame(0x86DD, ip6(17, udp(A6 + B6)[:4]) + b"\xff" * 22), 14))
@example((frame(0x86DD, ip6(60, b"\x11\0\1\4\0\0\0\0") + udp(A6 + B6)), 14))
def test_rewriting_changes_addresses_and_checksums_alone(made: tuple[bytes, int]) -> None:
    data, _ = made
    edit = Rewriting(sources=MAPS, targets=MAPS).edit(Mode.ETHERNET)
    assert edit is not None
    changed = edit(data)
    assert len(changed) == len(data)
    assert edit(changed) == changed, "the new addresses are in none of the maps"
    differing = [at for at in range(len(data)) if data[at] != changed[at]]
    packet = ethernet_to_ip(data)
    if packet is None or not lengths(packet):
        return
    end = data.index(packet) + len(packet)
    assert all(at < end for at in differing), "padding is left alone"


@pytest.mark.parametrize("number", range(len(RIGHT)))
def test_a_checksum_stays_right_when_addresses_are_rewritten(number: int) -> None:
    kind, packet = RIGHT[number]
    edit = Rewriting(sources=MAPS, targets=MAPS).edit(Mode.IP)
    assert edit is not None
    if kind == 0x0806:
        return
    before, after = layout_of(packet, Mode.IP), edit(packet)
    assert after != packet
    assert layout_of(after, Mode.IP) == before
    for made in (packet, after, reversed_packet(packet, Mode.IP)):
        assert with_checksums(made, Mode.IP) == made


@given(hostile, st.sampled_from([A4, B4, A6, B6]), st.sampled_from([Mode.ETHERNET, Mode.IP]))
def test_a_reply_is_the_same_compiled_and_in_python(made: tuple[bytes, int], ip: bytes, mode: Mode) -> None:
    data, start = made
    data = data if mode is Mode.ETHERNET else data[start:]
    compiled, readable = bytearray(data), bytearray(data)
    answered = reply_in_place(memoryview(compiled), ip, MACS[:6], mode=mode)
    assert answered == reply(memoryview(readable), ip, MACS[:6], mode, True)
    assert compiled == readable
    assert answered or compiled == data
    for parsed in (parse_arp_reply(data), parse_neighbour_advertisement(data)):
        assert parsed is None or len(parsed[1]) == 6
    echo = parse_echo_reply(data, mode, any_checksum=True)
    assert echo is None or len(echo.payload) <= len(data)


@pytest.mark.parametrize("source", ["00000000", "e0000001", "efffffff", "ffffffff"])
@pytest.mark.parametrize("options", [b"", b"\1\1\1\0"])
def test_an_echo_request_from_nobody_is_not_answered(source: str, options: bytes) -> None:
    packet = bytearray(ip4(1, RIGHT[2][1][20:], options))
    data = bytearray(frame(0x0800, bytes(packet)))
    assert reply_in_place(memoryview(data), B4, MACS[:6])
    packet[12:16] = bytes.fromhex(source)
    data = bytearray(frame(0x0800, bytes(packet)))
    assert not reply_in_place(memoryview(data), B4, MACS[:6])
    assert not reply(memoryview(packet), B4, b"", Mode.IP, True)


@given(hostile)
def test_a_layout_is_within_the_packet(made: tuple[bytes, int]) -> None:
    data, start = made
    for mode, packet in ((Mode.ETHERNET, data), (Mode.IP, data[start:])):
        layout = layout_of(packet, mode)
        assert 0 <= layout.payload <= layout.end <= len(packet)
        assert all(0 <= begin <= end <= len(packet) for each in layout.checksums for begin, end in each.covers)
        assert all(each.at + 2 <= layout.end for each in layout.checksums)
        assert len(with_checksums(packet, mode)) == len(packet)
        assert len(resized(packet, len(packet) + 10, mode)) == len(packet) + 10


@given(
    hostile,
    st.booleans(),
    st.sampled_from([0, 1, 4, 5, 0x81, 3]),
    st.sampled_from([0, 1, 5, 1400, 65535]),
    st.integers(0, 80),
    st.sampled_from([6, 16, 65535]),
    st.sampled_from([None, 0, 14, 200]),
)
def test_work_of_a_card_is_done_right_or_refused(
    made: tuple[bytes, int], sums: bool, kind: int, size: int, start: int, offset: int, network: int | None
) -> None:
    data, _ = made
    try:
        frames = finished(data, Offload(sums, kind & 0x7F, size, start, offset), network)
    except NotPossible:
        return
    assert frames
    for each in frames if kind else []:
        at = network if network is not None else len(each) - len(ethernet_to_ip(each) or b"")
        packet = each[at:]
        if packet[0] >> 4 == 4:
            assert int.from_bytes(packet[2:4], "big") == len(packet)
            assert checksum(packet[: (packet[0] & 0xF) * 4]) == 0
        else:
            assert int.from_bytes(packet[4:6], "big") == len(packet) - 40


@pytest.mark.parametrize(
    ("packet", "kind", "size"),
    [
        (ip4(6, tcp(A4 + B4)), 4, 5),  # the card would have to know the other version
        (ip6(6, tcp(A6 + B6)), 1, 5),
        (b"\x44" + ip4(6, tcp(A4 + B4))[1:], 1, 5),  # the header ends before the addresses do
        (ip6(6, tcp(A6 + B6) + bytes(65_000)) + bytes(5000), 4, 65535),  # no length field can tell it
    ],
    ids=["IPv4 as IPv6", "IPv6 as IPv4", "short header", "long segments"],
)
def test_work_that_does_not_fit_its_frame_is_refused(packet: bytes, kind: int, size: int) -> None:
    with pytest.raises(NotPossible):
        finished(packet, Offload(True, kind, size, 20 if packet[0] >> 4 == 4 else 40, 16), 0)


def test_a_frame_to_cut_that_has_no_payload_stays_one() -> None:
    packet = ip4(6, tcp(A4 + B4)[:24])
    (made,) = finished(packet, Offload(True, 1, 5, 20, 16), 0)
    assert len(made) == len(packet)
    assert ip_checksum(made) == 0


@given(hostile)
def test_a_vlan_is_told_from_any_header(made: tuple[bytes, int]) -> None:
    data, _ = made
    for vlans in (PortVlans(5, frozenset()), PortVlans(0, frozenset({5, 7}))):
        found = classify(vlans, data[:HEADER_BYTES])
        assert 0 <= found.vlan < 4096
        assert found.cut in (0, 4)
