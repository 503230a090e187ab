"""The text of PPP packets, in tcpdump's words. Of control protocols, only the first fields are printed."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_mpls import mpls_pieces
from memifrt.capture.line_parts import Cut, Layers, hex_dump, joined, unpack

_IP, _IP6, _MPLS, _MPLS_MULTICAST, _CHAP = 0x0021, 0x0057, 0x0281, 0x0283, 0xC223
_NAMES = {
    _IP: "IP",
    _IP6: "IP6",
    _MPLS: "MPLS",
    _MPLS_MULTICAST: "MPLS",
    0x8021: "IPCP",
    0x8057: "IP6CP",
    0x8281: "MPLSCP",
    0xC021: "LCP",
    _CHAP: "CHAP",
}
#: The protocols that configure a link.
_CONTROL = (0x8021, 0x8057, 0x8281, 0xC021)
_CODES = {
    1: "Conf-Request",
    2: "Conf-Ack",
    3: "Conf-Nack",
    4: "Conf-Reject",
    5: "Term-Request",
    6: "Term-Ack",
    7: "Code-Reject",
    8: "Prot-Reject",
    9: "Echo-Request",
    10: "Echo-Reply",
    11: "Disc-Req",
}
_CHAP_CODES = {1: "Challenge", 2: "Response", 3: "Success", 4: "Fail"}


def ppp_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text.

    :param length: the length before the packet was cut.
    :raises Cut: the packet is cut off.
    """
    at = 2 if data[:2] == b"\xff\x03" else 0
    (kind,) = unpack("!B", data, at)
    size = 1
    if not kind & 1:  # a number of two bytes
        (kind,) = unpack("!H", data, at)
        size = 2
    at += size
    if layers.link:
        yield f"{_NAMES.get(kind, 'unknown')} (0x{kind:04x}), length {length}" + (": " if kind in _NAMES else "")
    data, length = data[at:], length - at
    if kind in (_IP, _IP6):
        yield layers.ip(data, length, 4 if kind == _IP else 6)
    elif kind in (_MPLS, _MPLS_MULTICAST):
        yield joined(mpls_pieces(layers, data, length), "mpls")
    elif kind in _CONTROL or kind == _CHAP:
        yield joined(_control(kind, data, length), _NAMES[kind])
    else:
        yield "" if layers.link else f"unknown PPP protocol (0x{kind:04x}) " + hex_dump(data)


def _control(kind: int, data: bytes, length: int) -> Iterator[str]:
    if length < 4:
        raise Cut
    yield f"{_NAMES[kind]}, "
    code, number = unpack("!BB", data)
    names = _CHAP_CODES if kind == _CHAP else _CODES
    yield f"{names.get(code, 'Unknown')} (0x{code:02x}), id {number}"
    if kind != _CHAP:
        yield f", length {length + 2}"
