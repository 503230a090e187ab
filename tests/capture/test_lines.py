"""Lines as tcpdump prints them: compared with tcpdump where it is installed, and nothing makes them raise."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.work import Counted
from memifrt import Mode
from memifrt.capture.line_parts import hex_dump
from memifrt.capture.lines import LinePrinter, LineStyle
from memifrt.capture.pcap import LinkType, Packet, create_capture, open_capture
from memifrt.packets import checksum
from tests.lib.support import DEADLINE

SECOND = 1_000_000_000
BASE = 1_700_000_000 * SECOND
ETHER = bytes.fromhex("02fe00000002 02fe00000001")
A4, B4 = bytes((192, 168, 1, 1)), bytes((192, 168, 1, 2))
A6, B6 = bytes.fromhex("fe80") + bytes(13) + b"\1", bytes.fromhex("fe80") + bytes(13) + b"\2"


def ip4(
    protocol: int, payload: bytes, fragment: int = 0, tos: int = 0, options: bytes = b"", bad: bool = False
) -> bytes:
    start = struct.pack(
        "!BBHHHBB", 0x45 + len(options) // 4, tos, 20 + len(options) + len(payload), 7, fragment, 64, protocol
    )
    found = checksum(start + b"\0\0" + A4 + B4 + options) ^ bad
    return ETHER + b"\x08\0" + start + struct.pack("!H", found) + A4 + B4 + options + payload


def ip6(protocol: int, payload: bytes, word: int = 6 << 28) -> bytes:
    return ETHER + b"\x86\xdd" + struct.pack("!IHBB", word, len(payload), protocol, 64) + A6 + B6 + payload


def summed(protocol: int, data: bytes, at: int, addresses: bytes = A4 + B4) -> bytes:
    """A transport packet with its checksum at this byte."""
    found = checksum(addresses + struct.pack("!II", len(data), protocol) + data)
    return data[:at] + struct.pack("!H", found) + data[at + 2 :]


def tcp(flags: int, payload: bytes = b"", options: bytes = b"", urgent: int = 0, addresses: bytes = A4 + B4) -> bytes:
    offset = (20 + len(options)) // 4 << 4
    made = struct.pack("!HHIIBBHHH", 1234, 5001, 1000, 77, offset, flags, 8192, 0, urgent) + options + payload
    return summed(6, made, 16, addresses)


def udp(payload: bytes, addresses: bytes = A4 + B4) -> bytes:
    return summed(17, struct.pack("!HHHH", 5000, 5001, 8 + len(payload), 0) + payload, 6, addresses)


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    made = bytes((kind, code, 0, 0)) + rest
    return made[:2] + struct.pack("!H", checksum(made)) + made[4:]


ARP = ETHER + bytes.fromhex("0806 0001 0800 06 04")
INNER = ip4(17, udp(b"data"))[14:]
SYN = bytes.fromhex("020405b4 0402 080a 00000005 00000000 01 03 03 07")
ETHERNET = [
    ip4(1, icmp(8, 0, struct.pack("!HH", 7, 1) + b"abcdefgh" * 7)),
    ip4(1, icmp(0, 0, struct.pack("!HH", 7, 1)), bad=True),
    ARP + b"\0\1" + ETHER[6:] + A4 + bytes(6) + B4,
    ARP + b"\0\2" + ETHER[6:] + A4 + ETHER[:6] + B4,
    ip4(6, tcp(2, options=SYN), 0x4000, 0x10),
    ip4(6, tcp(0x12)),
    ip4(6, tcp(0x18, b"hello")),
    ip4(6, tcp(0x18, b"hello")[:-1] + b"p"),
    ip4(6, tcp(0x3F, urgent=4)),
    ip4(6, tcp(0x10, options=bytes.fromhex("0101050a 00000001 00000002"))),
    ip4(17, udp(b"data")),
    ip4(17, udp(b"data")[:6] + b"\0\0data"),
    ip4(17, udp(b"data")[:6] + b"\x11\x11data"),
    ip4(17, udp(b"data")) + bytes(20),
    ip4(17, udp(b"data"), options=b"\1\1\0\0"),
    ip4(17, b"x" * 16, 185),
    ip4(17, udp(b"x" * 16), 0x2000),
    ip4(1, icmp(3, 1, bytes(4) + INNER[:28])),
    ip4(1, icmp(3, 3, bytes(4) + INNER[:28])),
    ip4(1, icmp(11, 0, bytes(4) + INNER[:28])),
    ip6(17, udp(b"data", A6 + B6)),
    ip6(17, udp(b"data", A6 + B6)[:-1] + b"x"),
    ip6(6, tcp(2, addresses=A6 + B6), 0x60312345),
    ip6(58, summed(58, b"\x80\0\0\0\0\3\0\4data", 2, A6 + B6)),
    ip6(58, summed(58, b"\x87\0\0\0\0\0\0\0" + B6, 2, A6 + B6)),
    ip6(44, struct.pack("!BBHI", 17, 0, 1, 9) + udp(b"d" * 40, A6 + B6)),
    ip6(44, struct.pack("!BBHI", 17, 0, 40, 9) + b"d" * 40),
    ETHER + bytes.fromhex("8100 6005") + udp(b"")[:0] + ip4(17, udp(b"data"))[12:],
    ETHER + bytes.fromhex("88a8 0007 8100 1005") + ip4(17, udp(b"data"))[12:],
    ETHER + b"\x88\xb5" + b"q" * 45,
    *[ip4(17, udp(b"data"), tos=0xB8 | congestion) for congestion in range(4)],
]  # fmt: skip
COOKED = bytes.fromhex("0000 0001 0006 0200000000030000 0800") + INNER
STYLES: list[tuple[list[str], dict[str, Any]]] = [
    ([], {}),
    (["-e"], {"link": True}),
    (["-v"], {"verbose": 1}),
    (["-vve"], {"verbose": 2, "link": True}),
    (["-q"], {"quiet": True}),
    (["-qe"], {"quiet": True, "link": True}),
    (["-x"], {"dump": "x"}),
    (["-xxt"], {"dump": "xx", "time": 1}),
    (["-X"], {"dump": "X"}),
    (["-XX"], {"dump": "XX"}),
    (["-A"], {"dump": "A"}),
    (["-AA"], {"dump": "AA"}),
    (["-t"], {"time": 1}),
    (["-tt"], {"time": 2}),
    (["-ttt"], {"time": 3}),
    (["-tttt"], {"time": 4}),
    (["-ttttt"], {"time": 5}),
    (["-tttt", "--nano"], {"time": 4, "nanoseconds": True}),
]


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def ours(path: Path, **style: Any) -> str:
    printer = LinePrinter(LineStyle(**style))
    with open_capture(path) as reader:
        return "".join(printer.text(p.data, p.time or 0, p.length, p.link_type) for p in reader)


def theirs(path: Path, *options: str) -> str:
    arguments = ["tcpdump", "-n", "-S", *options, "-r", str(path)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout


def capture(path: Path, packets: Sequence[bytes], link_type: int = 1, cut: int = 1 << 16) -> Path:
    with create_capture(str(path), [("x", link_type)]) as writer:
        for number, packet in enumerate(packets):
            when = BASE + number * (SECOND + 1_001_001) - (5 * SECOND if number == 3 else 0)
            writer.write_packet(Packet(when, packet[:cut], len(packet), link_type))
    return path


def need_tcpdump_of_debian() -> None:
    """Other releases have other words for some packets."""
    if not shutil.which("tcpdump"):
        pytest.skip("tcpdump is not installed")
    shown = subprocess.run(["tcpdump", "--version"], capture_output=True, text=True, check=False, timeout=DEADLINE)
    if "tcpdump version 4.99.3" not in shown.stdout + shown.stderr:
        pytest.skip("the lines are compared with those of tcpdump 4.99.3, Debian 12's")


@pytest.mark.parametrize(
    ("options", "style"), STYLES, ids=lambda value: "".join(value) if isinstance(value, list) else ""
)
def test_lines_are_tcpdump_s(options: list[str], style: dict[str, Any], tmp_path: Path) -> None:
    need_tcpdump_of_debian()
    kinds = {1: ETHERNET, 101: [packet[14:] for packet in ETHERNET[4:9]], 113: [COOKED] if "-qe" not in options else []}
    for link_type, some in kinds.items():
        path = capture(tmp_path / f"{link_type}.pcap", some, link_type)
        assert ours(path, **style).splitlines() == theirs(path, *options).splitlines()


def changed(packet: bytes, at: int, new: str) -> bytes:
    """The packet with other bytes at this place."""
    data = bytes.fromhex(new)
    return packet[:at] + data + packet[at + len(data) :]


def options6(protocol: int, options: str, payload: bytes) -> bytes:
    """An IPv6 packet with a header of options, or a routing header."""
    data = bytes.fromhex(options)
    return ip6(protocol, bytes((17, (len(data) + 2) // 8 - 1)) + data + payload)


UDP4, UDP6, TCP4 = ip4(17, udp(b"hello")), ip6(17, udp(b"hello", A6 + B6)), ip4(6, tcp(0x18, b"hello"))
NEIGHBOUR = B6 + bytes.fromhex("0101 02fe00000001")
#: Packets whose headers lie about lengths or have rare contents, in the order of the layers.
HOSTILE = [
    ETHER + b"\x81\0",
    ETHER + b"\x81\0\0",
    ETHER + bytes.fromhex("8100 0005 9999") + b"data",
    ETHER + bytes.fromhex("9100 0005") + UDP4[12:],
    *[ETHER + kind + bytes.fromhex("0001 0800 06 04") + bytes((0, number)) + ETHER[6:] + A4 + ETHER[:6] + B4
      for kind in (b"\x08\x06", b"\x80\x35") for number in (0, 1, 2, 3, 4, 8, 9, 10)],
    ARP + b"\0\1" + ETHER[6:] + A4 + b"\xff" * 6 + B4,
    ARP + b"\0\1" + ETHER[6:],
    *[changed(UDP4, 14, first) for first in ("40", "44", "4f", "55", "60")],
    *[changed(UDP4, 16, total) for total in ("0000", "000a", "0014", "0016", "0018", "001c", "0040", "ffff")],
    changed(TCP4, 16, "00c8"),
    changed(TCP4, 16, "001e"),
    changed(UDP6, 14, "45"),
    *[changed(UDP6, 18, payload) for payload in ("0000", "0004", "0008", "0012", "0064", "ffff")],
    *[changed(packet, at, length) for packet, at in ((UDP4, 38), (UDP6, 58))
      for length in ("0000", "0007", "0008", "0009", "000d", "0014", "ffff")],
    *[changed(TCP4, 46, offset) for offset in ("00", "40", "60")],
    *[ip4(6, tcp(2, options=bytes.fromhex(text))) for text in (
        "02000000", "02030101", "02040000", "02ff0000", "080a0000", "01010102", "05020101", "0505010101010101",
        "03020101", "04030101", "4d010101", "0001020304050607", "4d040102", "2202 0101", "220a 0102030405060708 0101",
        "0606 00000001 0101")],
    ip4(6, tcp(4, b"no such port, and this text is longer")),
    ip4(4, INNER),
    ip4(41, UDP6[14:]),
    ip6(4, INNER),
    ip4(50, struct.pack("!II", 5, 1) + bytes(20)),
    ip4(200, b"data"),
    ip6(59, b""),
    *[ip4(1, icmp(kind, code, A4 + INNER[:28])) for kind, code in ((4, 0), (5, 1), (11, 1), (11, 9), (12, 0), (12, 2))],
    *[ip4(1, icmp(kind, 0, struct.pack("!HHIII", 7, 3, 1000, 2000, 3000))) for kind in (13, 14, 17, 18)],
    ip4(17, udp(b"data"), options=bytes.fromhex("8307 04 0a000001 00")),
    ip4(17, udp(b"data"), options=bytes.fromhex("07ff 04 00")),
    *[options6(kind, options, udp(b"data", A6 + B6)) for kind in (0, 60) for options in (
        "0104 00000000", "0502 0000 0100", "0000 01020000", "09040000 0000", "01ff 00000000")],
    options6(43, "0001 00000000" + A6.hex(), udp(b"data", A6 + A6)),
    options6(43, "0401 00000000" + A6.hex(), udp(b"data", A6 + A6)),
    changed(options6(0, "0104 00000000", udp(b"data", A6 + B6)), 55, "ff"),
    changed(options6(43, "0001 00000000" + A6.hex(), udp(b"data")), 55, "ff"),
    ip6(44, struct.pack("!BBHI", 17, 0, 1, 9)),
    *[ip6(58, summed(58, bytes.fromhex(text), 2, A6 + B6)) for text in (
        "8800 0000 e0000000" + B6.hex() + "0201 02fe00000001",
        "8800 0000 60000000" + B6.hex(),
        "8800 0000 00000000" + B6.hex() + "6301 010203040506",
        "8700 0000 00000000" + B6.hex() + "0100 000000000000",
        "8700 0000 00000000" + B6.hex() + "0109 000000000000",
        "8500 0000 00000000 0101 02fe00000001",
        "8600 0000 40c80708 00000000 00000000 0501 0000 000005dc 0304 40c0 ffffffff 00000e10 00000000" + A6.hex(),
        "8900 0000 00000000" + A6.hex() + B6.hex(),
        "8200 0000 03e80000" + A6.hex(), "8300 0000 00000000" + A6.hex(), "8400 0000 00000000" + A6.hex(),
        "0500 0000 00000000", "7f00 0000")],
    *[ip6(58, summed(58, bytes((kind, code, 0, 0)) + struct.pack("!I", 1280) + UDP6[14:], 2, A6 + B6))
      for kind, codes in ((1, range(7)), (2, range(1)), (3, range(3)), (4, range(4))) for code in codes],
]  # fmt: skip


@pytest.mark.parametrize("options", ["", "-v", "-vv", "-e", "-ev"])
def test_lines_of_hostile_packets_are_tcpdump_s(options: str, tmp_path: Path) -> None:
    need_tcpdump_of_debian()
    path = capture(tmp_path / "x.pcap", HOSTILE)
    style = {"verbose": options.count("v"), "link": "e" in options}
    assert ours(path, **style).splitlines() == theirs(path, *options.split()).splitlines()


@pytest.mark.parametrize("cut", [15, 20, 34, 37, 41, 46, 54, 58, 62])
def test_lines_of_packets_that_were_cut_at_capture_are_tcpdump_s(cut: int, tmp_path: Path) -> None:
    need_tcpdump_of_debian()
    path = capture(tmp_path / "x.pcap", HOSTILE + ETHERNET, cut=cut)
    expected = theirs(path).replace("[|tcp]>", "[|tcp]")  # a stray sign of tcpdump's
    assert ours(path).splitlines() == expected.splitlines()


def test_packets_inside_each_other_are_printed_to_a_depth() -> None:
    packet = INNER
    for _ in range(500):
        packet = ip4(4, packet)[14:]
    text = LinePrinter(LineStyle(time=1, verbose=2)).text(packet, 0, len(packet), 101)
    assert text.endswith("(nested too deep)\n")


def test_every_code_of_an_icmp_error_has_tcpdump_s_words(tmp_path: Path) -> None:
    need_tcpdump_of_debian()
    errors = [(3, code) for code in range(17)] + [(5, code) for code in range(5)]
    whole = [(kind, 0) for kind in (4, 10, 15, 16, 17)]
    path = capture(
        tmp_path / "x.pcap",
        [ip4(1, icmp(kind, code, A4 + INNER[:28] + bytes(8))) for kind, code in errors + whole],
    )
    assert ours(path).splitlines() == theirs(path).splitlines()


def test_a_cut_packet_is_marked_and_keeps_its_length(tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", [ETHERNET[4]] * 2, cut=40)
    assert ours(path, link=True, time=1).splitlines()[0] == (
        "02:fe:00:00:00:01 > 02:fe:00:00:00:02, ethertype IPv4 (0x0800), length 74: "
        "192.168.1.1.1234 > 192.168.1.2.5001:  [|tcp]"
    )


def test_a_cooked_packet_of_the_second_kind_names_its_interface() -> None:
    packet = bytes.fromhex("0800 0000 00000003 0001 04 06 0200000000030000") + INNER
    text = LinePrinter(LineStyle(time=1)).text(packet, 0, len(packet), LinkType.LINUX_SLL2)
    assert text == "if3   Out IP 192.168.1.1.5000 > 192.168.1.2.5001: UDP, length 4\n"


def test_another_link_type_is_named() -> None:
    assert LinePrinter(LineStyle(time=1)).text(b"radio", 0, 9, 105) == "IEEE802_11 (105), length 9\n"


def test_a_summary_can_make_the_line_and_a_dump_follows() -> None:
    printer = LinePrinter(LineStyle(time=1, dump="x"), lambda data: f"{len(data)} bytes", Mode.ETHERNET)
    assert printer.text(ETHER + b"\x08\0abcd", 0, 18, 1) == "18 bytes\n\t0x0000:  6162 6364\n"
    assert printer.text(INNER, 0, len(INNER), 101).startswith("IP 192.168.1.1.5000 > ")


@pytest.mark.parametrize(
    ("offset", "words"), [(0x40, "[bad hdr length 16 - too short, < 20]"), (0xF0, "[bad hdr length 60 - too long, > ")]
)
@pytest.mark.parametrize("quiet", [False, True])
def test_a_wrong_length_of_a_tcp_header_is_named(offset: int, words: str, quiet: bool) -> None:
    packet = ip4(6, tcp(2))
    wrong = packet[:46] + bytes((offset,)) + packet[47:]
    assert words in LinePrinter(LineStyle(quiet=quiet)).text(wrong, 0, len(wrong), 1)


@pytest.mark.parametrize("when", [-1, -(1 << 70), 1 << 63, 1 << 90])
@pytest.mark.parametrize("kind", range(6))
def test_any_time_can_be_printed(kind: int, when: int) -> None:
    printer = LinePrinter(LineStyle(time=kind))
    for moment in (0, when, 0):
        assert printer.text(b"", moment, 0, 1).isprintable() is False  # it ends with a newline


@given(
    st.binary(max_size=120),
    st.integers(0, len(ETHERNET) + len(HOSTILE) - 1),
    st.integers(0, 120),
    st.sampled_from([1, 101, 113, 276, 9]),
)
def test_no_packet_makes_a_line_raise(garbage: bytes, which: int, at: int, link_type: int) -> None:
    start = [*ETHERNET, *HOSTILE][which]
    for data in (garbage, start[:at], start[:at] + garbage + start[at + len(garbage) :], start[14 : at + 14] + garbage):
        for style in ({}, {"link": True, "verbose": 2, "dump": "XX"}, {"quiet": True, "dump": "A"}):
            text = LinePrinter(LineStyle(**style)).text(data, 0, len(data), link_type)  # type: ignore[arg-type]
            assert text.endswith("\n")
            assert all(sign.isprintable() or sign in "\n\t" for sign in text)


@pytest.mark.parametrize(
    "packet",
    [
        ETHER + bytes.fromhex("8100 0001") * 16000,
        ip6(0, bytes(65520)),
        ip4(6, tcp(2, options=b"\1" * 40)),
        ETHER + b"\x88\xb5" + bytes(65000),
    ],
)
def test_a_long_chain_of_headers_is_walked_and_not_copied(packet: bytes) -> None:
    Counted.copied = 0
    LinePrinter(LineStyle(link=True, verbose=2, dump="x")).text(Counted(packet), 0, len(packet), 1)
    assert Counted.copied < 8 * len(packet) + 1024


def test_a_hex_dump_of_nothing_is_nothing() -> None:
    assert hex_dump(b"") == ""
