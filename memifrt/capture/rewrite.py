"""Rewrite MAC addresses, VLAN tags and IP addresses of packets, with tcprewrite's words.

Owns the maps of addresses and the changes of checksums. A checksum is updated by the change of the words that it covers
(RFC 1624), so a wrong one stays wrong. No packet makes a rewriting raise: an address that is cut off is not rewritten.
The inner packet of an ICMP error or of a tunnel is left alone.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memifrt.errors import ConfigError
from memifrt.packets import parse_mac
from memifrt.packets.ipv4 import final_destination
from memifrt.types import Mode

VLAN_MODES = ("add", "del")
#: 32-bit words of the shortest IPv4 header.
_LEAST_WORDS = 5
VLAN_PROTOCOLS = {"802.1q": 0x8100, "802.1ad": 0x88A8}
_VLAN_TYPES = (0x8100, 0x88A8)
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_ETHERNET_IPV4_ARP = bytes.fromhex("0001 0800 06 04")
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_UDP = 17
#: Where the checksum is in the header of each protocol with a checksum over the IP addresses: TCP, UDP, UDP-Lite.
_CHECKSUM_AT = {6: 16, _UDP: 6, 136: 6}
#: ICMPv6 covers them, too.
_CHECKSUM_AT_6 = {**_CHECKSUM_AT, 58: 2}
#: The most addresses to remember in their old and new form.
_REMEMBERED = 1 << 16
_BRACKETS = re.compile(r"\[([^\[\]]*)\]:\[([^\[\]]*)\]")
_U16 = struct.Struct("!H")

Edit = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class AddressMap:
    """Moves the addresses of one network into another, and keeps the part behind the new network's prefix."""

    version: int
    network: int
    mask: int
    new_network: int
    new_mask: int

    @classmethod
    def parse(cls, text: str) -> AddressMap:
        """Parse ``10.0.0.0/8:192.168.0.0/16`` or ``[2001:db8::/32]:[fd00::/16]``.

        :raises ConfigError: it is neither, or the two are of different versions.
        """
        brackets = _BRACKETS.fullmatch(text)
        old, new = brackets.groups() if brackets else text.partition(":")[::2]
        try:
            networks = [ipaddress.ip_network(part, strict=False) for part in (old, new)]
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is not a map of networks, like 10.0.0.0/8:192.168.0.0/16 or [2001:db8::/32]:[fd00::/32]"
            ) from error
        if networks[0].version != networks[1].version:
            raise ConfigError(
                f"{text!r} maps IPv{networks[0].version} to IPv{networks[1].version}; both must be the same"
            )
        (first, mask), (second, new_mask) = [(int(n.network_address), int(n.netmask)) for n in networks]
        return cls(networks[0].version, first, mask, second, new_mask)


def parse_maps(text: str) -> tuple[AddressMap, ...]:
    """Parse maps that are separated by commas. The first one that an address matches is used.

    :raises ConfigError: one of them is wrong.
    """
    return tuple(AddressMap.parse(part) for part in text.split(","))


