"""ARP and ICMP echo: what is answered, what is not, and that no bytes whatever raise."""

from __future__ import annotations

import functools
import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memifrt import ConfigError, Mode
from memifrt.packets import (
    MAX_PAYLOAD,
    EchoReply,
    arp_request,
    checksum,
    echo_request,
    format_ip,
    format_mac,
    parse_arp_reply,
    parse_echo_reply,
    parse_ip,
    parse_mac,
    reply,
    reply_in_place,
)
from memifrt.ring import RingImplementation
from tests.lib.rings import IMPLEMENTATIONS, Ends, name_of

ASKER_IP, ASKER_MAC = parse_ip("192.168.1.1"), parse_mac("02:fe:00:00:00:01")
OUR_IP, OUR_MAC = parse_ip("192.168.1.2"), parse_mac("02:fe:00:00:00:02")
ETHERNET, IP, ICMP = 14, 20, 8

modes = pytest.mark.parametrize("mode", [Mode.ETHERNET, Mode.IP])
u16 = st.integers(0, 0xFFFF)


def sum_of_words(data: bytes | bytearray) -> int:
    """RFC 1071 word by word: the second computation that the first is held to."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | data[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(
    payload: bytes = b"payload", *, mode: Mode = Mode.ETHERNET, identifier: int = 7, sequence: int = 9
) -> bytearray:
    return bytearray(
        echo_request(
            source_mac=ASKER_MAC,
            source_ip=ASKER_IP,
            target_mac=OUR_MAC,
            target_ip=OUR_IP,
            identifier=identifier,
            sequence=sequence,
            payload=payload,
            mode=mode,
        )
    )


def with_options(packet: bytearray, words: int, ttl: int = 64) -> bytearray:
    """The IP packet with ``words`` of options (no-ops), its lengths and checksum made right."""
    header = packet[:IP] + b"\1" * (4 * words)
    header[0] = 0x45 + words
    header[2:4] = (len(packet) + 4 * words).to_bytes(2, "big")
    header[8] = ttl
    header[10:12] = bytes(2)
    header[10:12] = sum_of_words(header).to_bytes(2, "big")
    return header + packet[IP:]


def answered(packet: bytearray, *, mode: Mode = Mode.ETHERNET, icmp: bool = True) -> bool:
    """Whether it is answered; what is not must stay as it is. The compiled function does what the readable one does."""
    before, size, readable = bytes(packet), len(packet), bytearray(packet)
    result = reply_in_place(memoryview(packet), OUR_IP, OUR_MAC, mode=mode, icmp=icmp)
    assert len(packet) == size
    assert result or packet == before
    assert reply(memoryview(readable), OUR_IP, OUR_MAC, mode, icmp) == result
    assert packet == readable
    return result


# --- addresses and checksums ----------------------------------------------------------------------------------------


@given(st.binary(min_size=6, max_size=6), st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
def test_addresses_survive_text_and_back(mac: bytes, ip: bytes, ipv6: bytes) -> None:
    assert parse_mac(format_mac(mac)) == mac
    assert parse_mac(format_mac(mac).upper().replace(":", "-")) == mac
    assert parse_ip(format_ip(ip)) == ip
    assert format_ip(ip) == ".".join(map(str, ip))
    assert parse_ip(format_ip(ipv6)) == ipv6
    assert format_ip(ipv6) == str(ipaddress.IPv6Address(ipv6))


@pytest.mark.parametrize(
    "text", ["", "xx", "02:fe:00:00:00", "02:fe:00:00:00:01:02", "02:fe:00:00:00:100", "2:f:0:0:0:+1"]
)
def test_text_that_is_no_mac_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mac(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.256", "1.2.3.4.5", "a.b.c.d", "1.2.3.4\0", "1.2.3.é", "fe80::2%lo", "::1::"]
)
def test_text_that_is_no_ip_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_ip(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"source_mac": b"five "}, "b'five '"),
        ({"target_mac": b""}, "b''"),
        ({"source_ip": b"five ", "target_ip": b"five "}, "b'five '"),
        ({"identifier": 0x10000}, "the identifier is 65536"),
        ({"sequence": -1}, "the sequence is -1"),
        ({"ttl": 256}, "the ttl is 256"),
    ],
)
def test_echo_request_names_the_wrong_argument(wrong: dict[str, Any], named: str) -> None:
    right: dict[str, Any] = {
        "source_mac": bytes(6),
        "source_ip": bytes(4),
        "target_mac": bytes(6),
        "target_ip": bytes(4),
        "identifier": 1,
        "sequence": 1,
        "payload": b"",
    }
    with pytest.raises(ConfigError, match=named):
        echo_request(**{**right, **wrong})


@pytest.mark.parametrize(
    "arguments", [(bytes(5), bytes(4), bytes(4)), (bytes(6), bytes(16), bytes(4)), (bytes(6), bytes(4), b"")]
)
def test_arp_request_refuses_addresses_of_another_length(arguments: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(ConfigError, match="is not"):
        arp_request(*arguments)


@given(st.binary())
def test_bytes_of_another_length_are_no_address(data: bytes) -> None:
    for sizes, convert in (((6,), format_mac), ((4, 16), format_ip)):
        if len(data) not in sizes:
            with pytest.raises(ConfigError) as caught:
                convert(data)
            assert repr(data) in str(caught.value)


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(8))
@example(b"\xff\xff")
@example(b"\xff\xff\0\0\0")
@example(b"\1")
def test_checksum_is_that_of_the_words_summed_one_by_one(data: bytes) -> None:
    assert checksum(data) == sum_of_words(data)
    assert checksum(memoryview(bytearray(data))) == sum_of_words(data)


@given(st.binary(min_size=2, max_size=300))
def test_data_with_its_own_checksum_sums_to_zero(data: bytes) -> None:
    if any(data):
        assert checksum(checksum(data).to_bytes(2, "big") + data) == 0


def test_checksum_of_a_known_header() -> None:
    # The example in RFC 1071, section 3: the words add up to ddf2.
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2 ^ 0xFFFF


# --- echo -----------------------------------------------------------------------------------------------------------


@modes
@given(
    payload=st.binary(max_size=200), identifier=u16, sequence=u16, options=st.integers(0, 10), ttl=st.integers(0, 255)
)
@example(payload=bytes(8), identifier=0, sequence=0, options=0, ttl=64)  # a reply of zeros: its checksum is ffff
@example(payload=b"", identifier=0, sequence=0xFFFF, options=0, ttl=64)
def test_echo_request_becomes_its_reply_with_right_checksums(
    mode: Mode, payload: bytes, identifier: int, sequence: int, options: int, ttl: int
) -> None:
    link = b"" if mode is Mode.IP else bytes(request()[:ETHERNET])
    asked = request(payload, mode=Mode.IP, identifier=identifier, sequence=sequence)
    packet = bytearray(link + with_options(asked, options, ttl))
    assert answered(packet, mode=mode)

    if mode is Mode.ETHERNET:
        assert packet[:ETHERNET] == ASKER_MAC + OUR_MAC + b"\x08\x00"
    ip = bytes(packet[len(link) :])
    header, echo = ip[: IP + 4 * options], ip[IP + 4 * options :]
    assert header[12:20] == OUR_IP + ASKER_IP
    assert header[8] == 64
    # Anew and exactly: no header has a second checksum that is right.
    assert sum_of_words(header[:10] + bytes(2) + header[12:]) == int.from_bytes(header[10:12], "big")
    assert sum_of_words(echo) == 0
    assert parse_echo_reply(packet, mode) == EchoReply(OUR_IP, identifier, sequence, 64, payload)


@pytest.mark.parametrize("answer", [reply_in_place, functools.partial(reply, mode=Mode.ETHERNET, icmp=True)])
def test_an_answer_with_an_address_of_another_length_is_refused(answer: Any) -> None:
    packet = request()
    before = bytes(packet)
    with pytest.raises(ConfigError, match="is not a MAC address; it must have 6 bytes"):
        answer(packet, OUR_IP, OUR_MAC[:5])
    with pytest.raises(ConfigError, match=r"is not an IP address; it must have 4 bytes \(IPv4\) or 16 bytes"):
        answer(packet, OUR_IP + b"x", OUR_MAC)
    assert packet == before
    assert reply_in_place(memoryview(bytearray(60)), OUR_IP, b"", mode=Mode.IP) is False


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=name_of)
def test_packets_of_a_burst_are_answered_where_they_lie(implementation: RingImplementation) -> None:
    ends = Ends(implementation, log2_size=4, buffer_size=64)
    requests = [request(bytes(10)), request(bytes(range(200))), bytearray(b"\xff" * 150)]
    assert ends.s2m.tx.send(requests) == 3
    with ends.s2m.rx.burst(16) as burst:
        packets = list(burst.packets())
        assert [len(packet.views) for packet in packets] == [1, 4, 3]
        assert [reply_in_place(packet, OUR_IP, OUR_MAC) for packet in packets] == [True, True, False]
        expected = [bytearray(each) for each in requests]
        assert [reply(memoryview(each), OUR_IP, OUR_MAC, Mode.ETHERNET, True) for each in expected] == [
            True,
            True,
            False,
        ]
        assert [bytes(packet) for packet in packets] == expected
    with pytest.raises(ValueError, match="has ended"):
        reply_in_place(packets[0], OUR_IP, OUR_MAC)


@modes
def test_reply_to_the_longest_request_parses(mode: Mode) -> None:
    payload = bytes(MAX_PAYLOAD)
    packet = request(payload, mode=mode)
    assert answered(packet, mode=mode)
    reply = parse_echo_reply(packet, mode)
    assert reply is not None
    assert reply.payload == payload


def test_payload_that_no_ip_packet_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"65508.*65507"):
        request(bytes(MAX_PAYLOAD + 1))


@modes
def test_request_is_right_itself(mode: Mode) -> None:
    packet = bytes(request(b"odd", mode=mode))
    ip = packet[ETHERNET:] if mode is Mode.ETHERNET else packet
    assert sum_of_words(ip[:IP]) == sum_of_words(ip[IP:]) == 0
    assert int.from_bytes(ip[2:4], "big") == len(ip) == IP + ICMP + 3
    assert packet == ip or packet[:ETHERNET] == OUR_MAC + ASKER_MAC + b"\x08\x00"


@given(st.binary(max_size=40))
def test_padding_behind_the_ip_packet_is_not_payload(padding: bytes) -> None:
    packet = request(b"x") + padding
    assert answered(packet)
    reply = parse_echo_reply(packet)
    assert reply is not None
    assert reply.payload == b"x"
    assert packet[len(packet) - len(padding) :] == padding


@given(u16.filter(bool))
def test_wrong_checksum_of_a_request_stays_wrong_in_the_reply(flip: int) -> None:
    packet = request()
    at = ETHERNET + IP + 2
    broken = int.from_bytes(packet[at : at + 2], "big") ^ flip
    packet[at : at + 2] = broken.to_bytes(2, "big")
    assert answered(packet)
    assert parse_echo_reply(packet) is None


WRONG_FIELDS = {
    "ethertype": (12, b"\x86\xdd"),
    "asker is a group": (6, b"\x01"),
    "IP version": (ETHERNET, b"\x65"),
    "header shorter than a header": (ETHERNET, b"\x44"),
    "header longer than the packet": (ETHERNET, b"\x4f"),
    "total length longer than the packet": (ETHERNET + 2, b"\xff\xff"),
    "total length shorter than the headers": (ETHERNET + 2, b"\x00\x1b"),
    "more fragments": (ETHERNET + 6, b"\x20\x00"),
    "fragment offset": (ETHERNET + 6, b"\x00\x01"),
    "protocol": (ETHERNET + 9, b"\x11"),
    "another address": (ETHERNET + 16, b"\x0a"),
    "ICMP type": (ETHERNET + IP, b"\x00"),
    "ICMP code": (ETHERNET + IP + 1, b"\x01"),
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
def test_truncated_request_is_not_answered(mode: Mode) -> None:
    whole = request(mode=mode)
    for size in range(len(whole)):
        assert not answered(whole[:size], mode=mode)


def test_each_mode_answers_its_own_packets_alone() -> None:
    assert not answered(request(mode=Mode.IP))
    assert not answered(request(), mode=Mode.IP)
    assert not answered(bytearray(arp_request(ASKER_MAC, ASKER_IP, OUR_IP)), mode=Mode.IP)
    assert not answered(request(), mode=Mode.PUNT_INJECT)


def test_without_icmp_arp_alone_is_answered() -> None:
    assert not answered(request(), icmp=False)
    assert not answered(request(mode=Mode.IP), mode=Mode.IP, icmp=False)
    assert answered(bytearray(arp_request(ASKER_MAC, ASKER_IP, OUR_IP)), icmp=False)


# --- arp ------------------------------------------------------------------------------------------------------------


@given(
    st.binary(min_size=6, max_size=6).filter(lambda mac: not mac[0] & 1),
    st.binary(min_size=4, max_size=4),
    st.binary(max_size=18),
)
def test_arp_request_becomes_its_reply(mac: bytes, ip: bytes, padding: bytes) -> None:
    packet = bytearray(arp_request(mac, ip, OUR_IP)) + padding
    assert packet[:6] == b"\xff" * 6
    assert answered(packet)
    assert parse_arp_reply(packet) == (OUR_IP, OUR_MAC)
    assert packet[:ETHERNET] == mac + OUR_MAC + b"\x08\x06"
    assert packet[ETHERNET + 18 : ETHERNET + 28] == mac + ip  # the reply names whom it is for
    assert packet[ETHERNET + 28 :] == padding


@pytest.mark.parametrize("at", [*range(12, 22), *range(38, 42)])
def test_arp_request_with_a_wrong_byte_is_not_answered(at: int) -> None:
    packet = bytearray(arp_request(ASKER_MAC, ASKER_IP, OUR_IP))
    packet[at] ^= 0x40
    assert not answered(packet)


def test_truncated_arp_is_neither_answered_nor_parsed() -> None:
    asked = bytearray(arp_request(ASKER_MAC, ASKER_IP, OUR_IP))
    told = bytearray(asked)
    assert answered(told)
    for size in range(len(asked)):
        assert not answered(asked[:size])
        assert parse_arp_reply(told[:size]) is None


def test_question_is_no_reply() -> None:
    assert parse_arp_reply(arp_request(ASKER_MAC, ASKER_IP, OUR_IP)) is None
    assert parse_echo_reply(request()) is None
    assert parse_echo_reply(request(mode=Mode.IP), Mode.IP) is None


# --- anything -------------------------------------------------------------------------------------------------------

#: Bytes that get far: a good packet with a few bytes changed, cut off or appended.
nearly_good = st.builds(
    lambda packet, changes, size, tail: mutate(packet, changes)[:size] + tail,
    st.sampled_from(
        [
            bytes(request()),
            bytes(request(mode=Mode.IP)),
            arp_request(ASKER_MAC, ASKER_IP, OUR_IP),
            bytes(with_options(request(mode=Mode.IP), 3)),
        ]
    ),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4),
    st.integers(0, 100),
    st.binary(max_size=10),
)


def mutate(packet: bytes, changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(packet)
    for at, value in changes:
        data[at % len(data)] = value
    return bytes(data)


@given(st.one_of(st.binary(max_size=120), nearly_good), st.sampled_from(Mode), st.booleans())
def test_no_bytes_whatever_raise(data: bytes, mode: Mode, icmp: bool) -> None:
    packet = bytearray(data)
    answered(packet, mode=mode, icmp=icmp)
    parse_arp_reply(data)
    parse_arp_reply(packet)
    for either in (Mode.ETHERNET, Mode.IP):
        parse_echo_reply(data, either)
        parse_echo_reply(packet, either)


@given(nearly_good)
def test_whatever_is_answered_stays_inside_its_headers(data: bytes) -> None:
    """The payload is the asker's: nothing of it changes but the fields of the protocol."""
    packet = bytearray(data)
    if not answered(packet):
        return
    if struct.unpack_from("!H", data, 12) == (0x0806,):
        assert packet[42:] == data[42:]
        return
    at = ETHERNET + (data[ETHERNET] & 0xF) * 4
    assert packet[at + 4 :] == data[at + 4 :]
    assert packet[ETHERNET : ETHERNET + 8] == data[ETHERNET : ETHERNET + 8]
    assert packet[ETHERNET + 20 : at] == data[ETHERNET + 20 : at]
