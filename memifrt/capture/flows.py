"""Count the flows of packets, as tcpreplay does: by addresses, protocol, ports and VLAN, each direction for itself.

Owns what a flow is. No packet makes it raise.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from memifrt.types import Mode

_VLAN_TYPES = (0x8100, 0x88A8)
_IPV4, _IPV6 = 0x0800, 0x86DD
_HOP_BY_HOP, _ROUTING, _DESTINATION = 0, 43, 60
#: The bytes that take the place of ports: those of TCP, UDP, SCTP and UDP-Lite; type and code of ICMP and ICMPv6.
_PORTS = {6: 4, 17: 4, 132: 4, 136: 4, 1: 2, 58: 2}
#: The most flows to remember. Each takes about 100 bytes.
_MOST = 1 << 20


@dataclass(slots=True)
class Flows:
    """The flows of the packets so far.

    :ivar packets: the number of packets that belong to a flow.
    :ivar others: the number of other packets: not IP, or cut before the ports.
    """

    mode: Mode = Mode.ETHERNET
    packets: int = 0
    others: int = 0
    _keys: set[bytes] = field(default_factory=set, repr=False)

    @property
    def count(self) -> int:
        return len(self._keys)

    def add(self, data: bytes) -> None:
        """Count a packet."""
        key = flow_key(data, self.mode)
        if key is None:
            self.others += 1
            return
        self.packets += 1
        if len(self._keys) < _MOST:
            self._keys.add(key)

    def line(self, seconds: float) -> str:
        """Return the totals as one line of text.

        :param seconds: how long sending took.
        """
        more = " or more" if self.count >= _MOST else ""
        rate = self.count / max(seconds, 1e-9)
        packets = f"{self.packets} packets of flows, {self.others} other packets"
        return f"{self.count}{more} flows, {rate:.2f} flows/s, {packets}"


def flow_key(data: bytes, mode: Mode) -> bytes | None:
    """Return bytes that are equal for the packets of one flow; None if a packet belongs to none."""
    at, vlan, expected = 0, b"", 0
    if mode is not Mode.IP:
        at = 12
        while True:
            if at + 2 > len(data):
                return None
            (kind,) = struct.unpack_from("!H", data, at)
            at += 2
            if kind not in _VLAN_TYPES:
                break
            vlan = vlan or data[at : at + 2]
            at += 2
        if kind not in (_IPV4, _IPV6):
            return None
        expected = 4 if kind == _IPV4 else 6
    version = data[at] >> 4 if at < len(data) else 0
    if expected not in (0, version):
        return None
    end = len(data)  # what follows the packet is padding; a length of 0 means that it is longer than the field can tell
    if version == 4 and at + 20 <= end:
        protocol, addresses = data[at + 9], data[at + 12 : at + 20]
        total, is_later = struct.unpack_from("!H2xH", data, at + 2)
        header, is_later = (data[at] & 0xF) * 4, is_later & 0x1FFF
        if header < 20:
            return None
        end = min(end, at + total) if total else end
        at += header
    elif version == 6 and at + 40 <= end:
        protocol, addresses, is_later = data[at + 6], data[at + 8 : at + 40], 0
        payload = struct.unpack_from("!H", data, at + 4)[0]
        at += 40
        end = min(end, at + payload) if payload else end
        while protocol in (_HOP_BY_HOP, _ROUTING, _DESTINATION):
            if at + 8 > end:
                return None
            protocol, at = data[at], at + 8 * (data[at + 1] + 1)
    else:
        return None
    count = 0 if is_later else _PORTS.get(protocol, 0)
    if at + count > end:
        return None
    number = struct.unpack("!H", vlan)[0] & 0xFFF if len(vlan) == 2 else 0
    return struct.pack("!HB", number, protocol) + addresses + data[at : at + count]
