"""Capture files of others: anything but packets and a clear error is a fault, and so is work that grows faster than the
file.

Owns how an input becomes a file: of blocks, each of which may be there thousands of times.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections import Counter

from fuzz.script import Script
from fuzz.work import Counted, CountedFile
from memifrt.capture.flows import flow_key
from memifrt.capture.lines import LinePrinter, LineStyle
from memifrt.capture.link_layer import LinkLayer
from memifrt.capture.pcap import CaptureFileError, Packet, read_capture
from memifrt.capture.rewrite import Rewriting, parse_maps
from memifrt.cli.replay.pace import Pace
from memifrt.types import Mode

#: Bytes that may be copied of a file, for each of its own, and for small files besides. Every packet is copied once
#: by the reader, and a few times more by what looks into it.
_COPIES, _BESIDES = 24, 4096
#: Bytes of the largest part of a file, and how often it may come.
_LONGEST, _OFTEN = 64, (1, 1, 2, 50, 2000)
_PARTS = 12
#: Bytes of a part and its repetitions.
_MOST = 1 << 15
_LINK_TYPES = (1, 101, 113, 276, 228, 105, 0, 65535)
_LAYERS = [LinkLayer(mode, convert=True) for mode in (Mode.ETHERNET, Mode.IP)]
#: The start of a zstd frame without a size, with a raw block behind it.
_ZSTD_START = bytes.fromhex("28b52ffd 00 58 00 00 40")
_STYLES = (
    LineStyle(),
    LineStyle(time=3, link=True, verbose=2, dump="XX"),
    LineStyle(time=4, quiet=True, dump="A"),
    LineStyle(time=5, verbose=1, dump="x"),
)
_MAPS = parse_maps("0.0.0.0/0:10.0.0.0/8,[::/0]:[fd00::/16]")
_REWRITING = Rewriting(vlan="del", sources=_MAPS, targets=_MAPS)
_EDITS = [
    edit
    for edit in (_REWRITING.edit(Mode.ETHERNET), Rewriting(sources=_MAPS, targets=_MAPS).edit(Mode.IP))
    if edit is not None
]


class CaptureTarget:
    """Reads what an input makes, and does with its packets what ``replay`` and ``dump`` do."""

    def __init__(self) -> None:
        self.inputs = 0
        self.steps = 0
        self.violations = 0
        self.reasons: Counter[str] = Counter()

    def __call__(self, data: bytes) -> None:
        self.inputs += 1
        script = Script(data)
        file = _pcapng(script) if script.below(2) == 0 else _pcap(script)
        Counted.copied = 0
        printer = LinePrinter(script.pick(_STYLES))
        packed = script.pick((b"", b"", b"gzip", b"zstd"))
        try:
            if packed:
                self._read_packed(packed, file, script)
            else:
                self._read(file, printer)
        except CaptureFileError as error:
            self.violations += 1
            self.reasons["".join("N" if sign.isdigit() else sign for sign in str(error)[:60])] += 1
        assert Counted.copied <= _COPIES * len(file) + _BESIDES, f"{Counted.copied} bytes copied of {len(file)}"

    def _read_packed(self, kind: bytes, file: bytes, script: Script) -> None:
        """Read a compressed file that is broken somewhere, or has garbage behind it."""
        data = gzip.compress(file, 1) if kind == b"gzip" else _ZSTD_START + file
        at = script.below(len(data))
        broken = data[:at] + script.take(script.below(8)) + data[at + script.below(2) :]
        with read_capture(io.BytesIO(broken), "fuzzed") as reader:
            for _ in reader:
                self.steps += 1

    def _read(self, file: bytes, printer: LinePrinter) -> None:
        clock = Pace(speed=1.0, max_gap=1.0).clock()
        assert clock is not None
        last = 0
        with read_capture(CountedFile(file), "fuzzed") as reader:
            for packet in reader:
                self.steps += 1
                due = clock(packet)
                assert due >= last
                last = due
                _look_into(packet)
                printer.text(packet.data, packet.time or 0, packet.length, packet.link_type)

    def check(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


def _look_into(packet: Packet) -> None:
    for layer in _LAYERS:
        conversion = layer.conversion(packet.link_type)
        if conversion is not None:
            conversion(packet.data)
    for mode, edit in zip((Mode.ETHERNET, Mode.IP), _EDITS, strict=True):
        edit(packet.data)
        flow_key(packet.data, mode)


def _pcap(script: Script) -> bytes:
    order = script.pick("<>")
    magic = script.pick((0xA1B23C4D, 0xA1B2C3D4))
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, script.pick(_LINK_TYPES))]
    while not script.over and len(parts) < _PARTS:
        data = _data(script)
        captured = script.edge(4) if script.rarely() else len(data)
        parts.append(struct.pack(f"{order}IIII", script.edge(4), script.edge(4), captured, script.edge(4)) + data)
        parts[-1] = _times(script, parts[-1])
    return b"".join(parts)


def _pcapng(script: Script) -> bytes:
    order = script.pick("<>")
    section = _block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))
    parts = [section, _interface(order, script)]
    while not script.over and len(parts) < _PARTS:
        kind = script.pick((6, 3, 2, 1, 0x0A0D0D0A, 5))
        if kind == 1:
            made = _interface(order, script)
        elif kind == 0x0A0D0D0A:
            made = section
        else:
            made = _block(order, kind, _front(order, kind, script) + _data(script))
        parts.append(_times(script, made))
    file = b"".join(parts)
    return file[: len(file) - script.byte()] if script.rarely() else file


def _front(order: str, kind: int, script: Script) -> bytes:
    length = script.below(_LONGEST)
    if kind == 6:
        return struct.pack(f"{order}IIIII", script.below(2), script.edge(4), script.edge(4), length, script.edge(4))
    if kind == 2:
        return struct.pack(f"{order}HHIIII", 0, 0, script.edge(4), script.edge(4), length, script.edge(4))
    return struct.pack(f"{order}I", script.edge(4) if script.rarely() else length) if kind == 3 else b""


def _interface(order: str, script: Script) -> bytes:
    options = b""
    for _ in range(script.below(4)):
        code, value = script.pick((9, 14, 1, 0x7777, 0)), _data(script)
        size = script.edge(2) if script.rarely() else len(value)
        options += _times(script, struct.pack(f"{order}HH", code, size) + value + bytes(-len(value) % 4))
    return _block(order, 1, struct.pack(f"{order}HHI", script.pick(_LINK_TYPES), 0, script.edge(4)) + options)


def _times(script: Script, part: bytes) -> bytes:
    return part * max(1, min(script.pick(_OFTEN), _MOST // len(part)))


def _block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    total = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + total + body + total


def _data(script: Script) -> bytes:
    """What a packet or an option holds; IPv6 with options for the summaries to walk through, now and then."""
    if script.rarely():
        return bytes(12) + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, 4096, 0, 64) + bytes(32 + 8 * script.below(255))
    return script.take(script.below(_LONGEST))
