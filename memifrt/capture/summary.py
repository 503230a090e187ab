"""Summarize a packet in one line, as tcpdump does: source, destination, protocol.

Owns the texts. No content of a packet makes a summary raise: truncated or unknown parts are named so.
"""

from __future__ import annotations

import importlib
import socket
import struct
from collections.abc import Callable

from memifrt.capture.line_tcp import tcp_flags
from memifrt.errors import ErrorCode, MemifError
from memifrt.types import Mode, printable

Summary = Callable[[bytes], str]

_VLAN_TYPES = (0x8100, 0x88A8)
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_ICMP, _TCP, _UDP, _ICMP6 = 1, 6, 17, 58
_FRAGMENT_OFFSET, _MORE_FRAGMENTS = 0x1FFF, 0x2000
_ARP_NAMES = {1: "Request who-has {2} tell {1}", 2: "Reply {1} is-at {0}"}
_ICMP_NAMES = {0: "echo reply", 3: "destination unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_ICMP6_NAMES = {
    1: "destination unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbor solicitation",
    136: "neighbor advertisement",
}
_ICMP_ECHO, _ICMP6_ECHO = (0, 8), (128, 129)
_PROTOCOLS = {2: "IGMP", 4: "IPIP", 41: "IP6", 47: "GRE", 50: "ESP", 51: "AH", 89: "OSPF", 132: "SCTP"}


class _Truncated(Exception):
    """The packet is shorter than its headers need."""


def summary(mode: Mode, style: str = "auto") -> Summary:
    """Return a function that summarizes a packet in one line.

    :param style: ``scapy`` for scapy's summaries, ``short`` for memifrt's, ``auto`` for scapy's if it is installed.
    :raises MemifError: ``style`` is ``scapy`` and scapy is not installed.
    """
    short = ip_summary if mode is Mode.IP else ethernet_summary
    if style == "short":
        return short
    try:
        return _scapy_summary(mode, short)
    except ImportError as error:
        if style == "auto":
            return short
        what = "scapy's summaries need scapy: pip install 'memifrt[scapy]'"
        raise MemifError(ErrorCode.INVAL_ARG, f"{what} ({error})") from error


def _scapy_summary(mode: Mode, otherwise: Summary) -> Summary:
    link = importlib.import_module("scapy.layers.l2")
    four, six = importlib.import_module("scapy.layers.inet"), importlib.import_module("scapy.layers.inet6")

    def describe(data: bytes) -> str:
        layer = link.Ether if mode is not Mode.IP else six.IPv6 if data[:1] >= b"\x60" else four.IP
        try:
            return printable(layer(data).summary())
        except Exception:  # a dissector may raise anything on garbage
            return otherwise(data)

    return describe


def ethernet_summary(data: bytes) -> str:
    """Summarize an Ethernet frame."""
    if len(data) < 14:
        return f"[|ether], length {len(data)}"
    (ethertype,) = struct.unpack_from("!H", data, 12)
    at, tags = 14, ""
    while ethertype in _VLAN_TYPES and len(data) >= at + 4:
        tag, ethertype = struct.unpack_from("!HH", data, at)
        tags += f"vlan {tag & 0xFFF}, "
        at += 4
    payload = data[at:]
    if ethertype in (_IPV4, _IPV6):
        return tags + ip_summary(payload)
    if ethertype == _ARP:
        return tags + _arp(payload)
    kind = f"ethertype 0x{ethertype:04x}" if ethertype >= 0x600 else "802.3"
    return f"{data[6:12].hex(':')} > {data[:6].hex(':')}, {tags}{kind}, length {len(data)}"


def ip_summary(data: bytes) -> str:
    """Summarize an IP packet."""
    version = data[0] >> 4 if data else 0
    name = {4: "IP", 6: "IP6"}.get(version)
    if name is None:
        return f"IP of version {version}, length {len(data)}"
    try:
        return f"{name} {_ip4(data) if version == 4 else _ip6(data)}"
    except _Truncated:
        return f"{name} [truncated], length {len(data)}"