def parse_mac_pair(text: str) -> tuple[bytes, bytes]:
    """Parse ``OLD,NEW``, two MAC addresses.

    :raises ConfigError: it is something else.
    """
    old, comma, new = text.partition(",")
    if not comma:
        raise ConfigError(f"{text!r} must be two MAC addresses, OLD,NEW")
    return parse_mac(old), parse_mac(new)


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What to rewrite, in tcprewrite's terms.

    :ivar target_mac: the new destination of all frames; None keeps them.
    :ivar source_mac: the new source of all frames; None keeps them.
    :ivar mac_pairs: addresses to replace, as source and destination, with their replacements.
    :ivar vlan: ``add`` puts a tag in front of all others, ``del`` removes the first one, None changes none.
    :ivar vlan_id: the number of the VLAN to add, 0 to 4095.
    :ivar vlan_priority: the priority of the tag, 0 to 7; None means 0.
    :ivar vlan_cfi: the drop eligible bit of the tag, formerly CFI; None means 0.
    :ivar vlan_protocol: ``802.1q`` or ``802.1ad``; None means ``802.1q``.
    :ivar sources: maps for source addresses of IP, and senders of ARP.
    :ivar targets: maps for destination addresses of IP, and targets of ARP.
    """

    target_mac: bytes | None = None
    source_mac: bytes | None = None
    mac_pairs: tuple[tuple[bytes, bytes], ...] = ()
    vlan: str | None = None
    vlan_id: int | None = None
    vlan_priority: int | None = None
    vlan_cfi: int | None = None
    vlan_protocol: str | None = None
    sources: tuple[AddressMap, ...] = ()
    targets: tuple[AddressMap, ...] = ()

    def __post_init__(self) -> None:
        if self.vlan == "add" and self.vlan_id is None:
            raise ConfigError("--enet-vlan=add needs the number of the VLAN: --enet-vlan-tag=N")
        parts = {
            "--enet-vlan-tag": self.vlan_id,
            "--enet-vlan-pri": self.vlan_priority,
            "--enet-vlan-cfi": self.vlan_cfi,
            "--enet-vlan-proto": self.vlan_protocol,
        }
        for option, value in parts.items():
            if self.vlan != "add" and value is not None:
                raise ConfigError(f"{option} describes the tag to add; it needs --enet-vlan=add")

    def edit(self, mode: Mode) -> Edit | None:
        """Return the function that rewrites a packet; None if nothing is to be rewritten.

        :raises ConfigError: the packets of this mode have no MAC addresses and VLAN tags.
        """
        of_frames = self._frame_edits()
        addresses = _IpEdit(self.sources, self.targets) if self.sources or self.targets else None
        if mode is Mode.IP:
            if of_frames:
                raise ConfigError("--enet-… rewrites Ethernet frames; a memif in mode ip carries none")
            return None if addresses is None else addresses.packet
        edits = [*of_frames, *(() if addresses is None else (addresses.frame,))]
        if not edits:
            return None

        def edit(frame: bytes) -> bytes:
            for step in edits:
                frame = step(frame)
            return frame

        return edit

    def _frame_edits(self) -> Sequence[Edit]:
        edits: list[Edit] = []
        target, source, pairs = self.target_mac, self.source_mac, dict(self.mac_pairs)
        if self.vlan == "add":
            word = (self.vlan_priority or 0) << 13 | (self.vlan_cfi or 0) << 12 | (self.vlan_id or 0)
            protocol = VLAN_PROTOCOLS[self.vlan_protocol or "802.1q"]
            edits.append(_adding(struct.pack("!HH", protocol, word)))
        elif self.vlan == "del":
            edits.append(_without_tag)
        if pairs:
            edits.append(lambda frame: _with_macs(frame, pairs.get(frame[:6]), pairs.get(frame[6:12])))
        if target is not None or source is not None:
            edits.append(lambda frame: _with_macs(frame, target, source))
        return edits


def _with_macs(frame: bytes, target: bytes | None, source: bytes | None) -> bytes:
    if len(frame) < 12 or (target is None and source is None):
        return frame
    return (target or frame[:6]) + (source or frame[6:12]) + frame[12:]


def _adding(tag: bytes) -> Edit:
    return lambda frame: frame[:12] + tag + frame[12:] if len(frame) >= 14 else frame


def _without_tag(frame: bytes) -> bytes:
    if len(frame) >= 18 and _U16.unpack_from(frame, 12)[0] in _VLAN_TYPES:
        return frame[:12] + frame[16:]
    return frame


# --- IP addresses ---------------------------------------------------------------------------------------------------


class _Mapping:
    """Maps addresses, given and returned as bytes. It remembers some of them."""

    def __init__(self, maps: Sequence[AddressMap]) -> None:
        self._maps = maps
        self._known: dict[bytes, bytes] = {}

    def __call__(self, address: bytes) -> bytes:
        found = self._known.get(address)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[address] = self._map(address)
        return found

    def _map(self, address: bytes) -> bytes:
        version, number = 4 if len(address) == 4 else 6, int.from_bytes(address, "big")
        for one in self._maps:
            if one.version == version and number & one.mask == one.network:
                return (one.new_network | number & ~one.new_mask).to_bytes(len(address), "big")
        return address


class _IpEdit:
    def __init__(self, sources: Sequence[AddressMap], targets: Sequence[AddressMap]) -> None:
        self._source = _Mapping(sources)
        self._target = _Mapping(targets)

    def frame(self, frame: bytes) -> bytes:
        """Return an Ethernet frame with other IP addresses."""
        at = 12
        while at + 2 <= len(frame):
            (kind,) = _U16.unpack_from(frame, at)
            at += 2
            if kind in (_IPV4, _IPV6):
                return self._ip(frame, at, 4 if kind == _IPV4 else 6)
            if kind == _ARP:
                return self._arp(frame, at)
            if kind not in _VLAN_TYPES:
                break
            at += 2
        return frame

    def packet(self, packet: bytes) -> bytes:
        """Return an IP packet with other addresses."""
        return self._ip(packet, 0, packet[0] >> 4) if packet else packet

    def _arp(self, frame: bytes, at: int) -> bytes:
        if len(frame) < at + 28 or frame[at : at + 6] != _ETHERNET_IPV4_ARP:
            return frame
        made = bytearray(frame)
        made[at + 14 : at + 18] = self._source(frame[at + 14 : at + 18])
        made[at + 24 : at + 28] = self._target(frame[at + 24 : at + 28])
        return bytes(made)

    def _ip(self, data: bytes, at: int, version: int) -> bytes:
        size, first = (4, at + 12) if version == 4 else (16, at + 8)
        between, end = first + size, first + 2 * size
        if version not in (4, 6) or len(data) < end or data[at] >> 4 != version:
            return data
        if version == 4 and data[at] & 0xF < _LEAST_WORDS:
            return data  # its header ends before the addresses do: it is no packet
        source, target = data[first:between], data[between:end]
        new_source, new_target = self._source(source), self._target(target)
        if new_source == source and new_target == target:
            return data
        made = bytearray(data)
        made[first:end] = new_source + new_target
        sources = _change(source, new_source)
        if version == 4:
            both = sources + _change(target, new_target)
            _update(made, at + 10, both)
            if not _U16.unpack_from(data, at + 6)[0] & 0x1FFF:  # only the first fragment has the checksum
                header = (data[at] & 0xF) * 4
                # With a source route, the checksum covers the final destination, which is in the route.
                change = both if final_destination(data, at, header) is None else sources
                stop = _end(data, at, _U16.unpack_from(data, at + 2)[0])
                _update_transport(made, at + header, stop, data[at + 9], change, _CHECKSUM_AT)
            return bytes(made)
        payload = _U16.unpack_from(data, at + 4)[0]
        stop = _end(data, at, 40 + payload if payload else 0)
        where, protocol, is_routed = _after_extensions(data, at, stop)
        # With segments left, the checksum covers the final destination, which is in the routing header.
        change = sources if is_routed else sources + _change(target, new_target)
        _update_transport(made, where, stop, protocol, change, _CHECKSUM_AT_6)
        return bytes(made)


def _end(data: bytes, at: int, total: int) -> int:
    """Return where an IP packet ends. What follows is padding. A length of 0 means more than the field can tell."""
    return min(len(data), at + total) if total else len(data)


def _after_extensions(data: bytes, at: int, end: int) -> tuple[int, int, bool]:
    """Return where the transport header of an IPv6 packet is, its protocol, and whether a router still has to route it.

    The protocol is -1 if it has none here: the headers are cut off, or it is a later fragment.
    """
    protocol, where, is_routed = data[at + 6], at + 40, False
    while protocol in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION):
        if where + 8 > end:
            return where, -1, is_routed
        if protocol == _FRAGMENT and _U16.unpack_from(data, where + 2)[0] & 0xFFF8:
            return where, -1, is_routed
        is_routed = is_routed or (protocol == _ROUTING and data[where + 3] > 0)
        length = data[where + 1]
        step = 8 if protocol == _FRAGMENT else 4 * (length + 2) if protocol == _AUTHENTICATION else 8 * (length + 1)
        protocol, where = data[where], where + step
    return where, protocol, is_routed


def _change(old: bytes, new: bytes) -> int:
    """Return what the sum of all words grows by: new words, and complements of the old ones (RFC 1624, equation 3)."""
    words = struct.Struct(f"!{len(old) // 2}H")
    return sum(map(int, words.unpack(new))) + sum(0xFFFF ^ int(word) for word in words.unpack(old))


def _update_transport(data: bytearray, at: int, end: int, protocol: int, change: int, places: dict[int, int]) -> None:
    place = places.get(protocol)
    if place is None or at + place + 2 > end:
        return
    if protocol == _UDP and not any(data[at + place : at + place + 2]):
        return  # the sender has made no checksum
    _update(data, at + place, change)
    if protocol == _UDP and not any(data[at + place : at + place + 2]):
        data[at + place : at + place + 2] = b"\xff\xff"  # 0 would mean none


def _update(data: bytearray, at: int, change: int) -> None:
    total = (0xFFFF ^ _U16.unpack_from(data, at)[0]) + change
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    _U16.pack_into(data, at, 0xFFFF ^ total)
