"""The text of PPPoE packets, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import INVALID, Cut, Layers, joined, unpack
from memifrt.capture.line_ppp import ppp_pieces

_HEADER = 6
_CODES = {0x00: "", 0x07: "PADO", 0x09: "PADI", 0x19: "PADR", 0x65: "PADS", 0xA7: "PADT"}
_TAGS = {
    0x0000: "EOL",
    0x0101: "Service-Name",
    0x0102: "AC-Name",
    0x0103: "Host-Uniq",
    0x0104: "AC-Cookie",
    0x0105: "Vendor-Specific",
    0x0110: "Relay-Session-ID",
    0x0120: "PPP-Max-Payload",
    0x0201: "Service-Name-Error",
    0x0202: "AC-System-Error",
    0x0203: "Generic-Error",
}
#: The most bytes of a value to print: of a text, and of anything else.
_MOST_TEXT, _MOST_BYTES = 80, 20


def pppoe_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text.

    :param length: the length before the packet was cut.
    :raises Cut: the packet is cut off.
    """
    if length < _HEADER:
        yield f" (length {length} < {_HEADER}){INVALID}"
        return
    first, code, session, size = unpack("!BBHH", data)
    if first >> 4 != 1:
        yield f" [ver {first >> 4}]"
    if first & 0xF != 1:
        yield f" [type {first & 0xF}]"
    yield f"PPPoE {_CODES.get(code, f'PAD-{code:X}')}"
    left = length - _HEADER
    if size > left:
        yield f" [len {size} > {left}!]"
        size = left
    if session:
        yield f" [ses 0x{session:x}]"
    payload = data[_HEADER:]
    if code:
        yield from _tags(payload, size)
    else:
        yield " " + joined(ppp_pieces(layers, payload, size), "ppp")


def _tags(data: bytes, end: int) -> Iterator[str]:
    at = 0
    while at < end:
        kind, size = unpack("!HH", data, at)
        at += 4
        value = data[at : at + size]
        if len(value) < size:
            raise Cut
        yield f" [{_TAGS.get(kind, f'TAG-0x{kind:x}')}{_value(value)}]"
        if not kind:
            return
        at += size


def _value(value: bytes) -> str:
    if not value:
        return ""
    start = value[:_MOST_TEXT]
    printable = bytes(byte for byte in start if 0x20 <= byte < 0x7F)
    if 2 * len(printable) > len(start):
        return ' "' + "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in start) + '"'
    return f" 0x{value[:_MOST_BYTES].hex().upper()}"
