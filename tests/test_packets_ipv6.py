"""ICMPv6 echo and neighbour discovery: what is answered, what is not, and that no bytes whatever raise.

scapy, which builds the same packets in its own way, says what is right.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memifrt import ConfigError, Mode
from memifrt.packets import (
    MAX_PAYLOAD_IPV6,
    EchoReply,
    checksum,
    echo_request,
    neighbour_solicitation,
    parse_arp_reply,
    parse_echo_reply,
    parse_ip,
    parse_mac,
    parse_neighbour_advertisement,
    reply,
    reply_in_place,
)

ASKER, ASKER_MAC = parse_ip("2001:db8::1"), parse_mac("02:fe:00:00:00:01")
OURS, OUR_MAC = parse_ip("2001:db8::aa:bbcc"), parse_mac("02:fe:00:00:00:02")
GROUP, GROUP_MAC = parse_ip("ff02::1:ffaa:bbcc"), parse_mac("33:33:ff:aa:bb:cc")
NOBODY, ALL_NODES, ALL_NODES_MAC = bytes(16), parse_ip("ff02::1"), parse_mac("33:33:00:00:00:01")
OUR_IPV4 = parse_ip("192.168.1.2")
ETHERNET, IPV6, ICMP = 14, 40, 8
HOP_BY_HOP, ROUTING, FRAGMENT, NONE, DESTINATION = 0, 43, 44, 59, 60

modes = pytest.mark.parametrize("mode", [Mode.ETHERNET, Mode.IP])
u16 = st.integers(0, 0xFFFF)


def request(
    payload: bytes = b"payload", *, mode: Mode = Mode.ETHERNET, identifier: int = 7, sequence: int = 9
) -> bytearray:
    return bytearray(
        echo_request(
            source_mac=ASKER_MAC,
            source_ip=ASKER,
            target_mac=OUR_MAC,
            target_ip=OURS,
            identifier=identifier,
            sequence=sequence,
            payload=payload,
            mode=mode,
        )
    )


def answered(packet: bytearray, *, ip: bytes = OURS, mode: Mode = Mode.ETHERNET, icmp: bool = True) -> bool:
    """Whether it is answered; what is not must stay as it is. The compiled function does what the readable one does."""
    before, size, readable = bytes(packet), len(packet), bytearray(packet)
    result = reply_in_place(memoryview(packet), ip, OUR_MAC, mode=mode, icmp=icmp)
    assert type(result) is bool
    assert len(packet) == size
    assert result or packet == before
    assert reply(memoryview(readable), ip, OUR_MAC, mode, icmp) == result
    assert packet == readable
    return result


def sum_of(ip: bytes | bytearray) -> int:
    """The checksum over the message of an IPv6 packet without extension headers: 0 if it is right."""
    message = ip[IPV6:]
    return checksum(bytes(ip[8:40]) + struct.pack("!II", len(message), 58) + message)


def with_extensions(packet: bytearray, *headers: tuple[int, bytes]) -> bytearray:
    """The IP packet with these extension headers: the type of each and what follows its first byte."""
    whole, following = packet[IPV6:], packet[6]
    for kind, rest in reversed(headers):
        whole = bytearray([following]) + rest + whole
        following = kind
    return packet[:4] + len(whole).to_bytes(2, "big") + bytes([following]) + packet[7:IPV6] + whole


def options(*content: int) -> bytes:
    """What follows the first byte of a header of options, filled up to 8, 16, … bytes."""
    data = bytes(content)
    padding = -(len(data) + 2) % 8
    data += b"" if padding == 0 else b"\0" if padding == 1 else bytes([1, padding - 2]) + bytes(padding - 2)
    return bytes([(len(data) + 2) // 8 - 1]) + data


# --- echo -----------------------------------------------------------------------------------------------------------


@modes
@given(payload=st.binary(max_size=200), identifier=u16, sequence=u16, hop_limit=st.integers(0, 255))
@example(payload=b"", identifier=0, sequence=0, hop_limit=64)
def test_echo_request_becomes_its_reply_with_a_right_checksum(
    mode: Mode, payload: bytes, identifier: int, sequence: int, hop_limit: int
) -> None:
    link = 0 if mode is Mode.IP else ETHERNET
    packet = request(payload, mode=mode, identifier=identifier, sequence=sequence)
    packet[link + 7] = hop_limit
    assert answered(packet, mode=mode)
    if mode is Mode.ETHERNET:
        assert packet[:ETHERNET] == ASKER_MAC + OUR_MAC + b"\x86\xdd"
    ip = bytes(packet[link:])
    assert ip[7:40] == bytes([64]) + OURS + ASKER
    assert sum_of(ip) == 0
    assert ip[42:44] != b"\xff\xff"
    assert parse_echo_reply(packet, mode) == EchoReply(OURS, identifier, sequence, 64, payload)


@given(st.integers(0, 0xFFFE))
def test_every_checksum_of_a_request_becomes_that_of_its_reply(wanted: int) -> None:
    packet = request(b"\0\0", mode=Mode.IP)
    at = IPV6 + ICMP
    now = int.from_bytes(packet[IPV6 + 2 : IPV6 + 4], "big")
    packet[at : at + 2] = ((now - wanted) % 0xFFFF).to_bytes(2, "big")
    packet[IPV6 + 2 : IPV6 + 4] = wanted.to_bytes(2, "big")
    assert sum_of(packet) == 0
    assert answered(packet, mode=Mode.IP)
    assert sum_of(packet) == 0
    frame = bytearray(ASKER_MAC + OUR_MAC + b"\x86\xdd") + request(b"", mode=Mode.IP)
    frame[56:58] = wanted.to_bytes(2, "big")
    assert answered(frame)  # by the compiled function, which computes in its own way


def test_request_and_reply_are_those_of_scapy() -> None:
    s: Any = pytest.importorskip("scapy.all")
    link = s.Ether(dst="02:fe:00:00:00:02", src="02:fe:00:00:00:01")
    ip = s.IPv6(src="2001:db8::1", dst="2001:db8::aa:bbcc")
    assert request() == bytes(link / ip / s.ICMPv6EchoRequest(id=7, seq=9, data=b"payload"))
    packet = request()
    assert answered(packet)
    back = s.IPv6(dst="2001:db8::1", src="2001:db8::aa:bbcc") / s.ICMPv6EchoReply(id=7, seq=9, data=b"payload")
    assert packet == bytes(s.Ether(src="02:fe:00:00:00:02", dst="02:fe:00:00:00:01") / back)


@modes
def test_reply_to_the_longest_request_parses(mode: Mode) -> None:
    packet = request(bytes(MAX_PAYLOAD_IPV6), mode=mode)
    assert answered(packet, mode=mode)
    told = parse_echo_reply(packet, mode)
    assert told is not None
    assert told.payload == bytes(MAX_PAYLOAD_IPV6)


def test_payload_that_no_ipv6_packet_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"65528.*65527"):
        request(bytes(MAX_PAYLOAD_IPV6 + 1))


def test_addresses_of_two_protocols_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 bytes to one of 16"):
        echo_request(
            source_mac=ASKER_MAC, source_ip=OUR_IPV4, target_mac=OUR_MAC, target_ip=OURS, identifier=1, sequence=1,
            payload=b"",
        )  # fmt: skip
    with pytest.raises(ConfigError, match="is not an IPv6 address"):
        neighbour_solicitation(ASKER_MAC, OUR_IPV4, OURS)


@given(st.binary(max_size=40))
def test_padding_behind_the_packet_is_not_payload(padding: bytes) -> None:
    packet = request(b"x") + padding
    assert answered(packet)
    told = parse_echo_reply(packet)
    assert told is not None
    assert told.payload == b"x"
    assert packet[len(packet) - len(padding) :] == padding


@given(u16.filter(lambda flip: flip not in (0, 0xFFFF)))
def test_wrong_checksum_of_a_request_stays_wrong_in_the_reply(flip: int) -> None:
    packet = request()
    broken = int.from_bytes(packet[56:58], "big") ^ flip
    packet[56:58] = broken.to_bytes(2, "big")
    assert answered(packet)
    assert parse_echo_reply(packet) is None
    told = parse_echo_reply(packet, any_checksum=True)
    assert told is not None
    assert not told.checksum_is_right


WRONG_FIELDS = {
    "ethertype": (12, b"\x08\x00"),
    "asker is a group": (6, b"\x01"),
    "IP version": (ETHERNET, b"\x45"),
    "payload longer than the packet": (ETHERNET + 4, b"\xff\xff"),
    "payload shorter than the header": (ETHERNET + 4, b"\x00\x07"),
    "no payload, or a jumbogram": (ETHERNET + 4, b"\x00\x00"),
    "next header": (ETHERNET + 6, b"\x11"),
    "source is a group": (ETHERNET + 8, b"\xff"),
    "source is unspecified": (ETHERNET + 8, NOBODY),
    "another address": (ETHERNET + 24, b"\x0a"),
    "ICMP type": (ETHERNET + IPV6, b"\x81"),
    "ICMP code": (ETHERNET + IPV6 + 1, b"\x01"),
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_request_with_a_wrong_field_is_not_answered(field: str) -> None:
    at, value = WRONG_FIELDS[field]
    packet = request()
    packet[at : at + len(value)] = value
    assert not answered(packet)
    if at >= ETHERNET:
        assert not answered(packet[ETHERNET:], mode=Mode.IP)


@modes
def test_truncated_request_is_neither_answered_nor_parsed(mode: Mode) -> None:
    whole, told = request(mode=mode), request(mode=mode)
    assert answered(told, mode=mode)
    for size in range(len(whole)):
        assert not answered(whole[:size], mode=mode)
        assert parse_echo_reply(told[:size], mode) is None


def test_each_address_and_mode_answers_its_own_packets_alone() -> None:
    assert not answered(request(mode=Mode.IP))
    assert not answered(request(), mode=Mode.IP)
    assert not answered(request(), mode=Mode.PUNT_INJECT)
    assert not answered(request(), ip=OUR_IPV4)
    assert not answered(request(mode=Mode.IP), ip=OUR_IPV4, mode=Mode.IP)
    assert not answered(bytearray(neighbour_solicitation(ASKER_MAC, ASKER, OURS)), mode=Mode.IP)


def test_without_icmp_solicitations_alone_are_answered() -> None:
    assert not answered(request(), icmp=False)
    assert not answered(request(mode=Mode.IP), mode=Mode.IP, icmp=False)
    assert answered(bytearray(neighbour_solicitation(ASKER_MAC, ASKER, OURS)), icmp=False)


# --- extension headers ----------------------------------------------------------------------------------------------

SKIPPED = {
    "hop-by-hop of padding": [(HOP_BY_HOP, options())],
    "router alert": [(HOP_BY_HOP, options(5, 2, 0, 0))],
    "Pad1 alone": [(HOP_BY_HOP, options(0, 0, 0, 0, 0, 0))],
    "both": [(HOP_BY_HOP, options()), (DESTINATION, options(*[1, 20, *range(20)]))],
    "as many as are read": [(DESTINATION, options())] * 32,
}
IGNORED = {
    "an option that must be known": [(DESTINATION, options(0xC9, 16, *range(16)))],
    "a jumbogram": [(HOP_BY_HOP, options(0xC2, 4, 0, 1, 0, 0))],
    "an option longer than the header": [(HOP_BY_HOP, bytes([0, 1, 5, 0, 0, 0, 0]))],
    "an option without a length": [(HOP_BY_HOP, bytes([0, 1, 3, 0, 0, 0, 1]))],
    "a header longer than the packet": [(HOP_BY_HOP, bytes([255, 1, 4, 0, 0, 0, 0]))],
    "routing": [(ROUTING, bytes([0, 0, 1, 0, 0, 0, 0]))],
    "a fragment": [(FRAGMENT, bytes([0, 0, 1, 0, 0, 0, 1]))],
    "no next header": [(NONE, options())],
    "too many": [(DESTINATION, options())] * 33,
    "too long": [(DESTINATION, options(1, 254, *bytes(254))), (DESTINATION, options())],
}


@modes
@pytest.mark.parametrize("case", SKIPPED)
def test_options_that_a_host_may_ignore_are_skipped(case: str, mode: Mode) -> None:
    link = bytes(request()[:ETHERNET]) if mode is Mode.ETHERNET else b""
    packet = bytearray(link + with_extensions(request(mode=Mode.IP), *SKIPPED[case]))
    assert answered(packet, mode=mode)
    told = parse_echo_reply(packet, mode)
    assert told == EchoReply(OURS, 7, 9, 64, b"payload")


@modes
@pytest.mark.parametrize("case", IGNORED)
def test_packets_with_other_extension_headers_are_ignored(case: str, mode: Mode) -> None:
    link = bytes(request()[:ETHERNET]) if mode is Mode.ETHERNET else b""
    assert not answered(bytearray(link + with_extensions(request(mode=Mode.IP), *IGNORED[case])), mode=mode)
    told = request(mode=Mode.IP)
    assert answered(told, mode=Mode.IP)
    assert parse_echo_reply(link + with_extensions(told, *IGNORED[case]), mode) is None


# --- neighbour discovery --------------------------------------------------------------------------------------------


def solicitation(
    source: bytes = ASKER, target: bytes = GROUP, wanted: bytes = OURS, tail: bytes | None = None
) -> bytearray:
    """A solicitation with a right checksum, whatever else is wrong; ``tail`` are its options."""
    tail = b"\1\1" + ASKER_MAC if tail is None else tail
    message = bytes([135, 0, 0, 0, 0, 0, 0, 0]) + wanted + tail
    ip = struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + source + target + message
    return summed(bytearray(GROUP_MAC + ASKER_MAC + b"\x86\xdd" + ip))


def summed(frame: bytearray) -> bytearray:
    frame[56:58] = bytes(2)
    frame[56:58] = sum_of(bytes(frame[ETHERNET:])).to_bytes(2, "big")
    return frame


def test_solicitation_is_what_the_rfc_says() -> None:
    frame = neighbour_solicitation(ASKER_MAC, ASKER, OURS)
    assert frame == solicitation()
    s: Any = pytest.importorskip("scapy.all")
    asked = s.ICMPv6ND_NS(tgt="2001:db8::aa:bbcc") / s.ICMPv6NDOptSrcLLAddr(lladdr="02:fe:00:00:00:01")
    ip = s.IPv6(src="2001:db8::1", dst="ff02::1:ffaa:bbcc", hlim=255)
    assert frame == bytes(s.Ether(dst="33:33:ff:aa:bb:cc", src="02:fe:00:00:00:01") / ip / asked)


@given(st.binary(max_size=30), st.sampled_from([GROUP, OURS]))
def test_solicitation_becomes_the_advertisement(padding: bytes, target: bytes) -> None:
    packet = solicitation(target=target) + padding
    assert answered(packet)
    assert parse_neighbour_advertisement(packet) == (OURS, OUR_MAC)
    assert packet[:ETHERNET] == ASKER_MAC + OUR_MAC + b"\x86\xdd"
    assert packet[len(packet) - len(padding) :] == padding
    s: Any = pytest.importorskip("scapy.all")
    told = s.ICMPv6ND_NA(R=0, S=1, O=1, tgt="2001:db8::aa:bbcc")
    ip = s.IPv6(src="2001:db8::aa:bbcc", dst="2001:db8::1", hlim=255)
    whole = ip / told / s.ICMPv6NDOptDstLLAddr(lladdr="02:fe:00:00:00:02")
    assert packet[ETHERNET : len(packet) - len(padding)] == bytes(whole)


def test_unicast_solicitation_without_an_option_is_answered_without_one() -> None:
    """It only asks whether we are still there (RFC 4861, section 7.2.4); there is no room for more."""
    packet = solicitation(target=OURS, tail=b"")
    assert answered(packet)
    assert packet[ETHERNET + IPV6] == 136
    assert packet[58] == 0x40  # solicited; nothing to override
    assert sum_of(bytes(packet[ETHERNET:])) == 0
    assert parse_neighbour_advertisement(packet) is None


@pytest.mark.parametrize("tail", [b"", b"\x0e\x01nonce!"])
def test_host_that_looks_for_duplicates_of_our_address_hears_of_us(tail: bytes) -> None:
    """Linux sends a nonce (RFC 7527), other hosts send no option."""
    packet = solicitation(source=NOBODY, tail=tail)
    assert answered(packet)
    assert packet[:ETHERNET] == ALL_NODES_MAC + OUR_MAC + b"\x86\xdd"
    ip = bytes(packet[ETHERNET:])
    assert ip[7:40] == b"\xff" + OURS + ALL_NODES
    assert ip[IPV6] == 136
    assert not ip[44] & 0x40  # nobody asked who could be told
    assert sum_of(ip) == 0
    if tail:
        assert parse_neighbour_advertisement(packet) == (OURS, OUR_MAC)


def test_what_is_left_of_a_longer_solicitation_is_padding() -> None:
    packet = solicitation(tail=b"\1\1" + ASKER_MAC + b"\x0e\x01nonce!")
    assert answered(packet)
    assert packet[18:20] == b"\0\x20"
    assert parse_neighbour_advertisement(packet) == (OURS, OUR_MAC)


WRONG_SOLICITATIONS = {
    "for another": solicitation(wanted=ASKER),
    "for a group": solicitation(wanted=GROUP),
    "to another": solicitation(target=ASKER),
    "to all": solicitation(target=ALL_NODES),
    "from a group": solicitation(source=ALL_NODES),
    "from nobody to us": solicitation(source=NOBODY, target=OURS, tail=b""),
    "from nobody with a MAC address": solicitation(source=NOBODY),
    "to the group without a MAC address": solicitation(tail=b""),
    "an option without a length": solicitation(tail=b"\1\0" + ASKER_MAC),
    "an option longer than the packet": solicitation(tail=b"\1\2" + ASKER_MAC),
    "half an option": solicitation(tail=b"\1\1" + ASKER_MAC + b"\1"),
    "too many options": solicitation(tail=(b"\1\1" + ASKER_MAC) * 33),
}
WRONG_BYTES = {
    "hop limit": 21,
    "version": 14,
    "next header": 20,
    "type": 54,
    "code": 55,
    "checksum": 57,
    "ethertype": 13,
}


@pytest.mark.parametrize("case", WRONG_SOLICITATIONS)
def test_wrong_solicitation_is_not_answered(case: str) -> None:
    assert not answered(bytearray(WRONG_SOLICITATIONS[case]))


@pytest.mark.parametrize("field", WRONG_BYTES)
def test_solicitation_with_a_wrong_byte_is_not_answered(field: str) -> None:
    packet = solicitation()
    packet[WRONG_BYTES[field]] ^= 0x10
    if field in ("type", "code"):
        summed(packet)
    assert not answered(packet)


def test_truncated_neighbour_discovery_is_neither_answered_nor_parsed() -> None:
    asked, told = solicitation(), solicitation()
    assert answered(told)
    for size in range(len(asked)):
        assert not answered(asked[:size])
        assert parse_neighbour_advertisement(told[:size]) is None


def test_wrong_advertisement_tells_nothing() -> None:
    told = solicitation()
    assert answered(told)
    for at in (12, 14, 20, 21, 54, 57):
        wrong = bytearray(told)
        wrong[at] ^= 0x01 if at != 14 else 0x10
        assert parse_neighbour_advertisement(wrong) is None
    to_all = bytearray(told)
    to_all[38:54] = ALL_NODES
    assert parse_neighbour_advertisement(summed(to_all)) is None  # it claims to be asked for
    of_a_group = bytearray(told)
    of_a_group[62:78] = ALL_NODES
    assert parse_neighbour_advertisement(summed(of_a_group)) is None
    assert parse_neighbour_advertisement(solicitation()) is None
    assert parse_arp_reply(told) is None


# --- anything -------------------------------------------------------------------------------------------------------

#: Bytes that get far: a good packet with a few bytes changed, cut off or appended.
nearly_good = st.builds(
    lambda packet, changes, size, tail, right: finish(mutate(packet, changes)[:size] + tail, right),
    st.sampled_from(
        [
            bytes(request()),
            bytes(request(mode=Mode.IP)),
            bytes(with_extensions(request(mode=Mode.IP), *SKIPPED["both"])),
            bytes(request()[:ETHERNET] + with_extensions(request(mode=Mode.IP), *SKIPPED["both"])),
            bytes(solicitation()),
            bytes(solicitation(source=NOBODY, tail=b"")),
        ]
    ),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=4),
    st.integers(0, 140),
    st.binary(max_size=10),
    st.booleans(),
)


def mutate(packet: bytes, changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(packet)
    for at, value in changes:
        data[at % len(data)] = value
    return bytes(data)


def finish(packet: bytes, right: bool) -> bytes:
    """With a right checksum, or every change ends at the checksum of a solicitation."""
    return bytes(summed(bytearray(packet))) if right and len(packet) >= 58 else packet


@given(
    st.one_of(st.binary(max_size=120), nearly_good),
    st.sampled_from(Mode),
    st.booleans(),
    st.sampled_from([OURS, OUR_IPV4]),
)
def test_no_bytes_whatever_raise(data: bytes, mode: Mode, icmp: bool, ip: bytes) -> None:
    packet = bytearray(data)
    answered(packet, mode=mode, icmp=icmp, ip=ip)
    for seen in (data, packet):
        parse_neighbour_advertisement(seen)
        for either in (Mode.ETHERNET, Mode.IP):
            parse_echo_reply(seen, either)


@given(nearly_good)
def test_an_answer_has_the_right_checksum_if_its_question_has(data: bytes) -> None:
    packet = bytearray(data)
    length = int.from_bytes(packet[18:20], "big")
    whole = bytes(packet[ETHERNET : ETHERNET + IPV6 + length])
    right = len(whole) == IPV6 + length and whole[6:7] == b"\x3a" and sum_of(whole) == 0
    if right and answered(packet):
        length = int.from_bytes(packet[18:20], "big")
        assert sum_of(bytes(packet[ETHERNET : ETHERNET + IPV6 + length])) == 0
