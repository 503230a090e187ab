"""The texts of the overlay networks in UDP (VXLAN, OTV, VXLAN-GPE, Geneve), in tcpdump's words."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import (
    ETHERTYPES,
    ETHERTYPES_MPLS,
    INVALID,
    Cut,
    Layers,
    carried_text,
    flag_names,
    unpack,
)
from memifrt.packets.common import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6

_HEADER = 8
_INSTANCE = 0x08
_GPE_FLAGS = ((_INSTANCE, "I"), (0x04, "P"), (0x02, "B"), (0x01, "O"))
_GPE_IP, _GPE_IP6, _GPE_FRAME, _GPE_NSH = 1, 2, 3, 4
_CARRIED = (ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP, *ETHERTYPES_MPLS)
_GENEVE_FLAGS = ((0x80, "O"), (0x40, "C"))
#: The names of classes of Geneve's options, and the first class for experiments.
_GENEVE_CLASSES = {
    0x0000: "Standard",
    0x0100: "Linux",
    0x0101: "Open vSwitch",
    0x0102: "Open Virtual Networking (OVN)",
    0x0103: "In-band Network Telemetry (INT)",
    0x0104: "VMware",
}
_EXPERIMENTS = 0xFF00


def vxlan_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of VXLAN.

    :param length: the length before the packet was cut.
    :raises Cut: the header is cut off.
    """
    yield "VXLAN"
    if length < _HEADER:
        yield INVALID
        return
    (flags,) = unpack("!B", data)
    yield f", flags [{'I' if flags & _INSTANCE else '.'}] (0x{flags:02x}), "
    yield f"vni {unpack('!4xI', data)[0] >> 8}\n"
    yield layers.inside.frame(data[_HEADER:], length - _HEADER)


def otv_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of OTV: on its port, Linux has VXLAN by default.

    :param length: the length before the packet was cut.
    :raises Cut: the header is cut off.
    """
    yield "OTV, "
    if length < _HEADER:
        yield f"[length {length} < {_HEADER}]{INVALID}"
        return
    (flags,) = unpack("!B", data)
    yield f"flags [{'I' if flags & _INSTANCE else '.'}] (0x{flags:02x}), "
    yield f"overlay {unpack('!I', data)[0] & 0xFFFFFF}, "
    yield f"instance {unpack('!4xI', data)[0] >> 8}\n"
    yield layers.inside.frame(data[_HEADER:], length - _HEADER)


def gpe_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of VXLAN-GPE.

    :param length: the length before the packet was cut.
    :raises Cut: the header is cut off.
    """
    yield "VXLAN-GPE, "
    if length < _HEADER:
        yield f" (len {length} < {_HEADER}){INVALID}"
        return
    (flags,) = unpack("!B", data)
    yield f"flags [{flag_names(flags & 0xF, _GPE_FLAGS, '')}], "
    kind, vni = unpack("!3xBI", data)
    yield f"vni {vni >> 8}"
    yield "\n    " if layers.verbose else ": "
    data, length = data[_HEADER:], length - _HEADER
    if kind in (_GPE_IP, _GPE_IP6):
        yield layers.inside.ip(data, length, 4 if kind == _GPE_IP else 6)
    elif kind == _GPE_FRAME:
        yield layers.inside.frame(data, length)
    elif kind == _GPE_NSH:
        yield "NSH"
    else:
        yield f"ERROR: unknown-next-protocol{INVALID}"


def geneve_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of Geneve.

    :param length: the length before the packet was cut.
    :raises Cut: the header is cut off.
    """
    yield "Geneve"
    if length < _HEADER:
        yield f" [length {length} < {_HEADER}]{INVALID}"
        return
    first, flags, kind, word = unpack("!BBHI", data)
    if first >> 6:
        yield f" ERROR: unknown-version {first >> 6}"
        return
    yield f", Flags [{flag_names(flags, _GENEVE_FLAGS, '')}]"
    vni, reserved = divmod(word, 256)
    yield f", vni 0x{vni:x}"
    if layers.verbose and (reserved or flags & 0x3F):
        yield f", rsvd 0x{reserved:x}" if reserved else ""
    if layers.link:
        yield f", proto {ETHERTYPES.get(kind, 'unknown')} (0x{kind:04x})"
    size = 4 * (first & 0x3F)
    data, length = data[_HEADER:], length - _HEADER
    if length < size:
        yield f" truncated-geneve - {size - length} bytes missing"
        return
    if len(data) < size:
        raise Cut
    if size:
        options = ", ".join(_geneve_options(data[:size], layers.verbose)) if layers.verbose else f"{size} bytes"
        yield f", options [{options}]"
    yield "\n\t" if layers.verbose else ": "
    text = carried_text(layers.inside, kind, data[size:], length - size, _CARRIED)
    yield f"geneve-proto-0x{kind:x}" if text is None else text


def _geneve_options(data: bytes, verbose: int) -> Iterator[str]:
    at = 0
    while at < len(data):
        family, kind, units = unpack("!HBB", data, at)
        size = 4 + 4 * (units & 0x1F)
        name = "Experimental" if family >= _EXPERIMENTS else _GENEVE_CLASSES.get(family, "Unknown")
        text = f"class {name} (0x{family:x}) type 0x{kind:x}{'(C)' if kind & 0x80 else ''} len {size}"
        if at + size > len(data):
            yield f"{text} [bad length]"
            return
        value = data[at + 4 : at + size]
        words = "".join(f" {value[place : place + 4].hex()}" for place in range(0, len(value), 4))
        yield f"{text} data{words}" if words and verbose > 1 else text
        at += size
