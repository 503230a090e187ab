"""The guards of memory that a peer may truncate, in Python: for installations without the compiled ones.

Owns the process's SIGBUS handler while a guard exists. Knows nothing of regions or peers.

The handler is a Python function that ctypes calls on the thread that touched the page, in the middle of a copy, so it
does as little as possible. It relies on the GIL: all code that changes the guards or forgets an fd holds the GIL, and
so does the handler from its first line to its last.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal

from memifrt.errors import os_error
from memifrt.system.original_functions import Lock

_SA_SIGINFO = 4
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value
_PAGE = mmap.PAGESIZE


class _SigInfo(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_int),
        ("errno", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_void_p),
    )


class _SigAction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * (128 // ctypes.sizeof(ctypes.c_ulong))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


# PyDLL keeps the GIL during the call. The interrupted code may hold the GIL, so the handler must not release it.
_libc = ctypes.PyDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_SHUT_RD = 0

_lock = Lock()
#: Never changed in place, always replaced, because the handler may read it at any time.
_guards: tuple[Guard, ...] = ()
#: Guards that are released, but still in ``_guards``. The thread that holds the lock removes them.
_leaving: list[Guard] = []
_previous = _SigAction()


class HangUp:
    """The channel to shut down when guarded memory is lost. It is left alone after :meth:`forget`.

    :param fd: a connected socket. Its owner calls :meth:`forget` before it closes the fd.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()

    def forget(self) -> None:
        """Forget the fd. No guard shuts it down after this returns."""
        self._fd = -1

    def shut_down(self) -> None:
        """Shut down the reading side, in the handler. In a forked child the channel is the parent's."""
        # The loop wakes up, and the control thread can still send the reason.
        if self._fd >= 0 and self._pid == os.getpid():
            _libc.shutdown(self._fd, _SHUT_RD)


class Guard:
    """Protects one writable mapping until it is released.

    :param address: the address of the mapping.
    :param size: its size in bytes, as it was mapped.
    :param block: the page size of the file in bytes, which differs from the system's for huge pages.
    :param hang_up: the channel to shut down when memory is lost, which wakes the control thread.
    :raises MemifOSError: the handler cannot be installed.
    """

    def __init__(self, address: int, size: int, block: int, hang_up: HangUp | None = None) -> None:
        self.start = address
        self.end = address + size
        self._block = block
        self._hang_up = hang_up
        #: Whether a page of the memory was lost. It is set before zeros are in its place.
        self.lost = False
        _enlist(self)

    def release(self) -> None:
        """Stop protecting the mapping. A second call does nothing."""
        _dismiss(self)

    def replace(self) -> bool:
        """Map zeros over the mapping. Called in the handler. Return whether the kernel did it."""
        first, self.lost = not self.lost, True
        # A mapping of huge pages can only be replaced as a whole, and the kernel has rounded its size up.
        for page in (_PAGE, max(_PAGE, self._block)):
            span = -(-(self.end - self.start) // page) * page
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            if _mmap(self.start, span, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != _MAP_FAILED:
                break
        else:
            return False
        if first and self._hang_up is not None:
            self._hang_up.shut_down()
        return True


def make_private(address: int, size: int, fd: int) -> bool:
    """Replace a shared mapping by a private one of the same file. Return whether the kernel did it.

    Reads give the same bytes as before; writes stay in this process. Views into the old mapping stay valid.
    """
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    return bool(_mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) != _MAP_FAILED)


def address_of(memory: memoryview) -> int:
    """Return the address of a writable mapping in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _on_sigbus(number: int, info: ctypes._Pointer[_SigInfo], context: int | None) -> None:
    code, address = info.contents.code, info.contents.address or 0
    with contextlib.suppress(BaseException):  # no caller could catch it
        if code > 0:  # a fault, not a signal sent with kill()
            for guard in _guards:
                if guard.start <= address < guard.end and guard.replace():
                    return
    # Install the earlier handler again. A fault repeats when this returns, and then reaches that handler.
    _libc.sigaction(signal.SIGBUS, ctypes.byref(_previous), None)
    if code <= 0:
        os.kill(os.getpid(), signal.SIGBUS)


_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_SigInfo), ctypes.c_void_p)(_on_sigbus)
_OURS = ctypes.cast(_callback, ctypes.c_void_p).value


def _enlist(guard: Guard) -> None:
    global _guards
    try:
        with _lock:
            if not _guards:
                action = _SigAction(handler=_OURS, flags=_SA_SIGINFO)
                if _libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(_previous)) < 0:
                    number = ctypes.get_errno()
                    raise os_error("cannot guard memory that may be truncated", OSError(number, os.strerror(number)))
            _guards = (*_guards, guard)
    finally:
        _settle()


def _dismiss(guard: Guard) -> None:
    # Never wait for the lock here: the garbage collector may call this while the same thread holds it. The holder
    # calls _settle after it has released the lock.
    _leaving.append(guard)
    _settle()


def _settle() -> None:
    """Remove the released guards, unless another caller holds the lock and will do it."""
    while _leaving and _lock.acquire(blocking=False):
        try:
            _remove([_leaving.pop() for _ in range(len(_leaving))])
        finally:
            _lock.release()


def _remove(gone: list[Guard]) -> None:
    """Remove guards, and after the last one the handler. The caller holds the lock."""
    global _guards
    left = tuple(guard for guard in _guards if guard not in gone)
    if len(left) == len(_guards):
        return
    _guards = left
    current = _SigAction()
    if left or _libc.sigaction(signal.SIGBUS, None, ctypes.byref(current)) < 0:
        return
    if current.handler == _OURS:  # otherwise a later handler is installed, which may call ours: leave it
        _libc.sigaction(signal.SIGBUS, ctypes.byref(_previous), None)


def _renew_lock() -> None:
    """Replace the lock in a forked child: a thread of the parent may have held it."""
    global _lock
    _lock = Lock()


os.register_at_fork(after_in_child=_renew_lock)
