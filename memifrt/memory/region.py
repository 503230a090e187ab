"""A region of shared memory: created and sealed by a slave, checked and mapped by a master.

Owns memfds, seals, mappings and the rule of whose unsealed memory is acceptable (docs/protocol.md, rule 2).
Knows nothing of rings.

Our own memory is sealed. What a peer sent is never sealed by us: adding a seal waits for the lock of the file's inode,
which the peer can hold for as long as it likes. Unsealed memory of a trusted peer is guarded instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError, ErrorCode, MemifError, ProtocolError, os_error
from memifrt.memory.layout import MAX_REGION_SIZE
from memifrt.options import RegionAllocator
from memifrt.system.fds import OwnedFd
from memifrt.system.original_functions import close

if TYPE_CHECKING:
    from memifrt.memory.sigbus import Guard

#: Called with the index of a region whose file was truncated under us.
OnLoss = Callable[[int], object]


def allocate_memfd(size: int) -> int:
    """The default :data:`RegionAllocator`: a memfd that can neither shrink nor grow."""
    fd = os.memfd_create("memif region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # The peer maps this too: without the seals either of us could turn the other's next read into SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class ExternalRegion:
    """The application's own shared memory for the buffers: region 1 and above; region 0 never is external.

    ``add(size)`` (slave) returns ``(fd, memory)``: a file and its writable mapping, each of at least ``size`` bytes.
    The fd stays the application's: memifrt duplicates it and never closes it. ``map(size, fd)`` (master) maps a region
    that a peer sent; that fd is memifrt's, which closes it. ``delete(memory, size, fd)`` is called when memifrt is
    done with the region, with the fd that ``add`` returned or that ``map`` was given. ``next_buffer_offset()``
    (optional) gives the offset of the buffer of each next slot; without it buffers lie one after the other.
    """

    add: Callable[[int], tuple[int, memoryview]]
    map: Callable[[int, int], memoryview]
    delete: Callable[[memoryview, int, int], None] | None = None
    next_buffer_offset: Callable[[], int] | None = None


class Region:
    """One mapped region.

    ``memory`` is the whole region as a writable memoryview. ``close`` gives up the fd and our own view; the mapping
    itself goes with the last view that anybody holds.

    ``on_loss(index)`` is told when memory that cannot be sealed is gone, because somebody has truncated its file: zeros
    are in its place. It is called in the middle of whatever touched that memory, and may do no more than a
    :class:`~memifrt.memory.sigbus.Guard` allows.
    """

    __slots__ = ("_delete", "_fd", "_guard", "index", "is_external", "memory", "size")

    def __init__(self, index: int, fd: OwnedFd, memory: memoryview, size: int, *, external: bool = False) -> None:
        # Imported here because it needs ctypes, and before abandon() does: a forked child should import nothing new.
        import memifrt.memory.sigbus  # noqa: F401

        self.index = index
        self.size = size
        self.is_external = external
        self.memory = memory
        self._fd = fd
        self._delete: Callable[[memoryview, int, int], None] | None = None
        self._guard: Guard | None = None

    def fileno(self) -> int:
        return self._fd.fileno()

    @property
    def address(self) -> int:
        """The address of the mapping in this process."""
        return _address_of(self.memory)

    def close(self) -> None:
        if self._fd.closed:
            return
        if self._guard is not None:
            self._guard.release()
        try:
            if self._delete is not None:
                self._delete(self.memory, self.size, self._fd.fileno())
        finally:
            self.memory = memoryview(b"")  # before the fd: who gives up the file last frees its pages
            self._fd.close()

    def abandon(self) -> None:
        """In a forked child: let no write reach the parent's memory, whatever copy of its code still runs here.

        An external region is the application's own mapping, and stays as it is.
        """
        if not self.is_external and not self._fd.closed:
            from memifrt.memory.sigbus import make_private

            make_private(self.address, self.size, self._fd.fileno())

    @classmethod
    def create(
        cls, index: int, size: int, allocator: RegionAllocator = allocate_memfd, on_loss: OnLoss | None = None
    ) -> Region:
        """A new region of ``size`` bytes, for a slave."""
        try:
            number = allocator(size)
            held = os.fstat(number).st_size
        except OSError as error:
            raise os_error(f"cannot allocate region {index} of {size} bytes", error) from error
        fd = OwnedFd(number, f"memory of region {index}")
        try:
            if held < size:
                raise ConfigError(f"the region allocator returned a file of {held} bytes where {size} were asked for")
            _seal_own(fd)
            return cls(index, fd, _map(fd, size, index, None if _is_lasting(fd) else on_loss), size)
        except BaseException:
            fd.close()
            raise

    @classmethod
    def create_external(cls, index: int, size: int, external: ExternalRegion, on_loss: OnLoss | None = None) -> Region:
        """A region of the application's own, for a slave."""
        number, memory = external.add(size)
        try:
            fd = OwnedFd(os.dup(number), f"memory of external region {index}")
        except OSError as error:
            if external.delete is not None:
                external.delete(memory, size, number)
            raise os_error(f"cannot share external region {index}", error) from error
        region = cls(index, fd, memory, size, external=True)
        delete = external.delete
        if delete is not None:  # with the application's own fd, not our duplicate: it may close it there
            region._delete = lambda memory, size, _: delete(memory, size, number)
        held = os.fstat(number).st_size
        if held < size:
            region.close()
            raise ConfigError(f"the external region's file has {held} bytes where {size} were asked for")
        if memory.readonly or memory.nbytes < size or not memory.c_contiguous:
            region.close()
            raise ConfigError(
                f"the external region's memory has {memory.nbytes} bytes{' and is read-only' * memory.readonly}; "
                f"{size} writable, contiguous bytes are needed"
            )
        region.memory = _flat(memory)[:size]
        _seal_own(fd)
        region._watch(on_loss)
        return region

    @classmethod
    def accept(
        cls,
        index: int,
        size: int,
        fd: OwnedFd,
        *,
        trusted: bool,
        external: ExternalRegion | None = None,
        on_loss: OnLoss | None = None,
    ) -> Region:
        """A region that a peer sent, checked and mapped, for a master. It takes the fd, and closes it on an error.

        :param trusted: whether the peer may keep the power to shrink the file under us, where we cannot take it away.
        :raises ProtocolError: ``NO_SHMFD`` if the fd is no memory, or if it is not sealed, or has huge pages, and the
            peer is not trusted; ``INVAL_ARG`` if the size is not that of the file.
        """
        try:
            _check_received(index, size, fd, trusted)
            if external is not None and index > 0:
                memory = external.map(size, fd.fileno())
                region = cls(index, fd, _flat(memory)[:size], size, external=True)
                region._delete = external.delete
                if region.memory.nbytes < size or memory.readonly:
                    region.close()
                    raise ConfigError(f"the external mapping of region {index} is not {size} writable bytes")
                region._watch(on_loss)
                return region
            return cls(index, fd, _map(fd, size, index, None if _is_lasting(fd) else on_loss), size)
        except BaseException:
            fd.close()
            raise

    def _watch(self, on_loss: OnLoss | None) -> None:
        """Guard the application's own mapping, for as long as we use it."""
        if on_loss is not None and not _is_lasting(self._fd):
            self._guard = _guard(self.memory, self.size, self._fd, functools.partial(on_loss, self.index))


