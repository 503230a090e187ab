"""The text of SCTP packets, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from memifrt.capture.line_parts import Datagram, Layers, unpack

_HEADER, _CHUNK = 12, 4
_DATA, _INIT, _INIT_ACK, _SACK = 0, 1, 2, 3
_NAMES = {
    _DATA: "DATA",
    _INIT: "INIT",
    _INIT_ACK: "INIT ACK",
    _SACK: "SACK",
    4: "HB REQ",
    5: "HB ACK",
    6: "ABORT",
    7: "SHUTDOWN",
    8: "SHUTDOWN ACK",
    9: "OP ERR",
    10: "COOKIE ECHO",
    11: "COOKIE ACK",
    12: "ECN ECHO",
    13: "ECN CWR",
    14: "SHUTDOWN COMPLETE",
    0xC0: "FOR CUM TSN",
    0xC1: "REL CTRL",
}
_DATA_FLAGS = ((4, "(U)"), (2, "(B)"), (1, "(E)"))
_PAYLOADS = {1: "IUA", 2: "M2UA", 3: "M3UA", 4: "SUA", 5: "M2PA", 6: "V5UA", 7: "H.248", 8: "BICC/Q.2150.3", 9: "TALI"}


def sctp_pieces(ip: Datagram, layers: Layers) -> Iterator[str]:
    """Yield the parts of the text.

    :raises Cut: the packet is cut off.
    """
    data, length = ip.data, ip.length
    if length < _HEADER:
        yield f"truncated-sctp - {_HEADER - length} bytes missing!"
        return
    from_port, to_port = unpack("!HH8x", data)
    dot = "." if ip.source else ""
    yield f"{ip.source}{dot}{from_port} > {ip.target}{dot}{to_port}: sctp"
    at, count = _HEADER, 0
    while at < length:
        count += 1
        start = f"\n\t{count}) " if layers.verbose > 1 else f"{',' if count > 1 else ''} ({count}) "
        if length < at + _CHUNK:
            yield f"{start}[chunk descriptor cut off at end of packet]"
            return
        kind, flags, size = unpack("!BBH", data, at)
        if size < _CHUNK:
            yield f"{start}[Bad chunk length {size}, < size of chunk descriptor]"
            return
        if at + size > min(length, len(data)):
            yield " [|sctp]"
            return
        yield f"{start}[{_NAMES.get(kind, f'Unknown chunk type: 0x{kind:x}')}] "
        if not (yield from _DETAILS.get(kind, _no_details)(layers, data, at, size, flags)):
            return
        at += size + -size % 4
        if at > length:
            yield " [|sctp]"


#: Yields the details of a chunk, and returns whether its length is right.
_Details = Generator[str, None, bool]


def _no_details(layers: Layers, data: bytes, at: int, size: int, flags: int) -> _Details:
    yield from ()
    return True


def _data(layers: Layers, data: bytes, at: int, size: int, flags: int) -> _Details:
    shown = "".join(name for bit, name in _DATA_FLAGS if flags & bit)
    yield f"{shown} " if shown else ""
    if size < 16:
        yield f"bogus chunk length {size}]"
        return False
    number, stream, sequence, payload = unpack("!IHHI", data, at + _CHUNK)
    name = _PAYLOADS.get(payload, f"0x{payload:x}")
    yield f"[TSN: {number}] [SID: {stream}] [SSEQ {sequence}] [PPID {name}] "
    if size == 16:
        yield f"bogus chunk length {size}]"
    elif layers.verbose > 1:
        yield f"[Payload:{layers.dump(data[at + 16 : at + size])}]"
    return size > 16


def _init(layers: Layers, data: bytes, at: int, size: int, flags: int) -> _Details:
    if size < 20:
        yield f"bogus chunk length {size}]"
        return False
    tag, window, outward, inward, number = unpack("!IIHHI", data, at + _CHUNK)
    yield f"[init tag: {tag}] [rwnd: {window}] [OS: {outward}] [MIS: {inward}] [init TSN: {number}] "
    return True


def _sack(layers: Layers, data: bytes, at: int, size: int, flags: int) -> _Details:
    if size < 16:
        yield f"bogus chunk length {size}]"
        return False
    known, window, gaps, copies = unpack("!IIHH", data, at + _CHUNK)
    yield f"[cum ack {known}] [a_rwnd {window}] [#gap acks {gaps}] [#dup tsns {copies}] "
    place, end = at + 16, at + size
    for number in range(1, min(gaps, (end - place) // 4) + 1):
        first, last = unpack("!HH", data, place)
        ends = f"start = {known + first & 0xFFFFFFFF}, end = {known + last & 0xFFFFFFFF}"
        yield f"\n\t\t[gap ack block #{number}: {ends}] "
        place += 4
    for number in range(1, min(copies, (end - place) // 4) + 1):
        yield f"\n\t\t[dup TSN #{number}: {unpack('!I', data, place)[0]}] "
        place += 4
    return True


_DETAILS: dict[int, Callable[[Layers, bytes, int, int, int], _Details]] = {
    _DATA: _data,
    _INIT: _init,
    _INIT_ACK: _init,
    _SACK: _sack,
}
