"""The first fields of DHCP and DHCPv6, in tcpdump's words. Options are not printed."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import Layers, unpack

_REQUEST, _REPLY = 1, 2
_ETHERNET, _MAC_BYTES = 1, 6
_DHCP6 = {
    1: "solicit",
    2: "advertise",
    3: "request",
    4: "confirm",
    5: "renew",
    6: "rebind",
    7: "reply",
    8: "release",
    9: "decline",
    10: "reconf",
    11: "inf-req",
    12: "relay-fwd",
    13: "relay-reply",
    14: "leasequery",
    15: "leasequery-fwd",
    16: "leasequery-data",
    17: "leasequery-done",
}


def dhcp_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of DHCP or BOOTP.

    :param length: the length before the packet was cut.
    :raises Cut: the packet is cut off.
    """
    (operation,) = unpack("!B", data)
    names = {_REQUEST: "Request", _REPLY: "Reply"}
    yield "BOOTP/DHCP, "
    yield names.get(operation, f"unknown (0x{operation:02x})")
    if operation == _REQUEST and unpack("!xBB", data) == (_ETHERNET, _MAC_BYTES):
        address = bytes(unpack("!28x6B", data))
        yield f" from {address.hex(':')}"
    yield f", length {length}"


def dhcp6_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of DHCPv6.

    :param length: the length before the packet was cut.
    :raises Cut: the packet is cut off.
    """
    yield "dhcp6"
    kind = unpack("!B3x", data)[0]
    yield f" {_DHCP6.get(kind, f'msgtype-{kind}')}"
