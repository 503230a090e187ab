"""The texts of IP packets and their extension headers, in tcpdump's words.

No packet makes this raise, and none takes long: a chain of headers is printed as far as its first ones, and packets
inside packets up to a depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from memifrt.capture.line_gre import gre_pieces
from memifrt.capture.line_icmp import icmp6_pieces, icmp_pieces
from memifrt.capture.line_igmp import igmp_pieces
from memifrt.capture.line_ipsec import ah_pieces, ah_size, esp_pieces, ipcomp_pieces
from memifrt.capture.line_parts import INVALID, Cut, Datagram, Layers, ipv4, ipv6, joined, unpack
from memifrt.capture.line_routing import ospf_pieces, vrrp_pieces
from memifrt.capture.line_sctp import sctp_pieces
from memifrt.capture.line_tcp import tcp_pieces
from memifrt.capture.line_udp import udp_pieces
from memifrt.packets import checksum
from memifrt.packets.ipv4 import final_destination

_ICMP, _IGMP, _IPIP, _TCP, _UDP, _IPV6, _GRE, _ESP, _AH, _ICMP6, _NOTHING = 1, 2, 4, 6, 17, 41, 47, 50, 51, 58, 59
_OSPF, _IPCOMP, _VRRP, _SCTP = 89, 108, 112, 132
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_EXTENSIONS = (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION, _AH)
_PROTOCOLS = {
    0: "Options",
    1: "ICMP",
    2: "IGMP",
    4: "IPIP",
    6: "TCP",
    8: "EGP",
    9: "IGRP",
    17: "UDP",
    33: "DCCP",
    41: "IPv6",
    43: "Routing",
    44: "Fragment",
    46: "RSVP",
    47: "GRE",
    50: "ESP",
    51: "AH",
    55: "Mobile IP",
    58: "ICMPv6",
    88: "EIGRP",
    89: "OSPF",
    103: "PIM",
    108: "Compressed IP",
    112: "VRRP",
    132: "SCTP",
    135: "Mobility",
}
_LEAST_HEADER, _IPV6_HEADER = 20, 40
_ECN = ("", ",ECT(1)", ",ECT(0)", ",CE")
_IP_OPTIONS = {
    0: "EOL",
    1: "NOP",
    7: "RR",
    68: "timestamp",
    82: "traceroute",
    130: "security",
    131: "LSRR",
    137: "SSRR",
    148: "RA",
}
#: Options that are a pointer and addresses.
_ROUTES = (7, 131, 137)
_ALERT = 148
#: The names of protocols where they are cut off.
_NAMES = {
    _ICMP: "icmp",
    _ICMP6: "icmp6",
    _IGMP: "igmp",
    _GRE: "gre",
    _ESP: "esp",
    _IPCOMP: "ipcomp",
    _VRRP: "vrrp",
    _SCTP: "sctp",
}
#: Protocols without a printer that are printed by their names.
_NAMED = (8, 46, 88, 103)
#: Protocols of one version of IP alone, and the text for the other one.
_OTHER_VERSION = {
    (_ICMP, 6): "[ICMP requires IPv4]",
    (_IGMP, 6): "[IGMP requires IPv4]",
    (_ICMP6, 4): "[ICMPv6 requires IPv6]",
}
#: The most extension headers to print. There may be thousands.
_MOST_EXTENSIONS = 8


class IpLines:
    """Makes the text of an IP packet.

    :param layers: prints the packets inside; if it prints the link-level header, that says what the packet is.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._link = layers.link
        self._verbose = layers.verbose

    def text(self, data: bytes, length: int, version: int = 0) -> str:
        """Return the text of a packet.

        :param length: its length before it was cut, with any padding.
        :param version: what the layer below says that it is; 0 means that the packet says it.
        """
        if not version:
            version = data[0] >> 4 if data else 4
            if version not in (4, 6):
                return f"unknown ip {version}"
        return joined(self._ip4(data, length) if version == 4 else self._ip6(data, length), _ip(version))

    # --- IPv4 ---

    def _ip4(self, data: bytes, length: int) -> Iterator[str]:
        if not data:
            raise Cut
        version = data[0] >> 4
        if version != 4:
            yield f"{'IP6, wrong link-layer encapsulation' if version == 6 else f'IP{version}'} (invalid)"
            return
        if not self._link:
            yield "IP "
        first, tos, total, identity, fragment, ttl, protocol, found = unpack("!BBHHHBBH8x", data)
        if length < _LEAST_HEADER:
            yield f"truncated-ip {length}"
            return
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
        if protocol == _AH:
            yield from self._authenticated(protocol, datagram, ttl)
        else:
            yield self._transport(protocol, datagram, ttl)

    # --- IPv6 ---

    def _ip6(self, data: bytes, length: int) -> Iterator[str]:
        if len(data) < _IPV6_HEADER:
            raise Cut
        word, payload, protocol, hops = unpack("!IHBB", data)
        if not self._link:
            yield "IP6 "
        if word >> 28 != 6:
            yield f"version error: {word >> 28} != 6"
            return
        if length < _IPV6_HEADER:
            yield f"truncated-ip6 {length}"
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
        yield from self._payload6(data[: _IPV6_HEADER + payload], payload, protocol)

    def _authenticated(self, protocol: int, ip: Datagram, life: int) -> Iterator[str]:
        """Yield the text of the authentication headers in front of any protocol, and of the payload."""
        count = 0
        while protocol == _AH:
            yield ip.ends if not count else ""
            count += 1
            if count > _MOST_EXTENSIONS:
                return
            text = joined(ah_pieces(ip.data, 0, self._verbose), "ah")
            yield text
            size = ah_size(ip.data, 0)
            if not size or size > len(ip.data) or not text.endswith("): "):
                return
            protocol = ip.data[0]
            ip = replace(ip, source="", target="", data=ip.data[size:], length=max(ip.length - size, 0))
        yield self._transport(protocol, ip, life)

    def _payload6(self, data: bytes, left: int, protocol: int) -> Iterator[str]:
        """Yield the text of the extension headers and of what follows them.

        :param left: the length of the payload by the IP header.
        """
        source, target = ipv6(data, 8), ipv6(data, 24)
        at, count, fragment, final = _IPV6_HEADER, 0, False, data[24:40]
        while protocol in _EXTENSIONS:
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
        yield self._transport(protocol, Datagram(*ends, data[at:], left, data[8:24] + final, fragment, 6), data[7])

    def _extension(self, protocol: int, data: bytes, at: int, left: int) -> tuple[str, int | None, int]:
        """Return the text of an extension header, the protocol that follows, and the size of the header.

        The protocol is None if nothing more is to be printed.
        """
        if protocol == _FRAGMENT:
            return self._fragment(data, at, left)
        if protocol == _ROUTING:
            return self._routing(data, at)
        if protocol == _AH:
            text, size = joined(ah_pieces(data, at, self._verbose), "ah"), ah_size(data, at)
            is_whole = text.endswith("): ") and size and at + size <= len(data)
            return text, data[at] if is_whole else None, size
        mark = " [|hbhopt]" if protocol == _HOP_BY_HOP else " [|dstopt]"
        size = 8 * (data[at + 1] + 1) if at + 2 <= len(data) else 8
        if at + size > len(data):
            return mark, None, size
        text = "HBH " if protocol == _HOP_BY_HOP else "DSTOPT "
        options, is_whole = _ip6_options(data, at + 2, at + size)
        if not self._verbose:
            options = ""
        if not is_whole and (self._verbose or protocol == _HOP_BY_HOP):
            return text + options + mark, None, size
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
            (reserved,) = unpack("!4xI", data, at)
            text += f", rsv=0x{reserved:x}" if self._verbose or reserved else ""
            if units % 2 or (kind == 2 and units != 2):
                return f"{text} (invalid length {units}) (invalid)", None, size
            count = units // 2
        elif kind == 4:
            last, flags, tag = unpack("!4xBBH", data, at)
            text += (
                f", last-entry={last}" + (f", flags=0x{flags:x}" if self._verbose or flags else "") + f", tag={tag:x}"
            )
            count = min(last + 1, units // 2)
        else:
            return f"{text} (unknown type){INVALID}", None, size
        if at + size > len(data):
            return f"{text} [|rt6]", None, size
        places = range(at + 8, at + 8 + 16 * count, 16)
        hops = "".join(f", [{number}]{ipv6(data, place)}" for number, place in enumerate(places))
        return f"{text}{hops}) ", following, size

    # --- transport ---

    def _transport(self, protocol: int, ip: Datagram, life: int) -> str:
        """Return the text of the payload of an IP packet.

        :param life: the TTL or hop limit of the packet.
        """
        if protocol == _TCP:  # most packets are one of these
            return joined(tcp_pieces(ip, self._verbose, self._layers.quiet), "tcp")
        if protocol == _UDP:
            return joined(udp_pieces(ip, self._layers), "udp")
        if protocol in (_IPIP, _IPV6):
            return ip.ends + self._layers.inside.ip(ip.data, ip.length, 4 if protocol == _IPIP else 6)
        wrong = _OTHER_VERSION.get((protocol, ip.version))
        if wrong is not None:
            return f"{ip.ends}{wrong}{INVALID}"
        made = self._pieces(protocol, ip, life)
        if made is not None:
            return joined(made, _NAMES.get(protocol) or f"ospf{2 if ip.version == 4 else 3}")
        name = _PROTOCOLS.get(protocol) if protocol in _NAMED else None
        return ip.ends + (f"{name}, length {ip.length}" if name else f" ip-proto-{protocol} {ip.length}")

    def _pieces(self, protocol: int, ip: Datagram, life: int) -> Iterator[str] | None:
        layers, verbose = self._layers, self._verbose
        makers: dict[int, Callable[[], Iterator[str]]] = {
            _ICMP: lambda: icmp_pieces(ip, verbose, layers.inside.ip),
            _ICMP6: lambda: icmp6_pieces(ip, verbose),
            _IGMP: lambda: igmp_pieces(ip, verbose, layers.quiet),
            _GRE: lambda: gre_pieces(ip, layers),
            _ESP: lambda: esp_pieces(ip),
            _IPCOMP: lambda: ipcomp_pieces(ip),
            _OSPF: lambda: ospf_pieces(ip),
            _VRRP: lambda: vrrp_pieces(ip, life, verbose),
            _SCTP: lambda: sctp_pieces(ip, layers),
        }
        make = makers.get(protocol)
        return None if make is None else make()


def _ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def _ip6_options(data: bytes, at: int, end: int) -> tuple[str, bool]:
    """Return the text of the options in ``data[at:end]``, and whether none of them goes past the end."""
    texts: list[str] = []
    while at < end:
        kind = data[at]
        size = 1 if not kind else 2 + data[at + 1] if at + 1 < end else end
        if at + size > end:
            return "".join(texts), False
        if kind in (0, 1):
            texts.append("(padn)" if kind else "(pad1)")
        elif kind == 5 and size == 4:
            texts.append(f"(rtalert: 0x{unpack('!2xH', data, at)[0]:04x}) ")
        elif kind == 0xC2 and size == 6:
            texts.append(f"(jumbo: {unpack('!2xI', data, at)[0]}) ")
        else:
            texts.append(f"(opt_type 0x{kind:02x}: len={size - 2})")
        at += size
    return "".join(texts), True


def _final_hop(data: bytes, at: int, size: int) -> bytes | None:
    """Return the final destination from a routing header, which checksums cover; None if there is none.

    A header without segments left has been used up: the destination is in the IP header.
    """
    kind, segments = data[at + 2], data[at + 3]
    if not segments or size < 24 or kind not in (0, 2, 4):
        return None
    return data[at + 8 : at + 24] if kind == 4 else data[at + size - 16 : at + size]


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
        texts.append(name + _ip_option(kind, data[at : at + size]))
        if not kind:
            break
        at += size
    return ",".join(texts)


def _ip_option(kind: int, data: bytes) -> str:
    """Return the text of the value of an option: a route, or the number of a router alert."""
    if kind == _ALERT:
        value = int.from_bytes(data[2:4], "big")
        return f" [bad length {len(data)}]" if len(data) != 4 else f" value {value}" if value else ""
    if kind not in _ROUTES:
        return ""
    if len(data) < 3:
        return f" [bad length {len(data)}]"
    pointer, size = data[2], len(data)
    text = f" [bad length {size}]" if (size + 1) % 4 else ""
    text += f" [bad ptr {pointer}]" if pointer < 4 or pointer % 4 else ""
    comma = ""
    for place in range(3, size - 3, 4):
        text += f"{comma} {ipv4(data, place)}"
        comma = "," if pointer > place + 1 else ""
    return text + ("," if pointer > size else "") if size > 3 else text
