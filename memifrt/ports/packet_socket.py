"""A network interface of the kernel as a port of a bridge, by a packet socket (``AF_PACKET``).

Owns the socket's options and what its frames lack: checksums, segmentation and VLAN tags that the kernel leaves to a
card are done here, since no card comes any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Sequence

from memifrt.cli.endpoint import PacketEndpoint
from memifrt.errors import ConfigError, ErrorCode, MemifOSError, os_error
from memifrt.ports.netdev import InterfaceFlag, KernelInterface
from memifrt.ports.netns import network_namespace
from memifrt.ports.offload import HEADER_BYTES, NOTHING_TO_DO, NotPossible, Offload, finished, insert_vlan
from memifrt.ports.port import Port, Traffic

_ETH_P_ALL = 0x0003
# linux/if_packet.h
_SOL_PACKET = 263
_ADD_MEMBERSHIP, _AUXDATA, _VNET_HDR, _IGNORE_OUTGOING = 1, 8, 15, 23
_MR_PROMISC = 1
_MEMBERSHIP = struct.Struct("=iHH8s")
# struct tpacket_auxdata: status, length, captured length, mac, net, vlan tag, vlan type
_AUXILIARY = struct.Struct("=IIIHHHH")
_VLAN_VALID, _VLAN_TYPE_VALID = 1 << 4, 1 << 6
_VLAN = 0x8100

#: A frame before segmentation is at most 64 KiB of IP packet; with what "BIG TCP" allows it may be longer.
_LONGEST = HEADER_BYTES + (1 << 19)
_ANCILLARY = socket.CMSG_SPACE(_AUXILIARY.size)
#: Bytes that the kernel keeps for us until we come.
_BACKLOG = 8 << 20
#: Seconds that a full queue of the interface may hold us up.
_PATIENCE = 0.1
#: Seconds from when an interface is down to when it is gone, if it is going.
_FAREWELL = 0.5


class PacketPort(Port):
    """A network interface: what it receives comes in, what is sent goes out on it.

    The kernel's own stack goes on receiving as well; an interface without an address keeps quiet.

    :raises ConfigError: there is none of this name, it is down, or it carries no Ethernet frames.
    :raises MemifOSError: a packet socket cannot be made.
    """

    def __init__(self, endpoint: PacketEndpoint) -> None:
        super().__init__(str(endpoint))
        self._received = self._received_bytes = self._sent = self._sent_bytes = 0
        self._buffer = memoryview(bytearray(_LONGEST))
        self._what = f"interface {endpoint.name}"
        with network_namespace(endpoint.netns):
            self._index = self._checked(endpoint.name)
            try:
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            except PermissionError as error:
                what = f"cannot open {self._what}: a packet socket needs root, or the capability NET_RAW"
                raise os_error(what, error) from error
        try:
            self._prepare(endpoint.name)
        except OSError as error:
            self._socket.close()
            raise os_error(f"cannot open {self._what}", error) from error

    def _checked(self, name: str) -> int:
        interface = KernelInterface(name)
        try:
            index, flags = socket.if_nametoindex(name), interface.flags()
        except OSError:
            raise ConfigError(f"there is no {self._what}; ip link shows those that there are") from None
        if not flags & InterfaceFlag.UP:
            raise ConfigError(f"{self._what} is down; ip link set {name} up brings it up")
        return index

    def _prepare(self, name: str) -> None:
        sock = self._socket
        sock.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        with contextlib.suppress(OSError):  # Linux 4.20; what goes out is told by its address as well
            sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, _MEMBERSHIP.pack(self._index, _MR_PROMISC, 0, b""))
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BACKLOG)
        whole_seconds, rest = divmod(_PATIENCE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(whole_seconds), int(rest * 1e6)))
        # Last, and with no protocol before: nothing of another interface has come in between.
        sock.bind((name, _ETH_P_ALL))

    @property
    def received(self) -> Traffic:
        return Traffic(self._received, self._received_bytes)

    @property
    def sent(self) -> Traffic:
        return Traffic(self._sent, self._sent_bytes)

    def fileno(self) -> int:
        return self._socket.fileno()

    def room(self, queue: int) -> int:
        return 1 << 16

    def receive(self, queue: int, limit: int) -> list[bytes]:
        """A frame that is cut into segments may take the number above the limit."""
        packets: list[bytes] = []
        buffer, receive = self._buffer, self._socket.recvmsg_into
        try:
            while len(packets) < limit:
                size, ancillary, _, address = receive((buffer,), _ANCILLARY, socket.MSG_DONTWAIT)
                if address[2] != socket.PACKET_OUTGOING:
                    packets += self._frames(size, ancillary)
        except BlockingIOError:
            pass
        except OSError as error:
            self._check_still_there(error)
        self._received += len(packets)
        self._received_bytes += sum(map(len, packets))
        return packets

    def _frames(self, size: int, ancillary: list[tuple[int, int, bytes]]) -> list[bytes]:
        frame = bytes(self._buffer[HEADER_BYTES:size])
        offload = Offload.parse(self._buffer)
        try:
            frames = [frame] if offload is None else finished(frame, offload)
        except NotPossible:
            self.unusable["segmentation that only a card can do"] += 1
            return []
        for level, kind, data in ancillary:
            if level == _SOL_PACKET and kind == _AUXDATA and len(data) >= _AUXILIARY.size:
                status, _, _, _, _, tag, tag_type = _AUXILIARY.unpack_from(data)
                if status & _VLAN_VALID:
                    tag_type = tag_type if status & _VLAN_TYPE_VALID else _VLAN
                    frames = [insert_vlan(each, tag_type, tag) for each in frames]
        return frames

    def send(self, queue: int, packets: Sequence[bytes]) -> int:
        fd = self._socket.fileno()
        for packet in packets:
            try:
                os.writev(fd, (NOTHING_TO_DO, packet))
            except OSError as error:
                self._check_still_there(error)
                self.refused[os.strerror(error.errno or 0)] += 1
            else:
                self._sent += 1
                self._sent_bytes += len(packet)
        return len(packets)

    def discard(self, queue: int, limit: int) -> int:
        return len(self.receive(queue, limit))

    def close(self) -> None:
        self._socket.close()

    def _check_still_there(self, error: OSError) -> None:
        """What went wrong once may go right again, unless there is no interface any more."""
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EBADF):
            raise self._gone(error) from error
        if error.errno == errno.ENETDOWN:
            # One that is deleted is down first, and nothing more is said of it.
            deadline = time.monotonic() + _FAREWELL
            while time.monotonic() < deadline:
                if not self._socket.getsockname()[0]:
                    raise self._gone(error) from error
                time.sleep(0.01)

    def _gone(self, error: OSError) -> MemifOSError:
        return os_error(f"{self._what} is gone", error, code=ErrorCode.SYSCALL)
