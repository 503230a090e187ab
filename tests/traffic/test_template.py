"""Packets from text: scapy expressions that run no code, hexadecimal digits; and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from memifrt import ConfigError
from memifrt.capture.pcap import LinkType, create_capture
from memifrt.traffic.template import capture_packets, packet_bytes, parse_sizes, sized
from memifrt.types import Mode

#: As any: scapy's operators have no types.
ETHER: Any = Ether


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ('Ether()/IP(dst="10.0.0.1")/UDP(dport=53)', ETHER() / IP(src="198.18.0.1", dst="10.0.0.1") / UDP(dport=53)),
        ("Ether()/Dot1Q(vlan=7)/IP()/UDP()", ETHER() / Dot1Q(vlan=7) / IP(src="198.18.0.1", dst="198.18.0.2") / UDP()),
        ('Ether()/Raw(b"ab" * 3)', ETHER(type=0x9000) / Raw(b"ababab")),
        ('Ether()/Raw(load=b"x")/"end"', ETHER(type=0x9000) / Raw(b"x") / "end"),
        ('Ether()/ARP(pdst="1.2.3.4")', ETHER() / ARP(psrc="198.18.0.1", hwsrc="02:00:00:00:00:01", pdst="1.2.3.4")),
    ],
)
def test_an_expression_is_what_scapy_makes_of_it(text: str, packet: Any) -> None:
    packet.src, packet.dst = "02:00:00:00:00:01", "02:00:00:00:00:02"
    if packet.type == 0x9000 and "type" not in text:
        del packet.type
    assert packet_bytes(text) == bytes(packet)


def test_addresses_that_are_not_given_are_those_for_benchmarks_and_not_this_machine_s() -> None:
    packet = Ether(packet_bytes("Ether()/IP()/UDP()"))
    assert (packet.src, packet.dst) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    assert (packet[IP].src, packet[IP].dst) == ("198.18.0.1", "198.18.0.2")
    assert packet_bytes("IPv6()")[8:40].hex(":", 2) == "2001:0002:0000:0000:0000:0000:0000:0001:" + (
        "2001:0002:0000:0000:0000:0000:0000:0002"
    )


def test_bytes_scapy_packets_and_hexadecimal_digits_are_packets_too() -> None:
    assert packet_bytes(b"\1\2") == packet_bytes("01 02") == packet_bytes("01:02") == packet_bytes("0102") == b"\1\2"
    assert packet_bytes(Raw(b"abc")) == b"abc"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "Ether().__class__",
        "open('/etc/passwd')",
        "Ether()/exec('1')",
        "[x for x in ()]",
        "lambda: 1",
        "Ether(dst=print(1))",
        "Ether(**{})",
        "f'{1}'",
        "Ether()+IP()",
        "(Ether())[0]",
        "Packet()",
        "conf",
        "sniff()",
        "RandIP()",
        "'x' * 1000000",
        "'x'",
        "Ether()/",
        "Ether(\x00)",
        "",
        "zz",
        "(" * 300 + ")" * 300,
        "Ether(dst='nonsense')",
        "IP(dst='www.example.com')",
        "IP(dst='10.0.0.0/24')",
        "IPv6(dst='localhost')",
        "IP(dest='1.2.3.4')",
        "IP('1.2.3.4')",
        "UDP(dport=[1, 'x'])",
        "IP(ttl=1000)",
        "012",
        "NoSuchLayer()",
        "Ether() * 2",
    ],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        packet_bytes(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "IP(dst='www.example.com')",
        "IP(dst=['www.example.com'])",
        "IP(dst=('10.0.0.1', 'www.example.com'))",
        "IPv6(dst=['www.example.com'])",
        "Ether(dst=['www.example.com'])",
        "ARP(pdst='www.example.com')",
        "ARP(hwdst='www.example.com')",
        "DNSRR(type='A', rdata='www.example.com')",
        "IPOption_RR(routers=['www.example.com'])",
        "IPv6ExtHdrRouting(addresses=['www.example.com'])",
        "ICMPv6ND_NS(tgt='www.example.com')",
    ],
)
def test_a_name_is_no_address_and_nothing_looks_it_up(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, *arguments: Any) -> None:
        asked.append(host)
        raise OSError("no name is looked up here")

    asked: list[str] = []
    packet_bytes("Ether()/IP()/UDP()/DNS()")  # scapy's own modules ask for numeric addresses
    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    with pytest.raises(ConfigError, match=r"it must be (an? \w+ address|one value)"):
        packet_bytes(text)
    assert asked == []


def test_fields_that_may_hold_names_or_several_values_hold_them() -> None:
    assert b"\3www" in packet_bytes("DNSRR(type='CNAME', rdata='www.example.com')")
    assert packet_bytes("DNSRR(type='A', rdata='10.0.0.1')").endswith(b"\x0a\0\0\1")
    assert packet_bytes("ARP(psrc='10.0.0.1')")[14:18] == b"\x0a\0\0\1"
    assert packet_bytes("IPOption_RR(routers=['10.0.0.1', '10.0.0.2'])").endswith(b"\x0a\0\0\1\x0a\0\0\2")
    with pytest.raises(ConfigError, match=r"UDP: dport is \[5, 6\]; it must be one value"):
        packet_bytes("UDP(dport=[5, 6])")


@pytest.mark.parametrize("packet", [None, 5, [b"x"], b""])
def test_what_is_no_packet_is_refused(packet: Any) -> None:
    with pytest.raises(ConfigError, match="the packet is"):
        packet_bytes(packet)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (None, ()),
        (64, (64,)),
        ("64", (64,)),
        ("64, 512,1518", (64, 512, 1518)),
        ([64, 128], (64, 128)),
        ("IMIX", (64, 570, 64, 64, 570, 64, 64, 1518, 570, 64, 570, 64)),
    ],
)
def test_sizes(given: Any, sizes: tuple[int, ...]) -> None:
    assert parse_sizes(given) == sizes


@pytest.mark.parametrize("given", [0, -1, 65536, "x", "64,", "", [], [64, "x"], True, 64.5])
def test_wrong_sizes_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="size"):
        parse_sizes(given)


def test_a_size_that_is_too_small_is_refused_with_the_least_one() -> None:
    data = packet_bytes("Ether()/IP()/UDP()")
    with pytest.raises(ConfigError, match="the size 45 is too small for this packet; it must be at least 46"):
        sized(data, 45, Mode.ETHERNET, fcs=True)
    assert len(sized(data, 46, Mode.ETHERNET, fcs=True)) == 42


def test_a_packet_with_ethernet_padding_keeps_its_lengths() -> None:
    data = packet_bytes("Ether()/IP()/UDP()") + bytes(18)
    assert sized(data, 104, Mode.ETHERNET, fcs=True) == data + bytes(40)


def test_a_capture_of_another_link_type_or_without_packets_is_refused(tmp_path: Path) -> None:
    for name, link, packets in (("ip", LinkType.RAW, [b"E123"]), ("empty", LinkType.ETHERNET, [])):
        with create_capture(str(tmp_path / f"{name}.pcap"), [("x", link)]) as writer:
            writer.write(packets, 0)
        with pytest.raises(ConfigError, match=rf"{name}.pcap has"):
            capture_packets(str(tmp_path / f"{name}.pcap"), Mode.ETHERNET)
