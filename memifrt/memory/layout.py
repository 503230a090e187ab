"""Lay out rings and buffers in a slave's shared memory.

Owns the arithmetic of sizes and offsets (docs/protocol.md, Shared memory). Knows nothing of files or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass

from memifrt.errors import ConfigError
from memifrt.types import Direction

RING_HEADER_SIZE = 128
DESCRIPTOR_SIZE = 16
#: A descriptor's offset is a u32, so no region is larger than this.
MAX_REGION_SIZE = 1 << 32
#: Buffers start on a new page, as in VPP and DPDK, which avoids false sharing with the last ring.
_ALIGNMENT = 4096
_CACHE_LINE = 64


def ring_bytes(log2_ring_size: int) -> int:
    """Return the size of a ring in bytes: its header and its descriptors."""
    return RING_HEADER_SIZE + (DESCRIPTOR_SIZE << log2_ring_size)


@dataclass(frozen=True, slots=True)
class RingLayout:
    """One ring: its direction, its offset in its region, and the offset of its first slot's buffer, in bytes."""

    direction: Direction
    index: int
    region: int
    offset: int
    first_buffer: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The memory that a slave creates: the size of each region in bytes, and the rings, S2M first.

    The buffer of a ring's slot ``i`` is at ``first_buffer + i * stride`` in region ``buffer_region``.
    """

    region_sizes: tuple[int, ...]
    buffer_region: int
    rings: tuple[RingLayout, ...]
    stride: int


def buffer_stride(buffer_size: int) -> int:
    """Return the distance from one buffer to the next in bytes: an odd number of cache lines.

    With a distance of 2048 bytes the headers of all packets would use only one in 32 sets of a core's first-level cache
    and evict each other. Any distance works for peers, because each descriptor has the offset of its buffer.
    """
    lines = -(-buffer_size // _CACHE_LINE)
    return (lines | 1) * _CACHE_LINE


def plan(
    num_s2m_rings: int,
    num_m2s_rings: int,
    log2_ring_size: int,
    buffer_size: int,
    *,
    separate_buffers: bool = False,
) -> Layout:
    """Lay out the rings and the buffers behind them.

    :param buffer_size: in bytes.
    :param separate_buffers: put the buffers into a second region. The default is one region, which every peer accepts.
    :raises ConfigError: a region would be larger than a descriptor's offset can reach.
    """
    total = num_s2m_rings + num_m2s_rings
    rings_end = total * ring_bytes(log2_ring_size)
    # A separate region is the application's. Ask it for as many bytes as libmemif would.
    stride = buffer_size if separate_buffers else buffer_stride(buffer_size)
    buffers = (total * stride) << log2_ring_size
    start = 0 if separate_buffers else _align(rings_end)
    if start + buffers > MAX_REGION_SIZE:
        raise ConfigError(
            f"{total} rings of 2^{log2_ring_size} buffers of {buffer_size} bytes need {start + buffers} bytes; "
            f"a region holds at most {MAX_REGION_SIZE}: use fewer rings, smaller rings or smaller buffers"
        )
    order = [(Direction.S2M, index) for index in range(num_s2m_rings)]
    order += [(Direction.M2S, index) for index in range(num_m2s_rings)]
    rings = tuple(
        RingLayout(
            direction,
            index,
            region=0,
            offset=position * ring_bytes(log2_ring_size),
            first_buffer=start + (position << log2_ring_size) * stride,
        )
        for position, (direction, index) in enumerate(order)
    )
    if separate_buffers:
        return Layout((_align(rings_end), buffers), 1, rings, stride)
    return Layout((_align(start + buffers),), 0, rings, stride)


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
