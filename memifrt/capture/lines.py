"""Print packets as tcpdump does: times, link-level headers, details of protocols, and hex dumps.

Owns the texts of ``-x``, ``-X``, ``-A`` and ``-t``, and of cooked link layers. ``line_ethernet`` and ``line_ip`` next
to it have those of frames and IP packets, and a module for each family of protocols has those of what is inside. No
content of a packet makes it raise: truncated parts are marked ``[|proto]``. Names are never looked up, so ``-n``
changes nothing here. Sequence numbers of TCP are absolute, as with tcpdump's ``-S``. The content of UDP and TCP is not
shown.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from memifrt.capture.line_ethernet import (
    ethernet_header,
    ethertype_text,
    frame_text,
    is_known,
    is_length,
    payload_text,
)
from memifrt.capture.line_ip import IpLines
from memifrt.capture.line_llc import llc_size
from memifrt.capture.line_parts import hex_dump
from memifrt.capture.link_layer import link_type_name
from memifrt.capture.pcap import LinkType
from memifrt.types import Mode

_MICROSECOND, _SECOND = 1000, 1_000_000_000
_DIRECTIONS = ("In", "B", "M", "P", "Out")
_ETHERNET = LinkType.ETHERNET.value
#: The most packets inside each other to print. There may be thousands.
_MOST_NESTED, _TOO_DEEP = 8, "(nested too deep)"
#: The characters that ``-A`` replaces: all but printable characters, blanks, and a carriage return that ends a line.
_NOT_ASCII = re.compile(rb"(?!\r\n)[^\t\n\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How to print a packet, in tcpdump's options.

    :ivar time: how many ``-t``: 0 time of day, 1 none, 2 seconds since 1970, 3 since the previous line, 4 with the
        date, 5 since the first line.
    :ivar nanoseconds: whether to print nanoseconds instead of microseconds.
    :ivar link: ``-e``: print the link-level header.
    :ivar verbose: how many ``-v``.
    :ivar quiet: ``-q``: print less about protocols.
    :ivar dump: ``x``, ``xx``, ``X``, ``XX``, ``A``, ``AA``, or nothing. The double ones include the link-level header.
    """

    time: int = 0
    nanoseconds: bool = False
    link: bool = False
    verbose: int = 0
    quiet: bool = False
    dump: str = ""


class LinePrinter:
    """Makes the text of one packet after the other; it remembers the times for ``-ttt`` and ``-ttttt``.

    :param describe: makes the line from a packet that a memif in this mode carries; if there is none, or it returns
        None, the line is tcpdump's.
    :param mode: the mode of packets that ``describe`` takes.
    """

    def __init__(
        self, style: LineStyle, describe: Callable[[bytes], str | None] | None = None, mode: Mode | None = None
    ) -> None:
        self._style = style
        self._describe = describe
        self._mode = mode
        self._decoder = _Decoder(style)
        self._before: int | None = None
        #: The time of the previous packet and its text: the packets of a burst share their time.
        self._latest: tuple[int | None, str] = (None, "")

    def text(self, data: bytes, time: int, length: int, link_type: int, name: str = "") -> str:
        """Return the lines of a packet, with a newline at the end.

        :param time: in nanoseconds since 1970.
        :param length: the length of the packet before it was cut.
        :param name: printed between the time and the packet.
        """
        when = self._latest[1]
        if time != self._latest[0] or self._style.time in (3, 5):
            when = self._when(time)
            self._latest = (time, when)
        line = None
        if self._describe is not None and LinkType.mode_of(link_type) is self._mode:
            line = self._describe(data)
        if line is None:
            line = self._decoder.packet(link_type, data, length)
        dump = self._style.dump
        if dump:
            header = link_header_size(link_type, data) if length >= len(data) else 0
            line += _dumped(dump[0], data if len(dump) > 1 else data[header:])
        return f"{when}{name}{line}\n"

    def _when(self, time: int) -> str:
        kind = self._style.time
        if kind == 1:
            return ""
        unit, digits = (1, 9) if self._style.nanoseconds else (_MICROSECOND, 6)
        ticks, second = time // unit, _SECOND // unit
        if kind in (3, 5):
            before = ticks if self._before is None else self._before
            if kind == 3 or self._before is None:
                self._before = ticks
            sign, passed = (" ", ticks - before) if ticks >= before else ("-", before - ticks)
            seconds, rest = divmod(passed, second)
            return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:0{digits}} "
        seconds, rest = divmod(ticks, second)
        if kind == 2:
            return f"{seconds}.{rest:0{digits}} "
        try:
            clock = datetime.fromtimestamp(seconds)
        except (ValueError, OverflowError, OSError):  # a file may claim any time
            return f"{seconds}.{rest:0{digits}} "
        date = f"{clock:%Y-%m-%d} " if kind == 4 else ""
        return f"{date}{clock:%H:%M:%S}.{rest:0{digits}} "


