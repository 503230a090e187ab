"""The text of DNS messages, in tcpdump's words: the questions of a query, the answers of a response."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from memifrt.capture.line_parts import INVALID, Cut, Layers, ipv4, ipv6, unpack, visible

_HEADER = 12
_RESPONSE, _AUTHORITATIVE, _CUT, _DESIRED, _AVAILABLE = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_AUTHENTIC, _UNCHECKED = 0x0020, 0x0010
#: The bits that a query does not have.
_NOT_OF_QUERY = 0x06CF
_OPERATIONS = {0: "", 1: " inv_q", 2: " stat", 4: " notify", 5: " update"}
_INVERSE = 1
_CODES = {
    0: "",
    1: " FormErr",
    2: " ServFail",
    3: " NXDomain",
    4: " NotImp",
    5: " Refused",
    6: " YXDomain",
    7: " YXRRSet",
    8: " NXRRSet",
    9: " NotAuth",
    10: " NotZone",
    15: " NoChange",
}
_IN, _TOP_BIT = 1, 0x8000
_CLASSES = {3: "CHAOS", 4: "HS", 255: "ANY"}
_A, _NS, _CNAME, _SOA, _PTR, _MX, _TXT, _AAAA, _SRV, _DNAME, _OPT = 1, 2, 5, 6, 12, 15, 16, 28, 33, 39, 41
_TYPES = {
    _A: "A",
    _NS: "NS",
    3: "MD",
    4: "MF",
    _CNAME: "CNAME",
    _SOA: "SOA",
    7: "MB",
    8: "MG",
    9: "MR",
    10: "NULL",
    11: "WKS",
    _PTR: "PTR",
    13: "HINFO",
    14: "MINFO",
    _MX: "MX",
    _TXT: "TXT",
    17: "RP",
    18: "AFSDB",
    24: "SIG",
    25: "KEY",
    _AAAA: "AAAA",
    29: "LOC",
    30: "NXT",
    _SRV: "SRV",
    35: "NAPTR",
    36: "KX",
    37: "CERT",
    38: "A6",
    _DNAME: "DNAME",
    _OPT: "OPT",
    42: "APL",
    43: "DS",
    44: "SSHFP",
    45: "IPSECKEY",
    46: "RRSIG",
    47: "NSEC",
    48: "DNSKEY",
    99: "SPF",
    249: "TKEY",
    250: "TSIG",
    251: "IXFR",
    252: "AXFR",
    253: "MAILB",
    254: "MAILA",
    255: "ANY",
    256: "URI",
}
#: The most labels of a name with those that it points to, and the most questions and answers to print. A name has at
#: most 127 labels; a message may claim any number of answers.
_MOST_LABELS, _MOST_RECORDS = 128, 32


def dns_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of a message.

    :param length: the length before the packet was cut.
    :raises Cut: the message is cut off.
    """
    yield from _message(data, length, layers.verbose, is_multicast=False)


def mdns_pieces(layers: Layers, data: bytes, length: int) -> Iterator[str]:
    """Yield the parts of the text of a message of multicast DNS.

    :param length: the length before the packet was cut.
    :raises Cut: the message is cut off.
    """
    yield from _message(data, length, layers.verbose, is_multicast=True)


def _message(data: bytes, length: int, verbose: int, *, is_multicast: bool) -> Iterator[str]:
    if length < _HEADER:
        yield f"domain [length {length} < {_HEADER}]{INVALID}"
        return
    number, flags, questions, answers, authorities, others = unpack("!6H", data)
    operation, code = flags >> 11 & 0xF, flags & 0xF
    name = _OPERATIONS.get(operation, f" op{operation}")
    if flags & _RESPONSE:
        result = _CODES.get(code, f" Resp{code}")
        marks = "*" if flags & _AUTHORITATIVE else ""
        marks += "" if flags & _AVAILABLE else "-"
        marks += "|" if flags & _CUT else ""
        marks += "$" if flags & _AUTHENTIC else ""
        yield f"{number}{name}{result}{marks}"
        yield from _response(data, questions, (answers, authorities, others), verbose, is_multicast)
    else:
        yield f"{number}{name}{'+' if flags & _DESIRED else ''}{'%' if flags & _UNCHECKED else ''}"
        if flags & _NOT_OF_QUERY:
            yield f" [b2&3=0x{flags:x}]"
        usual = (0, 1) if operation == _INVERSE else (1, 0)
        counts = zip((questions, answers, authorities, others), (*usual, 0, 0), ("q", "a", "n", "au"), strict=True)
        yield "".join(f" [{count}{sign}]" for count, expected, sign in counts if count != expected)
        at = _HEADER
        for _ in range(min(questions, _MOST_RECORDS)):
            at = yield from _question(data, at, is_multicast)
    yield f" ({length})"


