"""Regions and where rings and buffers lie in them: what is made, what is refused, and how long a mapping lives."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memifrt.errors import ConfigError, ErrorCode, MemifError, MemifOSError, ProtocolError
from memifrt.memory.layout import (
    DESCRIPTOR_SIZE,
    MAX_REGION_SIZE,
    RING_HEADER_SIZE,
    Layout,
    buffer_stride,
    plan,
    ring_bytes,
)
from memifrt.memory.region import ExternalRegion, Region, allocate_memfd
from memifrt.system.fds import OwnedFd
from memifrt.system.original_functions import close
from memifrt.types import Direction
from tests.lib.patched import open_fds
from tests.lib.support import interrupted_once

SIZE = 8192


def mapped() -> bool:
    """Whether any memory of a region is mapped."""
    return "memif region" in Path("/proc/self/maps").read_text()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def memfd(size: int, seals: int = 0) -> int:
    fd = os.memfd_create("memif region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


# --- layout ---------------------------------------------------------------------------------------------------------


def spans(layout: Layout, log2_size: int) -> list[tuple[int, int, int]]:
    """Region, start and end of every ring and of every ring's buffers."""
    rings = [(ring.region, ring.offset, ring.offset + ring_bytes(log2_size)) for ring in layout.rings]
    buffers = [
        (layout.buffer_region, ring.first_buffer, ring.first_buffer + (layout.stride << log2_size))
        for ring in layout.rings
    ]
    return rings + buffers


def test_a_ring_is_its_header_and_its_descriptors() -> None:
    assert (RING_HEADER_SIZE, DESCRIPTOR_SIZE) == (128, 16)
    assert ring_bytes(0) == 144
    assert ring_bytes(10) == 128 + 16 * 1024
    assert ring_bytes(14) == 128 + 16 * 16384


def test_the_defaults_lie_where_the_numbers_say() -> None:
    layout = plan(1, 1, 10, 2048)
    s2m, m2s = layout.rings
    assert (s2m.direction, s2m.index, s2m.region, s2m.offset) == (Direction.S2M, 0, 0, 0)
    assert (m2s.direction, m2s.index, m2s.region, m2s.offset) == (Direction.M2S, 0, 0, 16512)
    # The first page behind two rings of 16512 bytes; then 1024 buffers of 2048 bytes, 33 cache lines, for each ring.
    assert (layout.buffer_region, s2m.first_buffer, m2s.first_buffer) == (0, 36864, 36864 + 1024 * 2112)
    assert layout.region_sizes == (36864 + 2 * 1024 * 2112,)
    assert layout.stride == 2112


@pytest.mark.parametrize(
    ("buffer_size", "stride"), [(1, 64), (64, 64), (65, 192), (128, 192), (2048, 2112), (2112, 2112), (65535, 65600)]
)
def test_buffers_are_an_odd_number_of_cache_lines_apart(buffer_size: int, stride: int) -> None:
    assert buffer_stride(buffer_size) == stride


def test_separate_buffers_start_a_region_of_their_own() -> None:
    layout = plan(1, 1, 10, 2048, separate_buffers=True)
    assert layout.region_sizes == (36864, 2 * 1024 * 2048)
    assert layout.buffer_region == 1
    assert [ring.region for ring in layout.rings] == [0, 0]
    assert [ring.first_buffer for ring in layout.rings] == [0, 1024 * 2048]
    assert layout.stride == 2048


@given(
    s2m=st.integers(1, 255),
    m2s=st.integers(1, 255),
    log2_size=st.integers(0, 14),
    buffer_size=st.integers(1, 65535),
    separate=st.booleans(),
)
def test_rings_and_buffers_lie_in_order_and_do_not_overlap(
    s2m: int, m2s: int, log2_size: int, buffer_size: int, separate: bool
) -> None:
    try:
        layout = plan(s2m, m2s, log2_size, buffer_size, separate_buffers=separate)
    except ConfigError:
        stride = buffer_size if separate else buffer_stride(buffer_size)
        assert ((s2m + m2s) * (stride + DESCRIPTOR_SIZE) << log2_size) + (1 << 20) > MAX_REGION_SIZE
        return
    order = [(Direction.S2M, index) for index in range(s2m)] + [(Direction.M2S, index) for index in range(m2s)]
    assert [(ring.direction, ring.index) for ring in layout.rings] == order
    everything = spans(layout, log2_size)
    assert everything == sorted(everything)
    for (region, _, end), (next_region, start, _) in itertools.pairwise(everything):
        assert region < next_region or end <= start
    for region, start, end in everything:
        assert 0 <= start < end <= layout.region_sizes[region] <= MAX_REGION_SIZE
    # Buffers are assigned to slots in ring order, without gaps.
    first = layout.rings[0].first_buffer
    starts = [first + position * (layout.stride << log2_size) for position in range(s2m + m2s)]
    assert [ring.first_buffer for ring in layout.rings] == starts
    # The cookie and the flags are read as u32 and the indices as u16: none may straddle a boundary.
    assert all(ring.offset % 16 == 0 for ring in layout.rings)


