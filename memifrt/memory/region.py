"""A region of shared memory: created and sealed by a slave, checked and mapped by a master.

Owns memfds, seals, mappings and the rule of whose unsealed memory is acceptable (protocol notes, section 4, rule 2).
Knows nothing of rings.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from memifrt.errors import ConfigError, ErrorCode, MemifError, ProtocolError, os_error
from memifrt.fds import OwnedFd
from memifrt.memory.layout import MAX_REGION_SIZE

#: Called with a size in bytes; returns an fd of a file at least that large, which memifrt then owns.
RegionAllocator = Callable[[int], int]


def allocate_memfd(size: int) -> int:
    """The default :data:`RegionAllocator`: a memfd that can neither shrink nor grow."""
    fd = os.memfd_create("memif region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # The peer maps this too: without the seals either of us could turn the other's next read into SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class ExternalRegion:
    """The application's own shared memory for the buffers: region 1 and above; region 0 never is external.

    ``add(size)`` (slave) returns ``(fd, memory)``: a file and its writable mapping, each of at least ``size`` bytes.
    ``map(size, fd)`` (master) maps a region that a peer sent; the fd stays memifrt's. ``delete(memory, size, fd)``
    is told when memifrt is done with either. ``next_buffer_offset()`` (optional) gives the offset of the buffer of
    each next slot; without it buffers lie one after the other.
    """

    add: Callable[[int], tuple[int, memoryview]]
    map: Callable[[int, int], memoryview]
    delete: Callable[[memoryview, int, int], None] | None = None
    next_buffer_offset: Callable[[], int] | None = None


class Region:
    """One mapped region.

    ``memory`` is the whole region as a writable memoryview. ``close`` gives up the fd and our own view; the mapping
    itself goes with the last view that anybody holds.
    """

    __slots__ = ("_delete", "_fd", "index", "is_external", "memory", "size")

    def __init__(self, index: int, fd: OwnedFd, memory: memoryview, size: int, *, external: bool = False) -> None:
        self.index = index
        self.size = size
        self.is_external = external
        self.memory = memory
        self._fd = fd
        self._delete: Callable[[memoryview, int, int], None] | None = None

    def fileno(self) -> int:
        return self._fd.fileno()

    @property
    def address(self) -> int:
        """The address of the mapping in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def close(self) -> None:
        if self._fd.closed:
            return
        try:
            if self._delete is not None:
                self._delete(self.memory, self.size, self._fd.fileno())
        finally:
            self._fd.close()
            self.memory = memoryview(b"")

    @classmethod
    def create(cls, index: int, size: int, allocator: RegionAllocator = allocate_memfd) -> Region:
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
            return cls(index, fd, _map(fd, size, index), size)
        except BaseException:
            fd.close()
            raise

    @classmethod
    def create_external(cls, index: int, size: int, external: ExternalRegion) -> Region:
        """A region of the application's own, for a slave."""
        number, memory = external.add(size)
        fd = OwnedFd(os.dup(number), f"memory of external region {index}")
        region = cls(index, fd, memory, size, external=True)
        region._delete = external.delete
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
        return region

    @classmethod
    def accept(
        cls, index: int, size: int, fd: OwnedFd, *, trusted: bool, external: ExternalRegion | None = None
    ) -> Region:
        """A region that a peer sent, checked and mapped, for a master. It takes the fd, and closes it on an error.

        :param trusted: whether the peer may keep the power to shrink the file under us.
        :raises ProtocolError: ``NO_SHMFD`` if the fd is no memory or an unsealed one of a peer that is not trusted,
            ``INVAL_ARG`` if the size is not that of the file.
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
                return region
            return cls(index, fd, _map(fd, size, index), size)
        except BaseException:
            fd.close()
            raise


def _check_received(index: int, size: int, fd: OwnedFd, trusted: bool) -> None:
    if not 0 < size <= MAX_REGION_SIZE:
        raise ProtocolError(
            ErrorCode.INVAL_ARG, f"region {index} has {size} bytes; a region has 1 to {MAX_REGION_SIZE}"
        )
    # The seal before the size: what can still shrink now may have shrunk when it is sealed.
    sealed = _is_sealed(fd)
    status = os.fstat(fd.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError(ErrorCode.NO_SHMFD, f"region {index} came with an fd that is not a memory file")
    if status.st_size < size:
        raise ProtocolError(
            ErrorCode.INVAL_ARG, f"region {index} claims {size} bytes, but its file has {status.st_size}"
        )
    if not trusted and not sealed:
        raise ProtocolError(
            ErrorCode.NO_SHMFD,
            f"region {index} is not sealed against shrinking and the peer runs as another user",
        )


def _is_sealed(fd: OwnedFd) -> bool:
    try:
        return bool(fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # EINVAL: a file that knows no seals
        return False


def _map(fd: OwnedFd, size: int, index: int) -> memoryview:
    try:
        return memoryview(mmap.mmap(fd.fileno(), size))
    except OSError as error:
        raise os_error(f"cannot map region {index} of {size} bytes", error) from error
    except (ValueError, OverflowError) as error:
        raise MemifError(ErrorCode.NOMEM, f"cannot map region {index} of {size} bytes: {error}") from error


def _flat(memory: memoryview) -> memoryview:
    return memory if memory.format == "B" and memory.ndim == 1 else memory.cast("B")
