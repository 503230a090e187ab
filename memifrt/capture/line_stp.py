"""The text of the spanning tree protocols, in tcpdump's words. Of MSTP, only the first line is printed."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import INVALID, Cut, flag_names, unpack

_CONFIG, _RAPID, _CHANGE = 0x00, 0x02, 0x80
_STP, _RSTP, _MSTP, _SPB = 0, 2, 3, 4
_VERSIONS = {_STP: "802.1d", _RSTP: "802.1w", _MSTP: "802.1s", _SPB: "802.1aq"}
_TYPES = {_CONFIG: "Config", _RAPID: "Rapid STP", _CHANGE: "Topology Change"}
_FLAGS = (
    (0x01, "Topology change"),
    (0x02, "Proposal"),
    (0x10, "Learn"),
    (0x20, "Forward"),
    (0x40, "Agreement"),
    (0x80, "Topology change ACK"),
)
_ROLES = ("Unknown", "Alternate", "Root", "Designated")
#: The least sizes of what follows the header, by version.
_LEAST, _LEAST_RAPID, _LEAST_MSTP = 35, 36, 102
#: Where the part of MSTP starts that has a length of its own.
_MSTP_START = 38


def stp_pieces(data: bytes, length: int, verbose: int) -> Iterator[str]:
    """Yield the parts of the text.

    :param length: the length before the packet was cut.
    :raises Cut: the packet is cut off.
    """
    if length < 4:
        yield INVALID
        return
    protocol, version, kind = unpack("!HBB", data)
    if protocol:
        yield f"unknown STP version, length {length}"
        return
    yield f"STP {_VERSIONS.get(version, f'Unknown STP protocol (0x{version:02x})')}"
    if version not in _VERSIONS:
        return
    yield f", {_TYPES.get(kind, f'Unknown BPDU Type (0x{kind:02x})')}"
    if kind == _CONFIG:
        if length < _LEAST:
            yield INVALID
            return
        yield from _bridge(data, length, verbose, is_rapid=False)
    elif kind == _RAPID:
        yield from _rapid(data, length, version, verbose)


def _rapid(data: bytes, length: int, version: int, verbose: int) -> Iterator[str]:
    if version in (_MSTP, _SPB):
        if length < _LEAST_MSTP or length < _MSTP_START + unpack("!36xH", data)[0]:
            yield INVALID
            return
        yield f", CIST Flags [{flag_names(unpack('!4xB', data)[0], _FLAGS)}], length {length}"
        return
    if length < _LEAST_RAPID:
        yield INVALID
        return
    yield from _bridge(data, length, verbose, is_rapid=True)


def _bridge(data: bytes, length: int, verbose: int, *, is_rapid: bool) -> Iterator[str]:
    (flags,) = unpack("!4xB", data)
    yield f", Flags [{flag_names(flags, _FLAGS)}]"
    yield f", bridge-id {_bridge_id(data, 17)}.{unpack('!25xH', data)[0]:04x}, length {length}"
    if not verbose:
        return
    names = ("message-age", "max-age", "hello-time", "forwarding-delay")
    times = zip(names, unpack("!27xHHHH", data), strict=True)
    yield "\n\t" + ", ".join(f"{name} {ticks / 256:.2f}s" for name, ticks in times)
    yield f"\n\troot-id {_bridge_id(data, 5)}, root-pathcost {unpack('!13xI', data)[0]}"
    if is_rapid:
        yield f", port-role {_ROLES[flags >> 2 & 3]}"


def _bridge_id(data: bytes, at: int) -> str:
    raw = data[at : at + 8]
    if len(raw) < 8:
        raise Cut
    return f"{raw[:2].hex()}.{raw[2:].hex(':')}"