def test_what_a_descriptor_cannot_reach_is_refused_with_its_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(255, 255, 14, 2048)
    words = str(caught.value)
    rings = 510 * ring_bytes(14)
    for number in (510, "2^14", 2048, rings + -rings % 4096 + 510 * 16384 * 2112, MAX_REGION_SIZE):
        assert str(number) in words
    assert caught.value.code is ErrorCode.INVAL_ARG


def test_what_a_descriptor_just_reaches_is_used() -> None:
    layout = plan(2, 2, 14, 65536, separate_buffers=True)
    assert layout.region_sizes[1] == MAX_REGION_SIZE
    with pytest.raises(ConfigError):
        plan(2, 2, 14, 65537, separate_buffers=True)
    with pytest.raises(ConfigError):
        plan(2, 3, 14, 65536, separate_buffers=True)


# --- regions of our own ---------------------------------------------------------------------------------------------


def test_a_new_region_is_zero_and_sealed_against_every_change_of_size() -> None:
    region = Region.create(0, SIZE)
    fd = region.fileno()
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    for size in (SIZE - 1, 0, SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert not os.get_inheritable(fd)
    assert (region.index, region.size, region.is_external) == (0, SIZE, False)
    assert bytes(region.memory) == bytes(SIZE)
    assert not region.memory.readonly
    region.close()


def test_the_peer_sees_what_is_written() -> None:
    ours = Region.create(0, SIZE)
    theirs = Region.accept(0, SIZE, OwnedFd(os.dup(ours.fileno()), "sent"), trusted=False)
    ours.memory[100:105] = b"hello"
    assert bytes(theirs.memory[100:105]) == b"hello"
    assert ctypes.string_at(theirs.address + 100, 5) == b"hello"
    ours.close()
    theirs.close()


def test_a_region_closes_once_and_forgets_its_memory() -> None:
    region = Region.create(0, SIZE)
    fd = region.fileno()
    region.close()
    region.close()
    assert not is_open(fd)
    assert region.fileno() == -1
    assert len(region.memory) == 0
    assert not mapped()


def test_a_mapping_lives_as_long_as_the_last_view_into_it() -> None:
    region = Region.create(0, SIZE)
    view = region.memory[4096:4104]
    inner = view[2:4]
    view[:] = b"the view"
    region.close()
    assert bytes(view) == b"the view"
    view[0] = ord("T")
    assert bytes(view) == b"The view"
    view.release()
    assert bytes(inner) == b"e "
    assert mapped()
    inner.release()
    assert not mapped()


def test_an_allocator_s_file_is_used_and_owned() -> None:
    sizes = []

    def allocator(size: int) -> int:
        sizes.append(size)
        return memfd(size + 4096)

    region = Region.create(3, SIZE, allocator)
    fd = region.fileno()
    assert sizes == [SIZE]
    assert len(region.memory) == SIZE
    region.close()
    assert not is_open(fd)


def test_an_allocator_s_file_that_is_too_small_is_refused_and_closed() -> None:
    given: list[int] = []

    def allocator(size: int) -> int:
        given.append(memfd(size - 1))
        return given[0]

    with pytest.raises(ConfigError, match=rf"a file of {SIZE - 1} bytes where {SIZE} were asked for"):
        Region.create(0, SIZE, allocator)
    assert not is_open(given[0])


def test_an_allocator_that_fails_keeps_its_errno() -> None:
    def allocator(size: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with pytest.raises(MemifOSError, match=rf"cannot allocate region 2 of {SIZE} bytes: .*\[ENOMEM\]") as caught:
        Region.create(2, SIZE, allocator)
    assert caught.value.code is ErrorCode.NOMEM
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("fd", [-1, 1 << 20])
def test_an_allocator_that_returns_no_fd_is_refused(fd: int) -> None:
    with pytest.raises(MemifOSError) as caught:
        Region.create(0, SIZE, lambda size: fd)
    assert caught.value.code is ErrorCode.BAD_FD


def test_an_allocator_s_file_that_cannot_be_mapped_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    given: list[int] = []

    def allocator(size: int) -> int:
        given.append(os.open(path, os.O_RDONLY))
        return given[0]

    with pytest.raises(MemifOSError, match=f"cannot map region 0 of {SIZE} bytes") as caught:
        Region.create(0, SIZE, allocator)
    assert caught.value.code is ErrorCode.ACCES
    assert not is_open(given[0])


def test_a_size_beyond_all_memory_is_an_error_and_leaves_nothing() -> None:
    with pytest.raises(MemifError) as caught:
        Region.create(0, 1 << 62)
    assert caught.value.code in (ErrorCode.NOMEM, ErrorCode.SYSCALL)
    assert "region 0" in str(caught.value)


# --- regions of a peer ----------------------------------------------------------------------------------------------


def refuse(fd: int, code: ErrorCode, words: str, *, size: int = SIZE, trusted: bool = True) -> None:
    """The fd is no region: it is refused with a reason, and closed."""
    with pytest.raises(ProtocolError, match=re.escape(words)) as caught:
        Region.accept(1, size, OwnedFd(fd, "sent"), trusted=trusted)
    assert caught.value.code is code
    assert not is_open(fd)
    assert not mapped()


def test_a_region_that_claims_more_than_its_file_is_refused() -> None:
    words = f"region 1 claims {SIZE + 1} bytes, but its file has {SIZE}"
    refuse(memfd(SIZE, fcntl.F_SEAL_SHRINK), ErrorCode.INVAL_ARG, words, size=SIZE + 1)


def test_a_region_may_be_a_part_of_its_file() -> None:
    region = Region.accept(0, SIZE - 1, OwnedFd(memfd(SIZE, fcntl.F_SEAL_SHRINK), "sent"), trusted=False)
    assert len(region.memory) == region.size == SIZE - 1
    region.close()


@pytest.mark.parametrize("size", [0, MAX_REGION_SIZE + 1, (1 << 64) - 1])
def test_a_region_of_an_impossible_size_is_refused(size: int) -> None:
    refuse(memfd(SIZE), ErrorCode.INVAL_ARG, f"region 1 has {size} bytes; a region has 1 to {1 << 32}", size=size)


@pytest.mark.parametrize("seals", [fcntl.F_SEAL_SEAL, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_GROW])
def test_memory_that_can_shrink_is_accepted_only_from_who_is_trusted(seals: int) -> None:
    words = "region 1 is not sealed against shrinking and the peer runs as another user"
    refuse(memfd(SIZE, seals), ErrorCode.NO_SHMFD, words, trusted=False)
    Region.accept(1, SIZE, OwnedFd(memfd(SIZE, seals), "sent"), trusted=True).close()


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_GROW])
def test_memory_that_its_peer_has_not_sealed_is_never_sealed_by_us(seals: int) -> None:
    """Adding a seal waits for the lock of the inode, which the peer may hold."""
    words = "region 1 is not sealed against shrinking and the peer runs as another user"
    refuse(memfd(SIZE, seals), ErrorCode.NO_SHMFD, words, trusted=False)
    fd = memfd(SIZE, seals)
    region = Region.accept(1, SIZE, OwnedFd(os.dup(fd), "sent"), trusted=True)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == seals
    region.close()
    os.close(fd)


