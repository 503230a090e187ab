"""The text of GRE headers and of the packets behind them, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from memifrt.capture.line_parts import (
    ETHERTYPE_PPP,
    ETHERTYPES,
    ETHERTYPES_MPLS,
    Datagram,
    Layers,
    carried_text,
    flag_names,
    ipv4,
    joined,
    unpack,
)
from memifrt.capture.line_ppp import ppp_pieces
from memifrt.packets.common import ETHERTYPE_IPV4, ETHERTYPE_IPV6

_CARRIED = (ETHERTYPE_IPV4, ETHERTYPE_IPV6, *ETHERTYPES_MPLS)
_CHECKSUM, _ROUTING, _KEY, _SEQUENCE, _STRICT, _ACK = 0x8000, 0x4000, 0x2000, 0x1000, 0x0800, 0x0080
_FLAGS = (
    (_CHECKSUM, "checksum present"),
    (_ROUTING, "routing present"),
    (_KEY, "key present"),
    (_SEQUENCE, "sequence# present"),
    (_STRICT, "source routing present"),
    (_ACK, "ack present"),
)
#: The most entries of the source route to print.
_MOST_ROUTES = 64


def gre_pieces(ip: Datagram, layers: Layers) -> Iterator[str]:
    """Yield the parts of the text.

    :raises Cut: the header is cut off.
    """
    yield ip.ends
    (flags,) = unpack("!H", ip.data)
    version = flags & 7
    yield f"GREv{version}"
    if version > 1:
        yield " ERROR: unknown-version"
        return
    if layers.verbose:
        yield f", Flags [{flag_names(flags, _FLAGS)}]"
    yield from (_enhanced if version else _plain)(ip, layers, flags)


def _plain(ip: Datagram, layers: Layers, flags: int) -> Iterator[str]:
    data = ip.data
    (kind,) = unpack("!2xH", data)
    at = 4
    if flags & (_CHECKSUM | _ROUTING):
        (found,) = unpack("!H", data, at)
        if layers.verbose:
            yield f", sum 0x{found:x}"
        yield f", off 0x{unpack('!2xH', data, at)[0]:x}"
        at += 4
    if flags & _KEY:
        yield f", key=0x{unpack('!I', data, at)[0]:x}"
        at += 4
    if flags & _SEQUENCE:
        yield f", seq {unpack('!I', data, at)[0]}"
        at += 4
    if flags & _ROUTING:
        at = yield from _routes(data, at)
    yield from _payload(ip, layers, kind, at)


def _routes(data: bytes, at: int) -> Generator[str, None, int]:
    """Yield the text of the source route, and return the position after it."""
    for _ in range(_MOST_ROUTES):
        family, offset, size = unpack("!HBB", data, at)
        at += 4
        if not size:
            break
        unpack(f"!{size}x", data, at)
        if family == ETHERTYPE_IPV4 and not (offset % 4 or size % 4 or offset > size):
            hops = [(" *" if place == offset else " ") + ipv4(data, at + place) for place in range(0, size, 4)]
            yield f", (rtaf=ip{''.join(hops)})"
        else:
            yield f", (rtaf=0x{family:x})"
        at += size
    return at


def _enhanced(ip: Datagram, layers: Layers, flags: int) -> Iterator[str]:
    """Yield the text of version 1, which PPTP uses."""
    data = ip.data
    (kind,) = unpack("!2xH", data)
    at = 4
    if flags & _KEY:
        yield f", call {unpack('!2xH', data, at)[0]}"
        at += 4
    if flags & _SEQUENCE:
        yield f", seq {unpack('!I', data, at)[0]}"
        at += 4
    if flags & _ACK:
        yield f", ack {unpack('!I', data, at)[0]}"
        at += 4
    if not flags & _SEQUENCE:
        yield f", no-payload{_kind(layers, kind)}, length {ip.length}"
        return
    yield from _payload(ip, layers, kind, at)


def _kind(layers: Layers, kind: int) -> str:
    return f", proto {ETHERTYPES.get(kind, 'unknown')} (0x{kind:04x})" if layers.link else ""


def _payload(ip: Datagram, layers: Layers, kind: int, at: int) -> Iterator[str]:
    yield f"{_kind(layers, kind)}, length {ip.length}" + ("\n\t" if layers.verbose else ": ")
    data, length, is_enhanced = ip.data[at:], ip.length - at, bool(ip.data[1] & 7)
    text: str | None = None
    if not is_enhanced:
        text = carried_text(layers.inside, kind, data, length, _CARRIED)
    elif kind == ETHERTYPE_PPP:
        text = joined(ppp_pieces(layers.inside, data, length), "ppp")
    yield f"gre-proto-0x{kind:x}" if text is None else text
