"""Build, parse and answer the packets of ping: ARP and ICMP echo over IPv4.

Owns the packet formats and checksums. Knows nothing of rings or interfaces. No received packet makes a function here
raise, however malformed it is.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError
from memifrt.types import Mode

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer

# destination, source, ethertype (IEEE 802.3)
_ETHERNET = struct.Struct("!6s6sH")
# hardware type, protocol type, their address lengths, operation, sender's mac and ip, target's mac and ip (RFC 826)
_ARP = struct.Struct("!HHBBH6s4s6s4s")
# version and header length, service, total length, id, flags and fragment offset, ttl, protocol, checksum, source,
# destination (RFC 791)
_IP = struct.Struct("!BBHHHBBH4s4s")
# type, code, checksum, identifier, sequence (RFC 792)
_ICMP = struct.Struct("!BBHHH")
_U16 = struct.Struct("!H")

_ETHERTYPE_IP, _ETHERTYPE_ARP = 0x0800, 0x0806
_ARP_FIXED = (1, _ETHERTYPE_IP, 6, 4)  # Ethernet and IPv4
_ARP_REQUEST, _ARP_REPLY = 1, 2
_PROTOCOL_ICMP = 1
_ECHO_REPLY, _ECHO_REQUEST = 0, 8
_DONT_FRAGMENT, _FRAGMENT = 0x4000, 0x3FFF  # more fragments, and the offset
_TTL = 64

_BROADCAST = b"\xff" * 6
_NO_MAC = bytes(6)
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

#: Largest payload of an echo request in bytes: an IP packet of 65535 bytes without its two headers.
MAX_PAYLOAD = 65535 - _IP.size - _ICMP.size


@dataclass(frozen=True, slots=True)
class EchoReply:
    """The fields of an ICMP echo reply."""

    source_ip: bytes
    identifier: int
    sequence: int
    ttl: int
    payload: bytes
    checksum_is_right: bool = True


# --- addresses ------------------------------------------------------------------------------------------------------


def parse_mac(text: str) -> bytes:
    """Return the 6 bytes of a MAC address such as ``02:fe:00:00:00:01`` (or with ``-``).

    :raises ConfigError: the text is not a MAC address.
    """
    parts = text.replace("-", ":").split(":")
    if len(parts) == 6 and all(len(part) in (1, 2) and set(part) <= _HEX_DIGITS for part in parts):
        return bytes(int(part, 16) for part in parts)
    raise ConfigError(f"{text!r} is not a MAC address; it must be like 02:fe:00:00:00:01")


def format_mac(mac: bytes) -> str:
    """Return a MAC address as text, such as ``02:fe:00:00:00:01``.

    :raises ConfigError: ``mac`` does not have 6 bytes.
    """
    if len(mac) != 6:
        raise ConfigError(f"{mac!r} is not a MAC address; it must have 6 bytes")
    return mac.hex(":")


def parse_ip(text: str) -> bytes:
    """Return the 4 bytes of an IPv4 address such as ``192.168.1.2``.

    :raises ConfigError: the text is not an IPv4 address.
    """
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        message = f"{text!r} is not an IPv4 address; it must be four numbers up to 255, like 192.168.1.2"
        raise ConfigError(message) from None


def format_ip(ip: bytes) -> str:
    """Return an IPv4 address as text, such as ``192.168.1.2``.

    :raises ConfigError: ``ip`` does not have 4 bytes.
    """
    if len(ip) != 4:
        raise ConfigError(f"{ip!r} is not an IPv4 address; it must have 4 bytes")
    return socket.inet_ntop(socket.AF_INET, ip)


# --- checksums ------------------------------------------------------------------------------------------------------


def checksum(data: ReadableBuffer) -> int:
    """Return the internet checksum of ``data`` (RFC 1071); 0 if the data contains its own correct checksum."""
    # 2**16 is 1 modulo 0xffff, so the data read as one number is congruent to the sum of its 16-bit words.
    number = int.from_bytes(data, "big")
    if memoryview(data).nbytes & 1:
        number <<= 8
    # A sum of words that are not all zero folds to 0xffff, never to 0.
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


# --- answering ------------------------------------------------------------------------------------------------------


def reply_in_place(packet: memoryview, ip: bytes, mac: bytes, *, mode: Mode = Mode.ETHERNET, icmp: bool = True) -> bool:
    """Turn an ARP request for ``ip``, or an ICMP echo request to it, into its reply.

    The reply has the same length. Any other packet stays unchanged. Checksums are updated, not computed: a wrong one
    stays wrong, so that the sender of the request can see it.

    :param packet: a writable view of bytes. Each field is read once, because the peer may change it meanwhile.
    :param ip: 4 bytes.
    :param mac: 6 bytes; not used in :attr:`Mode.IP`.
    :param icmp: False to answer ARP requests only.
    :returns: whether the packet was such a request, and is a reply now.
    """
    return reply(packet, ip, mac, mode, icmp)


def reply(packet: memoryview, ip: bytes, mac: bytes, mode: Mode, icmp: bool) -> bool:
    """Do as :func:`reply_in_place`. The compiled one answers the usual request itself, and calls this for the rest."""
    size = len(packet)
    if mode is Mode.IP:
        return icmp and _answer_echo(packet, 0, ip)
    if mode is not Mode.ETHERNET or size < _ETHERNET.size + _IP.size:
        return False
    _, asker, ethertype = _ETHERNET.unpack_from(packet)
    if asker[0] & 1:  # a group address is never a source
        return False
    if ethertype == _ETHERTYPE_IP:
        answered = icmp and _answer_echo(packet, _ETHERNET.size, ip)
    elif ethertype == _ETHERTYPE_ARP:
        answered = _answer_arp(packet, _ETHERNET.size, ip, mac)
    else:
        return False
    if answered:
        _ETHERNET.pack_into(packet, 0, asker, mac, ethertype)
    return answered


def _answer_echo(packet: memoryview, start: int, ip: bytes) -> bool:
    size = len(packet)
    if size < start + _IP.size + _ICMP.size:
        return False
    version, _, total, _, fragment, ttl, protocol, header_sum, source, target = _IP.unpack_from(packet, start)
    header = (version & 0xF) * 4
    if target != ip or protocol != _PROTOCOL_ICMP or version >> 4 != 4 or fragment & _FRAGMENT:
        return False
    if header < _IP.size or total < header + _ICMP.size or size < start + total:
        return False
    at = start + header
    kind, code, echo_sum, _, _ = _ICMP.unpack_from(packet, at)
    if kind != _ECHO_REQUEST or code != 0:
        return False
    # Update both checksums by the change of the words that they cover (RFC 1624). Swapping the addresses changes none.
    # An IP header is never all zero, so its checksum may be 0; that of an echo reply may have to be 0xffff.
    header_sum = (header_sum + (ttl - _TTL << 8)) % 0xFFFF
    echo_sum += _ECHO_REQUEST << 8
    if echo_sum > 0xFFFF:
        echo_sum -= 0xFFFF
    packet[start + 8] = _TTL
    _U16.pack_into(packet, start + 10, header_sum)
    packet[start + 12 : start + 16] = ip
    packet[start + 16 : start + 20] = source
    packet[at] = _ECHO_REPLY
    _U16.pack_into(packet, at + 2, echo_sum)
    return True


def _answer_arp(packet: memoryview, start: int, ip: bytes, mac: bytes) -> bool:
    if len(packet) < start + _ARP.size:
        return False
    *fixed, operation, sender_mac, sender_ip, _, target_ip = _ARP.unpack_from(packet, start)
    if operation != _ARP_REQUEST or target_ip != ip or tuple(fixed) != _ARP_FIXED:
        return False
    _ARP.pack_into(packet, start, *_ARP_FIXED, _ARP_REPLY, mac, ip, sender_mac, sender_ip)
    return True


# --- asking ---------------------------------------------------------------------------------------------------------


def arp_request(mac: bytes, ip: bytes, target_ip: bytes) -> bytes:
    """Build the broadcast frame that asks for the MAC address of ``target_ip``."""
    return _ETHERNET.pack(_BROADCAST, mac, _ETHERTYPE_ARP) + _ARP.pack(
        *_ARP_FIXED, _ARP_REQUEST, mac, ip, _NO_MAC, target_ip
    )


def parse_arp_reply(packet: ReadableBuffer) -> tuple[bytes, bytes] | None:
    """Return the sender's IP and MAC address from an ARP reply; None if the packet is not an ARP reply."""
    data = bytes(packet)
    if len(data) < _ETHERNET.size + _ARP.size or _ETHERNET.unpack_from(data)[2] != _ETHERTYPE_ARP:
        return None
    *fixed, operation, sender_mac, sender_ip, _, _ = _ARP.unpack_from(data, _ETHERNET.size)
    if operation != _ARP_REPLY or tuple(fixed) != _ARP_FIXED:
        return None
    return sender_ip, sender_mac