def test_a_seal_against_shrinking_is_all_that_a_stranger_needs() -> None:
    Region.accept(1, SIZE, OwnedFd(memfd(SIZE, fcntl.F_SEAL_SHRINK), "sent"), trusted=False).close()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_file_on_a_disk_is_no_memory_whoever_sends_it(tmp_path: Path, trusted: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    refuse(os.open(path, os.O_RDWR), ErrorCode.NO_SHMFD, "is not a memory file", trusted=trusted)


@pytest.mark.parametrize("trusted", [True, False])
def test_huge_pages_are_accepted_only_from_who_is_trusted(monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    """Few machines have any: what tells them from other memory is made up."""
    with_huge_pages = os.statvfs_result((2 << 20, *os.statvfs("/")[1:]))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: with_huge_pages)
    sent = memfd(SIZE, fcntl.F_SEAL_SHRINK)
    if trusted:
        Region.accept(1, SIZE, OwnedFd(sent, "sent"), trusted=True).close()
    else:
        words = "region 1 has huge pages and the peer runs as another user"
        refuse(sent, ErrorCode.NO_SHMFD, words, trusted=False)


def test_memory_that_cannot_be_written_is_refused_and_closed() -> None:
    writable = memfd(SIZE)
    fd = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
    os.close(writable)
    with pytest.raises(MemifOSError, match=f"cannot map region 1 of {SIZE} bytes"):
        Region.accept(1, SIZE, OwnedFd(fd, "sent"), trusted=True)
    assert not is_open(fd)


def test_the_fd_of_a_region_is_closed_after_its_mapping() -> None:
    """Else the pages would be freed by the thread that unmaps them, however many they are."""
    region = Region.accept(0, SIZE, Watched(memfd(SIZE, fcntl.F_SEAL_SHRINK), "sent"), trusted=True)
    region.close()
    assert Watched.was_mapped is False


class Watched(OwnedFd):
    was_mapped: bool | None = None

    def close(self) -> None:
        type(self).was_mapped = mapped()
        super().close()


def _socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def _pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: os.open("/dev/zero", os.O_RDWR), id="device"),
        pytest.param(lambda: os.open("/", os.O_RDONLY), id="directory"),
        pytest.param(lambda: os.eventfd(0), id="eventfd"),
        pytest.param(_pipe, id="pipe"),
        pytest.param(_socket, id="socket"),
    ],
)
@pytest.mark.parametrize("trusted", [True, False])
def test_an_fd_that_is_no_memory_is_refused(make: Callable[[], int], trusted: bool) -> None:
    refuse(make(), ErrorCode.NO_SHMFD, "region 1 came with an fd that is not a memory file", trusted=trusted)


