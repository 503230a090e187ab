"""Read the kind, the state and the drops of a network interface by netlink.

Owns the few layouts of ``linux/rtnetlink.h`` and ``linux/if_link.h`` that it needs. Unlike ``/sys/class/net``, netlink
answers for the network namespace in which the socket was made.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_RTM_NEWLINK, _RTM_GETLINK, _NLMSG_ERROR, _NLM_F_REQUEST = 16, 18, 2, 1
# struct nlmsghdr, struct ifinfomsg, struct rtattr
_HEADER, _INTERFACE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=HH")
_MTU, _ADDRESS, _LINK_INFO, _STATISTICS = 4, 1, 18, 23
_INFO_KIND, _INFO_DATA = 1, 2
_TUN_OWNER, _TUN_GROUP, _TUN_TYPE, _TUN_MULTI_QUEUE = 1, 2, 3, 7
_TUN_TYPE_TUN = 1
#: Offset of tx_dropped in struct rtnl_link_stats64: packets to send that the device had no room for.
_TX_DROPPED_AT = 7 * 8
_ATTRIBUTE_TYPE = 0x3FFF
#: The longest answer in bytes, and the seconds to wait for it.
_LONGEST, _PATIENCE = 1 << 18, 5.0


@dataclass(frozen=True, slots=True)
class TunDevice:
    """The attributes of a TAP or TUN device. ``owner`` and ``group`` are ids, or None if they are not set."""

    is_tun: bool
    owner: int | None
    group: int | None
    multi_queue: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface.

    :ivar hardware_type: ``ARPHRD_*`` of ``linux/if_arp.h``: 1 is Ethernet.
    :ivar flags: ``IFF_*``.
    :ivar tx_dropped: packets that it dropped instead of sending them, since it was made.
    :ivar tun: None if it is not a TAP or TUN device.
    """

    hardware_type: int
    flags: int
    mtu: int
    mac: bytes
    tx_dropped: int
    tun: TunDevice | None


class LinkReader:
    """Reads interfaces of the network namespace in which it was made. Every method may raise ``OSError``."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_PATIENCE)
        self._sequence = 0

    def read(self, index: int) -> Link:
        """Return the interface with this index."""
        self._sequence += 1
        body = _INTERFACE.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        head = _HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(head + body)
        while True:
            answer = self._socket.recv(_LONGEST)
            length, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence != self._sequence:
                continue
            if kind == _NLMSG_ERROR:
                (number,) = struct.unpack_from("=i", answer, _HEADER.size)
                raise OSError(-number, os.strerror(-number))
            if kind == _RTM_NEWLINK:
                return _link(answer[_HEADER.size : length])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> LinkReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _link(message: bytes) -> Link:
    _, hardware_type, _, flags, _ = _INTERFACE.unpack_from(message)
    found = dict(_attributes(message[_INTERFACE.size :]))
    return Link(
        hardware_type,
        flags,
        _number(found.get(_MTU)) or 0,
        found.get(_ADDRESS, b""),
        struct.unpack_from("=Q", found[_STATISTICS], _TX_DROPPED_AT)[0] if _STATISTICS in found else 0,
        _tun(found.get(_LINK_INFO, b"")),
    )


def _tun(info: bytes) -> TunDevice | None:
    found = dict(_attributes(info))
    if found.get(_INFO_KIND, b"").rstrip(b"\0") != b"tun" or _INFO_DATA not in found:
        return None
    data = dict(_attributes(found[_INFO_DATA]))
    return TunDevice(
        data.get(_TUN_TYPE, b"")[:1] == bytes([_TUN_TYPE_TUN]),
        _number(data.get(_TUN_OWNER)),
        _number(data.get(_TUN_GROUP)),
        data.get(_TUN_MULTI_QUEUE, b"")[:1] == b"\x01",
    )


def _number(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value[:4], sys.byteorder)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _ATTRIBUTE_TYPE, data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
