"""The text of MPLS label stacks, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import INVALID, Layers, unpack

_BYTES = 4
_IPV4_NULL, _IPV6_NULL = 0, 2
_NAMES = {_IPV4_NULL: "IPv4 explicit NULL", 1: "router alert", _IPV6_NULL: "IPv6 explicit NULL", 3: "implicit NULL"}
#: The first label without a reserved meaning.
_LEAST_FREE = 16


def mpls_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of a label stack and of the packet behind it.

    :param length: the length before the packet was cut.
    :raises Cut: the stack is cut off.
    """
    between = "\n\t" if layers.verbose else " "
    yield "MPLS"
    at, bottom, label = 0, False, 0
    while not bottom:
        if length < at + _BYTES:
            yield INVALID
            return
        (entry,) = unpack("!I", data, at)
        label, traffic, bottom, life = entry >> 12, entry >> 9 & 7, bool(entry & 0x100), entry & 0xFF
        name = f" ({_NAMES.get(label, 'rsvd')})" if layers.verbose and label < _LEAST_FREE else ""
        last = ", [S]" if bottom else ""
        yield f"{between if at else ' '}(label {label}{name}, tc {traffic}{last}, ttl {life})"
        at += _BYTES
    if length == at:
        return
    version = _version(label, data, at)
    if version:
        yield between + layers.ip(data[at:], length - at, version)
    else:
        yield layers.dump(data[at:])


def _version(label: int, data: bytes, at: int) -> int:
    """Return the version of the IP packet behind the stack, from the last label or the first byte; 0 if it is none.

    :raises Cut: the first byte is cut off.
    """
    if label in (_IPV4_NULL, _IPV6_NULL):
        return 4 if label == _IPV4_NULL else 6
    (first,) = unpack("!B", data, at)
    return 4 if 0x45 <= first <= 0x4F else 6 if first >> 4 == 6 else 0
