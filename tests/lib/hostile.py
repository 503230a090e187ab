"""Packets whose headers lie: lengths below the least and past the end, chains, loops, stacks, and truncated ones."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

from hypothesis import strategies as st

from memifrt.packets import checksum
from tests.lib.protocol_lines import FILES, blocks

MACS = bytes.fromhex("02fe00000002 02fe00000001")
A4, B4 = bytes((192, 168, 1, 1)), bytes((192, 168, 1, 2))
A6, B6 = bytes.fromhex("fe80") + bytes(13) + b"\1", bytes.fromhex("fe80") + bytes(13) + b"\2"
#: What a byte of a header is changed to: the bounds of lengths and versions, and protocols with headers of their own.
_BYTES = st.sampled_from([0, 1, 2, 5, 6, 7, 8, 17, 43, 44, 51, 58, 60, 0x40, 0x44, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0xFF])
_ANY = st.integers(0, 255)
_PORTS = struct.pack("!HH", 5000, 5001)


def ip4(protocol: int, payload: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
    """An IPv4 packet; ``options`` are a multiple of 4 bytes."""
    first, total = 0x45 + len(options) // 4, 20 + len(options) + len(payload)
    start = struct.pack("!BBHHHBB", first, 0, total, 7, fragment, 64, protocol)
    return start + struct.pack("!H", checksum(start + A4 + B4 + options)) + A4 + B4 + options + payload


def ip6(protocol: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + A6 + B6 + payload


def summed(protocol: int, data: bytes, at: int, addresses: bytes) -> bytes:
    """A transport packet with its checksum at this byte."""
    found = checksum(addresses + struct.pack("!II", len(data), protocol) + data) or 0xFFFF
    return data[:at] + struct.pack("!H", found) + data[at + 2 :]


def udp(addresses: bytes) -> bytes:
    return summed(17, _PORTS + struct.pack("!HH", 13, 0) + b"hello", 6, addresses)


def tcp(addresses: bytes) -> bytes:
    return summed(6, _PORTS + struct.pack("!IIBBHHH", 1, 2, 0x60, 0x18, 99, 0, 0) + b"\2\4\5\xb4hello", 16, addresses)


def _icmp(kind: int) -> bytes:
    made = bytes((kind, 0, 0, 0)) + struct.pack("!HH", 7, 1) + b"data"
    return made[:2] + struct.pack("!H", checksum(made)) + made[4:]


_UDP6 = udp(A6 + B6)
#: IP packets that are in order, and their EtherTypes.
RIGHT: list[tuple[int, bytes]] = [
    (0x0800, ip4(17, udp(A4 + B4))),
    (0x0800, ip4(6, tcp(A4 + B4))),
    (0x0800, ip4(1, _icmp(8))),
    (0x0800, ip4(1, _icmp(0))),
    (0x0800, ip4(17, udp(A4 + bytes((10, 0, 0, 1))), options=bytes.fromhex("830704 0a000001 00"))),
    (0x0800, ip4(17, udp(A4 + B4), fragment=0x2000)),
    (0x0800, ip4(17, b"x" * 16, fragment=2)),
    (0x86DD, ip6(17, _UDP6)),
    (0x86DD, ip6(6, tcp(A6 + B6))),
    (0x86DD, ip6(58, summed(58, b"\x80\0\0\0\0\7\0\1data", 2, A6 + B6))),
    (0x86DD, ip6(58, summed(58, b"\x87\0\0\0\0\0\0\0" + B6 + b"\1\1" + MACS[6:], 2, A6 + B6))),
    (0x86DD, ip6(0, b"\x3c\0\1\4\0\0\0\0" + b"\x11\0\1\4\0\0\0\0" + _UDP6)),
    (0x86DD, ip6(43, b"\x11\2\0\1\0\0\0\0" + A6 + udp(A6 + A6))),
    (0x86DD, ip6(44, struct.pack("!BBHI", 17, 0, 1, 9) + _UDP6)),
    (0x86DD, ip6(51, b"\x11\1" + bytes(10) + _UDP6)),
    (0x0806, bytes.fromhex("0001 0800 06 04 0001") + MACS[6:] + A4 + bytes(6) + B4),
]
_TAGS = st.lists(st.sampled_from([b"\x81\0\0\5", b"\x88\xa8\0\7", b"\x81\0\x20\0"]), max_size=3).map(b"".join)


def frame(kind: int, packet: bytes, tags: bytes = b"") -> bytes:
    return MACS + tags + struct.pack("!H", kind) + packet


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, int]:
    """A frame, and where its IP packet begins. Some headers are changed, and the frame is cut off or padded."""
    kind, packet = draw(st.sampled_from(RIGHT))
    tags = draw(_TAGS)
    made = bytearray(frame(kind, packet, tags))
    for at, byte in draw(st.lists(st.tuples(st.integers(12, len(made) - 1), _BYTES), max_size=4)):
        made[at] = byte
    cut = draw(st.one_of(st.none(), st.integers(0, len(made))))
    return bytes(made[:cut]) + bytes(draw(st.sampled_from([0, 0, 1, 46]))), 14 + len(tags)


@st.composite
def chains(draw: st.DrawFn) -> tuple[bytes, int]:
    """A frame with a long or broken chain of extension headers, and where its IP packet begins."""
    kinds = draw(st.lists(st.sampled_from([0, 43, 44, 60, 51]), min_size=1, max_size=12))
    payload = b""
    for following in [*kinds[1:], 17]:
        size = draw(st.sampled_from([0, 0, 0, 1, 2, 255]))
        payload += bytes((following, size)) + bytes(6 + 8 * min(size, 2))
    return frame(0x86DD, ip6(kinds[0], payload + _UDP6)), 14


@st.composite
def protocols(draw: st.DrawFn) -> tuple[bytes, int]:
    """A frame of a protocol that is printed, and where its packet begins. It is changed, cut off or padded."""
    frames = _frames(draw(st.sampled_from(FILES)))
    made = bytearray(draw(st.sampled_from(frames)))
    for at, byte in draw(st.lists(st.tuples(st.integers(12, len(made) - 1), st.one_of(_BYTES, _ANY)), max_size=6)):
        made[at] = byte
    cut = draw(st.one_of(st.none(), st.integers(0, len(made))))
    return bytes(made[:cut]) + bytes(draw(st.sampled_from([0, 0, 1, 46]))), 14


@functools.cache
def _frames(path: Path) -> list[bytes]:
    return sorted({data for _, length, data, _ in blocks(path) if len(data) == length})


hostile = st.one_of(packets(), chains())