# --- the application's own memory -----------------------------------------------------------------------------------


@dataclass
class Owner:
    """An application with memory of its own, which notes what it is asked for."""

    #: Bytes that it gives beyond what is asked.
    extra: int = 0
    readonly: bool = False
    calls: list[tuple[str, int]] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)

    def region(self) -> ExternalRegion:
        return ExternalRegion(self.add, self.map, self.delete)

    def add(self, size: int) -> tuple[int, memoryview]:
        self.calls.append(("add", size))
        fd = allocate_memfd(size + self.extra)
        self.fds.append(fd)
        return fd, self._view(fd, size + self.extra)

    def map(self, size: int, fd: int) -> memoryview:
        self.calls.append(("map", size))
        return self._view(fd, size + self.extra)

    def delete(self, memory: memoryview, size: int, fd: int) -> None:
        self.calls.append(("delete", size))
        assert is_open(fd)

    def _view(self, fd: int, size: int) -> memoryview:
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ if self.readonly else mmap.ACCESS_WRITE))

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def test_an_external_region_is_added_used_and_given_back() -> None:
    owner = Owner(extra=4096)
    region = Region.create_external(1, SIZE, owner.region())
    assert region.is_external
    assert (len(region.memory), region.size) == (SIZE, SIZE)
    assert region.fileno() not in owner.fds  # the application's own number stays the application's
    assert os.path.sameopenfile(region.fileno(), owner.fds[0])
    region.memory[:4] = b"ours"
    region.close()
    region.close()
    assert owner.calls == [("add", SIZE), ("delete", SIZE)]
    assert os.pread(owner.fds[0], 4, 0) == b"ours"
    owner.close()


