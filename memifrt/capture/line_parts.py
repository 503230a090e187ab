"""The common parts of the texts of all protocols: reading fields, marking cut packets, the facts of an IP packet."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from memifrt.packets import checksum

#: Replaces the bytes that are not printable, and blanks.
_PRINTABLE = bytes(byte if 0x21 <= byte < 0x7F else 0x2E for byte in range(256))


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
