"""Do a network card's work on a frame: fill in checksums, cut it into segments, insert its VLAN tag.

A packet socket gets frames of virtual interfaces as the kernel would give them to a card that does this work. The peer
of a memif expects that the work is done. Owns the virtio header that says what is left to do. Takes and returns frames.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass

from memifrt.packets import checksum

# flags, segmentation, header length, segment size, where the checksum starts, its place from there
# (struct virtio_net_hdr of linux/virtio_net.h; native byte order)
_HEADER = struct.Struct("=BBHHHH")
#: Length in bytes of the virtio header in front of every frame.
HEADER_BYTES = _HEADER.size
#: The header of a frame that needs no further work.
NOTHING_TO_DO = bytes(HEADER_BYTES)
_NEEDS_CHECKSUM = 1
_TCP_IPV4, _TCP_IPV6, _UDP = 1, 4, 5
_ECN = 0x80  # a flag beside these

_VLAN_TYPES = (0x8100, 0x88A8)
_U16, _U32 = struct.Struct("!H"), struct.Struct("!I")
_MACS = 12
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_PROTOCOL_TCP, _PROTOCOL_UDP = 6, 17
_UDP_HEADER = 8
#: The most bytes that the length field of an IP header can tell.
_LONGEST_PACKET = 0xFFFF
#: The most bytes of headers in a frame to cut: each segment repeats them, and there may be tens of thousands.
_LONGEST_HEADERS = 512


class NotPossible(Exception):
    """We do not know how to do this work on this frame."""


@dataclass(frozen=True, slots=True)
class Offload:
    """The work left to do on a frame. ``segmentation`` 0 is none; ``size`` is the payload of a segment in bytes."""

    needs_checksum: bool
    segmentation: int
    size: int
    checksum_start: int
    checksum_offset: int

    @classmethod
    def parse(cls, header: memoryview | bytes) -> Offload | None:
        """Parse the header in front of a frame; return None if there is no work left."""
        flags, segmentation, _, size, start, offset = _HEADER.unpack_from(header)
        if not flags & _NEEDS_CHECKSUM and not segmentation:
            return None
        return cls(bool(flags & _NEEDS_CHECKSUM), segmentation & ~_ECN, size, start, offset)

    def moved(self, distance: int) -> Offload:
        """Return the same work for the frame with ``distance`` more bytes in front."""
        return dataclasses.replace(self, checksum_start=max(self.checksum_start + distance, 0)) if distance else self


def finished(frame: bytes, offload: Offload, network: int | None = None) -> list[bytes]:
    """Return the frames that a card would send.

    :param network: the offset of the IP header in bytes; None if it follows an Ethernet header.
    :raises NotPossible: the kind of work is unknown, or the frame does not match its header.
    """
    if offload.segmentation:
        return _segments(frame, offload, _network_start(frame) if network is None else network)
    return [_with_checksum(bytearray(frame), offload.checksum_start, offload.checksum_offset)]


def insert_vlan(frame: bytes, tag_type: int, tag: int) -> bytes:
    """Put a VLAN tag back into a frame, after its addresses."""
    return frame[:_MACS] + _U16.pack(tag_type) + _U16.pack(tag) + frame[_MACS:]


def _with_checksum(frame: bytearray, start: int, offset: int) -> bytes:
    """Fill in a checksum. The field already has the sum over the pseudo header, which is part of the sum (RFC 1071)."""
    if start + offset + 2 > len(frame):
        raise NotPossible(f"a checksum at byte {start + offset} of a frame of {len(frame)}")
    # A UDP checksum of 0 means that there is none. In the sum, 0xffff equals 0.
    _U16.pack_into(frame, start + offset, checksum(memoryview(frame)[start:]) or 0xFFFF)
    return bytes(frame)


def _segments(frame: bytes, offload: Offload, network: int) -> list[bytes]:
    transport, size = offload.checksum_start, offload.size
    version = frame[network] >> 4 if network < len(frame) else 0
    tcp = offload.segmentation in (_TCP_IPV4, _TCP_IPV6)
    if not (tcp or offload.segmentation == _UDP) or version not in (4, 6) or not size:
        raise NotPossible(f"segmentation of kind {offload.segmentation} with {size} bytes each")
    if {_TCP_IPV4: 4, _TCP_IPV6: 6}.get(offload.segmentation, version) != version:
        raise NotPossible(f"segmentation of kind {offload.segmentation} of IPv{version}")
    header = (frame[network] & 0xF) * 4 if version == 4 else 40
    if header < 20:
        raise NotPossible(f"an IP header of {header} bytes")
    if len(frame) < transport + (20 if tcp else _UDP_HEADER) or transport < network + header:
        raise NotPossible(f"a transport header at byte {transport} of a frame of {len(frame)}")
    payload = transport + ((frame[transport + 12] >> 4) * 4 if tcp else _UDP_HEADER)
    if not transport + (20 if tcp else _UDP_HEADER) <= payload <= min(len(frame), _LONGEST_HEADERS):
        raise NotPossible(f"headers of {payload} bytes in a frame of {len(frame)}")
    if payload - network + min(size, len(frame) - payload) > _LONGEST_PACKET:
        raise NotPossible(f"segments of {size} bytes")
    head = bytearray(frame[:payload])
    segments: list[bytes] = []
    for at in range(payload, max(len(frame), payload + 1), size):  # a frame without payload is one segment
        part = frame[at : at + size]
        segment = head + part
        if tcp:
            _number_tcp(segment, transport, at - payload, first=at == payload, last=at + size >= len(frame))
        else:
            _U16.pack_into(segment, transport + 4, _UDP_HEADER + len(part))
        _fit_ip(segment, network, version, len(segments))
        _pseudo_sum(segment, network, transport, version, tcp)
        segments.append(_with_checksum(segment, transport, 16 if tcp else 6))
    return segments


def _network_start(frame: bytes) -> int:
    at = _MACS
    while at + 2 <= len(frame) and _U16.unpack_from(frame, at)[0] in _VLAN_TYPES:
        at += 4
    if at + 3 > len(frame):
        raise NotPossible(f"a frame of {len(frame)} bytes")
    return at + 2


def _number_tcp(segment: bytearray, transport: int, offset: int, *, first: bool, last: bool) -> None:
    (sequence,) = _U32.unpack_from(segment, transport + 4)
    _U32.pack_into(segment, transport + 4, sequence + offset & 0xFFFFFFFF)
    if not last:
        segment[transport + 13] &= ~(_FIN | _PSH) & 0xFF
    if not first:
        segment[transport + 13] &= ~_CWR & 0xFF


def _fit_ip(segment: bytearray, network: int, version: int, number: int) -> None:
    """Set the length, the identification and the checksum of an IP header."""
    if version == 6:
        _U16.pack_into(segment, network + 4, len(segment) - network - 40)
        return
    _U16.pack_into(segment, network + 2, len(segment) - network)
    (identification,) = _U16.unpack_from(segment, network + 4)
    _U16.pack_into(segment, network + 4, identification + number & 0xFFFF)
    header = (segment[network] & 0xF) * 4
    _U16.pack_into(segment, network + 10, 0)
    _U16.pack_into(segment, network + 10, checksum(memoryview(segment)[network : network + header]))


def _pseudo_sum(segment: bytearray, network: int, transport: int, version: int, tcp: bool) -> None:
    """Put the sum over addresses, protocol and length into the checksum field (RFC 9293, RFC 8200)."""
    addresses = segment[network + 12 : network + 20] if version == 4 else segment[network + 8 : network + 40]
    protocol = _PROTOCOL_TCP if tcp else _PROTOCOL_UDP
    pseudo = bytes(addresses) + _U32.pack(len(segment) - transport) + _U32.pack(protocol)
    _U16.pack_into(segment, transport + (16 if tcp else 6), 0xFFFF - checksum(pseudo))
