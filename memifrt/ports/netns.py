"""To open something in another network namespace.

Owns the way there and back. What is opened there stays there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from memifrt.errors import os_error

_CLONE_NEWNET = 0x40000000
#: Where ``ip netns add`` puts them.
_FOLDER = "/run/netns"
_OWN = "/proc/thread-self/ns/net"


@contextlib.contextmanager
def network_namespace(name: str) -> Iterator[None]:
    """This thread in the namespace of this name, or of this path if there is a ``/`` in it; an empty name is ours.

    Where the thread is in that namespace already, nothing is entered, which would need a capability.

    :raises MemifOSError: there is none, or we must not enter it.
    """
    if not name:
        yield
        return
    path = name if "/" in name else f"{_FOLDER}/{name}"
    with _opened(_OWN) as home:
        try:
            with _opened(path) as there:
                elsewhere = not os.path.samestat(os.fstat(home), os.fstat(there))
                if elsewhere:
                    _enter(there)
        except OSError as error:
            hint = "" if "/" in name else " (ip netns list shows them)"
            raise os_error(f"cannot enter network namespace {name}{hint}", error, path=path) from error
        try:
            yield
        finally:
            if elsewhere:
                _enter(home)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _enter(fd: int) -> None:
    # os.setns came with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