def _question(data: bytes, at: int, is_multicast: bool) -> Generator[str, None, int]:
    """Yield the text of a question, and return the position after it."""
    end = _skip_name(data, at)
    kind, family = unpack("!HH", data, end)
    cast = ""
    if is_multicast:
        cast = " (QU)" if family & _TOP_BIT else " (QM)"
        family &= ~_TOP_BIT
    yield f" {_type(kind)}{_class(family)}{cast}? "
    yield from _name(data, at)
    return end + 4


def _response(
    data: bytes, questions: int, counts: tuple[int, int, int], verbose: int, is_multicast: bool
) -> Iterator[str]:
    if questions != 1:
        yield f" [{questions}q]"
    at = _HEADER
    for _ in range(min(questions, _MOST_RECORDS)):
        at = _skip_name(data, at) + 4
    yield f" {counts[0]}/{counts[1]}/{counts[2]}"
    for number in range(min(counts[0], _MOST_RECORDS)):
        if number and at >= len(data):
            raise Cut
        yield "," if number else ""
        at = yield from _record(data, at, verbose, is_multicast)


def _record(data: bytes, at: int, verbose: int, is_multicast: bool) -> Generator[str, None, int]:
    """Yield the text of a resource record, and return the position after it."""
    if verbose:
        yield " "
        yield from _name(data, at)
    try:
        at = _skip_name(data, at)
        kind, family, size = unpack("!HH4xH", data, at)
    except Cut:  # tcpdump marks it only if another record should follow
        return len(data)
    at += 10
    flush = is_multicast and kind != _OPT and family & _TOP_BIT
    shown = "" if kind == _OPT else _class(family & ~_TOP_BIT if flush else family)
    yield f"{shown}{' (Cache flush)' if flush else ''} {_type(kind)}"
    end = at + size
    if end > len(data):
        raise Cut
    if kind == _A:
        yield f" {ipv4(data, at)}"
    elif kind == _AAAA:
        yield f" {ipv6(data, at)}"
    elif kind in (_NS, _CNAME, _PTR, _DNAME):
        yield " "
        yield from _name(data, at)
    elif kind == _MX:
        yield " "
        yield from _name(data, at + 2)
        yield f" {unpack('!H', data, at)[0]}"
    elif kind == _SRV:
        priority, weight, port = unpack("!HHH", data, at)
        yield " "
        yield from _name(data, at + 6)
        yield f":{port} {priority} {weight}"
    elif kind == _SOA and verbose:
        yield " "
        yield from _name(data, at)
        yield " "
        at = _skip_name(data, at)
        yield from _name(data, at)
        yield "".join(f" {number}" for number in unpack("!5I", data, _skip_name(data, at)))
    elif kind == _OPT:
        yield f" UDPsize={family}"
    elif kind == _TXT:
        yield from _strings(data[at:end])
    return end


def _strings(data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        yield f' "{visible(data[at + 1 : at + 1 + data[at]])}"'
        at += 1 + data[at]


def _type(kind: int) -> str:
    return _TYPES.get(kind, f"Type{kind}")


def _class(family: int) -> str:
    return "" if family == _IN else f" {_CLASSES.get(family, f'Class{family}')}"


def _skip_name(data: bytes, at: int) -> int:
    """Return the position after a name.

    :raises Cut: it is cut off, or is none.
    """
    while True:
        (size,) = unpack("!B", data, at)
        at += 1
        if not size:
            return at
        if size >> 6 == 3:
            return at + 1
        if size >> 6:
            raise Cut
        at += size


def _name(data: bytes, at: int) -> Iterator[str]:
    """Yield the labels of a name.

    Each pointer has to point in front of the part that it ends, so that none can lead in a circle.

    :raises Cut: it is cut off, or a pointer is wrong.
    """
    before = at
    for count in range(_MOST_LABELS):
        (size,) = unpack("!B", data, at)
        if not size:
            yield "" if count else "."
            return
        if size >> 6 == 3:
            target = unpack("!H", data, at)[0] & 0x3FFF
            if target >= before:
                yield "<BAD PTR>"
                raise Cut
            at = before = target
            continue
        if size >> 6:
            yield f"<ELT {size & 0x3F}>"
            raise Cut
        label = data[at + 1 : at + 1 + size]
        yield visible(label)
        if len(label) < size:
            raise Cut
        yield "."
        at += 1 + size