class _Mapping(mmap.mmap):
    """A mapping that is guarded as long as it exists: a burst that is still held reads it after its region's end."""

    guard: Guard | None = None

    def __del__(self) -> None:
        if self.guard is not None:
            self.guard.release()


def _check_received(index: int, size: int, fd: OwnedFd, trusted: bool) -> None:
    if not 0 < size <= MAX_REGION_SIZE:
        raise ProtocolError(
            ErrorCode.INVAL_ARG, f"region {index} has {size} bytes; a region has 1 to {MAX_REGION_SIZE}"
        )
    # Nothing here may wait for the peer. Reading the seals takes no lock, and tells whether the file is one of the
    # kernel's own memory (memfd, tmpfs, hugetlbfs): only then its file system, which is not the peer's, is asked more.
    # The seals before the size: what can still shrink may shrink at once.
    seals = _read_seals(fd)
    if seals is None:
        raise ProtocolError(ErrorCode.NO_SHMFD, f"region {index} came with an fd that is not a memory file")
    if not seals & fcntl.F_SEAL_SHRINK and not trusted:
        raise ProtocolError(
            ErrorCode.NO_SHMFD,
            f"region {index} is not sealed against shrinking and the peer runs as another user",
        )
    # Mapping huge pages takes the lock of the inode, while no other thread of this process can map memory.
    if not trusted and os.fstatvfs(fd.fileno()).f_bsize > mmap.PAGESIZE:
        raise ProtocolError(ErrorCode.NO_SHMFD, f"region {index} has huge pages and the peer runs as another user")
    status = os.fstat(fd.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError(ErrorCode.NO_SHMFD, f"region {index} came with an fd that is not a memory file")
    if status.st_size < size:
        raise ProtocolError(
            ErrorCode.INVAL_ARG, f"region {index} claims {size} bytes, but its file has {status.st_size}"
        )


def _is_lasting(fd: OwnedFd) -> bool:
    """Whether every page of a mapping of the file is there for good."""
    # Huge pages are few: one that is given up by punching a hole may not come back, sealed or not.
    return bool((_read_seals(fd) or 0) & fcntl.F_SEAL_SHRINK) and _block(fd) <= mmap.PAGESIZE


def _read_seals(fd: OwnedFd) -> int | None:
    """Return the seals of the file, None if it is of a kind that knows none. Takes no lock."""
    try:
        return fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS)
    except OSError:
        return None


def _seal_own(fd: OwnedFd) -> None:
    """Seal a file of ours, or of the application, against shrinking, if it allows that."""
    with contextlib.suppress(OSError):  # EPERM: the seals are sealed; EINVAL: a file that knows no seals
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def _block(fd: OwnedFd) -> int:
    """Bytes of one page of the file: those of a huge page where it has such."""
    return os.fstat(fd.fileno()).st_blksize


def _map(fd: OwnedFd, size: int, index: int, on_loss: OnLoss | None = None) -> memoryview:
    """The mapping, guarded if somebody is to be told of its loss."""
    try:
        mapping = _Mapping(fd.fileno(), size)
    except OSError as error:
        raise os_error(f"cannot map region {index} of {size} bytes", error) from error
    except (ValueError, OverflowError) as error:
        raise MemifError(ErrorCode.NOMEM, f"cannot map region {index} of {size} bytes: {error}") from error
    memory = memoryview(mapping)
    if on_loss is not None:
        mapping.guard = _guard(memory, size, fd, functools.partial(on_loss, index))
    return memory


def _guard(memory: memoryview, size: int, fd: OwnedFd, on_loss: Callable[[], object]) -> Guard:
    """Guard the mapping ``memory`` of a file from now on."""
    from memifrt.memory.sigbus import Guard

    return Guard(_address_of(memory), size, _block(fd), on_loss)


def _address_of(memory: memoryview) -> int:
    """Return the address of a writable mapping in this process."""
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _flat(memory: memoryview) -> memoryview:
    return memory if memory.format == "B" and memory.ndim == 1 else memory.cast("B")
