"""A TAP or TUN device as a port of a bridge.

Owns ``/dev/net/tun``. The kernel is told that the device can do nothing by itself, so that every packet comes with
its checksums, in segments no longer than the MTU.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from memifrt.cli.endpoint import TapEndpoint
from memifrt.errors import ErrorCode, MemifOSError, os_error
from memifrt.ports.netdev import KernelInterface, request
from memifrt.ports.netns import network_namespace
from memifrt.ports.port import Port, Traffic
from memifrt.types import Mode

# linux/if_tun.h
_DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETCARRIER = 0x400454CA, 0x400454D0, 0x400454E2
_IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x0001, 0x0002, 0x1000

#: The longest packet: an MTU of 65535, an Ethernet header and two VLAN tags.
_LONGEST = 65535 + 22


class TapPort(Port):
    """A TAP device (TUN in mode ip), made if there is none of this name, and brought up.

    :raises MemifOSError: it cannot be made or set up.
    """

    def __init__(self, endpoint: TapEndpoint) -> None:
        super().__init__(str(endpoint))
        self._received = self._received_bytes = self._sent = self._sent_bytes = 0
        kind = "TUN" if endpoint.mode is Mode.IP else "TAP"
        self._what = f"{kind} device {endpoint.name}"
        with network_namespace(endpoint.netns):
            self._fd = self._open()
            try:
                self._attach(endpoint)
                self._set_up(endpoint)
            except BaseException:
                os.close(self._fd)
                raise

    def _open(self) -> int:
        try:
            return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            what = f"cannot make {self._what}: cannot open {_DEVICE}"
            if error.errno in (errno.ENOENT, errno.ENODEV):
                what += " (modprobe tun brings it; a container needs --device=/dev/net/tun)"
            raise os_error(what, error, path=_DEVICE) from error

    def _attach(self, endpoint: TapEndpoint) -> None:
        kind = _IFF_TUN if endpoint.mode is Mode.IP else _IFF_TAP
        try:
            wanted = request(endpoint.name, struct.pack("=H", kind | _IFF_NO_PI))
            fcntl.ioctl(self._fd, _TUNSETIFF, wanted)
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, 0)
        except OSError as error:
            what = f"cannot attach to {self._what}"
            if error.errno == errno.EPERM:
                what += ": it needs root, or the capability NET_ADMIN"
            elif error.errno == errno.EBUSY:
                what += ": another program holds it"
            elif error.errno == errno.EINVAL:
                what += ": there is an interface of this name that is of another kind"
            raise os_error(what, error) from error

    def _set_up(self, endpoint: TapEndpoint) -> None:
        device = KernelInterface(endpoint.name)
        try:
            if endpoint.mac is not None:
                device.set_mac(endpoint.mac)
            if endpoint.mtu is not None:
                device.set_mtu(endpoint.mtu)
            device.bring_up()
        except OSError as error:
            raise os_error(f"cannot set up {self._what}", error) from error

    @property
    def received(self) -> Traffic:
        return Traffic(self._received, self._received_bytes)

    @property
    def sent(self) -> Traffic:
        return Traffic(self._sent, self._sent_bytes)

    def fileno(self) -> int:
        return self._fd

    def room(self, queue: int) -> int:
        return 1 << 16

    def receive(self, queue: int, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        read, fd = os.read, self._fd
        try:
            while len(packets) < limit:
                packets.append(read(fd, _LONGEST))
        except BlockingIOError:
            pass
        except OSError as error:
            # EIO: it is down, and comes back. Everything else ends it.
            if error.errno != errno.EIO:
                raise self._gone(error) from error
        self._received += len(packets)
        self._received_bytes += sum(map(len, packets))
        return packets

    def send(self, queue: int, packets: Sequence[bytes]) -> int:
        write, fd = os.write, self._fd
        for number, packet in enumerate(packets):
            try:
                write(fd, packet)
            except BlockingIOError:
                return number
            except OSError as error:
                if error.errno == errno.EBADFD:
                    raise self._gone(error) from error
                self.refused[os.strerror(error.errno or 0)] += 1
            else:
                self._sent += 1
                self._sent_bytes += len(packet)
        return len(packets)

    def discard(self, queue: int, limit: int) -> int:
        return len(self.receive(queue, limit))

    def link_changed(self, up: bool) -> None:
        """The device has a carrier while the other port has a peer."""
        with contextlib.suppress(OSError):  # a kernel before 5.0 knows nothing of it
            fcntl.ioctl(self._fd, _TUNSETCARRIER, struct.pack("=i", up))

    def close(self) -> None:
        os.close(self._fd)

    def _gone(self, error: OSError) -> MemifOSError:
        return os_error(f"{self._what} is gone", error, code=ErrorCode.SYSCALL)
