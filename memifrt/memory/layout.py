"""Where rings and buffers lie in a slave's shared memory.

Owns the arithmetic of sizes and offsets (docs/protocol.md, Shared memory). Knows nothing of files or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass

from memifrt.errors import ConfigError
from memifrt.types import Direction

RING_HEADER_SIZE = 128
DESCRIPTOR_SIZE = 16
#: Descriptors hold offsets as u32, so no region reaches beyond this.
MAX_REGION_SIZE = 1 << 32
#: Buffers start on a page of their own: no false sharing with the last ring, and VPP and DPDK do the same.
_ALIGNMENT = 4096
_CACHE_LINE = 64


def ring_bytes(log2_ring_size: int) -> int:
    """Bytes of a ring: its header and its descriptors."""
    return RING_HEADER_SIZE + (DESCRIPTOR_SIZE << log2_ring_size)


@dataclass(frozen=True, slots=True)
class RingLayout:
    """One ring: which way it carries, where it lies, and where the buffer of its first slot starts."""

    direction: Direction
    index: int
    region: int
    offset: int
    first_buffer: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything a slave creates: the size of each region, and the rings, S2M first.

    Slot ``i`` of a ring has its buffer at ``first_buffer + i * stride`` of region ``buffer_region``.
    """

    region_sizes: tuple[int, ...]
    buffer_region: int
    rings: tuple[RingLayout, ...]
    stride: int


def buffer_stride(buffer_size: int) -> int:
    """Bytes from one buffer to the next: whole cache lines, and an odd number of them.

    Buffers at multiples of 2048 bytes would put the headers of all packets into one set of 32 of a core's first-level
    cache, where they push each other out. Peers do not mind: a descriptor says where its buffer is.
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
    """Lay out rings and then buffers, in one region, or (``separate_buffers``) buffers in a region of their own.

    One region is the default: every peer accepts it.

    :raises ConfigError: if a region would be larger than a descriptor's offset can reach.
    """
    total = num_s2m_rings + num_m2s_rings
    rings_end = total * ring_bytes(log2_ring_size)
    # A region of their own is the application's: it is asked for as many bytes as libmemif asks for.
    stride = buffer_size if separate_buffers else buffer_stride(buffer_size)
    buffers = (total * stride) << log2_ring_size
    start = 0 if separate_buffers else _align(rings_end)
    if start + buffers > MAX_REGION_SIZE:
        raise ConfigError(
            f"{total} rings of 2^{log2_ring_size} buffers of {buffer_size} bytes need {start + buffers} bytes; "
            f"a region holds at most {MAX_REGION_SIZE}: fewer rings, a smaller ring or smaller buffers are needed"
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
