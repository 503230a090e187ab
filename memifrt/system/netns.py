"""Network namespaces: to enter one for a moment, or to have something made in one.

Owns the way there and back. What is made there stays there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from memifrt.errors import os_error
from memifrt.system.original_functions import Lock, close, open_fd, start_new_thread

_T = TypeVar("_T")

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
    path = namespace_path(name)
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


def namespace_path(name: str) -> str:
    """Return the file of a namespace: of a path, of ``pid:N`` (a process's), or of a name that ``ip netns`` knows."""
    if "/" in name:
        return name
    if name.startswith("pid:"):
        return f"/proc/{name[4:]}/ns/net"
    return f"{_FOLDER}/{name}"


def call_in_namespace(name: str, function: Callable[[], _T]) -> _T:
    """Call a function in a network namespace and return its result.

    It runs in a thread of its own, which ends with it: the caller's thread never leaves its namespace, so there is no
    way back that could fail.

    :raises MemifOSError: there is no such namespace, or this process must not enter it.
    :raises BaseException: what the function raised.
    """
    results: list[_T] = []
    failures: list[BaseException] = []
    done = Lock()
    done.acquire()

    def run() -> None:
        try:
            with network_namespace(name):
                results.append(function())
        except BaseException as error:
            failures.append(error)
        finally:
            done.release()

    start_new_thread(run, ())
    done.acquire()
    if failures:
        raise failures[0]
    return results[0]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = open_fd(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        close(fd)


def _enter(fd: int) -> None:
    # os.setns came with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
