"""The common parts of the texts of all protocols: reading fields, marking cut packets, the facts of an IP packet."""

from __future__ import annotations

import socket
import struct
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Protocol

from memifrt.packets import checksum
from memifrt.packets.common import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6

#: Replaces the bytes that are not printable, and blanks.
_PRINTABLE = bytes(byte if 0x21 <= byte < 0x7F else 0x2E for byte in range(256))

#: More EtherTypes: a whole Ethernet frame, PPP, and both of MPLS.
ETHERTYPE_FRAME, ETHERTYPE_PPP, ETHERTYPES_MPLS = 0x6558, 0x880B, (0x8847, 0x8848)
#: The names of EtherTypes.
ETHERTYPES = {
    0x00FE: "GRE-OSI",
    ETHERTYPE_IPV4: "IPv4",
    ETHERTYPE_ARP: "ARP",
    ETHERTYPE_FRAME: "TEB",
    0x8035: "Reverse ARP",
    0x8100: "802.1Q",
    ETHERTYPE_IPV6: "IPv6",
    ETHERTYPE_PPP: "PPP",
    ETHERTYPES_MPLS[0]: "MPLS unicast",
    ETHERTYPES_MPLS[1]: "MPLS multicast",
    0x8863: "PPPoE D",
    0x8864: "PPPoE S",
    0x88A8: "802.1Q-QinQ",
    0x88CC: "LLDP",
    0x88F7: "PTP",
    0x9000: "Loopback",
    0x9100: "802.1Q-9100",
    0x9200: "802.1Q-9200",
}
#: The mark of a header that cannot be right.
INVALID = " (invalid)"


class Cut(Exception):
    """The packet is shorter than its headers need."""


def joined(pieces: Iterable[str], name: str) -> str:
    """Join the pieces of a text; if the packet is cut off, the text ends with tcpdump's mark `` [|name]``."""
    parts: list[str] = []
    try:
        for piece in pieces:
            parts.append(piece)
    except Cut:
        parts.append(f" [|{name}]")
    return "".join(parts)


def unpack(layout: str, data: bytes, at: int = 0) -> tuple[int, ...]:
    """Read numbers.

    :raises Cut: they are not there.
    """
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error as error:
        raise Cut from error


def ipv4(data: bytes, at: int) -> str:
    """Return the IPv4 address at a place as text.

    :raises Cut: it is not there.
    """
    return socket.inet_ntop(socket.AF_INET, _bytes(data, at, 4))


def ipv6(data: bytes, at: int) -> str:
    """Return the IPv6 address at a place as text.

    :raises Cut: it is not there.
    """
    return socket.inet_ntop(socket.AF_INET6, _bytes(data, at, 16))


def _bytes(data: bytes, at: int, size: int) -> bytes:
    raw = data[at : at + size]
    if len(raw) < size:
        raise Cut
    return raw


def hex_dump(data: bytes, *, ascii_too: bool = False, before: str = "\n\t") -> str:
    """Return tcpdump's ``-x`` dump, or ``-X`` with ``ascii_too``.

    :param before: what each line starts with.
    """
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        digits = piece.hex()
        words = " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))
        shown = f"{words:39}  {piece.translate(_PRINTABLE).decode()}" if ascii_too else words
        lines.append(f"{before}0x{at:04x}:  {shown}")
    return "".join(lines)


def right_checksum(found: int, rest: int) -> int:
    """Return the checksum that would be right, from the one found and the sum of all."""
    total = (0xFFFF ^ rest) - found  # the sum of everything else
    return 0xFFFF ^ (total % 0xFFFF)


def visible(data: bytes) -> str:
    """Return a text of a packet, with ``^`` and ``M-`` for the bytes that are not printable."""
    return "".join(map(_visible, data))


def _visible(byte: int) -> str:
    low = byte & 0x7F
    shown = chr(low) if 0x20 <= low < 0x7F else f"^{chr(low ^ 0x40)}"
    return f"M-{shown}" if byte & 0x80 else shown


def flag_names(value: int, names: Iterable[tuple[int, str]], between: str = ", ") -> str:
    """Return the names of the bits that are set, or ``none``."""
    return between.join(name for bit, name in names if value & bit) or "none"


class Layers(Protocol):
    """Prints a packet of one of the lower layers, for the protocols that carry such packets.

    :ivar link: ``-e``.
    :ivar verbose: how many ``-v``.
    :ivar quiet: ``-q``.
    """

    link: bool
    verbose: int
    quiet: bool

    @property
    def inside(self) -> Layers:
        """Prints the packets inside a packet. It ends the text where too many are inside each other."""

    def frame(self, data: bytes, length: int) -> str:
        """Return the text of an Ethernet frame.

        :param length: its length before it was cut.
        """

    def ip(self, data: bytes, length: int, version: int = 0) -> str:
        """Return the text of an IP packet.

        :param length: its length before it was cut, with any padding.
        :param version: what the layer below says that it is; 0 means that the packet says it.
        """

    def payload(self, kind: int, data: bytes, length: int) -> str | None:
        """Return the text of a packet of an EtherType; None if the EtherType is unknown.

        :param length: its length before it was cut.
        """

    def dump(self, data: bytes) -> str:
        """Return the dump of an unknown payload; nothing if the whole packet is dumped anyway."""


def carried_text(layers: Layers, kind: int, data: bytes, length: int, kinds: Container[int]) -> str | None:
    """Return the text of what a tunnel carries, by its EtherType; None if the EtherType is unknown.

    :param length: its length before it was cut.
    :param kinds: the EtherTypes that the tunnel carries besides whole frames.
    """
    if kind == ETHERTYPE_FRAME:
        return layers.frame(data, length)
    return layers.payload(kind, data, length) if kind in kinds else None


@dataclass(frozen=True, slots=True)
class Datagram:
    """The facts that a transport header needs of its IP packet.

    :ivar source: the source address as a text; empty if it has been printed already.
    :ivar target: the destination address as a text; empty if it has been printed already.
    :ivar data: the payload as far as it was captured, without padding.
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

    @property
    def ends(self) -> str:
        """Both addresses as the begin of a text; empty if they have been printed already."""
        return f"{self.source} > {self.target}: " if self.source else ""

    def check(self, protocol: int, length: int | None = None) -> int | None:
        """Return the checksum over pseudo header and payload: 0 if theirs is right, None if it cannot be checked.

        :param length: the bytes that it covers; None means the whole payload.
        """
        size = self.length if length is None else length
        if self.fragment or len(self.data) < size:
            return None
        return checksum(self.addresses + struct.pack("!II", size, protocol) + self.data[:size])
