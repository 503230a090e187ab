"""Ways in which one process can make a system call of another wait for ever, as an unprivileged peer could.

A page of a ``userfaultfd`` range that nobody fills stops the thread that touches it, and with it whatever lock that
thread holds in the kernel: the lock of a file's inode in ``write``, the lock of an epoll set in ``epoll_wait``.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import select
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from memifrt.system.original_functions import close, epoll
from tests.lib.support import DEADLINE
from tests.lib.threads import Event, Thread

_SYSCALL = {"x86_64": 323, "aarch64": 282}
_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def _missing_page() -> Iterator[tuple[int, Callable[[], None]]]:
    """Yield the address of a page that never comes, and a function that lets whoever waits for it go on."""
    number = _SYSCALL.get(platform.machine())
    # Faults in system calls are what is wanted: that takes root, or vm.unprivileged_userfaultfd=1.
    fd = -1 if number is None else _libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        pytest.skip(f"no userfaultfd here ({os.strerror(ctypes.get_errno())}): run as root")
    page = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    closed: list[int] = []

    def let_go() -> None:
        if not closed:
            closed.append(fd)
            close(fd)

    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("3Q", 0xAA, 0, 0)))
        fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(struct.pack("4Q", address, mmap.PAGESIZE, 1, 0)))
        yield address, let_go
    finally:
        let_go()


@contextmanager
def _blocked(call: Callable[[int], object], attempt: Callable[[], object]) -> Iterator[None]:
    """``call(address)`` runs in a thread and waits for the missing page until the block ends. It must hold what
    ``attempt()`` needs."""
    with _missing_page() as (address, let_go):
        threads = [Thread(target=call, args=(address,))]
        threads[0].start()
        # A system call of the test that waits for it would wait for ever: the test is then to fail, and not to hang.
        done = Event()
        rescue = Thread(target=lambda: done.wait(DEADLINE / 2) or let_go())
        rescue.start()
        try:
            deadline = time.monotonic() + DEADLINE
            while not threads[1:] or not threads[-1].is_alive():
                assert time.monotonic() < deadline, "the lock is not held"
                threads.append(Thread(target=attempt))
                threads[-1].start()
                threads[-1].join(0.05)
            yield
            assert threads[0].is_alive(), "a system call has waited for the lock"
        finally:
            done.set()
            rescue.join()
            let_go()
            for thread in threads:
                thread.join(DEADLINE)


@contextmanager
def locked_inode(fd: int) -> Iterator[None]:
    """Somebody writes into the file, from memory that never comes: whoever needs the inode's lock waits."""

    def write(address: int) -> None:
        other = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            _libc.pwrite(other, ctypes.c_void_p(address), ctypes.c_size_t(64), ctypes.c_long(2048))
        finally:
            close(other)

    # Sealing against nothing takes the lock, too.
    with _blocked(write, lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0)):
        yield


@contextmanager
def deaf_epoll_set(fd: int) -> Iterator[None]:
    """An epoll set that watches the file, and that somebody holds: whoever closes the file last waits."""
    with epoll() as poll_set:
        ready = os.eventfd(1, os.EFD_CLOEXEC)
        poll_set.register(ready, select.EPOLLIN)
        poll_set.register(fd, select.EPOLLIN)

        def wait(address: int) -> None:
            _libc.epoll_wait(poll_set.fileno(), ctypes.c_void_p(address), 2, -1)

        with _blocked(wait, lambda: poll_set.modify(ready, select.EPOLLIN)):
            yield
        close(ready)
