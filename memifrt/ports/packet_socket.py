"""A kernel network interface as a port of a bridge, through a packet socket (``AF_PACKET``).

Owns the options of the socket. It also does the work that the kernel leaves to a network card (checksums, segmentation,
VLAN tags), because the frames do not pass a card.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Sequence

from memifrt.errors import ConfigError, ErrorCode, MemifOSError, os_error
from memifrt.ports.endpoint import PacketEndpoint
from memifrt.ports.netdev import InterfaceFlag, mode_of_hardware
from memifrt.ports.netlink import LinkReader
from memifrt.ports.offload import HEADER_BYTES, NOTHING_TO_DO, NotPossible, Offload, finished, insert_vlan
from memifrt.ports.port import LOST, LossWarning, Port, Traffic
from memifrt.system.netns import network_namespace
from memifrt.types import Mode

_ETH_P_ALL = 0x0003
# linux/if_packet.h
_SOL_PACKET = 263
_ADD_MEMBERSHIP, _STATISTICS, _AUXDATA, _VNET_HDR, _IGNORE_OUTGOING = 1, 6, 8, 15, 23
_MR_PROMISC = 1
_MEMBERSHIP = struct.Struct("=iHH8s")
# struct tpacket_auxdata: status, length, captured length, mac, net, vlan tag, vlan type
_AUXILIARY = struct.Struct("=IIIHHHH")
# struct tpacket_stats: packets, and how many of them were dropped; reading resets it to 0
_LOSSES = struct.Struct("=II")
_SO_RCVBUFFORCE = 33
#: EtherTypes by IP version.
_PROTOCOLS = {4: 0x0800, 6: 0x86DD}
_VLAN_VALID, _VLAN_TYPE_VALID = 1 << 4, 1 << 6
_VLAN = 0x8100

#: The longest frame before segmentation. An IP packet has at most 64 KiB, but "BIG TCP" allows more.
_LONGEST = HEADER_BYTES + (1 << 19)
_ANCILLARY = socket.CMSG_SPACE(_AUXILIARY.size)
#: Size of the receive buffer in bytes.
_BACKLOG = 8 << 20
#: Seconds that a send may block on a full queue of the interface.
_PATIENCE = 0.1
#: Seconds that the kernel may need to delete an interface after it is down.
_FAREWELL = 0.5


class PacketPort(Port):
    """A network interface. The port receives what the interface receives, and sends on it.

    The kernel's own network stack also receives the packets. It does not answer if the interface has no address.

    :param waits: whether a send may wait for room in the interface's queue, and for an interface that goes down to be
        deleted. A port that must not delay others does not wait: then :meth:`send` returns a short count.
    :raises ConfigError: there is no such interface, it is down, or it does not fit the mode of the endpoint.
    :raises MemifOSError: the packet socket cannot be made.
    """

    def __init__(self, endpoint: PacketEndpoint, *, waits: bool = True) -> None:
        super().__init__(str(endpoint))
        self._waits = waits
        self._received = self._received_bytes = self._sent = self._sent_bytes = 0
        self._buffer = memoryview(bytearray(_LONGEST))
        self._what = f"interface {endpoint.name}"
        self._name = endpoint.name
        self._ip = endpoint.mode is Mode.IP
        self._losses = LossWarning(self._what, "they come faster than the bridge forwards them, or in too large bursts")
        with network_namespace(endpoint.netns):
            self._index = self._checked(endpoint)
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

    def _checked(self, endpoint: PacketEndpoint) -> int:
        name = endpoint.name
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            raise ConfigError(f"there is no {self._what}; ip link lists the interfaces") from None
        try:
            with LinkReader() as reader:
                link = reader.read(index)
        except OSError as error:
            raise os_error(f"cannot look at {self._what}", error) from error
        if not link.flags & InterfaceFlag.UP:
            raise ConfigError(f"{self._what} is down; ip link set {name} up brings it up")
        mode = mode_of_hardware(link.hardware_type)
        if mode is not endpoint.mode:
            raise ConfigError(f"{self._what} {_carries(mode, link.hardware_type, name)}")
        return index

    def _prepare(self, name: str) -> None:
        sock = self._socket
        sock.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        with contextlib.suppress(OSError):  # since Linux 4.20; recv() also recognizes outgoing packets by their address
            sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, _MEMBERSHIP.pack(self._index, _MR_PROMISC, 0, b""))
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BACKLOG)
        except OSError:  # without the capability NET_ADMIN, as much as net.core.rmem_max allows
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BACKLOG)
        whole_seconds, rest = divmod(_PATIENCE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(whole_seconds), int(rest * 1e6)))
        if not self._waits:
            sock.setblocking(False)
        # Bind last. The socket had no protocol until now, so it received nothing from other interfaces.
        sock.bind((name, _ETH_P_ALL))

    @property
    def received(self) -> Traffic:
        return Traffic(self._received, self._received_bytes)

    @property
    def sent(self) -> Traffic:
        return Traffic(self._sent, self._sent_bytes)

    def fileno(self) -> int:
        return self._socket.fileno()

    def room(self, qid: int = 0) -> int:
        return 1 << 16

    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        """Take packets. A frame that is cut into segments may give more packets than the limit."""
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
        if len(packets) >= limit and self._losses.is_due():
            self.count_losses()
            self._losses.lost(self.unusable[LOST])
        return packets

    def count_losses(self) -> None:
        with contextlib.suppress(OSError):
            _, dropped = _LOSSES.unpack(self._socket.getsockopt(_SOL_PACKET, _STATISTICS, _LOSSES.size))
            if dropped:
                self.unusable[LOST] += dropped

    def _frames(self, size: int, ancillary: list[tuple[int, int, bytes]]) -> list[bytes]:
        offload = Offload.parse(self._buffer)
        status = network = tag = tag_type = 0
        for level, kind, data in ancillary:
            if level == _SOL_PACKET and kind == _AUXDATA and len(data) >= _AUXILIARY.size:
                status, _, _, _, network, tag, tag_type = _AUXILIARY.unpack_from(data)
        if self._ip:
            # The interface of a tunnel may put headers of the tunnel in front of the IP packet.
            return self._ip_packets(bytes(self._buffer[HEADER_BYTES + network : size]), offload, network)
        frames = self._finished(bytes(self._buffer[HEADER_BYTES:size]), offload, None)
        if status & _VLAN_VALID:
            tag_type = tag_type if status & _VLAN_TYPE_VALID else _VLAN
            frames = [insert_vlan(each, tag_type, tag) for each in frames]
        return frames

    def _ip_packets(self, packet: bytes, offload: Offload | None, network: int) -> list[bytes]:
        if not packet or packet[0] >> 4 not in _PROTOCOLS:
            self.unusable["no IP packet"] += 1
            return []
        return self._finished(packet, None if offload is None else offload.moved(-network), 0)

    def _finished(self, frame: bytes, offload: Offload | None, network: int | None) -> list[bytes]:
        try:
            return [frame] if offload is None else finished(frame, offload, network)
        except NotPossible:
            self.unusable["segmentation that only a card can do"] += 1
            return []

    def _write(self, packet: bytes) -> None:
        if not self._ip:
            os.writev(self._socket.fileno(), (NOTHING_TO_DO, packet))
            return
        # Without an Ethernet header, the kernel needs the protocol in the address.
        protocol = _PROTOCOLS.get(packet[0] >> 4) if packet else None
        if protocol is None:
            raise OSError(errno.EPROTONOSUPPORT, "no IP packet")
        try:
            self._socket.sendmsg((NOTHING_TO_DO, packet), (), 0, (self._name, protocol))
        except OSError as error:
            name = self._socket.getsockname()[0]
            if error.errno != errno.ENODEV or name in ("", self._name):
                raise
            self._name = name  # the interface was renamed
            self._socket.sendmsg((NOTHING_TO_DO, packet), (), 0, (self._name, protocol))

    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        for number, packet in enumerate(packets):
            try:
                self._write(packet)
            except OSError as error:
                if not self._waits and error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    return number
                self._check_still_there(error)
                self.refused[error.strerror or str(error)] += 1
            else:
                self._sent += 1
                self._sent_bytes += len(packet)
        return len(packets)

    def discard(self, limit: int, *, qid: int = 0) -> int:
        return len(self.recv(limit, qid=qid))

    def close(self) -> None:
        self._socket.close()

    def _check_still_there(self, error: OSError) -> None:
        """Raise if the interface is gone. Other errors may be temporary.

        :raises MemifOSError: the interface is gone.
        """
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EBADF):
            raise self._gone(error) from error
        if error.errno == errno.ENETDOWN:
            # An interface goes down before it is deleted, and no further error reports the deletion.
            deadline = time.monotonic() + (_FAREWELL if self._waits else 0)
            while True:
                if not self._socket.getsockname()[0]:
                    raise self._gone(error) from error
                if time.monotonic() >= deadline:
                    return
                time.sleep(0.01)

    def _gone(self, error: OSError) -> MemifOSError:
        return os_error(f"{self._what} is gone", error, code=ErrorCode.SYSCALL)


def _carries(mode: Mode | None, hardware_type: int, name: str) -> str:
    """Return a text that says what an interface carries, and which endpoint to use instead."""
    if mode is None:
        return f"is of hardware type {hardware_type}: it carries neither Ethernet frames nor IP packets"
    if mode is Mode.IP:
        return (
            f"carries IP packets without Ethernet headers (hardware type {hardware_type}); use packet:{name},mode=ip, "
            "and mode=ip on the other end"
        )
    return f"carries Ethernet frames; use packet:{name} without mode=ip, and mode=ethernet on the other end"
