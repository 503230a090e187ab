"""ICMPv6 echo and neighbour discovery (RFC 8200, 4443, 4861).

The functions that take a packet without saying more take it from its IP header.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError
from memifrt.packets.common import ECHO, ETHERNET, ETHERTYPE_IPV6, TTL, U16, EchoReply, check_mac, checksum

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer

# version, traffic class and flow label; payload length, next header, hop limit, source, destination (RFC 8200)
_IPV6 = struct.Struct("!IHBB16s16s")
# the checksum also covers: source, destination, length, next header (RFC 8200, section 8.1)
_PSEUDO_HEADER = struct.Struct("!16s16sII")
# type, code, checksum, flags, target (RFC 4861, sections 4.3 and 4.4)
_NEIGHBOUR = struct.Struct("!BBHI16s")
# type, length in units of 8 bytes, MAC address (RFC 4861, section 4.6.1)
_LINK_ADDRESS = struct.Struct("!BB6s")

_VERSION = 6 << 28
_HOP_BY_HOP, _DESTINATION_OPTIONS, _ICMPV6 = 0, 60, 58
_ECHO_REQUEST, _ECHO_REPLY = 128, 129
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOLICITED, _OVERRIDE = 0x40000000, 0x20000000
_SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS = 1, 2
#: Neighbour discovery is for the link alone: a packet that a router forwarded has a lower hop limit (RFC 4861).
_LINK_HOP_LIMIT = 255

_UNSPECIFIED = bytes(16)
_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_SOLICITED_NODE_PREFIX = bytes.fromhex("ff0200000000000000000001ff")
_MULTICAST = 0xFF

#: Bytes of extension headers, and of the options of neighbour discovery, that we read. Real packets have at most some
#: 40 bytes. With more, a packet is ignored, so that no packet takes long.
_MOST_EXTENSIONS = _MOST_OPTIONS = 256
_PAD1 = 0

#: Largest payload of an ICMPv6 echo request in bytes: an IPv6 payload of 65535 bytes without the ICMPv6 header.
MAX_PAYLOAD = 65535 - ECHO.size


def solicited_node(ip: bytes) -> bytes:
    """Return the multicast address at which a host with the address ``ip`` listens (RFC 4291, section 2.7.1)."""
    return _SOLICITED_NODE_PREFIX + ip[13:]


def multicast_mac(ip: bytes) -> bytes:
    """Return the MAC address of a multicast address (RFC 2464, section 7)."""
    return b"\x33\x33" + ip[12:]


def icmp_checksum(source: bytes, target: bytes, message: bytes) -> int:
    """Return the checksum of an ICMPv6 message; 0 if the message contains its own correct checksum."""
    return checksum(_PSEUDO_HEADER.pack(source, target, len(message), _ICMPV6) + message)


# --- answering ------------------------------------------------------------------------------------------------------


def answer_echo(packet: memoryview, start: int, ip: bytes) -> bool:
    """Turn an echo request to ``ip`` into its reply; return whether the packet was one."""
    # One copy of the headers, because the peer may change the packet meanwhile.
    head = bytes(packet[start : start + _IPV6.size + _MOST_EXTENSIONS + ECHO.size])
    found = _find_icmp(head, len(packet) - start)
    if found is None:
        return False
    at, _ = found
    source, target = head[8:24], head[24:40]
    if target != ip or source[0] == _MULTICAST or source == _UNSPECIFIED:
        return False
    kind, code, echo_sum, _, _ = ECHO.unpack_from(head, at)
    if kind != _ECHO_REQUEST or code != 0:
        return False
    # Update the checksum by the change of the type (RFC 1624). Swapping the addresses does not change it. The sum of an
    # ICMPv6 message is never 0, because the pseudo header is not, so the checksum is never 0xffff.
    echo_sum = (echo_sum - (_ECHO_REPLY - _ECHO_REQUEST << 8)) % 0xFFFF
    packet[start + 7] = TTL
    packet[start + 8 : start + 24] = ip
    packet[start + 24 : start + 40] = source
    packet[start + at] = _ECHO_REPLY
    U16.pack_into(packet, start + at + 2, echo_sum)
    return True


def answer_solicitation(packet: memoryview, start: int, ip: bytes, mac: bytes, asker: bytes) -> bytes | None:
    """Turn a neighbour solicitation for ``ip`` into the advertisement.

    The advertisement tells ``mac`` if the solicitation has an option that leaves room for it. All multicast
    solicitations have one, except those that only look for another host with the same address (RFC 4862), for which
    every advertisement is an answer.

    :param asker: the MAC address of the sender.
    :returns: the MAC address to send it to; None if the packet was not such a solicitation.
    """
    data = bytes(packet[start : start + _IPV6.size + _NEIGHBOUR.size + _MOST_OPTIONS])
    message = _neighbour_message(data, len(packet) - start, _SOLICITATION)
    if message is None or message[8:24] != ip:
        return None
    source, target = data[8:24], data[24:40]
    to_group = target == solicited_node(ip)
    if source[0] == _MULTICAST or not (to_group or target == ip):
        return None
    looks_for_duplicates = source == _UNSPECIFIED
    if looks_for_duplicates and (not to_group or _link_address(message, _SOURCE_LINK_ADDRESS) is not None):
        return None
    has_room = len(message) >= _NEIGHBOUR.size + _LINK_ADDRESS.size
    if to_group and not (has_room or looks_for_duplicates):  # the asker could not use it
        return None
    flags = (0 if looks_for_duplicates else _SOLICITED) | (_OVERRIDE if has_room else 0)
    option = _LINK_ADDRESS.pack(_TARGET_LINK_ADDRESS, 1, mac) if has_room else b""
    to = _ALL_NODES if looks_for_duplicates else source
    reply = _packet(ip, to, _LINK_HOP_LIMIT, _NEIGHBOUR.pack(_ADVERTISEMENT, 0, 0, flags, ip) + option)
    packet[start : start + len(reply)] = reply  # the rest of a longer solicitation is padding now
    return multicast_mac(to) if looks_for_duplicates else asker


# --- asking ---------------------------------------------------------------------------------------------------------


def neighbour_solicitation(mac: bytes, ip: bytes, target_ip: bytes) -> bytes:
    """Build the multicast frame that asks for the MAC address of ``target_ip`` (RFC 4861).

    :param mac: our own MAC address, 6 bytes.
    :param ip: our own address, 16 bytes.
    :param target_ip: the address to ask for, 16 bytes.
    :raises ConfigError: an IP address does not have 16 bytes, or the MAC address not 6.
    """
    check_mac(mac)
    for address in (ip, target_ip):
        if len(address) != 16:
            raise ConfigError(f"{address!r} is not an IPv6 address; it must have 16 bytes")
    group = solicited_node(target_ip)
    message = _NEIGHBOUR.pack(_SOLICITATION, 0, 0, 0, target_ip) + _LINK_ADDRESS.pack(_SOURCE_LINK_ADDRESS, 1, mac)
    frame = ETHERNET.pack(multicast_mac(group), mac, ETHERTYPE_IPV6)
    return frame + _packet(ip, group, _LINK_HOP_LIMIT, message)


def parse_neighbour_advertisement(packet: ReadableBuffer) -> tuple[bytes, bytes] | None:
    """Return the IP and MAC address that a neighbour advertisement tells.

    :param packet: an Ethernet frame.
    :returns: None if the packet is not a valid advertisement (RFC 4861, section 7.1.2), or has no MAC address.
    """
    frame = bytes(packet)
    if len(frame) < ETHERNET.size or ETHERNET.unpack_from(frame)[2] != ETHERTYPE_IPV6:
        return None
    data = frame[ETHERNET.size : ETHERNET.size + _IPV6.size + _NEIGHBOUR.size + _MOST_OPTIONS]
    message = _neighbour_message(data, len(frame) - ETHERNET.size, _ADVERTISEMENT)
    if message is None:
        return None
    *_, flags, told = _NEIGHBOUR.unpack_from(message)
    mac = _link_address(message, _TARGET_LINK_ADDRESS)
    if mac is None or (data[24] == _MULTICAST and flags & _SOLICITED):
        return None
    return told, mac


def echo_request(
    source: bytes, target: bytes, identifier: int, sequence: int, payload: bytes, hop_limit: int = TTL
) -> bytes:
    """Build an ICMPv6 echo request.

    :raises ConfigError: the payload is longer than :data:`MAX_PAYLOAD`.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ConfigError(f"a payload of {len(payload)} bytes; at most {MAX_PAYLOAD} fit into an IPv6 packet")
    return _packet(source, target, hop_limit, ECHO.pack(_ECHO_REQUEST, 0, 0, identifier, sequence) + payload)


