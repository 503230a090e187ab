"""A kick that cannot block: an eventfd counted up by the kernel, not by a write of ours.

Owns the asynchronous I/O context of this process that it takes. Knows nothing of memif.

A write to an eventfd waits while the counter is full, if the file is in blocking mode. The peer shares the open file:
it can fill the counter and clear O_NONBLOCK between any check of ours and the write, and a write knows no RWF_NOWAIT.
What the kernel itself adds when an asynchronous operation completes (``aio_resfd`` of io_submit(2)) waits for nothing,
and leaves a full counter full. The operation is a read of no bytes from the eventfd: it fails at once, takes nothing,
and its completion is all that is wanted of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from memifrt.system.original_functions import close

#: io_setup, io_getevents and io_submit, which the C library does not wrap.
_SYSCALLS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}
_PREAD = 0
_RESFD = 1
#: Completions that wait to be collected; who finds no room collects them.
_SLOTS = 512
_EVENT_SIZE = 32
#: Why there may be no context now, and one later.
_FOR_NOW = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


class _Operation(ctypes.Structure):
    """The kernel's ``struct iocb``, little-endian (linux/aio_abi.h)."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    )


class _Context:
    """The context, and its system calls. The GIL is kept in them: none of them waits."""

    def __init__(self) -> None:
        """:raises OSError: the system has none to give."""
        numbers = _SYSCALLS.get(os.uname().machine)
        if numbers is None or sys.maxsize < 1 << 32:
            raise OSError(errno.ENOSYS, f"the numbers of io_setup's family are not known for {os.uname().machine}")
        setup, getevents, submit = map(ctypes.c_long, numbers)
        number = ctypes.c_ulong(0)
        if ctypes.CDLL(None, use_errno=True).syscall(setup, ctypes.c_long(_SLOTS), ctypes.byref(number)):
            raise OSError(ctypes.get_errno(), "io_setup has failed")
        self._call = ctypes.PyDLL(None).syscall
        self._call.restype = ctypes.c_long
        self._collected = ctypes.create_string_buffer(_SLOTS * _EVENT_SIZE)
        # Arguments made once: this is most of what a kick costs beyond its system call.
        self.submit = (submit, number, ctypes.c_long(1))
        self._collect = (getevents, number, ctypes.c_long(0), ctypes.c_long(_SLOTS), self._collected, None)

    def run(self, arguments: tuple[object, ...]) -> bool:
        """Submit one operation; whether it was accepted."""
        if self._call(*arguments) == 1:
            return True
        self._call(*self._collect)
        return bool(self._call(*arguments) == 1)


class Kick:
    """Calling it makes an eventfd readable; False: the kernel refuses, and a write must do."""

    __slots__ = ("_arguments", "_context", "_operation")

    def __init__(self, fd: int, context: _Context) -> None:
        self._context = context
        self._operation = _Operation(opcode=_PREAD, fd=fd, flags=_RESFD, resfd=fd)
        self._arguments = (*context.submit, (ctypes.c_void_p * 1)(ctypes.addressof(self._operation)))

    def __call__(self) -> bool:
        return self._context.run(self._arguments)


_context: _Context | None = None
_refused = False


def kick_for(fd: int) -> Kick | None:
    """A way to kick this eventfd, None if the system offers none that cannot block."""
    global _context, _refused
    if _context is None and not _refused:
        try:
            _context = _tried_context()
        except OSError as error:
            _refused = error.errno not in _FOR_NOW
    return Kick(fd, _context) if _context is not None else None


def _tried_context() -> _Context:
    """A context that works. Kernels differ in what they make of an eventfd here: one kick tells.

    :raises OSError: there is none.
    """
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        context = _Context()
        if not Kick(fd, context)() or os.eventfd_read(fd) != 1:
            raise OSError(errno.EOPNOTSUPP, "a completed operation does not reach the eventfd")
    finally:
        close(fd)
    return context


def _forget() -> None:
    """A forked child has no part in its parent's context."""
    global _context
    _context = None


os.register_at_fork(after_in_child=_forget)
