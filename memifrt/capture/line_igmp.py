"""The texts of IGMP messages, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import Datagram, ipv4, unpack
from memifrt.packets import checksum

_QUERY, _REPORT_1, _DVMRP, _PIM, _REPORT_2, _LEAVE, _REPORT_3 = 0x11, 0x12, 0x13, 0x14, 0x16, 0x17, 0x22
_REPORTS = {_REPORT_1: "v1 report", _REPORT_2: "v2 report", _LEAVE: "leave"}
_RECORDS = ("is_in", "is_ex", "to_in", "to_ex", "allow", "block")
#: The least size of a query of version 3, and of a record of a report.
_QUERY_3, _RECORD = 12, 8
#: The usual time to respond, in tenths of a second. It is not printed.
_USUAL = 100


def igmp_pieces(ip: Datagram, verbose: int, quiet: bool) -> Iterator[str]:
    """Yield the parts of the text.

    :raises Cut: the message is cut off.
    """
    data, length = ip.data, ip.length
    yield ip.ends
    if quiet:
        yield "igmp"
        return
    (kind,) = unpack("!B", data)
    if kind == _QUERY:
        yield "igmp query"
        yield from _query_3(data, length, verbose) if length >= _QUERY_3 else _query(data, length)
    elif kind in _REPORTS:
        yield f"igmp {_REPORTS[kind]} {ipv4(data, 4)}"
        yield f" [len {length}]" if length != _RECORD else ""
    elif kind == _REPORT_3:
        yield "igmp v3 report"
        yield from _report_3(data, length, verbose)
    elif kind in (_DVMRP, _PIM):
        yield "igmp dvmrp" if kind == _DVMRP else "igmp pimv1"
    else:
        yield f"igmp-{kind}"
    if verbose and len(data) >= length and checksum(data[:length]):
        yield f" bad igmp cksum {unpack('!2xH', data)[0]:x}!"


def _query(data: bytes, length: int) -> Iterator[str]:
    (tenths,) = unpack("!xB", data)
    yield " v2" if tenths else " v1"
    if tenths not in (0, _USUAL):
        yield f" [max resp time {tenths}]"
    group = ipv4(data, 4)
    yield f" [gaddr {group}]" if any(data[4:8]) else ""
    yield f" [len {length}]" if length != _RECORD else ""


def _query_3(data: bytes, length: int, verbose: int) -> Iterator[str]:
    (code,) = unpack("!xB", data)
    yield " v3"
    tenths = code if code < 128 else (code & 0xF | 0x10) << ((code >> 4 & 7) + 3)
    if code != _USUAL:
        rest = f"{tenths % 600 // 10}s" if tenths % 600 else ""
        yield f" [max resp time {f'{tenths / 10:.1f}s' if tenths < 600 else f'{tenths // 600}m{rest}'}]"
    group = ipv4(data, 4)
    if not any(data[4:8]):
        return
    (sources,) = unpack("!10xH", data)
    if length < _QUERY_3 + 4 * sources:
        yield f" [invalid number of sources {sources}]"
        return
    yield f" [gaddr {group}"
    if sources and verbose > 1:
        yield " {"
        for number in range(sources):
            yield f"{ipv4(data, _QUERY_3 + 4 * number)} "
        yield "}"
    elif sources:
        yield f", {sources} source(s)"
    yield "]"


def _report_3(data: bytes, length: int, verbose: int) -> Iterator[str]:
    if length < 16:
        yield f" [invalid len {length}]"
        return
    (count,) = unpack("!6xH", data)
    yield f", {count} group record(s)"
    at = 8
    for _ in range(count if verbose else 0):
        if length < at + _RECORD:
            yield " [invalid number of groups]"
            return
        group = ipv4(data, at + 4)
        kind, more, sources = unpack("!BBH", data, at)
        yield f" [gaddr {group} {_RECORDS[kind - 1] if 1 <= kind <= 6 else f' [v3-report-#{kind}]'}"
        if length < at + _RECORD + 4 * sources:
            yield f" [invalid number of sources {sources}]"
            return
        if verbose > 1 and sources:
            yield " {"
            for number in range(sources):
                yield f" {ipv4(data, at + _RECORD + 4 * number)}"
            yield " }"
        else:
            yield f", {sources} source(s)"
        yield "]"
        at += _RECORD + 4 * (sources + more)
