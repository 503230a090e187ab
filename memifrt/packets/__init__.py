"""Build, parse and answer the packets of ping: ARP and ICMP echo, neighbour discovery and ICMPv6 echo.

Owns the packet formats and checksums. Knows nothing of rings or interfaces. No received packet makes a function here
raise, however malformed it is.

An IP address is 4 bytes (IPv4) or 16 bytes (IPv6). Its length chooses the protocol.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from memifrt.packets import ipv4, ipv6
from memifrt.packets.addresses import format_ip, format_mac, parse_ip, parse_mac
from memifrt.packets.answering import reply, reply_in_place
from memifrt.packets.common import EchoReply, checksum
from memifrt.packets.echo import echo_request, parse_echo_reply
from memifrt.packets.ipv4 import arp_request, parse_arp_reply
from memifrt.packets.ipv6 import neighbour_solicitation, parse_neighbour_advertisement

#: Largest payload of an ICMP echo request in bytes.
MAX_PAYLOAD = ipv4.MAX_PAYLOAD
#: Largest payload of an ICMPv6 echo request in bytes.
MAX_PAYLOAD_IPV6 = ipv6.MAX_PAYLOAD

__all__ = [
    "MAX_PAYLOAD",
    "MAX_PAYLOAD_IPV6",
    "EchoReply",
    "arp_request",
    "checksum",
    "echo_request",
    "format_ip",
    "format_mac",
    "neighbour_solicitation",
    "parse_arp_reply",
    "parse_echo_reply",
    "parse_ip",
    "parse_mac",
    "parse_neighbour_advertisement",
    "reply",
    "reply_in_place",
]

if not TYPE_CHECKING:
    with contextlib.suppress(ImportError):  # it is not compiled
        from memifrt import _packets

        reply_in_place = _packets.compiled(reply_in_place, reply)
