"""The text of LLDP, in tcpdump's words. Of the TLVs of organizations, only the head and a dump are printed."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import Cut, flag_names, hex_dump, ipv4, ipv6, unpack, visible

_END, _CHASSIS, _PORT, _LIFE, _PORT_TEXT, _NAME, _SYSTEM_TEXT, _CAPABILITIES, _ADDRESS = range(9)
_PRIVATE = 127
_NAMES = {
    _END: "End",
    _CHASSIS: "Chassis ID",
    _PORT: "Port ID",
    _LIFE: "Time to Live",
    _PORT_TEXT: "Port Description",
    _NAME: "System Name",
    _SYSTEM_TEXT: "System Description",
    _CAPABILITIES: "System Capabilities",
    _ADDRESS: "Management Address",
    _PRIVATE: "Organization specific",
}
#: The kinds of the name of a chassis, and of a port, and which of them are an Ethernet and an IP address.
_CHASSIS_KINDS = {
    1: "Chassis component",
    2: "Interface alias",
    3: "Port component",
    4: "MAC address",
    5: "Network address",
    6: "Interface name",
    7: "Local",
}
_PORT_KINDS = {
    1: "Interface alias",
    2: "Port component",
    3: "MAC address",
    4: "Network Address",
    5: "Interface Name",
    6: "Agent circuit ID",
    7: "Local",
}
_CAPABILITY_NAMES = (
    (0x01, "Other"),
    (0x02, "Repeater"),
    (0x04, "Bridge"),
    (0x08, "WLAN AP"),
    (0x10, "Router"),
    (0x20, "Telephone"),
    (0x40, "Docsis"),
    (0x80, "Station Only"),
)
_INTERFACE_KINDS = {1: "Unknown", 2: "Interface Index", 3: "System Port Number"}
_ORGANIZATIONS = {
    0x00000C: "Cisco",
    0x00120F: "IEEE 802.3 Private",
    0x0012BB: "ANSI/TIA",
    0x0080C2: "Ethernet bridged",
    0x000ECF: "Profinet",
}


def lldp_pieces(data: bytes, length: int, verbose: int) -> Iterator[str]:
    """Yield the parts of the text.

    :param length: the length before the packet was cut.
    :raises Cut: the packet is cut off.
    """
    yield f"LLDP, length {length}"
    at = 0
    while at + 2 <= length:
        (head,) = unpack("!H", data, at)
        kind, size = head >> 9, head & 0x1FF
        at += 2
        if verbose:
            yield f"\n\t{_NAMES.get(kind, 'Unknown')} TLV ({kind}), length {size}"
        value = data[at : at + size]
        if len(value) < size:
            raise Cut
        if verbose and size:
            yield from _value(kind, value)
        elif kind == _NAME:
            yield f": {visible(value)}"
        if kind == _END:
            return
        at += size


def _value(kind: int, value: bytes) -> Iterator[str]:
    if kind in (_CHASSIS, _PORT):
        yield from _identity(kind, value)
    elif kind == _LIFE:
        yield f": TTL {unpack('!H', value)[0]}s"
    elif kind in (_PORT_TEXT, _NAME):
        yield f": {visible(value)}"
    elif kind == _SYSTEM_TEXT:
        yield f"\n\t  {visible(value)}"
    elif kind == _CAPABILITIES:
        for name, bits in zip(("System ", "Enabled"), unpack("!HH", value), strict=True):
            yield f"\n\t  {name} Capabilities [{flag_names(bits, _CAPABILITY_NAMES)}] (0x{bits:04x})"
    elif kind == _ADDRESS:
        yield from _management(value)
    elif kind == _PRIVATE:
        high, low = unpack("!BH", value)
        organization = high << 16 | low
        yield f": OUI {_ORGANIZATIONS.get(organization, 'Unknown')} (0x{organization:06x})"
        yield hex_dump(value, before="\n\t  ")
    else:
        yield hex_dump(value, before="\n\t  ")


def _identity(kind: int, value: bytes) -> Iterator[str]:
    if len(value) < 2:
        raise Cut
    of, kinds = value[0], _CHASSIS_KINDS if kind == _CHASSIS else _PORT_KINDS
    name = kinds.get(of, "Unknown")
    yield f"\n\t  Subtype {name} ({of}): "
    if name == "MAC address":
        if len(value) < 7:
            raise Cut
        yield value[1:7].hex(":")
    elif name.lower() == "network address":
        yield _address(value[1:])
    else:
        yield visible(value[1:])


def _address(value: bytes) -> str:
    """Return the text of an address behind the number of its family."""
    (family,) = unpack("!B", value)
    if family == 1:
        return f"AFI IPv4 (1): {ipv4(value, 1)}"
    if family == 2:
        return f"AFI IPv6 (2): {ipv6(value, 1)}"
    return f"AFI Unknown ({family}), no AF printer !"


def _management(value: bytes) -> Iterator[str]:
    size = value[0]
    yield f"\n\t  Management Address length {size}, {_address(value[1 : 1 + size])}"
    kind, number = unpack("!BI", value, 1 + size)
    yield f"\n\t  {_INTERFACE_KINDS.get(kind, 'Unknown')} Interface Numbering ({kind}): {number}"
    (length,) = unpack("!B", value, 6 + size)
    if length:
        name = value[7 + size : 7 + size + length]
        if len(name) < length:
            raise Cut
        yield f"\n\t  OID length {length}{visible(name)}"
