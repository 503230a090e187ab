"""Where the headers of a packet are: Ethernet, VLAN tags, IPv4 or IPv6, and UDP, TCP, ICMP or ICMPv6.

Owns the offsets, which bytes each checksum covers, and how a packet grows to a size. Takes and returns bytes; knows
nothing of streams or NumPy. Only the outermost headers are read: what a tunnel carries counts as payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from memifrt.packets.ipv4 import final_destination
from memifrt.types import Mode

#: The bytes of an Ethernet frame check sequence. A memif does not carry it.
FCS = 4
_MAC_HEADER, _TAG = 14, 4
_TAG_TYPES = (0x8100, 0x88A8, 0x9100)
_IPV4, _IPV6 = 0x0800, 0x86DD
_IPV6_HEADER = 40
#: The extension headers of IPv6: hop-by-hop options, routing, fragment, destination options. 59 is no next header.
_ROUTING, _FRAGMENT, _NOTHING = 43, 44, 59
_EXTENSIONS = (0, _ROUTING, _FRAGMENT, 60)
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
#: The bytes of each header without options, and where its checksum is.
_LAYER_4 = {_UDP: (8, 6), _TCP: (20, 16), _ICMP: (8, 2), _ICMPV6: (8, 2)}
_U16 = struct.Struct("!H")


@dataclass(frozen=True, slots=True)
class Checksum:
    """One checksum of a packet.

    :ivar at: the offset of its two bytes.
    :ivar covers: the ranges of bytes that it is the sum of, each with an even number of bytes before it in the sum.
    :ivar constant: the part of the sum that does not stand in the packet like this: protocol and length of the pseudo
        header.
    :ivar never_zero: whether 0 is sent as 0xffff, as UDP does, for which 0 means that there is no checksum.
    """

    at: int
    covers: tuple[tuple[int, int], ...]
    constant: int = 0
    never_zero: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The offsets of a packet's headers; None for a header that it does not have.

    :ivar tags: the offset of each VLAN tag's two bytes with the priority and the id.
    :ivar version: 4, 6, or 0 without IP.
    :ivar protocol: the number of the header at ``layer_4``.
    :ivar payload: the offset of the first byte behind the headers.
    :ivar end: the offset behind the last byte of the IP packet. What follows it is Ethernet padding.
    """

    ethernet: bool
    tags: tuple[int, ...]
    version: int
    layer_3: int | None
    layer_4: int | None
    protocol: int | None
    payload: int
    end: int
    checksums: tuple[Checksum, ...]


def layout_of(data: bytes, mode: Mode) -> Layout:
    """Return the layout of a packet. A header that is cut short or broken counts as payload."""
    if mode is Mode.IP:
        version = data[0] >> 4 if data else 0
        return _ip_layout(data, False, (), 0, version if version in (4, 6) else 0)
    if len(data) < _MAC_HEADER:
        return Layout(True, (), 0, None, None, None, len(data), len(data), ())
    tags: list[int] = []
    at = _MAC_HEADER
    kind = _U16.unpack_from(data, at - 2)[0]
    while kind in _TAG_TYPES and len(data) >= at + _TAG:
        tags.append(at)
        at += _TAG
        kind = _U16.unpack_from(data, at - 2)[0]
    version = {_IPV4: 4, _IPV6: 6}.get(kind, 0)
    return _ip_layout(data, True, tuple(tags), at, version)


def _ip_layout(data: bytes, ethernet: bool, tags: tuple[int, ...], at: int, version: int) -> Layout:
    size = len(data)
    nothing = Layout(ethernet, tags, 0, None, None, None, at, size, ())
    if version == 4 and size >= at + 20 and data[at] >> 4 == 4:
        header = 4 * (data[at] & 15)
        total = _U16.unpack_from(data, at + 2)[0]
        if header < 20 or not header <= total <= size - at:
            return nothing
        own = Checksum(at + 10, ((at, at + header),))
        destination = final_destination(data, at, header) or at + 16
        first_fragment = not _U16.unpack_from(data, at + 6)[0] & 0x3FFF
        protocol = data[at + 9] if first_fragment else None
        return _with_layer_4(data, nothing, 4, at, at + header, at + total, protocol, (own,), destination)
    if version == 6 and size >= at + _IPV6_HEADER and data[at] >> 4 == 6:
        end = at + _IPV6_HEADER + _U16.unpack_from(data, at + 4)[0]
        if end > size:
            return nothing
        found = _behind_extensions(data, at, end)
        if found is None:
            return Layout(ethernet, tags, 6, at, None, None, at + _IPV6_HEADER, end, ())
        layer_4, protocol, destination = found
        return _with_layer_4(data, nothing, 6, at, layer_4, end, protocol, (), destination)
    return nothing