def echo_request(
    *,
    source_mac: bytes,
    source_ip: bytes,
    target_mac: bytes,
    target_ip: bytes,
    identifier: int,
    sequence: int,
    payload: bytes,
    mode: Mode = Mode.ETHERNET,
) -> bytes:
    """Build an ICMP echo request.

    :param mode: in :attr:`Mode.IP` the packet has no Ethernet header, and the MAC addresses are not used.
    :raises ConfigError: the payload is longer than :data:`MAX_PAYLOAD`.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ConfigError(f"a payload of {len(payload)} bytes; at most {MAX_PAYLOAD} fit into an IP packet")
    echo_sum = checksum(_ICMP.pack(_ECHO_REQUEST, 0, 0, identifier, sequence) + payload)
    echo = _ICMP.pack(_ECHO_REQUEST, 0, echo_sum, identifier, sequence) + payload
    total = _IP.size + len(echo)
    start = (0x45, 0, total, sequence, _DONT_FRAGMENT, _TTL, _PROTOCOL_ICMP)
    header_sum = checksum(_IP.pack(*start, 0, source_ip, target_ip))
    packet = _IP.pack(*start, header_sum, source_ip, target_ip) + echo
    if mode is Mode.IP:
        return packet
    return _ETHERNET.pack(target_mac, source_mac, _ETHERTYPE_IP) + packet


def parse_echo_reply(
    packet: ReadableBuffer, mode: Mode = Mode.ETHERNET, *, any_checksum: bool = False
) -> EchoReply | None:
    """Parse an ICMP echo reply; return None if the packet is not one or has a wrong checksum.

    :param any_checksum: also accept a wrong ICMP checksum; ``checksum_is_right`` is then False.
    """
    data = bytes(packet)
    if mode is Mode.ETHERNET:
        if len(data) < _ETHERNET.size or _ETHERNET.unpack_from(data)[2] != _ETHERTYPE_IP:
            return None
        data = data[_ETHERNET.size :]
    if len(data) < _IP.size + _ICMP.size:
        return None
    version, _, total, _, fragment, ttl, protocol, _, source, _ = _IP.unpack_from(data)
    header = (version & 0xF) * 4
    if version >> 4 != 4 or protocol != _PROTOCOL_ICMP or fragment & _FRAGMENT:
        return None
    if header < _IP.size or total < header + _ICMP.size or len(data) < total:
        return None
    echo = data[header:total]
    kind, code, _, identifier, sequence = _ICMP.unpack_from(echo)
    if kind != _ECHO_REPLY or code != 0 or checksum(data[:header]):
        return None
    is_right = not checksum(echo)
    if not (is_right or any_checksum):
        return None
    return EchoReply(source, identifier, sequence, ttl, echo[_ICMP.size :], is_right)


if not TYPE_CHECKING:
    with contextlib.suppress(ImportError):  # it is not compiled
        from memifrt import _packets

        reply_in_place = _packets.compiled(reply_in_place, reply)
