"""The common parts of IPv4 and IPv6 packets: the Ethernet header, the echo header, and the internet checksum."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer

#: Destination, source, ethertype (IEEE 802.3).
ETHERNET = struct.Struct("!6s6sH")
ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
#: Type, code, checksum, identifier, sequence (RFC 792 and RFC 4443).
ECHO = struct.Struct("!BBHHH")
U16 = struct.Struct("!H")
#: The time to live, or hop limit, of the packets that we send.
TTL = 64


@dataclass(frozen=True, slots=True)
class EchoReply:
    """The fields of an ICMP or ICMPv6 echo reply.

    ``source_ip`` has 4 or 16 bytes. ``ttl`` is the hop limit of an IPv6 packet.
    """

    source_ip: bytes
    identifier: int
    sequence: int
    ttl: int
    payload: bytes
    checksum_is_right: bool = True


def check_mac(mac: bytes) -> None:
    """Raise ConfigError if ``mac`` does not have 6 bytes: :mod:`struct` would cut it or fill it up."""
    if len(mac) != 6:
        raise ConfigError(f"{mac!r} is not a MAC address; it must have 6 bytes")


def checksum(data: ReadableBuffer) -> int:
    """Return the internet checksum of ``data`` (RFC 1071); 0 if the data contains its own correct checksum."""
    # 2**16 is 1 modulo 0xffff, so the data read as one number is congruent to the sum of its 16-bit words.
    number = int.from_bytes(data, "big")
    if memoryview(data).nbytes & 1:
        number <<= 8
    # A sum of words that are not all zero folds to 0xffff, never to 0.
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))
