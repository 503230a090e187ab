"""The texts of ICMP and ICMPv6 messages, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memifrt.capture.line_parts import Cut, Datagram, hex_dump, ipv4, ipv6, right_checksum, unpack
from memifrt.packets import checksum

_ICMPV6, _TCP, _UDP = 58, 6, 17
#: Returns the text of an IP packet inside a message, from its bytes, its length and its version.
Inner = Callable[[bytes, int, int], str]

#: The codes of an ICMP destination unreachable.
_UNREACHABLE = {
    0: "net {} unreachable",
    1: "host {} unreachable",
    2: "{} protocol {} unreachable",
    3: "{} port unreachable",
    5: "{} unreachable - source route failed",
    6: "net {} unreachable - unknown",
    7: "host {} unreachable - unknown",
    8: "{} unreachable - source host isolated",
    9: "net {} unreachable - admin prohibited",
    10: "host {} unreachable - admin prohibited",
    11: "net {} unreachable - tos prohibited",
    12: "host {} unreachable - tos prohibited",
    13: "host {} unreachable - admin prohibited filter",
    14: "host {} unreachable - host precedence violation",
    15: "host {} unreachable - precedence cutoff",
}
_REDIRECTS = (
    "redirect {} to net {}",
    "redirect {} to host {}",
    "redirect-tos {} to net {}",
    "redirect-tos {} to host {}",
)
#: ICMP messages that are printed by their name alone.
_NAMES = {
    4: "source quench",
    10: "router solicitation",
    15: "information request",
    16: "information reply",
    17: "address mask request",
}
#: ICMP messages that have the packet in question inside.
_ERRORS = (3, 4, 5, 11, 12)


def icmp_pieces(ip: Datagram, verbose: int, inner: Inner) -> Iterator[str]:
    """Yield the parts of the text of an ICMP message.

    :raises Cut: the message is cut off.
    """
    data = ip.data
    yield ip.ends
    kind, code = unpack("!BB", data)
    yield f"ICMP {_kind(kind, code, data)}, length {ip.length}"
    if not verbose:
        return
    if not ip.fragment and len(data) >= ip.length >= 4 and (rest := checksum(data[: ip.length])):
        (found,) = unpack("!2xH", data)
        yield f" (wrong icmp cksum {found:x} (->{right_checksum(found, rest):x})!)"
    if kind in _ERRORS:
        yield "\n\t"
        (total,) = unpack("!H", data, 10)
        if not total:
            raise Cut
        yield inner(data[8:], total, 4)


def _kind(kind: int, code: int, data: bytes) -> str:
    if kind in (0, 8):
        identifier, sequence = unpack("!4xHH", data)
        return f"echo {'request' if kind else 'reply'}, id {identifier}, seq {sequence}"
    if kind == 3:
        return _unreachable(code, data)
    if kind == 5:
        words = _REDIRECTS[code] if code < len(_REDIRECTS) else f"redirect-#{code} {{}} to {{}}"
        return words.format(ipv4(data, 24), ipv4(data, 4))
    if kind == 11:
        ipv4(data, 24)  # without the addresses of the packet in question, nothing is printed
        return {0: "time exceeded in-transit", 1: "ip reassembly time exceeded"}.get(code, f"time exceeded-#{code}")
    if kind == 12:
        where = f"code {code}" if code else f"octet {unpack('!4xB', data)[0]}"
        return f"parameter problem - {where}"
    if kind in (13, 14):
        return _timestamp(kind, data)
    if kind == 18:
        return f"address mask is 0x{unpack('!8xI', data)[0]:08x}"
    return _NAMES.get(kind, f"type-#{kind}")


def _timestamp(kind: int, data: bytes) -> str:
    identifier, sequence = unpack("!4xHH", data)
    if kind == 13:
        return f"time stamp query id {identifier} seq {sequence}"
    times = unpack("!8xIII", data)
    words = zip(("org", "recv", "xmit"), times, strict=True)
    return f"time stamp reply id {identifier} seq {sequence}: " + ", ".join(
        f"{name} {_clock(ms)}" for name, ms in words
    )


def _clock(milliseconds: int) -> str:
    """Return the time of day in milliseconds since midnight."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}"


def _unreachable(code: int, data: bytes) -> str:
    inner = data[8:]
    target = ipv4(inner, 16)
    if code == 3:
        protocol = {_TCP: "tcp", _UDP: "udp"}.get(inner[9])
        if protocol is not None:
            (port,) = unpack("!H", inner, (inner[0] & 0xF) * 4 + 2)
            return f"{target} {protocol} port {port} unreachable"
    if code == 4:
        (mtu,) = unpack("!6xH", data)
        return f"{target} unreachable - need to frag" + (f" (mtu {mtu})" if mtu else "")
    if code in _UNREACHABLE:
        return _UNREACHABLE[code].format(target, inner[9])
    return f"{target} unreachable - #{code}"