def test_an_external_region_may_be_of_any_shape() -> None:
    owner = Owner()
    external = owner.region()

    def add(size: int) -> tuple[int, memoryview]:
        fd, memory = owner.add(size)
        return fd, memory.cast("B", (size // 64, 64))

    region = Region.create_external(1, SIZE, ExternalRegion(add, external.map))
    assert (region.memory.ndim, region.memory.format, len(region.memory)) == (1, "B", SIZE)
    region.close()
    owner.close()


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (Owner(extra=-1), f"file has {SIZE - 1} bytes where {SIZE} were asked for"),
        (
            Owner(readonly=True),
            f"memory has {SIZE} bytes and is read-only; {SIZE} writable, contiguous bytes are needed",
        ),
    ],
    ids=["short", "read-only"],
)
def test_external_memory_that_will_not_do_is_refused_and_given_back(owner: Owner, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Region.create_external(1, SIZE, owner.region())
    assert owner.calls == [("add", SIZE), ("delete", SIZE)]
    owner.close()


def test_a_received_region_is_mapped_by_the_application() -> None:
    owner = Owner()
    sent = memfd(SIZE, fcntl.F_SEAL_SHRINK)
    region = Region.accept(1, SIZE, OwnedFd(sent, "sent"), trusted=False, external=owner.region())
    assert region.is_external
    assert owner.calls == [("map", SIZE)]
    region.memory[:4] = b"ours"
    assert os.pread(sent, 4, 0) == b"ours"
    region.close()
    assert owner.calls == [("map", SIZE), ("delete", SIZE)]
    assert not is_open(sent)


def test_region_0_is_never_external() -> None:
    owner = Owner()
    sent = memfd(SIZE, fcntl.F_SEAL_SHRINK)
    region = Region.accept(0, SIZE, OwnedFd(sent, "sent"), trusted=False, external=owner.region())
    assert not region.is_external
    region.close()
    assert owner.calls == []


def test_what_a_peer_sends_is_checked_before_the_application_sees_it() -> None:
    owner = Owner()
    with pytest.raises(ProtocolError):
        Region.accept(1, SIZE, OwnedFd(memfd(SIZE - 1), "sent"), trusted=True, external=owner.region())
    assert owner.calls == []


@pytest.mark.parametrize("owner", [Owner(extra=-1), Owner(readonly=True)], ids=["short", "read-only"])
def test_a_mapping_that_will_not_do_is_refused_and_given_back(owner: Owner) -> None:
    sent = memfd(SIZE, fcntl.F_SEAL_SHRINK)
    with pytest.raises(ConfigError, match=f"the external mapping of region 1 is not {SIZE} writable bytes"):
        Region.accept(1, SIZE, OwnedFd(sent, "sent"), trusted=False, external=owner.region())
    assert owner.calls == [("map", SIZE), ("delete", SIZE)]
    assert not is_open(sent)


def test_an_application_that_fails_to_map_leaves_no_fd_behind() -> None:
    def fail(size: int, fd: int) -> memoryview:
        raise RuntimeError("no room")

    sent = memfd(SIZE, fcntl.F_SEAL_SHRINK)
    external = ExternalRegion(Owner().add, fail)
    with pytest.raises(RuntimeError, match="no room"):
        Region.accept(1, SIZE, OwnedFd(sent, "sent"), trusted=False, external=external)
    assert not is_open(sent)


def test_an_application_that_fails_to_let_go_leaves_no_fd_behind() -> None:
    def fail(memory: memoryview, size: int, fd: int) -> None:
        raise RuntimeError("not now")

    owner = Owner()
    region = Region.create_external(1, SIZE, ExternalRegion(owner.add, owner.map, fail))
    fd = region.fileno()
    with pytest.raises(RuntimeError, match="not now"):
        region.close()
    assert not is_open(fd)
    assert len(region.memory) == 0
    owner.close()


def test_an_interrupted_creation_of_a_region_leaves_no_fd(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    monkeypatch.setattr(os, "fstat", interrupted_once(os.fstat))
    with pytest.raises(KeyboardInterrupt):
        Region.create(0, 4096)
    assert open_fds() == before


@pytest.mark.parametrize("returned", [None, "/dev/zero", 1.0])
def test_an_allocator_that_returns_no_fd_is_told_so(returned: Any) -> None:
    with pytest.raises(ConfigError, match="it must return the number of an fd"):
        Region.create(0, 4096, lambda size: returned)


def test_an_allocator_that_returns_a_closed_fd_is_told_so() -> None:
    number = os.dup(0)
    close(number)  # at once: gevent's os.close may close it later
    with pytest.raises(MemifError, match="cannot allocate region 0 of 4096 bytes") as caught:
        Region.create(0, 4096, lambda size: number)
    assert caught.value.code is ErrorCode.BAD_FD
