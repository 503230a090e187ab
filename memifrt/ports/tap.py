"""A TAP or TUN device as a port of a bridge.

Owns ``/dev/net/tun``. It turns off all offloads of the device, so that every packet comes with its checksums and no
packet is longer than the MTU.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from memifrt.errors import ConfigError, ErrorCode, MemifOSError, os_error
from memifrt.packets import format_mac
from memifrt.ports.endpoint import TapEndpoint
from memifrt.ports.netdev import InterfaceFlag, KernelInterface, request
from memifrt.ports.netlink import Link, LinkReader, TunDevice
from memifrt.ports.port import LOST, LossWarning, Port, Traffic
from memifrt.system.netns import network_namespace
from memifrt.types import Mode

# linux/if_tun.h
_DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETCARRIER = 0x400454CA, 0x400454D0, 0x400454E2
_IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x0001, 0x0002, 0x1000

#: The longest packet: an MTU of 65535, an Ethernet header and two VLAN tags.
_LONGEST = 65535 + 22


class TapPort(Port):
    """A TAP device (TUN in mode ip). The port creates the device if there is none of this name, and brings it up.

    Settings that are right already are left alone. So a user needs no capability for a device that root has prepared.

    :raises ConfigError: a device of this name is of the other kind, or a MAC address is given for a TUN device.
    :raises MemifOSError: the device cannot be created or set up.
    """

    def __init__(self, endpoint: TapEndpoint) -> None:
        super().__init__(str(endpoint))
        if endpoint.mac is not None and endpoint.mode is Mode.IP:
            raise ConfigError(f"mac: {endpoint.name} is a TUN device (mode=ip), which has no MAC address")
        self._received = self._received_bytes = self._sent = self._sent_bytes = 0
        kind = "TUN" if endpoint.mode is Mode.IP else "TAP"
        self._what = f"{kind} device {endpoint.name}"
        self._losses = LossWarning(
            self._what,
            f"they come faster than the bridge forwards them; ip link set {endpoint.name} txqueuelen 10000 keeps more",
        )
        with network_namespace(endpoint.netns), contextlib.ExitStack() as on_failure:
            self._fd = self._open()
            on_failure.callback(os.close, self._fd)
            self._links = self._link_reader()
            on_failure.callback(self._links.close)
            self._attach(endpoint)
            self._index = socket.if_nametoindex(endpoint.name)
            link = self._set_up(endpoint)
            #: The packets that the device had dropped at the last check.
            self._dropped = link.tx_dropped
            on_failure.pop_all()

    def _open(self) -> int:
        try:
            return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            what = f"cannot make {self._what}: cannot open {_DEVICE}"
            if error.errno in (errno.ENOENT, errno.ENODEV):
                what += " (modprobe tun brings it; a container needs --device=/dev/net/tun)"
            raise os_error(what, error, path=_DEVICE) from error

    def _link_reader(self) -> LinkReader:
        try:
            return LinkReader()
        except OSError as error:
            raise os_error(f"cannot look at {self._what}", error) from error

    def _attach(self, endpoint: TapEndpoint) -> None:
        before = self._there_already(endpoint)
        if before is not None and before.is_tun is not (endpoint.mode is Mode.IP):
            found, mode = ("TUN", "ip") if before.is_tun else ("TAP", "ethernet")
            right = f"tap:{endpoint.name},mode={mode}"
            raise ConfigError(f"{endpoint.name} is a {found} device; use {right}, and mode={mode} on the other end")
        kind = _IFF_TUN if endpoint.mode is Mode.IP else _IFF_TAP
        try:
            wanted = request(endpoint.name, struct.pack("=H", kind | _IFF_NO_PI))
            fcntl.ioctl(self._fd, _TUNSETIFF, wanted)
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, 0)
        except OSError as error:
            what = f"cannot attach to {self._what}"
            if error.errno == errno.EPERM:
                what += f": {_owner(before)}it needs root, or the capability NET_ADMIN"
            elif error.errno == errno.EBUSY:
                what += ": another program holds it"
            elif error.errno == errno.EINVAL and before is not None and before.multi_queue:
                what += ": it has several queues; make it without multi_queue"
            elif error.errno == errno.EINVAL:
                what += ": an interface of this name exists and is of another kind"
            raise os_error(what, error) from error

    def _there_already(self, endpoint: TapEndpoint) -> TunDevice | None:
        """Return the TAP or TUN device of this name, or None."""
        try:
            return self._links.read(socket.if_nametoindex(endpoint.name)).tun
        except OSError:
            return None

    def _set_up(self, endpoint: TapEndpoint) -> Link:
        device = KernelInterface(endpoint.name)
        what = ""
        try:
            link = self._links.read(self._index)
            if endpoint.mac is not None and endpoint.mac != link.mac:
                what = f": its MAC address is {format_mac(link.mac)}, and cannot be set to {format_mac(endpoint.mac)}"
                device.set_mac(endpoint.mac)
            if endpoint.mtu is not None and endpoint.mtu != link.mtu:
                what = f": its MTU is {link.mtu}, and cannot be set to {endpoint.mtu}"
                device.set_mtu(endpoint.mtu)
            if not link.flags & InterfaceFlag.UP:
                what = f": it is down, and cannot be brought up (as root: ip link set {endpoint.name} up)"
                device.bring_up()
        except OSError as error:
            raise os_error(f"cannot set up {self._what}{what}", error) from error
        return link

    @property
    def received(self) -> Traffic:
        return Traffic(self._received, self._received_bytes)

    @property
    def sent(self) -> Traffic:
        return Traffic(self._sent, self._sent_bytes)

    def fileno(self) -> int:
        return self._fd

    def room(self, qid: int = 0) -> int:
        return 1 << 16

    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        packets: list[bytes] = []
        read, fd = os.read, self._fd
        try:
            while len(packets) < limit:
                packets.append(read(fd, _LONGEST))
        except BlockingIOError:
            pass
        except OSError as error:
            # EIO: the device is down and may come up again. Every other error is final.
            if error.errno != errno.EIO:
                raise self._gone(error) from error
        self._received += len(packets)
        self._received_bytes += sum(map(len, packets))
        if len(packets) >= limit and self._losses.is_due():
            self.count_losses()
            self._losses.lost(self.unusable[LOST])
        return packets

    def count_losses(self) -> None:
        with contextlib.suppress(OSError):  # the device is gone, or was moved to another namespace
            dropped = self._links.read(self._index).tx_dropped
            if dropped > self._dropped:
                self.unusable[LOST] += dropped - self._dropped
            self._dropped = dropped

    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
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

    def discard(self, limit: int, *, qid: int = 0) -> int:
        return len(self.recv(limit, qid=qid))

    def link_changed(self, up: bool) -> None:
        """Set the carrier of the device, which it has while the other port has a peer."""
        with contextlib.suppress(OSError):  # kernels before 5.0 do not have this call
            fcntl.ioctl(self._fd, _TUNSETCARRIER, struct.pack("=i", up))

    def close(self) -> None:
        self._links.close()
        os.close(self._fd)

    def _gone(self, error: OSError) -> MemifOSError:
        return os_error(f"{self._what} is gone", error, code=ErrorCode.SYSCALL)


def _owner(device: TunDevice | None) -> str:
    """Return a text that names the owner of a device, if another user owns it; otherwise an empty text."""
    if device is None or device.owner is None or device.owner == os.geteuid():
        return ""
    return f"it belongs to user {device.owner}, and we are {os.geteuid()}; "
