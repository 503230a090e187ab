"""A region of shared memory: created and sealed by a slave, checked and mapped by a master.

Owns memfds, seals, mappings, and the rule that decides which unsealed memory is acceptable (docs/protocol.md, rule 2).
Knows nothing of rings.

A slave seals its own memory. A master never seals a peer's memory, because F_ADD_SEALS takes the lock of the file's
inode, which the peer can hold forever. It guards unsealed memory of a trusted peer instead (:mod:`.sigbus`).
"""

from __future__ import annotations

import contextlib
import fcntl
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
from memifrt.system.forks import call_after_fork, keep_for_ever
from memifrt.system.original_functions import close

if TYPE_CHECKING:
    from memifrt.memory.sigbus import Guard, HangUp


def allocate_memfd(size: int) -> int:
    """Create a memfd of ``size`` bytes that can neither shrink nor grow: the default :data:`RegionAllocator`.

    :returns: the fd, which the caller owns.
    :raises OSError: the system refuses.
    """
    fd = os.memfd_create("memif region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # The peer maps the file, too. Without the seals each side could truncate it, and the other would get a SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class ExternalRegion:
    """The application's own shared memory for the buffers, used for region 1 and above, never for region 0.

    - ``add(size)`` (slave) returns ``(fd, memory)``: a file and its writable mapping, each of at least ``size`` bytes.
      The application owns the fd; memifrt duplicates it.
    - ``map(size, fd)`` (master) returns a mapping of a region that a peer sent. memifrt owns that fd and closes it.
    - ``delete(memory, size, fd)`` is called when memifrt no longer uses the region, with the fd of ``add`` or ``map``.
    - ``next_buffer_offset()`` (optional) returns the offset of the next slot's buffer in bytes. Without it, buffers lie
      one after the other.
    """

    add: Callable[[int], tuple[int, memoryview]]
    map: Callable[[int, int], memoryview]
    delete: Callable[[memoryview, int, int], None] | None = None
    next_buffer_offset: Callable[[], int] | None = None


class Region:
    """One mapped region.

    ``memory`` is the whole region as a writable memoryview. ``close`` closes the fd and drops this view. The mapping
    exists until the last view into it is dropped.

    If the file of an unsealed region is truncated, the mapping reads as zeros from then on, :attr:`lost` is True, and
    the channel of the ``hang_up`` argument is shut down (:mod:`memifrt.memory.sigbus`).
    """

    __slots__ = ("_delete", "_fd", "_guard", "index", "is_external", "memory", "size")

    def __init__(self, index: int, fd: OwnedFd, memory: memoryview, size: int, *, external: bool = False) -> None:
        # Imported here because its Python form needs ctypes. Not only in abandon(): a forked child should not import
        # modules.
        import memifrt.memory.sigbus  # noqa: F401

        self.index = index
        self.size = size
        self.is_external = external
        self.memory = memory
        self._fd = fd
        self._delete: Callable[[memoryview, int, int], None] | None = None
        self._guard: Guard | None = None

    def fileno(self) -> int:
        """Return the fd of the region's file, or -1 after the close."""
        return self._fd.fileno()

    @property
    def address(self) -> int:
        """The address of the mapping in this process."""
        return _address_of(self.memory)

    @property
    def lost(self) -> bool:
        """Whether the file was truncated and a page was missed. May be asked in any thread."""
        guard = self._guard
        return guard is not None and guard.lost

    def close(self) -> None:
        """Close the fd and drop the region's own view. A second call does nothing.

        :raises BaseException: the ``delete`` callback of an external region raised it. The region is closed.
        """
        if self._fd.closed:
            return
        if self._guard is not None and self.is_external:  # other mappings are guarded until they are unmapped
            self._guard.release()
        try:
            if self._delete is not None:
                self._delete(self.memory, self.size, self._fd.fileno())
        finally:
            # Unmap before the close. The last reference to the file frees its pages; an fd can be closed in a thread.
            self.memory = memoryview(b"")
            self._fd.close()

    def abandon(self) -> None:
        """Make the mapping private in a forked child, so that no code in the child can write to the parent's memory.

        An external region stays as it is, because its mapping is the application's.
        """
        if not self.is_external and not self._fd.closed:
            from memifrt.memory.sigbus import make_private

            make_private(self.address, self.size, self._fd.fileno())

    @classmethod
    def create(
        cls, index: int, size: int, allocator: RegionAllocator = allocate_memfd, hang_up: HangUp | None = None
    ) -> Region:
        """Create a region of ``size`` bytes for a slave.

        :raises MemifOSError: the allocator or the mapping failed.
        :raises ConfigError: the allocator returned a file that is too small, or no fd.
        """
        failure = f"cannot allocate region {index} of {size} bytes"
        try:
            number = allocator(size)
        except OSError as error:
            raise os_error(failure, error) from error
        if not isinstance(number, int):
            raise ConfigError(f"the region allocator returned {number!r}; it must return the number of an fd")
        fd = OwnedFd(number, f"memory of region {index}")  # at once: a KeyboardInterrupt can come in any call below
        try:
            try:
                held = os.fstat(number).st_size
            except OSError as error:
                fd.detach()  # it is not open
                raise os_error(failure, error) from error
            if held < size:
                raise ConfigError(f"the region allocator returned a file of {held} bytes where {size} were asked for")
            _seal_own(fd)
            region = cls(index, fd, _map(fd, size, index), size)
            region._watch(hang_up)
            return region
        except BaseException:
            fd.close()
            raise

    @classmethod
    def create_external(cls, index: int, size: int, external: ExternalRegion, hang_up: HangUp | None = None) -> Region:
        """Create a region for a slave from the application's own memory.

        :raises MemifOSError: the fd of ``external.add`` cannot be duplicated.
        :raises ConfigError: the file or its mapping is too small, or the mapping is read-only or not contiguous.
        """
        number, memory = external.add(size)
        try:
            fd = OwnedFd(os.dup(number), f"memory of external region {index}")
        except OSError as error:
            if external.delete is not None:
                external.delete(memory, size, number)
            raise os_error(f"cannot share external region {index}", error) from error
        region = cls(index, fd, memory, size, external=True)
        delete = external.delete
        if delete is not None:  # with the application's fd instead of our duplicate: delete may close it
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
        region._watch(hang_up)
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
        hang_up: HangUp | None = None,
    ) -> Region:
        """Check and map a region that a peer sent, for a master. The region owns the fd; an error closes it.

        :param size: the size in bytes that the peer claims.
        :param trusted: whether to accept a file that the peer can truncate, and huge pages.
        :raises ProtocolError: ``NO_SHMFD``: the fd is not a memory file, or the peer is not trusted and the file is not
            sealed or has huge pages; ``INVAL_ARG``: the file is smaller than ``size``, or ``size`` is out of range.
        :raises ConfigError: the mapping of ``external.map`` is too small or read-only.
        :raises MemifError: the file cannot be mapped.
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
                region._watch(hang_up)
                return region
            region = cls(index, fd, _map(fd, size, index), size)
            region._watch(hang_up)
            return region
        except BaseException:
            fd.close()
            raise

    def _watch(self, hang_up: HangUp | None) -> None:
        """Guard the mapping, unless its pages cannot be lost.

        The guard of an application's own mapping ends with the region. Any other mapping is guarded until it is
        unmapped.
        """
        if hang_up is None or _is_lasting(self._fd):
            return
        from memifrt.memory.sigbus import Guard

        self._guard = Guard(self.address, self.size, _block(self._fd), hang_up)
        mapping = self.memory.obj
        if isinstance(mapping, _Mapping):
            mapping.guard = self._guard


class _Mapping(mmap.mmap):
    """A mapping that is guarded until it is unmapped, because a burst can still read it after its region is closed."""

    guard: Guard | None = None

    def __del__(self) -> None:
        if self.guard is not None:
            self.guard.release()


def _check_received(index: int, size: int, fd: OwnedFd, trusted: bool) -> None:
    if not 0 < size <= MAX_REGION_SIZE:
        raise ProtocolError(
            ErrorCode.INVAL_ARG, f"region {index} has {size} bytes; a region has 1 to {MAX_REGION_SIZE}"
        )
    # Nothing here may wait for the peer. Reading the seals takes no lock, and works only for memory of the kernel
    # (memfd, tmpfs, hugetlbfs). Only then it is safe to ask the file system more: a FUSE file could block us.
    # Read the seals before the size: an unsealed file can shrink between the two calls.
    seals = _read_seals(fd)
    if seals is None:
        raise ProtocolError(ErrorCode.NO_SHMFD, f"region {index} came with an fd that is not a memory file")
    if not seals & fcntl.F_SEAL_SHRINK and not trusted:
        raise ProtocolError(
            ErrorCode.NO_SHMFD,
            f"region {index} is not sealed against shrinking and the peer runs as another user",
        )
    # Mapping huge pages waits for the inode's lock, and meanwhile no other thread of this process can map memory.
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
    """Return whether no page of a mapping of the file can be lost."""
    # Huge pages are scarce: after a hole was punched the kernel may have none left to fill it, even in a sealed file.
    return bool((_read_seals(fd) or 0) & fcntl.F_SEAL_SHRINK) and _block(fd) <= mmap.PAGESIZE


def _read_seals(fd: OwnedFd) -> int | None:
    """Return the seals of the file, or None if this kind of file has none. Takes no lock."""
    try:
        return fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS)
    except OSError:
        return None


def _seal_own(fd: OwnedFd) -> None:
    """Seal a file of this process against shrinking, if the file allows that."""
    with contextlib.suppress(OSError):  # EPERM: no more seals may be added; EINVAL: this kind of file has no seals
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def _block(fd: OwnedFd) -> int:
    """Return the page size of the file in bytes, which is that of huge pages if it has them."""
    return os.fstat(fd.fileno()).st_blksize


def _map(fd: OwnedFd, size: int, index: int) -> memoryview:
    """Map the file."""
    try:
        mapping = _Mapping(fd.fileno(), size)
        call_after_fork(mapping, keep_for_ever)  # it has a copy of the fd
        return memoryview(mapping)
    except OSError as error:
        raise os_error(f"cannot map region {index} of {size} bytes", error) from error
    except (ValueError, OverflowError) as error:
        raise MemifError(ErrorCode.NOMEM, f"cannot map region {index} of {size} bytes: {error}") from error


def _address_of(memory: memoryview) -> int:
    from memifrt.memory.sigbus import address_of

    return address_of(memory)


def _flat(memory: memoryview) -> memoryview:
    return memory if memory.format == "B" and memory.ndim == 1 else memory.cast("B")
