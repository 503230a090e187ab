"""The text of ARP and RARP packets, in tcpdump's words."""

from __future__ import annotations

import struct

from memifrt.capture.line_parts import ETHERTYPES, hex_dump, ipv4
from memifrt.packets.common import ETHERTYPE_IPV4

_HARDWARE = {1: "Ethernet", 6: "TokenRing", 7: "ArcNet", 15: "FrameRelay", 17: "Strip", 24: "IEEE 1394"}
_OPERATIONS = {
    1: "Request",
    2: "Reply",
    3: "Reverse Request",
    4: "Reverse Reply",
    8: "Inverse Request",
    9: "Inverse Reply",
    10: "NACK Reply",
}


def arp_text(data: bytes, length: int, link: bool, verbose: int) -> str:
    """Return the text of a packet.

    :param length: its length before it was cut.
    :param link: whether the link-level header has been printed, which says what the packet is.
    """
    if len(data) < 8:
        return " [|arp]"
    hardware, protocol, mac_size, ip_size, operation = struct.unpack_from("!HHBBH", data)
    end = 8 + 2 * (mac_size + ip_size)
    if len(data) < end:
        return " [|arp]"
    text = "" if link else "ARP, "
    known = protocol == ETHERTYPE_IPV4 and ip_size == 4 and mac_size
    if not known or verbose:
        kind = _HARDWARE.get(hardware, f"Unknown Hardware ({hardware})")
        over = ETHERTYPES.get(protocol, f"Unknown Protocol (0x{protocol:04x})")
        text += f"{kind} (len {mac_size}), {over} (len {ip_size})" + (", " if known else "")
    if not known:
        return f"{text}, length {length}"
    text += f"{_OPERATIONS.get(operation, f'Unknown ({operation})')} "
    macs, size = data[8:end], mac_size + 4
    sender_mac, sender = macs[:mac_size].hex(":"), ipv4(macs, mac_size)
    target_mac, target = macs[size : size + mac_size], ipv4(macs, size + mac_size)
    asked = f" ({target_mac.hex(':')})" if any(target_mac) else ""
    details = {
        1: f"who-has {target}{asked} tell {sender}",
        2: f"{sender} is-at {sender_mac}",
        3: f"who-is {target_mac.hex(':')} tell {sender_mac}",
        4: f"{target_mac.hex(':')} at {target}",
        8: f"who-is {target_mac.hex(':')} tell {sender_mac}",
        9: f"{sender_mac} at {sender}",
    }.get(operation)
    return text + (hex_dump(data, ascii_too=True) if details is None else f"{details}, length {length}")