def _unpack(layout: str, data: bytes, at: int = 0) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error as error:
        raise _Truncated from error


def _arp(data: bytes) -> str:
    if len(data) < 28:
        return f"ARP [truncated], length {len(data)}"
    hardware, protocol, operation = struct.unpack_from("!HHxxH", data)
    if (hardware, protocol) != (1, _IPV4) or operation not in _ARP_NAMES:
        return f"ARP, operation {operation}, length {len(data)}"
    addresses = (data[8:14].hex(":"), _address(data[14:18]), _address(data[24:28]))
    return f"ARP, {_ARP_NAMES[operation].format(*addresses)}, length {len(data)}"


def _ip4(data: bytes) -> str:
    first, total, fragment, protocol = _unpack("!BxHxxHxB", data)
    header = (first & 0xF) * 4
    if header < 20 or len(data) < max(header, 20):
        raise _Truncated
    source, target = _address(data[12:16]), _address(data[16:20])
    payload = data[header : max(total, header)]  # the rest is padding
    length = max(total - header, 0) or len(payload)
    if fragment & _FRAGMENT_OFFSET:
        offset = 8 * (fragment & _FRAGMENT_OFFSET)
        return f"{source} > {target}: {_protocol(protocol)}, fragment at {offset}, length {length}"
    text = _transport(source, target, protocol, payload, length)
    return text + ", first fragment" if fragment & _MORE_FRAGMENTS else text


def _ip6(data: bytes) -> str:
    length, protocol = _unpack("!4xHB", data)
    if len(data) < 40:
        raise _Truncated
    source, target = _address(data[8:24]), _address(data[24:40])
    at, end = 40, min(40 + length, len(data))
    while protocol in (0, 43, 60) and end - at >= 8:  # extension headers; there may be thousands
        protocol, at = data[at], at + 8 * (data[at + 1] + 1)
    return _transport(source, target, protocol, data[at:end], max(40 + length - at, 0))


def _transport(source: str, target: str, protocol: int, data: bytes, length: int) -> str:
    if protocol in (_TCP, _UDP):
        if len(data) < 4:
            return f"{source} > {target}: {_protocol(protocol)} [truncated], length {length}"
        from_port, to_port = _unpack("!HH", data)
        ends = f"{source}.{from_port} > {target}.{to_port}"
        return f"{ends}: {_tcp(data, length) if protocol == _TCP else f'UDP, length {max(length - 8, 0)}'}"
    text = _icmp(protocol, data) if protocol in (_ICMP, _ICMP6) else _protocol(protocol)
    return f"{source} > {target}: {text}, length {length}"


def _tcp(data: bytes, length: int) -> str:
    if len(data) < 20:
        return f"TCP [truncated], length {length}"
    sequence, acknowledged, offset, flags, window = _unpack("!4xIIBBH", data)
    header = (offset >> 4) * 4
    payload = length - header
    if header < 20 or payload < 0:
        return f"TCP [bad header length {header}], length {length}"
    text = f"Flags [{tcp_flags(flags)}]"
    if payload or flags & 0x07:
        text += f", seq {sequence}:{sequence + payload}" if payload else f", seq {sequence}"
    if flags & 0x10:
        text += f", ack {acknowledged}"
    return f"{text}, win {window}, length {payload}"


def _icmp(protocol: int, data: bytes) -> str:
    name, names, echo = ("ICMP", _ICMP_NAMES, _ICMP_ECHO) if protocol == _ICMP else ("ICMP6", _ICMP6_NAMES, _ICMP6_ECHO)
    if len(data) < 4:
        return f"{name} [truncated]"
    kind = data[0]
    text = f"{name} {names.get(kind, f'type {kind}')}"
    if kind in echo and len(data) >= 8:
        identifier, sequence = _unpack("!HH", data, 4)
        text += f", id {identifier}, seq {sequence}"
    return text


def _protocol(number: int) -> str:
    known = {_ICMP: "ICMP", _TCP: "TCP", _UDP: "UDP", _ICMP6: "ICMP6", **_PROTOCOLS}
    return known.get(number, f"protocol {number}")


def _address(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
