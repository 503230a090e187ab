"""Turn a request into its reply where it lies, in the buffer of a ring."""

from __future__ import annotations

from typing import Protocol, cast

from memifrt.errors import ConfigError
from memifrt.packets import ipv4, ipv6
from memifrt.packets.common import ETHERNET, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, check_mac
from memifrt.types import Mode


class InBuffers(Protocol):
    """A packet of a burst, as far as it matters here."""

    @property
    def views(self) -> tuple[memoryview, ...]:
        """Writable views of the packet's buffers."""
        raise NotImplementedError

    def __bytes__(self) -> bytes:
        raise NotImplementedError


def reply_in_place(
    packet: memoryview | InBuffers, ip: bytes, mac: bytes, *, mode: Mode = Mode.ETHERNET, icmp: bool = True
) -> bool:
    """Turn an echo request to ``ip``, or a question for its MAC address, into its reply.

    With an IPv4 address these are ICMP echo and ARP requests; with an IPv6 address, ICMPv6 echo requests and neighbour
    solicitations. The reply has the same length. Any other packet stays unchanged. Checksums of echo replies are
    updated, not computed: a wrong one stays wrong, so that the sender of the request can see it. A solicitation with a
    wrong checksum is not answered (RFC 4861).

    :param packet: a packet of :meth:`Burst.packets`, in one buffer or in several, or a writable view of bytes. Each
        field is read once, because the peer may change it meanwhile.
    :param ip: 4 bytes (IPv4) or 16 bytes (IPv6). For several addresses, call this once for each.
    :param mac: 6 bytes; not used in :attr:`Mode.IP`.
    :param mode: the mode of the interface: in :attr:`Mode.IP` a packet begins with its IP header.
    :param icmp: False to answer questions for the MAC address only.
    :returns: whether the packet was such a request, and is a reply now.
    :raises ConfigError: an address has another length.
    :raises ValueError: the packet's burst has ended.
    """
    return reply(packet, ip, mac, mode, icmp)


def reply(packet: memoryview | InBuffers, ip: bytes, mac: bytes, mode: Mode, icmp: bool) -> bool:
    """Do as :func:`reply_in_place`. The compiled one answers the usual request itself, and calls this for the rest."""
    if len(ip) not in (4, 16):
        raise ConfigError(f"{ip!r} is not an IP address; it must have 4 bytes (IPv4) or 16 bytes (IPv6)")
    if mode is not Mode.IP:
        check_mac(mac)
    views = getattr(packet, "views", None)  # a NumPy row and a bytearray are as good as a view
    if views is None:
        return _reply(cast(memoryview, packet), ip, mac, mode, icmp)
    if len(views) == 1:
        return _reply(views[0], ip, mac, mode, icmp)
    whole = memoryview(bytearray(bytes(packet)))
    if not _reply(whole, ip, mac, mode, icmp):
        return False
    for view in views:
        view[:], whole = whole[: len(view)], whole[len(view) :]
    return True


def _reply(packet: memoryview, ip: bytes, mac: bytes, mode: Mode, icmp: bool) -> bool:
    """Do as :func:`reply_in_place` with a packet that lies in one piece."""
    if mode is Mode.IP:
        return icmp and (ipv6 if len(ip) == 16 else ipv4).answer_echo(packet, 0, ip)
    if mode is not Mode.ETHERNET or len(packet) < ETHERNET.size:
        return False
    _, asker, ethertype = ETHERNET.unpack_from(packet)
    if asker[0] & 1:  # a group address is never a source
        return False
    to = _answer(packet, ethertype, asker, ip, mac, icmp)
    if to is None:
        return False
    ETHERNET.pack_into(packet, 0, to, mac, ethertype)
    return True


def _answer(packet: memoryview, ethertype: int, asker: bytes, ip: bytes, mac: bytes, icmp: bool) -> bytes | None:
    """Turn what follows the Ethernet header into a reply. Return the MAC address it goes to; None if there is none."""
    start = ETHERNET.size
    if ethertype == ETHERTYPE_IPV6:
        if len(ip) != 16:
            return None
        if icmp and ipv6.answer_echo(packet, start, ip):
            return asker
        return ipv6.answer_solicitation(packet, start, ip, mac, asker)
    if ethertype == ETHERTYPE_IPV4:
        return asker if icmp and ipv4.answer_echo(packet, start, ip) else None
    return asker if ethertype == ETHERTYPE_ARP and ipv4.answer_arp(packet, start, ip, mac) else None
