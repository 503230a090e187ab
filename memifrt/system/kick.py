"""Kick an eventfd without any risk to block: the kernel increments the counter, not a write.

Owns this process's context for asynchronous I/O. Knows nothing of memif.

A write to an eventfd in blocking mode waits while the counter is full. The peer shares the open file: it can fill the
counter and clear O_NONBLOCK between our check and our write, and eventfd writes do not support RWF_NOWAIT. Instead we
submit an asynchronous operation with ``aio_resfd`` (io_submit(2)). When it completes, the kernel increments the eventfd
without waiting, and leaves a full counter as it is. The operation is a read of 0 bytes from the eventfd, which fails at
once and consumes nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from memifrt.system.original_functions import close

#: Numbers of io_setup, io_getevents and io_submit, which the C library does not wrap.
_SYSCALLS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}
_PREAD = 0
_RESFD = 1
#: Room for completions. A kick that finds no room collects them first.
_SLOTS = 512
_EVENT_SIZE = 32
#: Errors of io_setup that may go away, so that a later call tries again.
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
    """The context and its system calls. They keep the GIL, because none of them waits."""

    def __init__(self) -> None:
        """Create a context.

        :raises OSError: the system refuses, or the machine is unknown.
        """
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
        # Converted once, because the conversion takes most of the time of a kick beside the system call.
        self.submit = (submit, number, ctypes.c_long(1))
        self._collect = (getevents, number, ctypes.c_long(0), ctypes.c_long(_SLOTS), self._collected, None)

    def run(self, arguments: tuple[object, ...]) -> bool:
        """Submit one operation. Return whether the kernel accepted it."""
        if self._call(*arguments) == 1:
            return True
        self._call(*self._collect)
        return bool(self._call(*arguments) == 1)


class Kick:
    """A callable that makes an eventfd readable.

    It returns False if the kernel rejected the operation. The caller then falls back to a write.
    """

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
    """Return a kick for this eventfd, or None if this system has none that cannot block."""
    global _context, _refused
    if _context is None and not _refused:
        try:
            _context = _create_working_context()
        except OSError as error:
            _refused = error.errno not in _FOR_NOW
    return Kick(fd, _context) if _context is not None else None


def _create_working_context() -> _Context:
    """Create a context and test it with one kick, because not every kernel accepts an eventfd here.

    :raises OSError: the system has no working context.
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
    """Forget the context in a forked child: the kernel does not pass it on."""
    global _context
    _context = None


os.register_at_fork(after_in_child=_forget)