# --- ICMPv6 ---------------------------------------------------------------------------------------------------------

_NAMES_6 = {
    1: "destination unreachable",
    2: "packet too big",
    3: "time exceeded in-transit",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    130: "multicast listener query",
    131: "multicast listener report",
    132: "multicast listener done",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbor solicitation",
    136: "neighbor advertisement",
    137: "redirect",
    143: "multicast listener report v2",
}
_ECHO_6 = (128, 129)
#: Messages of neighbour discovery, and where their options start.
_OPTIONS_AT = {133: 8, 134: 16, 135: 24, 136: 24, 137: 40}
_UNREACHABLE_6 = {
    0: ", unreachable route",
    1: ",  unreachable prohibited",
    3: ", unreachable address",
}
_PROBLEMS_6 = ("erroneous", "next header", "option", "incomplete header chain")
_NEIGHBOUR_FLAGS = ((0x80, "router"), (0x40, "solicited"), (0x20, "override"))
_ROUTER_FLAGS = ((0x80, "managed"), (0x40, "other stateful"), (0x20, "home agent"))
_PREFIX_FLAGS = ((0x80, "onlink"), (0x40, "auto"), (0x20, "router"))
_PREFERENCES = ("medium", "high", "reserved", "low")
_OPTION_NAMES = {
    1: "source link-address",
    2: "destination link-address",
    3: "prefix info",
    4: "redirected header",
    5: "mtu",
    24: "route info",
    25: "rdnss",
    31: "dnssl",
}
#: The least size of a query of the second version, and the most records of a report to print.
_QUERY_2, _MOST_RECORDS = 28, 64
_RECORDS = ("type 0", "is_in", "is_ex", "to_in", "to_ex", "allow", "block")
_FOR_EVER = 0xFFFFFFFF


def icmp6_pieces(ip: Datagram, verbose: int) -> Iterator[str]:
    """Yield the parts of the text of an ICMPv6 message.

    :raises Cut: the message is cut off.
    """
    data = ip.data
    yield ip.ends
    if not data:
        raise Cut
    kind = data[0]
    rest = ip.check(_ICMPV6) if verbose and len(data) >= 4 else None
    if rest is not None:
        (found,) = unpack("!2xH", data)
        yield f"[bad icmp6 cksum 0x{found:04x} -> 0x{right_checksum(found, rest):04x}!] " if rest else "[icmp6 sum ok] "
    length = f", length {ip.length}"
    dump = hex_dump(data) if verbose < 2 else ""
    if kind not in _NAMES_6:
        yield f"ICMP6, unknown icmp6 type ({kind}){length}{dump}"
        return
    yield f"ICMP6, {_NAMES_6[kind]}"
    if kind == 1 and data[1:2] > b"\x04":
        yield f", unknown unreach code ({data[1]}){dump}"
        return
    if verbose and kind in _OPTIONS_AT:
        yield length
    yield from _DETAILS.get(kind, _no_details)(data, verbose)
    if not verbose:
        yield length
    elif kind in _OPTIONS_AT:
        yield from _options(data, _OPTIONS_AT[kind], ip.length, verbose)


def _no_details(data: bytes, verbose: int) -> Iterator[str]:
    yield from ()


def _unreachable_6(data: bytes, verbose: int) -> Iterator[str]:
    code = unpack("!xB", data)[0]
    inner = data[8:]
    if code in _UNREACHABLE_6:
        yield _UNREACHABLE_6[code]
        yield f" {ipv6(inner, 24)}"
    elif code == 2:
        yield ", beyond scope"
        yield f" {ipv6(inner, 24)}, source address {ipv6(inner, 8)}"
    else:
        yield ", unreachable port"
        target = ipv6(inner, 24)
        (port,) = unpack("!42xH", inner)
        protocol = {_TCP: "tcp", _UDP: "udp"}.get(inner[6])
        yield f", {target} {protocol or f'protocol {inner[6]}'} port {port}"


def _too_big(data: bytes, verbose: int) -> Iterator[str]:
    yield f", mtu {unpack('!4xI', data)[0]}"


def _exceeded(data: bytes, verbose: int) -> Iterator[str]:
    code = unpack("!xB", data)[0]
    if code == 0:
        yield f" for {ipv6(data, 32)}"
    else:
        yield " (reassembly)" if code == 1 else f", unknown code ({code})"


def _problem(data: bytes, verbose: int) -> Iterator[str]:
    code, where = unpack("!xB2xI40x", data)  # with the header of the packet in question
    yield f", {_PROBLEMS_6[code]} - octet {where}" if code < len(_PROBLEMS_6) else f", code-#{code}"


