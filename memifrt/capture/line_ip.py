"""The texts of IP packets, their extension headers, tunnels and UDP, in tcpdump's words.

No packet makes this raise, and none takes long: a chain of headers is printed as far as its first ones, and packets
inside packets up to a depth.
"""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_icmp import icmp6_pieces, icmp_pieces
from memifrt.capture.line_parts import Cut, Datagram, ipv4, ipv6, joined, right_checksum, unpack
from memifrt.capture.line_tcp import tcp_pieces
from memifrt.packets import checksum
from memifrt.packets.ipv4 import final_destination

_ICMP, _IPIP, _TCP, _UDP, _IPV6, _ESP, _ICMP6, _NOTHING = 1, 4, 6, 17, 41, 50, 58, 59
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_PROTOCOLS = {
    0: "Options",
    1: "ICMP",
    2: "IGMP",
    4: "IPIP",
    6: "TCP",
    8: "EGP",
    17: "UDP",
    41: "IPv6",
    43: "Routing",
    44: "Fragment",
    46: "RSVP",
    47: "GRE",
    50: "ESP",
    51: "AH",
    58: "ICMPv6",
    88: "EIGRP",
    89: "OSPF",
    103: "PIM",
    112: "VRRP",
    132: "SCTP",
}
_LEAST_HEADER, _IPV6_HEADER = 20, 40
_ECN = ("", ",ECT(1)", ",ECT(0)", ",CE")
_IP_OPTIONS = {
    0: "EOL",
    1: "NOP",
    7: "RR",
    68: "timestamp",
    130: "security",
    131: "LSRR",
    133: "ESEC",
    134: "CIPSO",
    137: "SSRR",
    148: "RA",
}
#: Options that are a pointer and addresses.
_ROUTES = (7, 131, 137)
_NAMES = {_TCP: "tcp", _UDP: "udp", _ICMP: "icmp", _ICMP6: "icmp6", _ESP: "esp"}
#: The most extension headers to print, and the most packets inside each other. There may be thousands.
_MOST_EXTENSIONS, _MOST_NESTED = 8, 8


