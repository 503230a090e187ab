"""Print packets as tcpdump does: times, link-level headers, details of protocols, and hex dumps.

Owns the texts of ``-e``, ``-v``, ``-q``, ``-x``, ``-X``, ``-A`` and ``-t``. No content of a packet makes it raise:
truncated parts are marked ``[|proto]``. Names are never looked up, so ``-n`` changes nothing here. Sequence numbers of
TCP are absolute, as with tcpdump's ``-S``. The content of UDP and TCP is not shown.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from memifrt.capture.link_layer import link_type_name
from memifrt.capture.pcap import LinkType
from memifrt.packets import checksum
from memifrt.types import Mode

_MICROSECOND, _SECOND = 1000, 1_000_000_000
_VLAN, _QINQ, _IPV4, _ARP, _IPV6 = 0x8100, 0x88A8, 0x0800, 0x0806, 0x86DD
_LEAST_ETHERTYPE = 0x600
_ETHERTYPES = {
    _VLAN: "802.1Q",
    _QINQ: "802.1Q-QinQ",
    _IPV4: "IPv4",
    _ARP: "ARP",
    _IPV6: "IPv6",
    0x8035: "Reverse ARP",
    0x8847: "MPLS unicast",
    0x8848: "MPLS multicast",
    0x8863: "PPPoE D",
    0x8864: "PPPoE S",
    0x88CC: "LLDP",
    0x88F7: "PTP",
    0x9000: "Loopback",
}
_ICMP, _TCP, _UDP, _ICMP6 = 1, 6, 17, 58
_PROTOCOLS = {
    0: "Options",
    1: "ICMP",
    2: "IGMP",
    4: "IPIP",
    6: "TCP",
    17: "UDP",
    41: "IPv6",
    43: "Routing",
    44: "Fragment",
    47: "GRE",
    50: "ESP",
    51: "AH",
    58: "ICMPv6",
    60: "Options",
    89: "OSPF",
    132: "SCTP",
}
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
#: TCP flags and their signs, in tcpdump's order.
_TCP_FLAGS = ((0x01, "F"), (0x02, "S"), (0x04, "R"), (0x08, "P"), (0x10, "."), (0x20, "U"), (0x40, "E"), (0x80, "W"))
_SYN_FIN_RST, _ACK, _URG = 0x07, 0x10, 0x20
_IP_OPTIONS = {0: "EOL", 1: "NOP", 7: "RR", 68: "timestamp", 131: "LSRR", 137: "SSRR", 148: "RA"}
#: The codes of an ICMP destination unreachable, in tcpdump's words.
_UNREACHABLE = {
    0: "net {} unreachable",
    1: "host {} unreachable",
    2: "{} protocol {} unreachable",
    3: "{} port unreachable",
    5: "{} unreachable - source route failed",
    6: "net {} unreachable - unknown",
    7: "host {} unreachable - unknown",
    8: "{} unreachable - source host isolated",
    9: "net {} unreachable - admin prohibited",
    10: "host {} unreachable - admin prohibited",
    11: "net {} unreachable - tos prohibited",
    12: "host {} unreachable - tos prohibited",
    13: "host {} unreachable - admin prohibited filter",
    14: "host {} unreachable - host precedence violation",
    15: "host {} unreachable - precedence cutoff",
}
_REDIRECTS = (
    "redirect {} to net {}",
    "redirect {} to host {}",
    "redirect-tos {} to net {}",
    "redirect-tos {} to host {}",
)
#: ICMP messages that have no codes.
_ICMP_NAMES = {
    4: "source quench",
    10: "router solicitation",
    15: "information request",
    16: "information reply",
    17: "address mask request",
}
_ECN = ("", ",ECT(1)", ",ECT(0)", ",CE")
_DIRECTIONS = ("In", "B", "M", "P", "Out")
_UNPRINTABLE = re.compile(rb"[^\x21-\x7e]")
#: The characters that ``-A`` replaces: all but printable characters, blanks, and a carriage return that ends a line.
_NOT_ASCII = re.compile(rb"(?!\r\n)[^\t\n\x20-\x7e]")


def tcp_flags(flags: int) -> str:
    """Return the flags of a TCP header as tcpdump shows them, such as ``P.``."""
    return "".join(sign for bit, sign in _TCP_FLAGS if flags & bit) or "none"


class _Cut(Exception):
    """The packet is shorter than its headers need."""


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


def hex_dump(data: bytes, *, ascii_too: bool = False) -> str:
    """Return tcpdump's ``-x`` dump, or ``-X`` with ``ascii_too``. Each line starts with a newline and a tab."""
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        digits = piece.hex()
        words = " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))
        shown = f"{words:39}  {_UNPRINTABLE.sub(b'.', piece).decode()}" if ascii_too else words
        lines.append(f"\n\t0x{at:04x}:  {shown}")
    return "".join(lines)


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
    while kind in (_VLAN, _QINQ) and len(data) >= at + 4:
        (kind,) = struct.unpack_from("!H", data, at + 2)
        at += 4
    return kind, min(at + 3, len(data)) if kind < _LEAST_ETHERTYPE else at