def parse_echo_reply(data: bytes) -> EchoReply | None:
    """Parse an ICMPv6 echo reply; return None if the packet is not one. Its checksum may be wrong."""
    found = _find_icmp(data, len(data))
    if found is None:
        return None
    at, end = found
    kind, code, _, identifier, sequence = ECHO.unpack_from(data, at)
    if kind != _ECHO_REPLY or code != 0:
        return None
    message, source, target = data[at:end], data[8:24], data[24:40]
    is_right = not icmp_checksum(source, target, message)
    return EchoReply(source, identifier, sequence, data[7], message[ECHO.size :], is_right)


# --- parts ----------------------------------------------------------------------------------------------------------


def _packet(source: bytes, target: bytes, hop_limit: int, message: bytes) -> bytes:
    """Put an IPv6 header before an ICMPv6 message, and fill in the message's checksum."""
    filled = message[:2] + U16.pack(icmp_checksum(source, target, message)) + message[4:]
    return _IPV6.pack(_VERSION, len(message), _ICMPV6, hop_limit, source, target) + filled


def _find_icmp(head: bytes, size: int) -> tuple[int, int] | None:
    """Find the ICMPv6 message behind hop-by-hop and destination options.

    :param head: the beginning of the packet.
    :param size: bytes of the whole packet, padding included.
    :returns: where the message begins and ends; None if there is none with the header of an echo. A fragment, a routing
        header, and an option that a host must not ignore count as none.
    """
    if len(head) < _IPV6.size + ECHO.size:
        return None
    first, length, following, *_ = _IPV6.unpack_from(head)
    end = _IPV6.size + length
    if first >> 28 != 6 or end > size:
        return None
    at, known = _IPV6.size, min(end, len(head), _IPV6.size + _MOST_EXTENSIONS + ECHO.size)
    while following in (_HOP_BY_HOP, _DESTINATION_OPTIONS):
        if at + 8 > known:
            return None
        options = at + 2
        following, at = head[at], at + 8 + 8 * head[at + 1]
        if at > known or not _may_be_ignored(head[options:at]):
            return None
    return (at, end) if following == _ICMPV6 and at + ECHO.size <= known else None