def _dumped(kind: str, data: bytes) -> str:
    if kind == "A":
        return "\n" + _NOT_ASCII.sub(b".", data).replace(b"\r\n", b"\n").decode()
    return hex_dump(data, ascii_too=kind == "X")


def link_header_size(link_type: int, data: bytes) -> int:
    """Return the length of the link-level header with its VLAN tags, which ``-x`` leaves out."""
    if link_type == LinkType.ETHERNET:
        kind, at = ethernet_header(data)
        return at + llc_size(data, at) if is_length(kind) else at
    return {LinkType.LINUX_SLL.value: 16, LinkType.LINUX_SLL2.value: 20}.get(link_type, 0)


class _Layers:
    """Prints the packets of each layer; see `Layers`.

    :param depth: how many packets the packets are inside of.
    """

    def __init__(self, style: LineStyle, depth: int = 0) -> None:
        self.link = style.link
        self.verbose = style.verbose
        self.quiet = style.quiet
        self._style = style
        self._depth = depth
        self._ip = IpLines(self)

    @functools.cached_property
    def inside(self) -> _Layers:
        return _Layers(self._style, self._depth + 1)

    def frame(self, data: bytes, length: int) -> str:
        return frame_text(self, data, length) if self._depth < _MOST_NESTED else _TOO_DEEP

    def ip(self, data: bytes, length: int, version: int = 0) -> str:
        return self._ip.text(data, length, version) if self._depth < _MOST_NESTED else _TOO_DEEP

    def payload(self, kind: int, data: bytes, length: int) -> str | None:
        return payload_text(self, kind, data, length)

    def dump(self, data: bytes) -> str:
        return "" if self.quiet or self._style.dump[:1] in ("x", "X") else hex_dump(data, ascii_too=True)


class _Decoder:
    def __init__(self, style: LineStyle) -> None:
        self._style = style
        self._layers = _Layers(style)

    def packet(self, link_type: int, data: bytes, length: int) -> str:
        """Return the line of a packet."""
        if not data:
            return f"[Invalid header: caplen==0, len=={length}]"
        if length < len(data):  # a capture file may claim that
            return f"[Invalid header: len({length}) < caplen({len(data)})]" if length else "[Invalid header: len==0]"
        if link_type == _ETHERNET:
            return self._layers.frame(data, length)
        if LinkType.mode_of(link_type) is Mode.IP:
            return ("ip: " if self._style.link else "") + self._layers.ip(data, length)
        header = link_header_size(link_type, data)
        if header and len(data) < header:
            return f" [|{'sll' if header == 16 else 'sll2'}]"
        if link_type == LinkType.LINUX_SLL:
            return self._sll(data, length)
        if link_type == LinkType.LINUX_SLL2:
            return self._sll2(data, length)
        return f"{link_type_name(link_type)}, length {length}"

    def _sll(self, data: bytes, length: int) -> str:
        way, _, size, address, kind = struct.unpack_from("!HHH8sH", data)
        text = ""
        if self._style.link or not is_known(kind):
            mac = f"{address[:6].hex(':')} " if size == 6 else ""
            shown = ethertype_text(kind, length, self._style.quiet)
            text = f"{_DIRECTIONS[way] if way < 5 else '?':>3} {mac}{shown}: "
        return text + self._payload(kind, data[16:], length - 16)

    def _sll2(self, data: bytes, length: int) -> str:
        kind, _, index, _, way, size, address = struct.unpack_from("!HHIHBB8s", data)
        text = f"{'if' + str(index):5} {_DIRECTIONS[way] if way < 5 else '?':3} "
        if self._style.link or not is_known(kind):
            mac = f"{address[:6].hex(':')} " if size == 6 else ""
            text += f"ifindex {index} {mac}{ethertype_text(kind, length, self._style.quiet)}: "
        return text + self._payload(kind, data[20:], length - 20)

    def _payload(self, kind: int, data: bytes, length: int) -> str:
        made = self._layers.payload(kind, data, length)
        return self._layers.dump(data) if made is None else made
