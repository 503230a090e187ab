"""Enter a network namespace for a moment, or call a function in one.

Owns entering a namespace and coming back. A socket or device that is created in a namespace stays in it. Knows nothing
of memif.
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
#: The directory in which ``ip netns add`` creates namespaces.
_FOLDER = "/run/netns"
_OWN = "/proc/thread-self/ns/net"


@contextlib.contextmanager
def network_namespace(name: str) -> Iterator[None]:
    """Run the block with this thread in a network namespace.

    If the thread is in that namespace already, no capability is needed.

    :param name: see :func:`namespace_path`; empty: stay in the present namespace.
    :raises MemifOSError: there is no such namespace, or this process must not enter it.
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
    """Return the file of a namespace.

    :param name: a path (with a ``/``), ``pid:N`` for the namespace of a process, or a name that ``ip netns`` lists.
    """
    if "/" in name:
        return name
    if name.startswith("pid:"):
        return f"/proc/{name[4:]}/ns/net"
    return f"{_FOLDER}/{name}"


def call_in_namespace(name: str, function: Callable[[], _T]) -> _T:
    """Call a function in a network namespace and return its result.

    The function runs in a new thread. The caller's thread never leaves its namespace, so returning cannot fail.

    :param name: see :func:`namespace_path`.
    :raises MemifOSError: there is no such namespace, or this process must not enter it.
    :raises BaseException: the function raised it.
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
    # os.setns exists only from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
