"""The lines of protocols, in files that say what tcpdump prints; compared with tcpdump where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.work import Counted
from memifrt.capture.lines import LinePrinter, LineStyle
from memifrt.capture.pcap import Packet, create_capture
from tests.capture.test_lines import need_tcpdump_of_debian, theirs
from tests.lib.hostile import frame, ip4
from tests.lib.protocol_lines import FILES, blocks


def ours(options: str, length: int, data: bytes) -> str:
    style = LineStyle(time=1, link="e" in options, verbose=options.count("v"), quiet="q" in options)
    return LinePrinter(style).text(data, 0, length, 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_protocol_is_printed_in_tcpdump_s_words(path: Path) -> None:
    for options, length, data, expected in blocks(path):
        assert ours(options, length, data) == expected


def test_there_is_a_file_for_each_family() -> None:
    assert len(FILES) > 10


@pytest.mark.parametrize("options", ["", "ev", "v", "q"])
def test_the_expected_lines_are_tcpdump_s(options: str, tmp_path: Path) -> None:
    need_tcpdump_of_debian()
    chosen = [block for path in FILES for block in blocks(path) if block[0] == options]
    with create_capture(str(tmp_path / "x.pcap"), [("x", 1)]) as writer:
        for _, length, data, _ in chosen:
            writer.write_packet(Packet(0, data, length, 1))
    shown = theirs(tmp_path / "x.pcap", "-t", *([f"-{options}"] if options else []))
    assert shown == "".join(expected for *_, expected in chosen)


def udp4(port: int, payload: bytes) -> bytes:
    return ip4(17, port.to_bytes(2, "big") * 2 + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda packet: ip4(47, b"\0\0\x08\0" + packet),
        lambda packet: ip4(47, b"\0\0\x65\x58" + frame(0x0800, packet)),
        lambda packet: udp4(4789, b"\x08\0\0\0\0\0\x05\0" + frame(0x0800, packet)),
        lambda packet: udp4(8472, b"\x08\0\0\0\0\0\x05\0" + frame(0x0800, packet)),
        lambda packet: udp4(4790, b"\x0c\0\0\1\0\0\x05\0" + packet),
        lambda packet: udp4(6081, b"\0\0\x65\x58\0\0\x05\0" + frame(0x0800, packet)),
        lambda packet: udp4(6635, b"\0\x06\x41\x40" + packet),
        lambda packet: ip4(51, b"\x04\1" + bytes(10) + packet),
        lambda packet: ip4(47, b"\x20\1\x88\x0b\0\0\0\1\0\x21" + packet),
    ],
    ids=["gre", "nvgre", "vxlan", "otv", "gpe", "geneve", "mpls", "ah", "pptp"],
)
def test_tunnels_inside_each_other_are_printed_to_a_depth(wrap: Callable[[bytes], bytes]) -> None:
    packet = ip4(1, bytes(8))
    while len(packet) < 60_000:
        packet = wrap(packet)
    data = Counted(frame(0x0800, packet))
    Counted.copied = 0
    text = ours("vv", len(data), data)
    assert len(text) < 8192
    assert Counted.copied < 48 * len(data)  # each of 8 layers has up to 5 headers


BRIDGED = bytes.fromhex("aaaa030080c200070000")


def test_frames_bridged_inside_each_other_are_printed_to_a_depth() -> None:
    made = frame(0x0800, ip4(1, bytes(8)))
    while len(made) < 1400:
        made = frame(len(BRIDGED + made), BRIDGED + made)
    assert ours("ev", len(made), made).endswith("(nested too deep)\n")


#: A number, flags, and the count of one question.
DNS = bytes.fromhex("0001 0100 0001")
#: Headers with as many parts as there can be.
LONG = {
    "labels": frame(0x8847, b"\0\x06\x40\x40" * 16_000),
    "chunks": frame(0x0800, ip4(132, bytes(12) + b"\x0b\0\0\4" * 16_000)),
    "gaps": frame(0x0800, ip4(132, bytes(12) + b"\3\0\xfa\0" + bytes(8) + b"\xff\xff\xff\xff" + bytes(64_000 - 16))),
    "routes": frame(0x0800, ip4(47, b"\x40\0\x08\0\0\0\0\0" + b"\x08\0\0\4\1\2\3\4" * 8000)),
    "records": frame(0x0800, ip4(2, b"\x22\0\0\0\0\0\xff\xff" + b"\1\0\0\0\1\2\3\4" * 8000)),
    "addresses": frame(0x0800, ip4(112, b"\x21\1\1\xff\0\1\0\0" + bytes(60_000))),
    "TLVs": frame(0x88CC, b"\x0a\1x" * 20_000),
    "tags": frame(0x8863, b"\x11\x09\0\0\xff\xff" + b"\1\1\0\1a" * 13_000),
    "answers": frame(
        0x0800, udp4(53, b"\0\1\x81\0\0\0" + b"\xff\xff" + bytes(4) + (b"\xc0\x0c\0\x10\0\1" + bytes(6)) * 5000)
    ),
    "labels of a name": frame(0x0800, udp4(53, DNS + bytes(6) + b"\1a" * 30_000)),
    "pointers": frame(0x0800, udp4(53, DNS + bytes(6) + b"".join(p.to_bytes(2, "big") for p in range(0xC00B, 0xFFFF)))),
    "AH": frame(0x0800, ip4(51, (b"\x33\1" + bytes(10)) * 5400)),
    "options of Geneve": frame(0x0800, udp4(6081, b"\x3f\0\x08\0\0\0\5\0" + b"\1\2\3\0" * 16_000)),
}


@pytest.mark.parametrize("name", LONG)
def test_a_header_of_many_parts_is_walked_and_not_copied(name: str) -> None:
    data = Counted(LONG[name])
    for options in ("", "vv"):
        Counted.copied = 0
        text = ours(options, len(data), data)
        assert Counted.copied < 12 * len(data)
        assert len(text) < 24 * len(data)
