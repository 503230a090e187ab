"""Rewriting of addresses and tags: what it changes, what it leaves, and that checksums stay as right as they were."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.work import Counted
from memifrt import ConfigError, Mode
from memifrt.capture.flows import Flows, flow_key
from memifrt.capture.rewrite import Edit, Rewriting, parse_mac_pair, parse_maps
from memifrt.packets import checksum, parse_mac
from tests.capture.test_lines import A4, A6, ARP, B4, B6, ETHER, ETHERNET, icmp, ip4, ip6, summed, tcp, udp

OLD, NEW = parse_mac("02:fe:00:00:00:01"), parse_mac("02:00:00:00:00:99")
TEN = bytes((10, 9, 1, 1)), bytes((10, 9, 1, 2))
FD = bytes.fromhex("fd00") + bytes(13) + b"\1", bytes.fromhex("fd00") + bytes(13) + b"\2"
BOTH = parse_maps("192.168.0.0/16:10.9.0.0/16,[fe80::/16]:[fd00::/16]")


def edit(rewriting: Rewriting, mode: Mode = Mode.ETHERNET) -> Edit:
    made = rewriting.edit(mode)
    assert made is not None
    return made


PNAT = edit(Rewriting(sources=BOTH, targets=BOTH))


def right(frame: bytes) -> bool:
    """Whether all checksums of a frame without VLAN tags and extension headers are right."""
    data = frame[14:]
    if data[0] >> 4 == 6:
        protocol, length, addresses, header = data[6], struct.unpack_from("!H", data, 4)[0], data[8:40], 40
    else:
        header = (data[0] & 0xF) * 4
        protocol, length, addresses = data[9], struct.unpack_from("!H", data, 2)[0] - header, data[12:20]
        if checksum(data[:header]):
            return False
    payload = data[header : header + length]
    pseudo = b"" if protocol == 1 else addresses + struct.pack("!II", length, protocol)
    return checksum(pseudo + payload) == 0


RIGHT: dict[str, bytes] = {
    "tcp": ip4(6, tcp(0x18, b"hello")),
    "udp": ip4(17, udp(b"odd")),
    "options": ip4(17, udp(b"data"), options=b"\1\1\0\0"),
    "icmp": ip4(1, icmp(8, 0, b"\0\1\0\2data")),
    "tcp6": ip6(6, tcp(2, addresses=A6 + B6)),
    "udp6": ip6(17, udp(b"data", A6 + B6)),
    "icmp6": ip6(58, summed(58, b"\x80\0\0\0\0\3\0\4data", 2, A6 + B6)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_addresses_are_moved_and_checksums_stay_right(name: str) -> None:
    frame = RIGHT[name]
    assert right(frame)
    made = PNAT(frame)
    four = made[12:14] == b"\x08\0"
    assert made[26:34] == b"".join(TEN) if four else made[22:54] == b"".join(FD)
    assert len(made) == len(frame)
    assert right(made)
    back = parse_maps("10.9.0.0/16:192.168.0.0/16,[fd00::/16]:[fe80::/16]")
    assert edit(Rewriting(sources=back, targets=back))(made) == frame


@given(st.binary(min_size=4, max_size=4), st.integers(0, 32), st.binary(max_size=40), st.booleans())
def test_any_map_keeps_checksums_right(network: bytes, prefix: int, payload: bytes, is_udp: bool) -> None:
    dotted = ".".join(map(str, network))
    maps = parse_maps(f"0.0.0.0/0:{dotted}/{prefix}")
    frame = ip4(17, udp(payload)) if is_udp else ip4(6, tcp(0x10, payload))
    made = edit(Rewriting(sources=maps))(frame)
    assert right(made)
    assert made[30:34] == B4
    kept = (1 << 32 - prefix) - 1
    source = int.from_bytes(made[26:30], "big")
    assert source & kept == int.from_bytes(A4, "big") & kept
    assert source & ~kept == int.from_bytes(network, "big") & ~kept


def test_a_wrong_checksum_stays_wrong() -> None:
    frame = ip4(6, tcp(0x10, b"x"), bad=True)
    assert checksum(PNAT(frame)[14:34]) == checksum(frame[14:34]) != 0


def test_udp_without_a_checksum_gets_none_and_one_that_becomes_zero_is_all_ones() -> None:
    none = ip4(17, struct.pack("!HHHH", 5000, 5001, 12, 0) + b"data")
    assert PNAT(none)[40:42] == b"\0\0"
    base = ip4(17, udp(b"\0\0"))
    bare = ip4(17, udp(b"\0\0"))
    sum_after = struct.unpack_from("!H", PNAT(bare), 40)[0]
    payload = struct.pack("!H", sum_after)  # adds to the sum just what makes the checksum zero
    made = PNAT(ip4(17, udp(payload)))
    assert base != made
    assert made[40:42] == b"\xff\xff"
    assert right(made)


def test_source_and_target_are_mapped_each_for_itself() -> None:
    source = edit(Rewriting(sources=BOTH))(RIGHT["tcp"])
    target = edit(Rewriting(targets=BOTH))(RIGHT["tcp"])
    assert (source[26:34], target[26:34]) == (TEN[0] + B4, A4 + TEN[1])
    assert right(source)
    assert right(target)


def test_the_first_map_that_matches_is_used() -> None:
    maps = parse_maps("192.168.1.1/32:1.1.1.1/32,192.168.0.0/16:2.2.0.0/16")
    made = edit(Rewriting(sources=maps, targets=maps))(RIGHT["udp"])
    assert made[26:34] == bytes((1, 1, 1, 1, 2, 2, 1, 2))


def test_arp_is_mapped_too() -> None:
    frame = ARP + b"\0\1" + ETHER[6:] + A4 + bytes(6) + B4
    made = PNAT(frame)
    assert (made[28:32], made[38:42]) == TEN
    assert edit(Rewriting(sources=BOTH))(frame)[38:42] == B4


def test_only_the_first_fragment_has_a_checksum_to_update() -> None:
    whole = udp(b"d" * 32)
    first, rest = ip4(17, whole[:24], 0x2000), ip4(17, whole[24:], 3)
    made = PNAT(first)[34:] + PNAT(rest)[34:]
    assert checksum(b"".join(TEN) + struct.pack("!II", len(made), 17) + made) == 0
    assert PNAT(rest)[34:] == whole[24:]
    six = udp(b"d" * 32, A6 + B6)
    parts = [ip6(44, struct.pack("!BBHI", 17, 0, at, 9) + six[at & ~7 : end]) for at, end in ((1, 24), (24, 40))]
    made = b"".join(PNAT(part)[62:] for part in parts)
    assert checksum(b"".join(FD) + struct.pack("!II", len(made), 17) + made) == 0


def test_extension_headers_are_passed_and_a_packet_to_be_routed_keeps_its_final_address() -> None:
    payload = udp(b"data", A6 + B6)
    options = ip6(0, b"\x3c\0" + bytes(6) + b"\x11\0" + bytes(6) + payload)
    assert checksum(b"".join(FD) + struct.pack("!II", len(payload), 17) + PNAT(options)[70:]) == 0
    routed = PNAT(ip6(43, b"\x11\0\2\1" + bytes(4) + payload))
    assert checksum(FD[0] + B6 + struct.pack("!II", len(payload), 17) + routed[62:]) == 0


def test_vlan_tags_are_passed_added_and_deleted() -> None:
    tagged = ETHER + bytes.fromhex("88a8 0007 8100 1005") + RIGHT["udp"][12:]
    made = PNAT(tagged)
    assert made[34:42] == b"".join(TEN)
    add = edit(Rewriting(vlan="add", vlan_id=5, vlan_priority=3, vlan_cfi=1))
    assert add(RIGHT["udp"]) == ETHER + b"\x81\0\x70\5" + RIGHT["udp"][12:]
    assert add(tagged)[12:20] == b"\x81\0\x70\5\x88\xa8\0\7"
    assert edit(Rewriting(vlan="add", vlan_id=0, vlan_protocol="802.1ad"))(tagged)[12:16] == b"\x88\xa8\0\0"
    delete = edit(Rewriting(vlan="del"))
    assert delete(tagged) == ETHER + tagged[16:]
    assert delete(delete(tagged)) == RIGHT["udp"] == delete(RIGHT["udp"])


def test_mac_addresses_are_set_and_replaced() -> None:
    frame = RIGHT["udp"]
    assert edit(Rewriting(target_mac=NEW))(frame) == NEW + frame[6:]
    assert edit(Rewriting(source_mac=NEW))(frame) == frame[:6] + NEW + frame[12:]
    pair = Rewriting(mac_pairs=(parse_mac_pair("02:fe:00:00:00:01,02:00:00:00:00:99"),))
    assert edit(pair)(frame) == frame[:6] + NEW + frame[12:]
    assert edit(pair)(OLD + frame[6:])[:12] == NEW + NEW
    other = Rewriting(mac_pairs=((NEW, OLD),))
    assert edit(other)(frame) == frame


def test_ip_packets_are_rewritten_in_mode_ip_and_mac_addresses_are_an_error() -> None:
    packet = edit(Rewriting(sources=BOTH), Mode.IP)(RIGHT["udp"][14:])
    assert packet[12:16] == TEN[0]
    assert Rewriting().edit(Mode.IP) is None is Rewriting().edit(Mode.ETHERNET)
    with pytest.raises(ConfigError, match="a memif in mode ip carries none"):
        Rewriting(source_mac=NEW).edit(Mode.IP)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: parse_maps("10.0.0.0/8"), "'10.0.0.0/8' is not a map of networks"),
        (lambda: parse_maps("10.0.0.0/8:11.0.0.0/33"), "is not a map of networks"),
        (lambda: parse_maps("10.0.0.0/8:11.0.0.0/8,"), "'' is not a map"),
        (lambda: parse_maps("fe80::/16:fd00::/16"), "is not a map"),
        (lambda: parse_maps("[fe80::/16]:[10.0.0.0/8]"), "maps IPv6 to IPv4"),
        (lambda: parse_mac_pair("02:00:00:00:00:01"), "must be two MAC addresses, OLD,NEW"),
        (lambda: Rewriting(vlan="add"), "--enet-vlan=add needs the number"),
        (lambda: Rewriting(vlan="del", vlan_id=1), "--enet-vlan-tag describes the tag to add"),
        (lambda: Rewriting(vlan_priority=0), "--enet-vlan-pri describes the tag to add"),
        (lambda: Rewriting(vlan="del", vlan_cfi=0), "--enet-vlan-cfi describes the tag to add"),
        (lambda: Rewriting(vlan_protocol="802.1ad"), "--enet-vlan-proto describes the tag to add"),
    ],
)
def test_what_makes_no_sense_is_said(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    assert words in str(error.value)


def test_bits_behind_the_prefix_are_ignored() -> None:
    assert parse_maps("10.1.2.3/8:11.9.9.9/8") == parse_maps("10.0.0.0/8:11.0.0.0/8")


@given(st.binary(max_size=90), st.integers(0, len(ETHERNET) - 1), st.integers(0, 90))
def test_no_packet_makes_a_rewriting_or_a_flow_raise(garbage: bytes, which: int, at: int) -> None:
    everything = Rewriting(NEW, NEW, ((OLD, NEW),), "add", 5, sources=BOTH, targets=BOTH)
    start = ETHERNET[which]
    for data in (garbage, start[:at], start[:at] + garbage + start[at + len(garbage) :]):
        assert len(edit(everything)(data)) in (len(data), len(data) + 4)
        assert len(edit(Rewriting(sources=BOTH), Mode.IP)(data)) == len(data)
        flow_key(data, Mode.ETHERNET)
        flow_key(data, Mode.IP)


@pytest.mark.parametrize("packet", [ETHER + bytes.fromhex("8100 0001") * 16000, ip6(0, bytes(65520))])
def test_thousands_of_headers_are_walked_and_not_copied(packet: bytes) -> None:
    Counted.copied = 0
    PNAT(Counted(packet))
    flow_key(Counted(packet), Mode.ETHERNET)
    assert Counted.copied < 2 * len(packet) + 1024


# --- flows ----------------------------------------------------------------------------------------------------------


def test_flows_are_counted_by_addresses_protocol_ports_and_vlan() -> None:
    flows = Flows()
    tagged = ETHER + bytes.fromhex("8100 0005") + RIGHT["udp"][12:]
    for frame in (
        RIGHT["udp"],
        ip4(17, udp(b"other payload")),
        RIGHT["tcp"],
        RIGHT["udp6"],
        tagged,
        PNAT(RIGHT["udp"]),
    ):
        flows.add(frame)
    for frame in (ARP + bytes(22), b"", RIGHT["udp"][:36]):
        flows.add(frame)
    assert (flows.count, flows.packets, flows.others) == (5, 6, 3)
    assert flows.line(2.0) == "5 flows, 2.50 flows/s, 6 packets of flows, 3 other packets"


@pytest.mark.parametrize("words", range(5))
def test_an_ipv4_header_that_ends_before_its_addresses_is_left_alone(words: int) -> None:
    frame = bytearray(RIGHT["udp"])
    assert PNAT(bytes(frame)) != frame
    frame[14] = 0x40 | words
    assert PNAT(bytes(frame)) == frame


def test_flows_of_ip_packets() -> None:
    flows = Flows(Mode.IP)
    for frame in (RIGHT["icmp"], RIGHT["icmp"], RIGHT["icmp6"], ip4(17, b"fragment", 5)):
        flows.add(frame[14:])
    assert (flows.count, flows.packets, flows.others) == (3, 4, 0)


def test_the_number_of_flows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memifrt.capture.flows._MOST", 2)
    flows = Flows()
    for name in ("udp", "tcp", "udp6"):
        flows.add(RIGHT[name])
    assert flows.line(1.0).startswith("2 or more flows, ")
