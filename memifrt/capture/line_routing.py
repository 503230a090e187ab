"""The texts of VRRP, and the first fields of OSPF, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import Datagram, ipv4, ipv6, unpack, visible
from memifrt.packets import checksum

_VRRP = 112
_ADVERTISEMENT = 1
_AUTHENTICATIONS = {0: "none", 1: "simple", 2: "ah"}
_SIMPLE = 1
_MOST_LIFE = 255
_OSPF_TYPES = {1: "Hello", 2: "Database Description", 3: "LS-Request", 4: "LS-Update", 5: "LS-Ack"}


def vrrp_pieces(ip: Datagram, life: int, verbose: int) -> Iterator[str]:
    """Yield the parts of the text of VRRP.

    :param life: the TTL or hop limit of the packet.
    :raises Cut: the packet is cut off.
    """
    data = ip.data
    yield ip.ends + ("" if data else "VRRP")
    (first,) = unpack("!B", data)
    version, kind = first >> 4, first & 0xF
    if kind != _ADVERTISEMENT:
        yield f"VRRPv{version}, unknown type ({kind})"
        return
    yield f"VRRPv{version}, Advertisement"
    if life != _MOST_LIFE:
        yield f", (ttl {life})"
    if version not in (2, 3):
        return
    router, priority = unpack("!xBB", data)
    yield f", vrid {router}, prio {priority}"
    kind, interval = unpack("!4xBB", data)
    if version == 2:
        yield f", authtype {_AUTHENTICATIONS.get(kind, f'#{kind}')}, intvl {interval}s, length {ip.length}"
    else:
        yield f", intvl {(kind & 0xF) << 8 | interval}cs, length {ip.length}"
    if verbose:
        yield from _vrrp_details(ip, version, kind)


def _vrrp_details(ip: Datagram, version: int, kind: int) -> Iterator[str]:
    data, length = ip.data, ip.length
    if len(data) >= length:
        wrong = checksum(data[:length]) if version == 2 else ip.check(_VRRP)
        if wrong:
            yield f", (bad vrrp cksum {unpack('!6xH', data)[0]:x})"
    (count,) = unpack("!3xB", data)
    yield f", addrs{f'({count})' if count > 1 else ''}:"
    size, text = (4, ipv4) if version == 2 or ip.version == 4 else (16, ipv6)
    at = 8
    for number in range(count):
        yield f"{',' if number else ' '}{text(data, at)}"
        at += size
    if version == 2 and kind == _SIMPLE:
        word = data[at : at + 8].split(b"\0")[0]
        yield f' auth "{visible(word)}"' if word else ""


def ospf_pieces(ip: Datagram) -> Iterator[str]:
    """Yield the parts of the text of OSPF.

    :raises Cut: the packet is cut off.
    """
    yield ip.ends
    version, kind = unpack("!BB14x" if ip.version == 4 else "!BB", ip.data)
    yield f"OSPFv{version}, {_OSPF_TYPES.get(kind, f'unknown LS-type {kind}')}, length {ip.length}"
