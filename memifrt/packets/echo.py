"""Echo requests and replies of both protocols: the length of an address, or the packet itself, chooses one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memifrt.errors import ConfigError
from memifrt.packets import ipv4, ipv6
from memifrt.packets.addresses import format_ip
from memifrt.packets.common import ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, TTL, EchoReply, check_mac
from memifrt.types import Mode, check_range

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer


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
    ttl: int = TTL,
) -> bytes:
    """Build an ICMP echo request, or an ICMPv6 echo request if the addresses have 16 bytes.

    :param source_mac: 6 bytes; so has ``target_mac``.
    :param source_ip: 4 bytes (IPv4) or 16 bytes (IPv6); ``target_ip`` has as many.
    :param identifier: 0 to 65535; so is the sequence.
    :param mode: in :attr:`Mode.IP` the packet has no Ethernet header, and the MAC addresses are not used.
    :param ttl: the time to live, or the hop limit of IPv6: 0 to 255.
    :raises ConfigError: the payload is longer than :data:`MAX_PAYLOAD` (IPv6: :data:`MAX_PAYLOAD_IPV6`), the addresses
        are not of one protocol, an address has a wrong length, or a number is out of its range.
    """
    if len(source_ip) != len(target_ip):
        raise ConfigError(
            f"a request from an address of {len(source_ip)} bytes to one of {len(target_ip)}; "
            f"both must have 4 bytes (IPv4), or both 16 bytes (IPv6)"
        )
    check_range("the identifier", identifier, 0, 0xFFFF)
    check_range("the sequence", sequence, 0, 0xFFFF)
    check_range("the ttl", ttl, 0, 0xFF)
    format_ip(target_ip)  # checks the length
    if mode is not Mode.IP:
        check_mac(source_mac)
        check_mac(target_mac)
    if len(target_ip) == 16:
        ethertype, packet = ETHERTYPE_IPV6, ipv6.echo_request(source_ip, target_ip, identifier, sequence, payload, ttl)
    else:
        ethertype, packet = ETHERTYPE_IPV4, ipv4.echo_request(source_ip, target_ip, identifier, sequence, payload, ttl)
    if mode is Mode.IP:
        return packet
    return ETHERNET.pack(target_mac, source_mac, ethertype) + packet


def parse_echo_reply(
    packet: ReadableBuffer, mode: Mode = Mode.ETHERNET, *, any_checksum: bool = False
) -> EchoReply | None:
    """Parse an ICMP or ICMPv6 echo reply; return None if the packet is not one or has a wrong checksum.

    :param mode: in :attr:`Mode.IP` the packet begins with its IP header.
    :param any_checksum: also accept a wrong ICMP checksum; ``checksum_is_right`` is then False.
    """
    data = bytes(packet)
    ethertype = None
    if mode is Mode.ETHERNET:
        if len(data) < ETHERNET.size:
            return None
        ethertype = ETHERNET.unpack_from(data)[2]
        data = data[ETHERNET.size :]
    reply = None
    if ethertype in (ETHERTYPE_IPV4, None):
        reply = ipv4.parse_echo_reply(data)
    if ethertype in (ETHERTYPE_IPV6, None) and reply is None:
        reply = ipv6.parse_echo_reply(data)
    return reply if reply is not None and (reply.checksum_is_right or any_checksum) else None