def _may_be_ignored(options: bytes) -> bool:
    """Return whether a host that knows none of these options must go on (RFC 8200, section 4.2)."""
    at = 0
    while at < len(options):
        if options[at] >> 6:
            return False
        at += 1 if options[at] == _PAD1 else 2 + int.from_bytes(options[at + 1 : at + 2], "big")
    return at == len(options)


def _neighbour_message(data: bytes, size: int, kind: int) -> bytes | None:
    """Return the message of neighbour discovery in a packet; None if there is no valid one of this type.

    :param data: the beginning of the packet: everything that a message with few options has.
    :param size: bytes of the whole packet, padding included.
    """
    if len(data) < _IPV6.size + _NEIGHBOUR.size:
        return None
    first, length, following, hop_limit, source, target = _IPV6.unpack_from(data)
    if first >> 28 != 6 or following != _ICMPV6 or hop_limit != _LINK_HOP_LIMIT:
        return None
    message = data[_IPV6.size : _IPV6.size + length]
    if not _NEIGHBOUR.size <= length == len(message) or _IPV6.size + length > size:
        return None
    found, code, _, _, neighbour = _NEIGHBOUR.unpack_from(message)
    if found != kind or code != 0 or neighbour[0] == _MULTICAST or not _options_are_right(message):
        return None
    return message if icmp_checksum(source, target, message) == 0 else None


def _options_are_right(message: bytes) -> bool:
    at = _NEIGHBOUR.size
    while at + 2 <= len(message) and message[at + 1]:  # a length of 0 would never end
        at += 8 * message[at + 1]
    return at == len(message)


def _link_address(message: bytes, kind: int) -> bytes | None:
    """Return the MAC address in the first option of this type; None if there is none."""
    at = _NEIGHBOUR.size
    while at < len(message):
        if message[at] == kind and message[at + 1] == 1:
            return message[at + 2 : at + 8]
        at += 8 * message[at + 1]
    return None
