"""Memory that its peer takes away while we use it: the SIGBUS becomes zeros and a call, instead of our end.

Owns the process's SIGBUS handler while a guard exists. Knows nothing of regions or peers.

A file that somebody else can truncate leaves pages in our mapping that nothing is behind, and touching one of them is
a SIGBUS. The handler puts anonymous memory in the place of the whole mapping and returns: what was interrupted goes on
and reads zeros. It runs on the thread that touched the page, in the middle of a copy, so it does as little as it can.
A SIGBUS from anywhere else meets whatever handled it before.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
from collections.abc import Callable

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


# PyDLL: the lock of the interpreter is kept over the call, for it is kept by what the signal interrupted.
_libc = ctypes.PyDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)

_lock = Lock()
#: Replaced as a whole: the handler may look at any time.
_guards: tuple[Guard, ...] = ()
#: Released, and still among them: for whoever has the lock.
_leaving: list[Guard] = []
_previous = _SigAction()


class Guard:
    """Watches one writable mapping from now on, until it is released.

    :param address: of the mapping.
    :param size: in bytes, as it was mapped.
    :param block: bytes of one page of the file, where that is not the system's (huge pages).
    :param on_loss: called once, in the handler: it may make system calls, and must take no lock.
    :raises MemifOSError: the handler cannot be installed.
    """

    def __init__(self, address: int, size: int, block: int, on_loss: Callable[[], object]) -> None:
        self.start = address
        self.end = address + size
        self._block = block
        self._on_loss = on_loss
        #: Whether the memory is gone, and zeros are in its place.
        self.lost = False
        _enlist(self)

    def release(self) -> None:
        """Watch no more. Twice is harmless."""
        _dismiss(self)

    def replace(self) -> bool:
        """In the handler: put zeros in the place of the mapping."""
        # A mapping of huge pages cannot be replaced in part, and the kernel has rounded its size up to them.
        for page in (_PAGE, max(_PAGE, self._block)):
            span = -(-(self.end - self.start) // page) * page
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            if _mmap(self.start, span, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != _MAP_FAILED:
                break
        else:
            return False
        if not self.lost:
            self.lost = True
            self._on_loss()
        return True


def make_private(address: int, size: int, fd: int) -> bool:
    """Put a private mapping of the same file in the place of a shared one; whether the kernel agreed.

    What is read is as before, and what is written stays in this process. Views into the old mapping stay valid.
    """
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    return bool(_mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) != _MAP_FAILED)


def _on_sigbus(number: int, info: ctypes._Pointer[_SigInfo], context: int | None) -> None:
    code, address = info.contents.code, info.contents.address or 0
    with contextlib.suppress(BaseException):  # there is nobody to raise it to
        if code > 0:  # a fault, and not somebody's kill()
            for guard in _guards:
                if guard.start <= address < guard.end and guard.replace():
                    return
    _libc.sigaction(signal.SIGBUS, ctypes.byref(_previous), None)  # a fault comes again, and meets the earlier handler
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
    # A mapping that is garbage comes here in the middle of anything, even of the lines that hold the lock: to wait for
    # it would be for ever. Who holds it looks again when it is free.
    _leaving.append(guard)
    _settle()


def _settle() -> None:
    while _leaving and _lock.acquire(blocking=False):
        try:
            _strike([_leaving.pop() for _ in range(len(_leaving))])
        finally:
            _lock.release()


def _strike(gone: list[Guard]) -> None:
    """Holding the lock: forget these guards, and with the last of all the handler."""
    global _guards
    left = tuple(guard for guard in _guards if guard not in gone)
    if len(left) == len(_guards):
        return
    _guards = left
    current = _SigAction()
    if left or _libc.sigaction(signal.SIGBUS, None, ctypes.byref(current)) < 0:
        return
    if current.handler == _OURS:  # else somebody has come after us, and goes back to us
        _libc.sigaction(signal.SIGBUS, ctypes.byref(_previous), None)


def _renew_lock() -> None:
    """Another thread of the parent may have held it."""
    global _lock
    _lock = Lock()


os.register_at_fork(after_in_child=_renew_lock)
