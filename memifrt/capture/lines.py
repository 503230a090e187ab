"""Print packets as tcpdump does: times, link-level headers, details of protocols, and hex dumps.

Owns the texts of ``-e``, ``-x``, ``-X``, ``-A`` and ``-t``, and of ARP; ``line_ip`` next to it has those of IP. No
content of a packet makes it raise: truncated parts are marked ``[|proto]``. Names are never looked up, so ``-n``
changes nothing here. Sequence numbers of TCP are absolute, as with tcpdump's ``-S``. The content of UDP and TCP is not
shown.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from memifrt.capture.line_ip import IpLines
from memifrt.capture.line_parts import hex_dump, ipv4
from memifrt.capture.link_layer import link_type_name
from memifrt.capture.pcap import LinkType
from memifrt.types import Mode

_MICROSECOND, _SECOND = 1000, 1_000_000_000
_IPV4, _ARP, _RARP, _IPV6 = 0x0800, 0x0806, 0x8035, 0x86DD
_KNOWN = (_IPV4, _ARP, _RARP, _IPV6)
_VLANS = (0x8100, 0x88A8, 0x9100, 0x9200)
_LEAST_ETHERTYPE = 0x600
_ETHERTYPES = {
    0x8100: "802.1Q",
    0x88A8: "802.1Q-QinQ",
    0x9100: "802.1Q-9100",
    0x9200: "802.1Q-9200",
    _IPV4: "IPv4",
    _ARP: "ARP",
    _IPV6: "IPv6",
    _RARP: "Reverse ARP",
    0x6558: "TEB",
    0x8847: "MPLS unicast",
    0x8848: "MPLS multicast",
    0x8863: "PPPoE D",
    0x8864: "PPPoE S",
    0x88CC: "LLDP",
    0x88F7: "PTP",
    0x9000: "Loopback",
}
_HARDWARE = {1: "Ethernet", 6: "TokenRing", 7: "ArcNet", 15: "FrameRelay", 17: "Strip", 24: "IEEE 1394"}
_ARP_OPERATIONS = {
    1: "Request",
    2: "Reply",
    3: "Reverse Request",
    4: "Reverse Reply",
    8: "Inverse Request",
    9: "Inverse Reply",
    10: "NACK Reply",
}
_DIRECTIONS = ("In", "B", "M", "P", "Out")
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

    :param describe: makes the line from a packet that a memif in this mode carries; None prints tcpdump's line.
    :param mode: the mode of packets that ``describe`` takes.
    """

    def __init__(
        self, style: LineStyle, describe: Callable[[bytes], str] | None = None, mode: Mode | None = None
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
        if self._describe is not None and LinkType.mode_of(link_type) is self._mode:
            line, header = self._describe(data), link_header_size(link_type, data)
        else:
            line, header = self._decoder.packet(link_type, data, length)
        dump = self._style.dump
        if dump:
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
        return _ethernet_header(data)[1]
    return {LinkType.LINUX_SLL.value: 16, LinkType.LINUX_SLL2.value: 20}.get(link_type, 0)


def _ethernet_header(data: bytes) -> tuple[int, int]:
    """Return the EtherType behind all VLAN tags, and the position after it. A length is below 0x600."""
    at = 14
    if len(data) < at:
        return 0, len(data)
    (kind,) = struct.unpack_from("!H", data, 12)
    while kind in _VLANS and len(data) >= at + 4:
        (kind,) = struct.unpack_from("!H", data, at + 2)
        at += 4
    return kind, min(at + 3, len(data)) if kind < _LEAST_ETHERTYPE else at


class _Decoder:
    def __init__(self, style: LineStyle) -> None:
        self._style = style
        self._link = style.link
        self._verbose = style.verbose
        self._quiet = style.quiet
        self._ip = IpLines(link=style.link, verbose=style.verbose, quiet=style.quiet)

    def packet(self, link_type: int, data: bytes, length: int) -> tuple[str, int]:
        """Return the line of a packet and the length of its link-level header."""
        if not data:
            return f"[Invalid header: caplen==0, len=={length}]", 0
        if length < len(data):  # a capture file may claim that
            return f"[Invalid header: len({length}) < caplen({len(data)})]" if length else "[Invalid header: len==0]", 0
        if link_type == LinkType.ETHERNET:
            return self._ethernet(data, length)
        header = link_header_size(link_type, data)
        if LinkType.mode_of(link_type) is Mode.IP:
            return ("ip: " if self._link else "") + self._ip.text(data, length), 0
        if header and len(data) < header:
            return f" [|{'sll' if header == 16 else 'sll2'}]", len(data)
        if link_type == LinkType.LINUX_SLL:
            return self._sll(data, length), header
        if link_type == LinkType.LINUX_SLL2:
            return self._sll2(data, length), header
        return f"{link_type_name(link_type)}, length {length}", 0

    # --- link layers ---

    def _ethernet(self, data: bytes, length: int) -> tuple[str, int]:
        if len(data) < 14:
            return " [|ether]", len(data)
        (kind,) = struct.unpack_from("!H", data, 12)
        ends = f"{data[6:12].hex(':')} > {data[:6].hex(':')}, "
        final, header = _ethernet_header(data)
        if final in _VLANS:  # the tag is cut off
            return (ends if self._link else "") + " [|vlan]", header
        known = final in _KNOWN
        shown = self._link or not known
        first = kind if self._link or final < _LEAST_ETHERTYPE else final
        texts = [f"{ends}{self._ethertype(first, length)}: "] if shown else []
        at = 14
        while kind in _VLANS:
            tag, kind = struct.unpack_from("!HH", data, at)
            at += 4
            if shown and first != final:
                drop = ", DEI" if tag & 0x1000 else ""
                texts.append(f"vlan {tag & 0xFFF}, p {tag >> 13}{drop}, {self._ethertype(kind)}, ")
        text = "".join(texts)
        if known:
            return text + self._payload(final, data[header:], length - header), header
        if kind < _LEAST_ETHERTYPE:
            llc = data[at : at + 3]
            if len(llc) < 3:
                return f"{text} [|llc]", header
            return f"{text}LLC, dsap 0x{llc[0]:02x}, ssap 0x{llc[1]:02x}, ctrl 0x{llc[2]:02x}", header
        return text + self._unknown(data[header:]), header

    def _unknown(self, data: bytes) -> str:
        """Return the dump of a payload of an unknown protocol, unless a dump follows anyway."""
        return "" if self._quiet or self._style.dump[:1] in ("x", "X") else hex_dump(data, ascii_too=True)

    def _ethertype(self, kind: int, length: int | None = None) -> str:
        known = _ETHERTYPES.get(kind)
        if kind < _LEAST_ETHERTYPE:
            return f"802.3, length {kind}"
        if self._quiet:
            text = known or f"Unknown Ethertype (0x{kind:04x})"
        else:
            text = f"ethertype {known or 'Unknown'} (0x{kind:04x})"
        return text if length is None else f"{text}, length {length}"

    def _sll(self, data: bytes, length: int) -> str:
        way, _, size, address, kind = struct.unpack_from("!HHH8sH", data)
        text = ""
        if self._link or kind not in _KNOWN:
            mac = f"{address[:6].hex(':')} " if size == 6 else ""
            text = f"{_DIRECTIONS[way] if way < 5 else '?':>3} {mac}{self._ethertype(kind, length)}: "
        return text + self._payload(kind, data[16:], length - 16)

    def _sll2(self, data: bytes, length: int) -> str:
        kind, _, index, _, way, size, address = struct.unpack_from("!HHIHBB8s", data)
        text = f"{'if' + str(index):5} {_DIRECTIONS[way] if way < 5 else '?':3} "
        if self._link or kind not in _KNOWN:
            mac = f"{address[:6].hex(':')} " if size == 6 else ""
            text += f"ifindex {index} {mac}{self._ethertype(kind, length)}: "
        return text + self._payload(kind, data[20:], length - 20)

    def _payload(self, kind: int, data: bytes, length: int) -> str:
        """Return the text of the payload of a link-level header.

        :param length: its length before it was cut.
        """
        if kind in (_ARP, _RARP):
            return self._arp(data, length)
        if kind in (_IPV4, _IPV6):
            return self._ip.text(data, length, 4 if kind == _IPV4 else 6)
        return self._unknown(data)

    def _arp(self, data: bytes, length: int) -> str:
        if len(data) < 8:
            return " [|arp]"
        hardware, protocol, mac_size, ip_size, operation = struct.unpack_from("!HHBBH", data)
        end = 8 + 2 * (mac_size + ip_size)
        if len(data) < end:
            return " [|arp]"
        text = "" if self._link else "ARP, "
        known = protocol == _IPV4 and ip_size == 4 and mac_size
        if not known or self._verbose:
            kind = _HARDWARE.get(hardware, f"Unknown Hardware ({hardware})")
            over = _ETHERTYPES.get(protocol, f"Unknown Protocol (0x{protocol:04x})")
            text += f"{kind} (len {mac_size}), {over} (len {ip_size})" + (", " if known else "")
        if not known:
            return f"{text}, length {length}"
        text += f"{_ARP_OPERATIONS.get(operation, f'Unknown ({operation})')} "
        macs, size = data[8:end], mac_size + 4
        sender_mac, sender = macs[:mac_size].hex(":"), ipv4(macs, mac_size)
        target_mac, target = macs[size : size + mac_size], ipv4(macs, size + mac_size)
        asked = f" ({target_mac.hex(':')})" if any(target_mac) else ""
        details = {
            1: f"who-has {target}{asked} tell {sender}",
            2: f"{sender} is-at {sender_mac}",
            3: f"who-is {target_mac.hex(':')} tell {sender_mac}",
            4: f"{target_mac.hex(':')} at {target}",
            8: f"who-is {target_mac.hex(':')} tell {sender_mac}",
            9: f"{sender_mac} at {sender}",
        }.get(operation)
        return text + (hex_dump(data, ascii_too=True) if details is None else f"{details}, length {length}")
