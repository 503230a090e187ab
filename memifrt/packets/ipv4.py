"""ARP and ICMP echo (RFC 826, 791, 792). Functions that take a packet take it from its ARP or IP header."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError
from memifrt.packets.common import (
    ECHO,
    ETHERNET,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    TTL,
    U16,
    EchoReply,
    check_mac,
    checksum,
)

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer

# hardware type, protocol type, their address lengths, operation, sender's mac and ip, target's mac and ip (RFC 826)
_ARP = struct.Struct("!HHBBH6s4s6s4s")
# version and header length, service, total length, id, flags and fragment offset, ttl, protocol, checksum, source,
# destination (RFC 791)
_IP = struct.Struct("!BBHHHBBH4s4s")

_ARP_FIXED = (1, ETHERTYPE_IPV4, 6, 4)  # Ethernet and IPv4
_ARP_REQUEST, _ARP_REPLY = 1, 2
_PROTOCOL_ICMP = 1
_ECHO_REPLY, _ECHO_REQUEST = 0, 8
_DONT_FRAGMENT, _FRAGMENT = 0x4000, 0x3FFF  # more fragments, and the offset

_BROADCAST = b"\xff" * 6
_NO_MAC = bytes(6)

#: The first byte of the first multicast address. The broadcast address is above it, too.
_FIRST_GROUP = 224
_END_OF_OPTIONS, _NO_OPERATION = 0, 1
#: Loose and strict.
_SOURCE_ROUTES = (131, 137)

#: Largest payload of an echo request in bytes: an IP packet of 65535 bytes without its two headers.
MAX_PAYLOAD = 65535 - _IP.size - ECHO.size


# --- source routes -------------------------------------------------------------------------------------------------


def final_destination(data: ReadableBuffer, start: int, header: int) -> int | None:
    """Find the final destination of a packet with a source route (RFC 791, section 3.1), which checksums cover.

    :param start: where the IP header begins.
    :param header: its length in bytes.
    :returns: where the address is; None if the packet has no source route, or has reached the last address of it.
    """
    options = bytes(memoryview(data)[start + _IP.size : start + header])
    at = 0
    while at + 2 < len(options) and options[at] != _END_OF_OPTIONS:
        if options[at] == _NO_OPERATION:
            at += 1
            continue
        size = options[at + 1]
        if size < 2 or at + size > len(options):
            break
        if options[at] in _SOURCE_ROUTES and size >= 7 and options[at + 2] < size:
            return start + _IP.size + at + size - 4
        at += size
    return None


# --- answering ------------------------------------------------------------------------------------------------------


def answer_echo(packet: memoryview, start: int, ip: bytes) -> bool:
    """Turn an echo request to ``ip`` into its reply; return whether the packet was one."""
    size = len(packet)
    if size < start + _IP.size + ECHO.size:
        return False
    version, _, total, _, fragment, ttl, protocol, header_sum, source, target = _IP.unpack_from(packet, start)
    header = (version & 0xF) * 4
    if target != ip or protocol != _PROTOCOL_ICMP or version >> 4 != 4 or fragment & _FRAGMENT:
        return False
    if header < _IP.size or total < header + ECHO.size or size < start + total:
        return False
    if source[0] >= _FIRST_GROUP or not any(source):  # nobody has such an address (RFC 1122, section 3.2.1.3)
        return False
    at = start + header
    kind, code, echo_sum, _, _ = ECHO.unpack_from(packet, at)
    if kind != _ECHO_REQUEST or code != 0:
        return False
    # Update both checksums by the change of the words that they cover (RFC 1624). Swapping the addresses changes none.
    # An IP header is never all zero, so its checksum may be 0; that of an echo reply may have to be 0xffff.
    header_sum = (header_sum + (ttl - TTL << 8)) % 0xFFFF
    echo_sum += _ECHO_REQUEST << 8
    if echo_sum > 0xFFFF:
        echo_sum -= 0xFFFF
    packet[start + 8] = TTL
    U16.pack_into(packet, start + 10, header_sum)
    packet[start + 12 : start + 16] = ip
    packet[start + 16 : start + 20] = source
    packet[at] = _ECHO_REPLY
    U16.pack_into(packet, at + 2, echo_sum)
    return True


def answer_arp(packet: memoryview, start: int, ip: bytes, mac: bytes) -> bool:
    """Turn an ARP request for ``ip`` into its reply; return whether the packet was one."""
    if len(packet) < start + _ARP.size:
        return False
    *fixed, operation, sender_mac, sender_ip, _, target_ip = _ARP.unpack_from(packet, start)
    if operation != _ARP_REQUEST or target_ip != ip or tuple(fixed) != _ARP_FIXED:
        return False
    _ARP.pack_into(packet, start, *_ARP_FIXED, _ARP_REPLY, mac, ip, sender_mac, sender_ip)
    return True


# --- asking ---------------------------------------------------------------------------------------------------------


def arp_request(mac: bytes, ip: bytes, target_ip: bytes) -> bytes:
    """Build the broadcast frame that asks for the MAC address of ``target_ip``.

    :param mac: our own MAC address, 6 bytes.
    :param ip: our own address, 4 bytes.
    :param target_ip: the address to ask for, 4 bytes.
    :raises ConfigError: an IP address does not have 4 bytes, or the MAC address not 6.
    """
    check_mac(mac)
    for address in (ip, target_ip):
        if len(address) != 4:
            raise ConfigError(f"{address!r} is not an IPv4 address; it must have 4 bytes")
    return ETHERNET.pack(_BROADCAST, mac, ETHERTYPE_ARP) + _ARP.pack(
        *_ARP_FIXED, _ARP_REQUEST, mac, ip, _NO_MAC, target_ip
    )


def parse_arp_reply(packet: ReadableBuffer) -> tuple[bytes, bytes] | None:
    """Return the sender's IP and MAC address from an ARP reply; None if the packet is not an ARP reply."""
    data = bytes(packet)
    if len(data) < ETHERNET.size + _ARP.size or ETHERNET.unpack_from(data)[2] != ETHERTYPE_ARP:
        return None
    *fixed, operation, sender_mac, sender_ip, _, _ = _ARP.unpack_from(data, ETHERNET.size)
    if operation != _ARP_REPLY or tuple(fixed) != _ARP_FIXED:
        return None
    return sender_ip, sender_mac