def _echo(data: bytes, verbose: int) -> Iterator[str]:
    identifier, sequence = unpack("!4xHH", data)
    yield f", id {identifier}, seq {sequence}"


def _listener(data: bytes, verbose: int) -> Iterator[str]:
    if len(data) < 24:
        return
    (delay,) = unpack("!4xH", data)
    if data[0] == 130 and len(data) >= _QUERY_2:
        group, (interval,) = ipv6(data, 8), unpack("!25xB", data)
        yield f" v2 [max resp delay={delay}] [gaddr {group} qqi={interval}]" if verbose else f" v2 [gaddr {group}]"
        return
    yield f"max resp delay: {delay} addr: {ipv6(data, 8)}"


def _router(data: bytes, verbose: int) -> Iterator[str]:
    if verbose:
        hops, flags, lifetime, reachable, retrans = unpack("!4xBBHII", data)
        yield f"\n\thop limit {hops}, Flags [{_flags(flags, _ROUTER_FLAGS)}], pref {_PREFERENCES[flags >> 3 & 3]}, "
        yield f"router lifetime {lifetime}s, reachable time {reachable}ms, retrans timer {retrans}ms"


def _solicitation(data: bytes, verbose: int) -> Iterator[str]:
    yield f", who has {ipv6(data, 8)}"


def _advertisement(data: bytes, verbose: int) -> Iterator[str]:
    yield f", tgt is {ipv6(data, 8)}"
    if verbose:
        yield f", Flags [{_flags(data[4], _NEIGHBOUR_FLAGS)}]"


def _redirect(data: bytes, verbose: int) -> Iterator[str]:
    yield f", {ipv6(data, 24)} to {ipv6(data, 8)}"


def _report(data: bytes, verbose: int) -> Iterator[str]:
    (count,) = unpack("!6xH", data)
    yield f", {count} group record(s)"
    at = 8
    for _ in range(min(count, _MOST_RECORDS) if verbose else 0):
        kind, more, sources = unpack("!BBH", data, at)
        name = _RECORDS[kind] if kind < len(_RECORDS) else f"type {kind}"
        yield f" [gaddr {ipv6(data, at + 4)} {name}, {sources} source(s)]"
        at += 20 + 16 * sources + 4 * more


_DETAILS: dict[int, Callable[[bytes, int], Iterator[str]]] = {
    1: _unreachable_6,
    2: _too_big,
    3: _exceeded,
    4: _problem,
    128: _echo,
    129: _echo,
    130: _listener,
    131: _listener,
    132: _listener,
    134: _router,
    135: _solicitation,
    136: _advertisement,
    137: _redirect,
    143: _report,
}


def _flags(value: int, names: tuple[tuple[int, str], ...]) -> str:
    return ", ".join(name for bit, name in names if value & bit) or "none"


def _options(data: bytes, at: int, end: int, verbose: int) -> Iterator[str]:
    """Yield a line for each option of neighbour discovery.

    :raises Cut: they are cut off, or one of them has no length or a length past the end.
    """
    while at < min(end, len(data)):
        kind, units = unpack("!BB", data, at)
        value = data[at + 2 : at + 8 * units]
        if not units or at + 8 * units > end or len(value) < 8 * units - 2:
            raise Cut
        yield f"\n\t  {_OPTION_NAMES.get(kind, 'unknown')} option ({kind}), length {8 * units} ({units}): "
        yield _option(kind, value)
        if verbose > 1 or kind not in _OPTION_NAMES:
            yield hex_dump(value, before="\n\t    " if verbose > 1 else "\n\t  ")
        at += 8 * units


def _option(kind: int, value: bytes) -> str:
    if kind in (1, 2):
        return value.hex(":")
    if kind == 3:
        bits, flags, valid, preferred = unpack("!BBII", value)
        times = f"valid time {_lifetime(valid)}, pref. time {_lifetime(preferred)}"
        return f"{ipv6(value, 14)}/{bits}, Flags [{_flags(flags, _PREFIX_FLAGS)}], {times}"
    if kind == 4:
        return "redirect"
    if kind == 5:
        return f" {unpack('!2xI', value)[0]}"
    if kind == 24:
        bits, preference, lifetime = unpack("!BBI", value)
        network = ipv6(value[6:22].ljust(16, b"\0"), 0)
        return f" {network}/{bits}, pref={_PREFERENCES[preference >> 3 & 3]}, lifetime={_lifetime(lifetime)}"
    if kind == 25:
        lifetime = unpack("!2xI", value)[0]
        servers = [ipv6(value, at) for at in range(6, len(value) - 15, 16)]
        return f" lifetime {lifetime}s," + "".join(f" addr: {server}" for server in servers)
    return ""


def _lifetime(seconds: int) -> str:
    return "infinity" if seconds == _FOR_EVER else f"{seconds}s"