class IpLines:
    """Makes the text of an IP packet.

    :param link: whether the link-level header has been printed, which says what the packet is.
    :param verbose: how many ``-v``.
    :param quiet: ``-q``: less about protocols.
    """

    def __init__(self, *, link: bool, verbose: int, quiet: bool) -> None:
        self._link = link
        self._verbose = verbose
        self._quiet = quiet

    def text(self, data: bytes, length: int, version: int = 0, depth: int = 0) -> str:
        """Return the text of a packet.

        :param length: its length before it was cut, with any padding.
        :param version: what the layer below says that it is; 0 means that the packet says it.
        :param depth: how many packets it is inside of.
        """
        if not version:
            version = data[0] >> 4 if data else 4
            if version not in (4, 6):
                return f"unknown ip {version}"
        if depth >= _MOST_NESTED:
            return "(nested too deep)"
        return joined(self._ip4(data, length, depth) if version == 4 else self._ip6(data, length, depth), _ip(version))

    # --- IPv4 ---

    def _ip4(self, data: bytes, length: int, depth: int) -> Iterator[str]:
        if not data:
            raise Cut
        version = data[0] >> 4
        if version != 4:
            yield f"{'IP6, wrong link-layer encapsulation' if version == 6 else f'IP{version}'} (invalid)"
            return
        if not self._link:
            yield "IP "
        first, tos, total, identity, fragment, ttl, protocol, found = unpack("!BBHHHBBH8x", data)
        header = (first & 0xF) * 4
        if header < _LEAST_HEADER:
            yield f"bad-hlen {header}"
            return
        if length < total:
            yield f"truncated-ip - {total - length} bytes missing! "
        if total < header:
            yield f"bad-len {total}"
            return
        if self._verbose:
            bits = ((0x2000, "+"), (0x4000, "DF"), (0x8000, "rsvd"))
            flags = ", ".join(sign for bit, sign in bits if fragment & bit) or "none"
            life = f", ttl {ttl}" if ttl else ""
            yield f"(tos 0x{tos:x}{_ECN[tos & 3]}{life}, id {identity}, offset {8 * (fragment & 0x1FFF)}, "
            yield f"flags [{flags}], proto {_PROTOCOLS.get(protocol, 'unknown')} ({protocol}), length {total}"
            if header > _LEAST_HEADER:
                yield f", options ({_ip_options(data[20:header])})"
            if len(data) >= header and checksum(data[:header]):
                right = checksum(data[:10] + b"\0\0" + data[12:header])
                yield f", bad cksum {found:x} (->{right:x})!"
            yield ")\n    "
        if len(data) < header:
            yield f" [remaining caplen({len(data)}) < header length({header})]"
            raise Cut
        source, target = ipv4(data, 12), ipv4(data, 16)
        if fragment & 0x1FFF:
            yield f"{source} > {target}: ip-proto-{protocol}"
            return
        more = bool(fragment & 0x2000)
        final = final_destination(data, 0, header) or 16
        addresses = data[12:16] + data[final : final + 4]
        datagram = Datagram(source, target, data[header:total], total - header, addresses, more, 4)
        yield self._transport(protocol, datagram, depth)

    # --- IPv6 ---

    def _ip6(self, data: bytes, length: int, depth: int) -> Iterator[str]:
        if len(data) < _IPV6_HEADER:
            raise Cut
        word, payload, protocol, hops = unpack("!IHBB", data)
        if not self._link:
            yield "IP6 "
        if word >> 28 != 6:
            yield f"version error: {word >> 28} != 6"
            return
        if length < _IPV6_HEADER + payload:
            yield f"truncated-ip6 - {_IPV6_HEADER + payload - length} bytes missing!"
        if self._verbose:
            traffic, flow = word >> 20 & 0xFF, word & 0xFFFFF
            parts = [f"class 0x{traffic:02x}"] if traffic else []
            parts += [f"flowlabel 0x{flow:05x}"] if flow else []
            name = _PROTOCOLS.get(protocol, "unknown")
            yield f"({', '.join([*parts, f'hlim {hops}'])}, next-header {name} ({protocol}) payload length: {payload}) "
        if not payload and protocol == _HOP_BY_HOP:  # a jumbogram
            payload = max(length - _IPV6_HEADER, 0)
        yield from self._payload6(data[: _IPV6_HEADER + payload], payload, protocol, depth)

    def _payload6(self, data: bytes, left: int, protocol: int, depth: int) -> Iterator[str]:
        """Yield the text of the extension headers and of what follows them.

        :param left: the length of the payload by the IP header.
        """
        source, target = ipv6(data, 8), ipv6(data, 24)
        at, count, fragment, final = _IPV6_HEADER, 0, False, data[24:40]
        while protocol in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION):
            if not count:
                yield f"{source} > {target}: "
            count += 1
            fragment = fragment or protocol == _FRAGMENT
            text, following, size = self._extension(protocol, data, at, left)
            if count <= _MOST_EXTENSIONS or following is None:
                yield text
            if following is None or at + size > len(data) or (protocol == _FRAGMENT and at + size == len(data)):
                return
            if protocol == _ROUTING:
                final = _final_hop(data, at, size) or final
            protocol, at, left = following, at + size, max(left - size, 0)
        if protocol == _NOTHING:
            yield "no next header" if count else f"{source} > {target}: no next header"
            return
        ends = ("", "") if count else (source, target)
        yield self._transport(protocol, Datagram(*ends, data[at:], left, data[8:24] + final, fragment, 6), depth)

    def _extension(self, protocol: int, data: bytes, at: int, left: int) -> tuple[str, int | None, int]:
        """Return the text of an extension header, the protocol that follows, and the size of the header.

        The protocol is None if nothing more is to be printed.
        """
        if protocol == _FRAGMENT:
            return self._fragment(data, at, left)
        if protocol == _ROUTING:
            return self._routing(data, at)
        mark = " [|hbhopt]" if protocol == _HOP_BY_HOP else " [|dstopt]"
        size = 8 * (data[at + 1] + 1) if at + 2 <= len(data) else 8
        if at + size > len(data):
            return mark, None, size
        text = "HBH " if protocol == _HOP_BY_HOP else "DSTOPT "
        options = _ip6_options(data, at + 2, at + size)
        if options is None and (self._verbose or protocol == _HOP_BY_HOP):
            return text + mark, None, size
        return text + f"{options} " if self._verbose else text, data[at], size

    def _fragment(self, data: bytes, at: int, left: int) -> tuple[str, int | None, int]:
        if at + (8 if self._verbose else 4) > len(data):
            return " [|frag6]", None, 8
        (offset,) = unpack("!2xH", data, at)
        number = f"0x{unpack('!4xI', data, at)[0]:08x}:" if self._verbose else ""
        text = f"frag ({number}{offset & 0xFFF8}|{left - 8})"
        return (text, None, 8) if offset & 0xFFF8 else (f"{text} ", data[at], 8)

    def _routing(self, data: bytes, at: int) -> tuple[str, int | None, int]:
        if at + 4 > len(data):
            return "RT6 [|rt6]" if at < len(data) else " [|ip6]", None, 8
        following, units, kind, segments = unpack("!4B", data, at)
        size = 8 * (units + 1)
        text = f"RT6 (len={units}, type={kind}{' [Deprecated]' if not kind else ''}, segleft={segments}"
        if at + 8 > len(data):
            return f"{text} [|rt6]", None, size
        if kind in (0, 2):
            text += f", rsv=0x{unpack('!4xI', data, at)[0]:x}" if self._verbose else ""
            if units % 2 or (kind == 2 and units != 2):
                return f"{text} (invalid length {units}) (invalid)", None, size
            count = units // 2
        elif kind == 4:
            last, flags, tag = unpack("!4xBBH", data, at)
            text += f", last-entry={last}" + (f", flags=0x{flags:x}" if self._verbose else "") + f", tag={tag:x}"
            count = min(last + 1, units // 2)
        else:
            count = 0
        if at + size > len(data):
            return f"{text} [|rt6]", None, size
        places = range(at + 8, at + 8 + 16 * count, 16)
        hops = "".join(f", [{number}]{ipv6(data, place)}" for number, place in enumerate(places))
        return f"{text}{hops}) ", following, size

    # --- transport ---

    def _transport(self, protocol: int, ip: Datagram, depth: int) -> str:
        if protocol in (_IPIP, _IPV6):
            return ip.ends + self.text(ip.data, ip.length, 4 if protocol == _IPIP else 6, depth + 1)
        made = self._pieces(protocol, ip, depth)
        if made is not None:
            return joined(made, _NAMES[protocol])
        name = _PROTOCOLS.get(protocol)
        return ip.ends + (f"{name}, length {ip.length}" if name else f" ip-proto-{protocol} {ip.length}")

    def _pieces(self, protocol: int, ip: Datagram, depth: int) -> Iterator[str] | None:
        if protocol == _TCP:
            return tcp_pieces(ip, self._verbose, self._quiet)
        if protocol == _UDP:
            return self._udp(ip)
        if protocol == _ICMP and ip.version == 4:
            return icmp_pieces(
                ip, self._verbose, lambda data, total, version: self.text(data, total, version, depth + 1)
            )
        if protocol == _ICMP6 and ip.version == 6:
            return icmp6_pieces(ip, self._verbose)
        return _esp(ip) if protocol == _ESP else None

    def _udp(self, ip: Datagram) -> Iterator[str]:
        data = ip.data
        if len(data) < 4:
            yield ip.ends
            raise Cut
        from_port, to_port = unpack("!HH", data)
        dot = "." if ip.source else ""
        yield f"{ip.source}{dot}{from_port} > {ip.target}{dot}{to_port}: "
        if ip.length < 8:
            yield f"truncated-udp {ip.length}"
            return
        (total,) = unpack("!4xH", data)
        if total < 8:
            yield f"truncated-udplength {total}"
            return
        (found,) = unpack("!6xH", data)
        length, room = total - 8, ip.length - 8
        if self._verbose > 1 or (self._verbose and ip.version == 6):
            yield self._udp_checksum(ip, found, min(total, ip.length))
        yield f"UDP, bad length {length} > {room}" if length > room and not ip.fragment else f"UDP, length {length}"

    def _udp_checksum(self, ip: Datagram, found: int, covered: int) -> str:
        if not found and ip.version == 4:
            return "" if ip.fragment else "[no cksum] "
        rest = ip.check(_UDP, covered)
        if rest is None:
            return ""
        return f"[bad udp cksum 0x{found:04x} -> 0x{right_checksum(found, rest):04x}!] " if rest else "[udp sum ok] "


def _ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def _ip6_options(data: bytes, at: int, end: int) -> str | None:
    """Return the text of the options in ``data[at:end]``; None if one of them goes past the end."""
    texts: list[str] = []
    while at < end:
        kind = data[at]
        size = 1 if not kind else 2 + data[at + 1] if at + 1 < end else end
        if at + size > end:
            return None
        if kind in (0, 1):
            texts.append("(padn)" if kind else "(pad1)")
        elif kind == 5 and size == 4:
            texts.append(f"(rtalert: 0x{unpack('!2xH', data, at)[0]:04x}) ")
        elif kind == 0xC2 and size == 6:
            texts.append(f"(jumbo: {unpack('!2xI', data, at)[0]}) ")
        else:
            texts.append(f"(opt_type 0x{kind:02x}: len={size - 2})")
        at += size
    return "".join(texts)


def _final_hop(data: bytes, at: int, size: int) -> bytes | None:
    """Return the final destination from a routing header, which checksums cover; None if there is none.

    A header without segments left has been used up: the destination is in the IP header.
    """
    kind, segments = data[at + 2], data[at + 3]
    if not segments or size < 24 or kind not in (0, 2, 4):
        return None
    return data[at + 8 : at + 24] if kind == 4 else data[at + size - 16 : at + size]


def _esp(ip: Datagram) -> Iterator[str]:
    yield ip.ends
    number, sequence = unpack("!II", ip.data)
    yield f"ESP(spi=0x{number:08x},seq=0x{sequence:x}), length {ip.length}"


def _ip_options(data: bytes) -> str:
    """Return the text of IPv4's options.

    :raises Cut: they are cut off.
    """
    texts: list[str] = []
    at = 0
    while at < len(data):
        kind = data[at]
        name = _IP_OPTIONS.get(kind, f"unknown {kind}")
        size = 1 if kind < 2 else data[at + 1] if at + 1 < len(data) else 0
        if kind > 1 and (size < 2 or at + size > len(data)):
            texts.append(f"{name} [bad length {size}]")
            break
        routes = [f" {ipv4(data, place)}" for place in range(at + 3, at + size - 3, 4)]
        texts.append(name + ("".join(routes) if kind in _ROUTES[1:] else ""))
        if not kind:
            break
        at += size
    return ",".join(texts)