def _behind_extensions(data: bytes, at: int, end: int) -> tuple[int, int | None, int] | None:
    """Follow the extension headers of an IPv6 packet (RFC 8200).

    :param at: the offset of the IPv6 header.
    :returns: the offset behind them; the protocol that is there, None in a fragment; and the offset of the destination
        that counts for the checksum, which a routing header may have. None if a header is cut short.
    """
    kind, place, destination = data[at + 6], at + _IPV6_HEADER, at + 24
    while kind in _EXTENSIONS:
        if place + 8 > end:
            return None
        if kind == _FRAGMENT:
            kind, size = (data[place] if not _U16.unpack_from(data, place + 2)[0] & 0xFFF9 else _NOTHING), 8
        else:
            if kind == _ROUTING and data[place + 3]:  # segments left
                final = {0: place + 8 * data[place + 1] - 8, 2: place + 8, 4: place + 8}.get(data[place + 2])
                if final is None or data[place + 1] < 2:
                    return None
                destination = final
            kind, size = data[place], 8 * (data[place + 1] + 1)
        place += size
        if place > end:
            return None
    return place, None if kind == _NOTHING else kind, destination


def _with_layer_4(
    data: bytes,
    outer: Layout,
    version: int,
    layer_3: int,
    at: int,
    end: int,
    protocol: int | None,
    checksums: tuple[Checksum, ...],
    destination: int,
) -> Layout:
    header, place = _LAYER_4.get(protocol or 0, (0, 0))
    if protocol == _TCP and end >= at + header:
        header = max(header, 4 * (data[at + 12] >> 4))
    if not header or end < at + header or (protocol == _ICMPV6) != (version == 6 and protocol in (_ICMP, _ICMPV6)):
        return Layout(outer.ethernet, outer.tags, version, layer_3, None, None, at, end, checksums)
    covers: tuple[tuple[int, int], ...] = ((at, end),)
    constant = 0
    if protocol != _ICMP:
        addresses: tuple[tuple[int, int], ...] = ((layer_3 + 12, layer_3 + 20),)
        if version == 4 and destination != layer_3 + 16:  # of a source route
            addresses = ((layer_3 + 12, layer_3 + 16), (destination, destination + 4))
        if version == 6:
            addresses = ((layer_3 + 8, layer_3 + 24), (destination, destination + 16))
        covers = (*addresses, (at, end))
        constant = (protocol or 0) + end - at
    absent = protocol == _UDP and data[at + place : at + place + 2] == b"\0\0"
    if not absent:
        checksums = (*checksums, Checksum(at + place, covers, constant, protocol == _UDP))
    return Layout(outer.ethernet, outer.tags, version, layer_3, at, protocol, at + header, end, checksums)


def resized(data: bytes, size: int, mode: Mode) -> bytes:
    """Return a packet of ``size`` bytes: zeros are added behind the payload, and lengths and checksums are made right.

    :param size: at least the length of ``data``.
    """
    layout = layout_of(data, mode)
    grown = bytearray(data.ljust(size, b"\0"))
    if layout.end == len(data) and layout.layer_3 is not None and size > len(data):
        at, more = layout.layer_3, size - len(data)
        places = [at + 2 if layout.version == 4 else at + 4]
        if layout.protocol == _UDP and layout.layer_4 is not None:
            places.append(layout.layer_4 + 4)
        for place in places:
            _U16.pack_into(grown, place, _U16.unpack_from(grown, place)[0] + more)
    return with_checksums(bytes(grown), mode)


def with_checksums(data: bytes, mode: Mode) -> bytes:
    """Return the packet with all of its checksums computed anew."""
    made = bytearray(data)
    for checksum in layout_of(data, mode).checksums:
        made[checksum.at : checksum.at + 2] = b"\0\0"
        _U16.pack_into(made, checksum.at, checksum_value(checksum, sum_of(checksum, made)))
    return bytes(made)


def reversed_packet(data: bytes, mode: Mode) -> bytes:
    """Return a packet with source and destination exchanged: MAC addresses, IP addresses, and ports."""
    layout = layout_of(data, mode)
    made = bytearray(data)
    if layout.ethernet and len(data) >= _MAC_HEADER:
        _exchange(made, 0, 6)
    if layout.layer_3 is not None:
        _exchange(made, layout.layer_3 + (12 if layout.version == 4 else 8), 4 if layout.version == 4 else 16)
    if layout.layer_4 is not None and layout.protocol in (_UDP, _TCP):
        _exchange(made, layout.layer_4, 2)
    # A sum does not change if its parts are exchanged. With a source route, it covers the final destination instead.
    return with_checksums(bytes(made), mode) if _is_routed(layout) else bytes(made)


def _is_routed(layout: Layout) -> bool:
    """Return whether a checksum covers another destination than that in the IP header."""
    own = (layout.layer_3 or 0) + (16 if layout.version == 4 else 24)
    return any(len(each.covers) == 3 and each.covers[1][0] != own for each in layout.checksums)


def _exchange(data: bytearray, at: int, width: int) -> None:
    data[at : at + 2 * width] = data[at + width : at + 2 * width] + data[at : at + width]


def sum_of(checksum: Checksum, data: bytes | bytearray) -> int:
    """Return the sum of the 16-bit words that a checksum covers, not folded. Its own bytes count as they are."""
    total = checksum.constant
    for start, end in checksum.covers:
        part = bytes(data[start:end])
        part += bytes(len(part) % 2)
        total += sum(struct.unpack(f"!{len(part) // 2}H", part))
    return total


def checksum_value(checksum: Checksum, total: int) -> int:
    """Return the 16 bits of a checksum for a sum of words (RFC 1071)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    value = ~total & 0xFFFF
    return 0xFFFF if checksum.never_zero and not value else value