def echo_request(source: bytes, target: bytes, identifier: int, sequence: int, payload: bytes, ttl: int = TTL) -> bytes:
    """Build an ICMP echo request.

    :raises ConfigError: the payload is longer than :data:`MAX_PAYLOAD`.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ConfigError(f"a payload of {len(payload)} bytes; at most {MAX_PAYLOAD} fit into an IP packet")
    echo_sum = checksum(ECHO.pack(_ECHO_REQUEST, 0, 0, identifier, sequence) + payload)
    total = _IP.size + ECHO.size + len(payload)
    start = (0x45, 0, total, sequence, _DONT_FRAGMENT, ttl, _PROTOCOL_ICMP)
    header_sum = checksum(_IP.pack(*start, 0, source, target))
    header = _IP.pack(*start, header_sum, source, target)
    return header + ECHO.pack(_ECHO_REQUEST, 0, echo_sum, identifier, sequence) + payload


def parse_echo_reply(data: bytes) -> EchoReply | None:
    """Parse an ICMP echo reply; return None if the packet is not one. Its ICMP checksum may be wrong."""
    if len(data) < _IP.size + ECHO.size:
        return None
    version, _, total, _, fragment, ttl, protocol, _, source, _ = _IP.unpack_from(data)
    header = (version & 0xF) * 4
    if version >> 4 != 4 or protocol != _PROTOCOL_ICMP or fragment & _FRAGMENT:
        return None
    if header < _IP.size or total < header + ECHO.size or len(data) < total:
        return None
    echo = data[header:total]
    kind, code, _, identifier, sequence = ECHO.unpack_from(echo)
    if kind != _ECHO_REPLY or code != 0 or checksum(data[:header]):
        return None
    return EchoReply(source, identifier, sequence, ttl, echo[ECHO.size :], not checksum(echo))
