"""What tests know of gevent's patches, under which ``make test-patched`` runs them."""

from __future__ import annotations

import importlib
import os
import selectors

import pytest

from memifrt.system import original_functions

#: Whether the blocking calls of this process are gevent's: the tests were started with ``python -m gevent.monkey``.
PATCHED = original_functions.is_patched("socket")


def settle() -> None:
    """Let gevent do what it has put off: its ``os.close``, which the tests call, closes when its hub has gone round."""
    if PATCHED:
        importlib.import_module("gevent").idle()


def open_fds() -> set[int]:
    """Return the fds that are open in this process."""
    settle()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        if os.path.lexists(f"/proc/self/fd/{name}"):  # not the fd of the listing itself
            found.add(int(name))
    return found


def fork() -> int:
    """Fork as the test's process does. gevent's ``os.fork`` watches the child, which only its default loop can."""
    if PATCHED and not importlib.import_module("gevent").get_hub().loop.default:
        return int(importlib.import_module("gevent.os").fork_gevent())
    return os.fork()


def open_what_gevent_keeps() -> None:
    """Let gevent open the fds that it opens once and keeps, so that no test takes them for its own."""
    if PATCHED:
        importlib.import_module("gevent").get_hub().threadpool.apply(int)
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)
        settle()


#: For a test with a thread that never waits.
needs_threads = pytest.mark.skipif(
    PATCHED, reason="under gevent's patches its thread is a greenlet that never waits: no other would run"
)
#: Every kind of selector that polls on Linux. gevent's patches remove the one over epoll.
SELECTORS: list[type[selectors.BaseSelector]] = [
    getattr(selectors, name) for name in ("EpollSelector", "PollSelector", "SelectSelector") if hasattr(selectors, name)
]
