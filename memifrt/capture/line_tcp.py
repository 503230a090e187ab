"""The text of a TCP segment, in tcpdump's words."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator

from memifrt.capture.line_parts import Cut, Datagram, right_checksum, unpack

_TCP = 6
_LEAST_HEADER = 20
#: TCP flags and their signs, in tcpdump's order.
_FLAGS = ((0x01, "F"), (0x02, "S"), (0x04, "R"), (0x08, "P"), (0x10, "."), (0x20, "U"), (0x40, "E"), (0x80, "W"))
_RST, _SYN_FIN_RST, _ACK, _URG = 0x04, 0x07, 0x10, 0x20
_EOL, _NOP, _MSS, _SCALE, _SACK_OK, _SACK, _TIMESTAMP, _FAST_OPEN = 0, 1, 2, 3, 4, 5, 8, 34
_USER_TIMEOUT, _AUTHENTICATION, _EXPERIMENT = 28, 29, 254
#: Options that are one number, with its size in bytes.
_NUMBERS = {
    _MSS: ("mss", 2),
    _SCALE: ("wscale", 1),
    6: ("echo", 4),
    7: ("echoreply", 4),
    11: ("cc", 4),
    12: ("ccnew", 4),
    13: ("ccecho", 4),
}
#: Other options, and the size of the value where it is fixed.
_NAMES = {_SACK_OK: "sackOK", _SACK: "sack", _TIMESTAMP: "TS", _FAST_OPEN: "tfo", _USER_TIMEOUT: "uto"}
_NAMES |= {_AUTHENTICATION: "tcp-ao", _EXPERIMENT: "exp"}
_FIXED = {_SACK_OK: 0, _TIMESTAMP: 8, _USER_TIMEOUT: 2}
#: The most bytes of a reset's data to print.
_MOST_OF_RESET = 30


def tcp_flags(flags: int) -> str:
    """Return the flags of a TCP header as tcpdump shows them, such as ``P.``."""
    return "".join(sign for bit, sign in _FLAGS if flags & bit) or "none"


def tcp_pieces(ip: Datagram, verbose: int, quiet: bool) -> Iterator[str]:
    """Yield the parts of the text.

    :raises Cut: the segment is cut off.
    """
    data = ip.data
    if len(data) < 4:
        yield ip.ends.rstrip()
        raise Cut
    from_port, to_port = unpack("!HH", data)
    dot = "." if ip.source else ""
    yield f"{ip.source}{dot}{from_port} > {ip.target}{dot}{to_port}: "
    sequence, acknowledged, offset, flags, window, found, urgent = unpack("!4xIIBBHHH", data)
    header = (offset >> 4) * 4
    payload = ip.length - header
    if header < _LEAST_HEADER:
        yield f" tcp {payload} [bad hdr length {header} - too short, < {_LEAST_HEADER}]"
        return
    yield f"tcp {max(payload, 0)}" if quiet else f"Flags [{tcp_flags(flags)}]"
    if payload < 0:
        yield f" [bad hdr length {header} - too long, > {ip.length}]"
        return
    if quiet:
        return
    rest = ip.check(_TCP) if verbose else None
    if rest is not None:
        right = f"(incorrect -> 0x{right_checksum(found, rest):04x})" if rest else "(correct)"
        yield f", cksum 0x{found:04x} {right}"
    if payload or flags & _SYN_FIN_RST or verbose > 1:
        yield f", seq {sequence}" + (f":{sequence + payload & 0xFFFFFFFF}" if payload else "")
    if flags & _ACK:
        yield f", ack {acknowledged}"
    yield f", win {window}"
    if flags & _URG:
        yield f", urg {urgent}"
    if header > _LEAST_HEADER:
        yield ", options ["
        if not (yield from _options(data, _LEAST_HEADER, header)):
            return
        yield "]"
    yield f", length {payload}"
    if payload and flags & _RST and verbose:
        yield _reset(data[header : header + min(payload, _MOST_OF_RESET + 1)])


def _options(data: bytes, at: int, end: int) -> Generator[str, None, bool]:
    """Yield the text of the options in ``data[at:end]``; return whether they are in order.

    As with tcpdump, an option of a wrong size takes the bytes that it should have.

    :raises Cut: they are cut off.
    """
    comma = ""
    while at < end:
        yield comma
        comma = ","
        (kind,) = unpack("!B", data, at)
        at += 1
        if kind in (_EOL, _NOP):
            yield "nop" if kind else "eol"
            if not kind:
                break
            continue
        (size,) = unpack("!B", data, at)
        at += 1
        if size < 2 or at + size - 2 > end:
            yield "[bad opt]"
            return False
        taken = _NUMBERS[kind][1] if kind in _NUMBERS else _FIXED.get(kind, size - 2)
        if at + taken > end:
            yield "[bad opt]"
            return False
        yield from _option(kind, data, at, taken)
        if taken != size - 2:
            yield f"[len {size}]"
        at += taken
    return True


def _option(kind: int, data: bytes, at: int, size: int) -> Iterator[str]:
    """Yield the text of an option with a value of ``size`` bytes.

    :raises Cut: the value is cut off.
    """
    if kind in _NUMBERS:
        yield _NUMBERS[kind][0]
        yield f" {_number(data, at, size)}"
        return
    yield _NAMES.get(kind, f"unknown-{kind}")
    if kind == _SACK:
        yield f" {size // 8} " if size % 8 == 0 else " invalid sack"
        for place in range(at, at + size if size % 8 == 0 else at, 8):
            yield "{{{}:{}}}".format(*unpack("!II", data, place))
        return
    value = data[at : at + size]
    if len(value) < size:
        raise Cut
    if kind == _TIMESTAMP:
        yield " val {} ecr {}".format(*struct.unpack("!II", value))
    elif kind == _FAST_OPEN:
        is_right = not size % 2 and 4 <= size <= 16
        yield f"  cookie {value.hex()}" if is_right else "  (invalid)" if size else "  cookiereq"
    elif kind == _USER_TIMEOUT:
        (timeout,) = struct.unpack("!H", value)
        yield f" 0x{timeout:x} {(timeout >> 1) * (60 if timeout & 1 else 1)}"
    elif kind == _AUTHENTICATION:
        code = f" mac 0x{value[2:].hex()}" if size > 2 else ""
        yield f" keyid {value[0]} rnextkeyid {value[1]}{code}" if size >= 2 else " (invalid)"
    elif kind == _EXPERIMENT and size >= 2:
        yield f"-{value[:2].hex()}"
    elif kind != _SACK_OK and value:
        yield f" 0x{value.hex()}"


def _number(data: bytes, at: int, width: int) -> int:
    if at + width > len(data):
        raise Cut
    return int.from_bytes(data[at : at + width], "big")


def _reset(data: bytes) -> str:
    """Return what a reset says."""
    shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data[:_MOST_OF_RESET])
    return f" [RST{'+' if len(data) > _MOST_OF_RESET else ''} {shown}]"
