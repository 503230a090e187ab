"""The text of UDP, and of the protocols on its known ports, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memifrt.capture.line_dhcp import dhcp6_pieces, dhcp_pieces
from memifrt.capture.line_dns import dns_pieces, mdns_pieces
from memifrt.capture.line_mpls import mpls_pieces
from memifrt.capture.line_overlay import geneve_pieces, gpe_pieces, otv_pieces, vxlan_pieces
from memifrt.capture.line_parts import Cut, Datagram, Layers, joined, right_checksum, unpack

_UDP = 17
_HEADER = 8
#: Yields the parts of the text of a payload from its bytes and its length before it was cut.
_Printer = Callable[[Layers, bytes, int], Iterator[str]]
#: The name of a protocol if it is cut off, and its printer, by the port at one of the ends.
_PORTS: dict[int, tuple[str, _Printer]] = {
    53: ("domain", dns_pieces),
    5353: ("domain", mdns_pieces),
    67: ("bootp", dhcp_pieces),
    68: ("bootp", dhcp_pieces),
    546: ("dhcp6", dhcp6_pieces),
    547: ("dhcp6", dhcp6_pieces),
    4789: ("vxlan", vxlan_pieces),
    4790: ("vxlan_gpe", gpe_pieces),
    6081: ("geneve", geneve_pieces),
    6635: ("mpls", lambda layers, data, length: mpls_pieces(layers.inside, data, length)),
    8472: ("otv", otv_pieces),
}


def udp_pieces(ip: Datagram, layers: Layers) -> Iterator[str]:
    """Yield the parts of the text.

    :raises Cut: the header is cut off.
    """
    data = ip.data
    if len(data) < 4:
        yield ip.ends
        raise Cut
    from_port, to_port = unpack("!HH", data)
    dot = "." if ip.source else ""
    yield f"{ip.source}{dot}{from_port} > {ip.target}{dot}{to_port}: "
    if ip.length < _HEADER:
        yield f"truncated-udp {ip.length}"
        return
    (total,) = unpack("!4xH", data)
    if total < _HEADER:
        yield f"truncated-udplength {total}"
        return
    (found,) = unpack("!6xH", data)
    length, room = total - _HEADER, ip.length - _HEADER
    if layers.verbose > 1 or (layers.verbose and ip.version == 6):
        yield _checksum(ip, found, min(total, ip.length))
    known = None if layers.quiet else _PORTS.get(from_port) or _PORTS.get(to_port)
    if known is not None:
        name, printer = known
        yield joined(printer(layers, data[_HEADER:], min(length, room)), name)
        return
    yield f"UDP, bad length {length} > {room}" if length > room and not ip.fragment else f"UDP, length {length}"


def _checksum(ip: Datagram, found: int, covered: int) -> str:
    if not found and ip.version == 4:
        return "" if ip.fragment else "[no cksum] "
    rest = ip.check(_UDP, covered)
    if rest is None:
        return ""
    return f"[bad udp cksum 0x{found:04x} -> 0x{right_checksum(found, rest):04x}!] " if rest else "[udp sum ok] "
