"""Convert packets of a capture into packets that a memif can carry.

Owns the link types that a memif carries, the names of link types, and the layouts of their headers. Takes and returns
bytes.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass

from memifrt.capture.pcap import LinkType
from memifrt.types import Mode

_VLAN_TYPES = (0x8100, 0x88A8)
_IPV4, _IPV6 = 0x0800, 0x86DD
#: The smallest EtherType. A smaller number in an Ethernet header is a length.
_LEAST_ETHERTYPE = 0x600
_U16 = struct.Struct("!H")
# LINUX_SLL: packet type, hardware type, address length, address, protocol;
# LINUX_SLL2: protocol, reserved, interface, hardware type, packet type, address length, address
_SLL, _SLL2 = struct.Struct("!HHH8sH"), struct.Struct("!HHIHBB8s")
#: Protocols of both headers that mean an 802.3 frame, which has a length instead of an EtherType.
_SLL_802_3 = (0x0001, 0x0004)
_MAC_BYTES = 6
#: NULL and LOOP, of the loopback interface on BSD and macOS: four bytes, then an IP packet.
_LOOPBACK, _LOOPBACK_BYTES = (0, 108), 4

#: The names of common link types, from https://www.tcpdump.org/linktypes.html.
_NAMES = {
    0: "NULL",
    1: "ETHERNET",
    9: "PPP",
    12: "RAW",
    14: "RAW",
    50: "PPP_HDLC",
    51: "PPP_ETHER",
    101: "RAW",
    104: "C_HDLC",
    105: "IEEE802_11",
    108: "LOOP",
    113: "LINUX_SLL",
    127: "IEEE802_11_RADIOTAP",
    147: "USER0",
    187: "BLUETOOTH_HCI_H4",
    189: "USB_LINUX",
    192: "PPI",
    195: "IEEE802_15_4_WITHFCS",
    220: "USB_LINUX_MMAPPED",
    227: "CAN_SOCKETCAN",
    228: "IPV4",
    229: "IPV6",
    239: "NFLOG",
    253: "NETLINK",
    276: "LINUX_SLL2",
}

#: Turns a packet of a capture into one that the memif can carry; returns None if that is impossible.
Conversion = Callable[[bytes], "bytes | None"]

#: Default addresses of Ethernet headers that we make: the broadcast address, and a locally administered one.
BROADCAST, OURS = b"\xff" * _MAC_BYTES, b"\x02\xfe\0\0\0\0"


def link_type_name(number: int) -> str:
    """Return the name and the number of a link type, as a text."""
    return f"{_NAMES.get(number, 'link type')} ({number})"


@dataclass(frozen=True, slots=True)
class LinkLayer:
    """How to send the packets of a capture on a memif in this mode.

    :ivar convert: whether to convert the link layer of packets that the memif cannot carry.
    :ivar source: the source address of Ethernet headers that we make, if the capture has none.
    :ivar target: the destination address of Ethernet headers that we make.
    """

    mode: Mode
    convert: bool = False
    source: bytes = OURS
    target: bytes = BROADCAST

    def conversion(self, link_type: int) -> Conversion | None:
        """Return the conversion for packets of this link type; None if the memif cannot carry them."""
        if LinkType.mode_of(link_type) is self.mode:
            return _as_it_is
        if not self.convert:
            return None
        return self._made(link_type)

    def _made(self, link_type: int) -> Conversion | None:
        if link_type in _LOOPBACK:
            made = _as_it_is if self.mode is Mode.IP else functools.partial(_ip_to_ethernet, self.target + self.source)
            return functools.partial(_loopback_to_ip, made)
        if self.mode is Mode.IP:
            conversions: dict[int, Conversion] = {
                LinkType.ETHERNET.value: ethernet_to_ip,
                LinkType.LINUX_SLL.value: functools.partial(_cooked_to_ip, _sll),
                LinkType.LINUX_SLL2.value: functools.partial(_cooked_to_ip, _sll2),
            }
            return conversions.get(link_type)
        if LinkType.mode_of(link_type) is Mode.IP:
            return functools.partial(_ip_to_ethernet, self.target + self.source)
        cooked = {LinkType.LINUX_SLL.value: _sll, LinkType.LINUX_SLL2.value: _sll2}.get(link_type)
        return None if cooked is None else functools.partial(_cooked_to_ethernet, cooked, self.target, self.source)

    def mismatch(self, link_type: int) -> str:
        """Return a text that says why packets of this link type cannot be sent, and what would help."""
        carried, mode = link_type_name(LinkType.of(self.mode)), self.mode.name.lower()
        text = f"its packets are {link_type_name(link_type)}, and a memif in mode {mode} carries {carried}"
        if self.convert or self._made(link_type) is None:
            return f"{text}; convert the file first, for example with tcprewrite --dlt=enet"
        made = "IP packets" if self.mode is Mode.IP else "Ethernet frames"
        other = LinkType.mode_of(link_type)
        as_they_are = "" if other is None else f"--mode {other.name.lower()} sends them as they are, "
        return f"{text}; {as_they_are}--convert makes {made} of them"


def _as_it_is(data: bytes) -> bytes:
    return data


def _loopback_to_ip(made: Conversion, data: bytes) -> bytes | None:
    """Remove the number of the address family; its byte order and values differ between systems."""
    packet = data[_LOOPBACK_BYTES:]
    return made(packet) if packet and packet[0] >> 4 in (4, 6) else None


def ethernet_to_ip(frame: bytes) -> bytes | None:
    """Return the IP packet in an Ethernet frame, without VLAN tags and padding; None if there is none."""
    at = 2 * _MAC_BYTES
    while at + 2 <= len(frame):
        (ethertype,) = _U16.unpack_from(frame, at)
        if ethertype not in _VLAN_TYPES:
            return _ip(ethertype, frame, at + 2)
        at += 4
    return None


def _ip(ethertype: int, data: bytes, at: int) -> bytes | None:
    """Return the IP packet that starts at this byte, without any padding; None if it is not IP."""
    if ethertype not in (_IPV4, _IPV6) or at >= len(data) or data[at] >> 4 != (4 if ethertype == _IPV4 else 6):
        return None
    end = len(data)
    if ethertype == _IPV4 and end >= at + 20:
        total = _U16.unpack_from(data, at + 2)[0]
    elif ethertype == _IPV6 and end >= at + 40:
        payload = _U16.unpack_from(data, at + 4)[0]
        total = 40 + payload if payload else 0  # 0: a jumbogram
    else:
        total = 0
    return data[at : min(end, at + total) if total >= 20 else end]


def _ip_to_ethernet(addresses: bytes, packet: bytes) -> bytes | None:
    ethertype = {4: _IPV4, 6: _IPV6}.get(packet[0] >> 4) if packet else None
    return None if ethertype is None else addresses + _U16.pack(ethertype) + packet


@dataclass(frozen=True, slots=True)
class _Cooked:
    """A packet of ``tcpdump -i any``: protocol, MAC address of the sender (or None), start of the payload."""

    protocol: int
    source: bytes | None
    start: int


def _mac(length: int, address: bytes) -> bytes | None:
    """Return a MAC address; None for all zeros, which the loopback interface has."""
    mac = address[:_MAC_BYTES]
    return mac if length == _MAC_BYTES and any(mac) else None


def _sll(data: bytes) -> _Cooked | None:
    if len(data) < _SLL.size:
        return None
    _, _, length, address, protocol = _SLL.unpack_from(data)
    return _Cooked(protocol, _mac(length, address), _SLL.size)


def _sll2(data: bytes) -> _Cooked | None:
    if len(data) < _SLL2.size:
        return None
    protocol, _, _, _, _, length, address = _SLL2.unpack_from(data)
    return _Cooked(protocol, _mac(length, address), _SLL2.size)


def _cooked_to_ip(parse: Callable[[bytes], _Cooked | None], data: bytes) -> bytes | None:
    cooked = parse(data)
    if cooked is None:
        return None
    # If the kernel left a VLAN tag in the packet, it starts with its type, as after Ethernet addresses.
    protocol, at = cooked.protocol, cooked.start
    while protocol in _VLAN_TYPES and at + 4 <= len(data):
        protocol, at = _U16.unpack_from(data, at + 2)[0], at + 4
    return _ip(protocol, data, at)


def _cooked_to_ethernet(
    parse: Callable[[bytes], _Cooked | None], target: bytes, source: bytes, data: bytes
) -> bytes | None:
    cooked = parse(data)
    if cooked is None:
        return None
    payload, protocol = data[cooked.start :], cooked.protocol
    if protocol in _SLL_802_3:
        protocol = len(payload)
        if protocol >= _LEAST_ETHERTYPE:
            return None
    elif protocol < _LEAST_ETHERTYPE:
        return None
    return target + (cooked.source or source) + _U16.pack(protocol) + payload