def _unpack(layout: str, data: bytes, at: int = 0) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error as error:
        raise _Cut from error


def _address(raw: bytes) -> str:
    if len(raw) not in (4, 16):
        raise _Cut
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


@dataclass(frozen=True, slots=True)
class _Datagram:
    """The facts that a transport header needs of its IP packet.

    :ivar source: the source address as a text; empty if it has been printed already.
    :ivar target: the destination address as a text; empty if it has been printed already.
    :ivar length: the length of the payload by the IP header.
    :ivar addresses: both addresses, for the pseudo header.
    :ivar fragment: whether this is only the first part of the payload.
    """

    source: str
    target: str
    data: bytes
    length: int
    addresses: bytes
    fragment: bool
    version: int

    def check(self, protocol: int) -> int | None:
        """Return the checksum over pseudo header and payload: 0 if theirs is right, None if it cannot be checked."""
        if self.fragment or len(self.data) < self.length:
            return None
        return checksum(self.addresses + struct.pack("!II", self.length, protocol) + self.data[: self.length])


class _Decoder:
    def __init__(self, style: LineStyle) -> None:
        self._style = style
        self._link = style.link
        self._verbose = style.verbose
        self._quiet = style.quiet

    def packet(self, link_type: int, data: bytes, length: int) -> tuple[str, int]:
        """Return the line of a packet and the length of its link-level header."""
        if link_type == LinkType.ETHERNET:
            return self._ethernet(data, length)
        header = link_header_size(link_type, data)
        if LinkType.mode_of(link_type) is Mode.IP:
            return ("ip: " if self._link else "") + self._ip(data), 0
        if header and len(data) < header:
            return f"[|{'sll' if header == 16 else 'sll2'}]", len(data)
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
        known = final in (_IPV4, _IPV6, _ARP)
        shown = self._link or not known
        texts = [f"{ends}{self._ethertype(kind, length)}: "] if shown else []
        at = 14
        while kind in (_VLAN, _QINQ) and at + 4 <= len(data):
            tag, kind = struct.unpack_from("!HH", data, at)
            at += 4
            if shown:
                drop = ", DEI" if tag & 0x1000 else ""
                texts.append(f"vlan {tag & 0xFFF}, p {tag >> 13}{drop}, {self._ethertype(kind)}, ")
        text = "".join(texts)
        if known:
            return text + self._payload(final, data[header:]), header
        if kind < _LEAST_ETHERTYPE:
            llc = data[at : at + 3]
            if len(llc) < 3:
                return f"{text}[|llc]", header
            return f"{text}LLC, dsap 0x{llc[0]:02x}, ssap 0x{llc[1]:02x}, ctrl 0x{llc[2]:02x}", header
        if not self._quiet and self._style.dump[:1] not in ("x", "X"):
            text += hex_dump(data[header:], ascii_too=True)
        return text, header

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
        if self._link:
            mac = f"{address[:6].hex(':')} " if size == 6 else ""
            text = f"{_DIRECTIONS[way] if way < 5 else '?':>3} {mac}{self._ethertype(kind, length)}: "
        return text + self._payload(kind, data[16:])

    def _sll2(self, data: bytes, length: int) -> str:
        kind, _, index, _, way, size, address = struct.unpack_from("!HHIHBB8s", data)
        text = f"{'if' + str(index):5} {_DIRECTIONS[way] if way < 5 else '?':3} "
        if self._link:
            mac = f"{address[:6].hex(':')} " if size == 6 else ""
            text += f"ifindex {index} {mac}{self._ethertype(kind, length)}: "
        return text + self._payload(kind, data[20:])

    def _payload(self, kind: int, data: bytes) -> str:
        if kind == _ARP:
            return self._arp(data)
        if kind in (_IPV4, _IPV6):
            return self._ip(data, kind)
        return self._ethertype(kind, len(data))

    def _arp(self, data: bytes) -> str:
        start = "" if self._link else "ARP, "
        if len(data) < 28:
            return f"{start}[|arp]"
        hardware, protocol, sizes, operation = struct.unpack_from("!HHHH", data)
        if (hardware, protocol, sizes) != (1, _IPV4, 0x0604):
            return f"{start}hardware {hardware}, protocol 0x{protocol:04x}, operation {operation}, length {len(data)}"
        if self._verbose:
            start += "Ethernet (len 6), IPv4 (len 4), "
        mac, sender, target = data[8:14].hex(":"), _address(data[14:18]), _address(data[24:28])
        asked = f" ({data[18:24].hex(':')})" if any(data[18:24]) else ""
        texts = {1: f"Request who-has {target}{asked} tell {sender}", 2: f"Reply {sender} is-at {mac}"}
        return f"{start}{texts.get(operation, f'operation {operation}')}, length {len(data)}"

    # --- IP ---

    def _ip(self, data: bytes, kind: int = 0) -> str:
        """Return the text of an IP packet. ``kind`` is the EtherType; 0 means that the version says it."""
        version = data[0] >> 4 if data else 0
        wanted = {_IPV4: 4, _IPV6: 6}.get(kind, version)
        name = {4: "IP", 6: "IP6"}.get(wanted, "IP")
        start = "" if self._link else f"{name} "
        if not data:
            return f"{start}[|{name.lower()}]"
        if version != wanted or version not in (4, 6):
            return f"{start}version {version} is wrong, length {len(data)}"
        try:
            return start + (self._ip4(data) if version == 4 else self._ip6(data))
        except _Cut:
            return f"{start}[|{name.lower()}]"

    def _ip4(self, data: bytes) -> str:
        first, tos, total, identity, fragment, ttl, protocol, found = _unpack("!BBHHHBBH", data)
        header = (first & 0xF) * 4
        if header < 20 or len(data) < header:
            raise _Cut
        total = max(total or len(data), header)
        text = ""
        if self._verbose:
            bits = ((0x2000, "+"), (0x4000, "DF"), (0x8000, "rsvd"))
            flags = ", ".join(sign for bit, sign in bits if fragment & bit) or "none"
            name = _PROTOCOLS.get(protocol, "unknown")
            text = f"(tos 0x{tos:x}{_ECN[tos & 3]}, ttl {ttl}, id {identity}, offset {8 * (fragment & 0x1FFF)}, "
            text += f"flags [{flags}], proto {name} ({protocol}), length {total}"
            if header > 20:
                text += f", options ({_ip_options(data[20:header])})"
            if checksum(data[:header]):
                right = checksum(data[:10] + b"\0\0" + data[12:header])
                text += f", bad cksum {found:x} (->{right:x})!"
            text += ")\n    "
        source, target = _address(data[12:16]), _address(data[16:20])
        if fragment & 0x1FFF:
            return f"{text}{source} > {target}: ip-proto-{protocol}"
        payload = data[header : min(total, len(data))]
        more = bool(fragment & 0x2000)
        made = _Datagram(source, target, payload, total - header, data[12:20], more, 4)
        return text + self._transport(protocol, made)

    def _ip6(self, data: bytes) -> str:
        word, length, protocol, hops = _unpack("!IHBB", data)
        if len(data) < 40:
            raise _Cut
        text = ""
        if self._verbose:
            traffic, flow = word >> 20 & 0xFF, word & 0xFFFFF
            parts = [f"class 0x{traffic:02x}"] if traffic else []
            parts += [f"flowlabel 0x{flow:05x}"] if flow else []
            name = _PROTOCOLS.get(protocol, "unknown")
            text = f"({', '.join([*parts, f'hlim {hops}'])}, next-header {name} ({protocol}) payload length: {length}) "
        source, target = _address(data[8:24]), _address(data[24:40])
        at, end = 40, min(40 + length, len(data)) if length else len(data)
        extensions: list[str] = []
        while protocol in (_HOP_BY_HOP, _ROUTING, _DESTINATION) and end - at >= 8:
            if len(extensions) < 8:  # there may be thousands
                extensions.append({_HOP_BY_HOP: "HBH ", _ROUTING: "RT ", _DESTINATION: "DSTOPT "}[protocol])
            protocol, at = data[at], at + 8 * (data[at + 1] + 1)
        between = "".join(extensions)
        left = max(40 + length - at, 0)
        if protocol == _FRAGMENT and end - at >= 8:
            protocol, offset, identity = _unpack("!BxHI", data, at)
            number = f"0x{identity:08x}:" if self._verbose else ""
            between += f"frag ({number}{offset & 0xFFF8}|{left - 8}) "
            if offset & 0xFFF8:
                return f"{text}{source} > {target}: {between.rstrip()}"
            at, left = at + 8, left - 8
            made = _Datagram("", "", data[at:end], left, data[8:40], True, 6)
            return f"{text}{source} > {target}: {between}{self._transport(protocol, made)}"
        if not between:
            return text + self._transport(protocol, _Datagram(source, target, data[at:end], left, data[8:40], False, 6))
        made = _Datagram("", "", data[at:end], left, data[8:40], False, 6)
        return f"{text}{source} > {target}: {between}{self._transport(protocol, made)}"

    # --- transport ---

    def _transport(self, protocol: int, ip: _Datagram) -> str:
        ends = f"{ip.source} > {ip.target}: " if ip.source else ""
        if protocol in (_TCP, _UDP):
            try:
                from_port, to_port = _unpack("!HH", ip.data)
            except _Cut:
                return f"{ends}[|{_PROTOCOLS[protocol].lower()}]"
            dot = "." if ip.source else ""
            ends = f"{ip.source}{dot}{from_port} > {ip.target}{dot}{to_port}: "
            try:
                return ends + (self._tcp(ip) if protocol == _TCP else self._udp(ip))
            except _Cut:
                return f"{ends}[|{_PROTOCOLS[protocol].lower()}]"
        try:
            if protocol == _ICMP and ip.version == 4:
                return ends + self._icmp(ip)
            if protocol == _ICMP6 and ip.version == 6:
                return ends + self._icmp6(ip)
        except _Cut:
            return f"{ends}[|{'icmp' if ip.version == 4 else 'icmp6'}]"
        name = _PROTOCOLS.get(protocol)
        return f"{ends}{name if name else f'ip-proto-{protocol}'}{'' if self._quiet else f', length {ip.length}'}"

    def _tcp(self, ip: _Datagram) -> str:
        data = ip.data
        sequence, acknowledged, offset, flags, window, found, urgent = _unpack("!4xIIBBHHH", data)
        header = (offset >> 4) * 4
        payload = ip.length - header
        if header < 20 or payload < 0:
            return f"tcp {max(payload, 0)} [bad hdr length {header}]"
        if self._quiet:
            return f"tcp {payload}"
        text = f"Flags [{tcp_flags(flags)}]"
        if self._verbose:
            rest = ip.check(_TCP)
            if rest is not None:
                text += f", cksum 0x{found:04x} "
                text += f"(incorrect -> 0x{_right(found, rest):04x})" if rest else "(correct)"
        if payload or flags & _SYN_FIN_RST or self._verbose > 1:
            text += f", seq {sequence}" + (f":{sequence + payload & 0xFFFFFFFF}" if payload else "")
        if flags & _ACK:
            text += f", ack {acknowledged}"
        text += f", win {window}"
        if flags & _URG:
            text += f", urg {urgent}"
        if header > 20:
            text += f", options [{_tcp_options(data[20:header])}]"
        return f"{text}, length {payload}"

    def _udp(self, ip: _Datagram) -> str:
        length, found = _unpack("!4xHH", ip.data)
        text = ""
        if self._verbose > 1 or (self._verbose and ip.version == 6):
            if not found and ip.version == 4:
                text = "" if ip.fragment else "[no cksum] "
            elif (rest := ip.check(_UDP)) is not None:
                bad = f"[bad udp cksum 0x{found:04x} -> 0x{_right(found, rest):04x}!] "
                text = bad if rest else "[udp sum ok] "
        return f"{text}UDP, length {max(length - 8, 0)}"

    def _icmp(self, ip: _Datagram) -> str:
        data = ip.data
        kind, code, found = _unpack("!BBH", data)
        text = self._icmp_kind(kind, code, data)
        if self._verbose and not ip.fragment and len(data) >= ip.length and (rest := checksum(data[: ip.length])):
            text += f" (wrong icmp cksum {found:x} (->{_right(found, rest):x})!)"
        return f"ICMP {text}, length {ip.length}"

    def _icmp_kind(self, kind: int, code: int, data: bytes) -> str:
        if kind in (0, 8):
            identifier, sequence = _unpack("!4xHH", data)
            return f"echo {'request' if kind else 'reply'}, id {identifier}, seq {sequence}"
        if kind == 3:
            return _unreachable(code, data)
        if kind == 5:
            words = _REDIRECTS[code] if code < len(_REDIRECTS) else f"redirect-#{code} {{}} to {{}}"
            return words.format(_address(data[24:28]), _address(data[4:8]))
        if kind == 11:
            return {0: "time exceeded in-transit", 1: "ip reassembly time exceeded"}.get(code, f"time exceeded-#{code}")
        return _ICMP_NAMES.get(kind, f"type-#{kind}")

    def _icmp6(self, ip: _Datagram) -> str:
        data = ip.data
        kind, _, found = _unpack("!BBH", data)
        start = ""
        rest = ip.check(_ICMP6) if self._verbose else None
        if rest is not None:
            bad = f"[bad icmp6 cksum 0x{found:04x} -> 0x{_right(found, rest):04x}!] "
            start = bad if rest else "[icmp6 sum ok] "
        length = f", length {ip.length}"
        names = {
            1: "destination unreachable",
            2: "packet too big",
            3: "time exceeded in-transit",
            128: "echo request",
            129: "echo reply",
            133: "router solicitation",
            134: "router advertisement",
            135: "neighbor solicitation",
            136: "neighbor advertisement",
        }
        name = names.get(kind, f"type-#{kind}")
        details = ""
        if kind in (128, 129):
            identifier, sequence = _unpack("!4xHH", data)
            details = f", id {identifier}, seq {sequence}"
            length = "" if self._verbose else length
        elif kind == 135:
            details = f", who has {_address(data[8:24])}"
        elif kind == 136:
            details = f", tgt is {_address(data[8:24])}"
        if self._verbose:
            return f"{start}ICMP6, {name}{length}{details}"
        return f"ICMP6, {name}{details}{length}"


