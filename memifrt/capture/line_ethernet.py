"""The text of Ethernet frames: addresses, VLAN tags, EtherTypes, and what is directly above, in tcpdump's words."""

from __future__ import annotations

import struct

from memifrt.capture.line_arp import arp_text
from memifrt.capture.line_llc import llc_text
from memifrt.capture.line_lldp import lldp_pieces
from memifrt.capture.line_mpls import mpls_pieces
from memifrt.capture.line_parts import ETHERTYPES, ETHERTYPES_MPLS, INVALID, Layers, joined
from memifrt.capture.line_pppoe import pppoe_pieces
from memifrt.packets.common import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6

_RARP, _PPPOE, _LLDP = 0x8035, (0x8863, 0x8864), 0x88CC
_KNOWN = (ETHERTYPE_IPV4, ETHERTYPE_ARP, _RARP, ETHERTYPE_IPV6, *ETHERTYPES_MPLS, *_PPPOE, _LLDP)
_VLANS = (0x8100, 0x88A8, 0x9100, 0x9200)
#: The greatest length of an 802.3 frame. A greater number is an EtherType.
_MOST_LENGTH = 1500


def ethernet_header(data: bytes) -> tuple[int, int]:
    """Return the EtherType behind all VLAN tags, and the position after it. A length is at most 1500."""
    at = 14
    if len(data) < at:
        return 0, len(data)
    (kind,) = struct.unpack_from("!H", data, 12)
    while kind in _VLANS and len(data) >= at + 4:
        (kind,) = struct.unpack_from("!H", data, at + 2)
        at += 4
    return kind, at


def ethertype_text(kind: int, length: int | None = None, quiet: bool = False) -> str:
    """Return the text of an EtherType.

    :param length: the length of the frame, to print too.
    """
    if kind <= _MOST_LENGTH:
        return f"802.3, length {kind}"
    name, number = ETHERTYPES.get(kind), f"(0x{kind:04x})"
    text = name or f"Unknown Ethertype {number}" if quiet else f"ethertype {name or 'Unknown'} {number}"
    return text if length is None else f"{text}, length {length}"


def is_length(kind: int) -> bool:
    """Return whether the number in place of an EtherType is the length of an 802.3 frame."""
    return kind <= _MOST_LENGTH


def is_known(kind: int) -> bool:
    """Return whether `payload_text` knows an EtherType."""
    return kind in _KNOWN


def frame_text(layers: Layers, data: bytes, length: int) -> str:
    """Return the text of a frame.

    :param length: its length before it was cut.
    """
    if length < len(data):
        return f"[length {length} < caplen {len(data)}]{INVALID}"
    if len(data) < 14:
        return " [|ether]"
    (kind,) = struct.unpack_from("!H", data, 12)
    if not layers.link and kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):  # most frames
        return layers.ip(data[14:], length - 14, 4 if kind == ETHERTYPE_IPV4 else 6)
    source, target = data[6:12].hex(":"), data[:6].hex(":")
    final, header = ethernet_header(data)
    if final in _VLANS:  # the tag is cut off
        return (f"{source} > {target}, " if layers.link else "") + " [|vlan]"
    is_802_3 = final <= _MOST_LENGTH
    shown = layers.link or not (is_802_3 or final in _KNOWN)
    first = kind if layers.link else final
    if first <= _MOST_LENGTH:
        first = min(first, length - header)
    texts = [f"{source} > {target}, {ethertype_text(first, length, layers.quiet)}: "] if shown else []
    at = 14
    while kind in _VLANS:
        tag, kind = struct.unpack_from("!HH", data, at)
        at += 4
        if shown and first != final:
            drop = ", DEI" if tag & 0x1000 else ""
            end = ": " if kind <= _MOST_LENGTH else ", "
            texts.append(f"vlan {tag & 0xFFF}, p {tag >> 13}{drop}, {ethertype_text(kind, None, layers.quiet)}{end}")
    made: str | None
    if is_802_3:
        made = llc_text(layers, data[header : header + final], min(length - header, final), (source, target))
    else:
        made = payload_text(layers, final, data[header:], length - header)
    return "".join(texts) + (layers.dump(data[header:]) if made is None else made)


def payload_text(layers: Layers, kind: int, data: bytes, length: int) -> str | None:
    """Return the text of the payload of a frame; None if the EtherType is unknown.

    :param length: its length before it was cut.
    """
    if kind in (ETHERTYPE_ARP, _RARP):
        return arp_text(data, length, layers.link, layers.verbose)
    if kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        return layers.ip(data, length, 4 if kind == ETHERTYPE_IPV4 else 6)
    if kind in ETHERTYPES_MPLS:
        return joined(mpls_pieces(layers, data, length), "mpls")
    if kind in _PPPOE:
        return joined(pppoe_pieces(layers, data, length), "pppoe")
    if kind == _LLDP:
        return joined(lldp_pieces(data, length, layers.verbose), "lldp")
    return None
