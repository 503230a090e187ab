"""Read and set flags, MTU and MAC address of kernel network interfaces, with ioctls.

Owns the numbers and layouts of ``linux/if.h`` and ``linux/sockios.h``.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterator
from enum import IntFlag

from memifrt.types import Mode

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCGIFMTU, _SIOCSIFMTU, _SIOCSIFHWADDR = 0x8913, 0x8914, 0x8921, 0x8922, 0x8924
# linux/if_arp.h
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
#: Types of interfaces that carry IP packets: SLIP and CSLIP, PPP, raw IP, tunnels (ipip, ip6tnl, sit, GRE), and
#: interfaces without any header (TUN, WireGuard, xfrm).
_ARPHRD_IP = frozenset({256, 257, 258, 259, 512, 519, 768, 769, 776, 778, 823, 65534})
#: struct ifreq: the name, and a union of 24 bytes.
_REQUEST = struct.Struct("16s24s")


class InterfaceFlag(IntFlag):
    """Flags of an interface (``IFF_*``)."""

    UP = 0x1
    LOOPBACK = 0x8


def mode_of_hardware(hardware_type: int) -> Mode | None:
    """Return the mode for an interface of this ``ARPHRD_*``; None if it carries neither frames nor IP packets."""
    if hardware_type in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
        return Mode.ETHERNET
    return Mode.IP if hardware_type in _ARPHRD_IP else None


def request(name: str, value: bytes) -> bytes:
    """Build a ``struct ifreq``."""
    return _REQUEST.pack(name.encode(), value)


def answer(result: bytes) -> bytes:
    """Return the value that the kernel put into a ``struct ifreq``."""
    value: bytes = _REQUEST.unpack(result)[1]
    return value


class KernelInterface:
    """A named interface in the network namespace of the calling thread. Every method may raise ``OSError``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def flags(self) -> InterfaceFlag:
        return InterfaceFlag(struct.unpack_from("=H", self._ioctl(_SIOCGIFFLAGS, b""))[0])

    def bring_up(self) -> None:
        self._ioctl(_SIOCSIFFLAGS, struct.pack("=H", self.flags() | InterfaceFlag.UP))

    def mtu(self) -> int:
        return int(struct.unpack_from("=i", self._ioctl(_SIOCGIFMTU, b""))[0])

    def set_mtu(self, mtu: int) -> None:
        self._ioctl(_SIOCSIFMTU, struct.pack("=i", mtu))

    def set_mac(self, mac: bytes) -> None:
        self._ioctl(_SIOCSIFHWADDR, struct.pack("=H6s", _ARPHRD_ETHER, mac))

    def _ioctl(self, number: int, value: bytes) -> bytes:
        with _any_socket() as sock:
            return answer(fcntl.ioctl(sock, number, request(self.name, value)))


@contextlib.contextmanager
def _any_socket() -> Iterator[socket.socket]:
    """Open a socket for ioctls, which take any socket of the network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        yield sock