def _right(found: int, rest: int) -> int:
    """Return the checksum that would be right, from the one found and the sum of all."""
    total = (0xFFFF ^ rest) - found  # the sum of everything else
    return 0xFFFF ^ (total % 0xFFFF)


def _unreachable(code: int, data: bytes) -> str:
    inner = data[8:]
    target = _address(inner[16:20])
    if code == 3 and inner:
        header = (inner[0] & 0xF) * 4
        protocol = {_TCP: "tcp", _UDP: "udp"}.get(inner[9])
        if protocol is not None:
            (port,) = _unpack("!H", inner, header + 2)
            return f"{target} {protocol} port {port} unreachable"
    if code == 4:
        mtu = _unpack("!6xH", data)[0]
        return f"{target} unreachable - need to frag" + (f" (mtu {mtu})" if mtu else "")
    if code in _UNREACHABLE:
        return _UNREACHABLE[code].format(target, inner[9])
    return f"{target} unreachable - #{code}"


def _ip_options(data: bytes) -> str:
    texts: list[str] = []
    at = 0
    while at < len(data):
        kind = data[at]
        texts.append(_IP_OPTIONS.get(kind, f"unknown {kind}"))
        size = 1 if kind < 2 else data[at + 1] if at + 1 < len(data) else 0
        if not kind or size < 1:
            break
        at += size
    return ",".join(texts)


def _tcp_options(data: bytes) -> str:
    texts: list[str] = []
    at = 0
    while at < len(data):
        kind = data[at]
        if kind in (0, 1):
            texts.append("nop" if kind else "eol")
            if not kind:
                break
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else 0
        value = data[at + 2 : at + size]
        if size < 2 or len(value) != size - 2:
            texts.append("[bad opt]")
            break
        texts.append(_tcp_option(kind, value))
        at += size
    return ",".join(texts)


def _tcp_option(kind: int, value: bytes) -> str:
    number = int.from_bytes(value, "big")
    if kind == 2:
        return f"mss {number}"
    if kind == 3:
        return f"wscale {number}"
    if kind == 4:
        return "sackOK"
    if kind == 5 and value and len(value) % 8 == 0:
        edges = struct.unpack(f"!{len(value) // 4}I", value)
        pairs = "".join(f"{{{start}:{end}}}" for start, end in zip(edges[::2], edges[1::2], strict=True))
        return f"sack {len(edges) // 2} {pairs}"
    if kind == 8 and len(value) == 8:
        return "TS val {} ecr {}".format(*struct.unpack("!II", value))
    return f"unknown-{kind}" + (f" 0x{value.hex()}" if value else "")
