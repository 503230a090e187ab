"""Functions and classes of the standard library, without the monkey-patching of gevent and eventlet.

Owns the list of originals, and finds them whether ``monkey.patch_all()`` or ``eventlet.monkey_patch()`` ran before this
import or runs after it. The core imports every function and class that they replace from here. It never waits on a
lock or a socket, so it needs no cooperative versions: a queue must work in any thread, and an fd must be closed when
``close()`` returns. Also says whether a process is patched, and gives other greenlets a turn in one that is. This
module never imports gevent or eventlet.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

__all__ = [
    "ORIGINALS",
    "Lock",
    "RLock",
    "close",
    "epoll",
    "is_patched",
    "let_greenlets_run",
    "open_fd",
    "poll",
    "read",
    "set_wakeup_fd",
    "socket",
    "start_new_thread",
    "threads_are_patched",
]

#: Every original, as module and name in the standard library. RLock is ``_thread``'s, because the one of ``threading``
#: may be made of patched locks.
ORIGINALS = {
    "Lock": ("_thread", "allocate_lock"),
    "RLock": ("_thread", "RLock"),
    "close": ("os", "close"),  # gevent's (25.8.1 and later) closes only in a later turn of its hub
    "epoll": ("select", "epoll"),  # patching removes it
    "open_fd": ("os", "open"),
    "poll": ("select", "poll"),
    "read": ("os", "read"),  # eventlet's waits instead of raising BlockingIOError
    "set_wakeup_fd": ("_signal", "set_wakeup_fd"),
    "socket": ("socket", "socket"),
    "start_new_thread": ("_thread", "start_new_thread"),
}


def is_patched(module: str = "select") -> bool:
    """Return whether gevent has replaced the blocking calls of a module with cooperative ones."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def threads_are_patched() -> bool:
    """Return whether gevent or eventlet makes each new thread a greenlet."""
    patcher = sys.modules.get("eventlet.patcher")
    return is_patched("threading") or (patcher is not None and bool(patcher.is_monkey_patched("thread")))


def let_greenlets_run() -> None:
    """Let others run where a thread is a greenlet: one that never waits would block them all. Elsewhere do nothing."""
    if threads_are_patched():
        time.sleep(0)  # theirs: it switches to another greenlet


def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched(module):
        return monkey.get_original(module, name)
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None:
        # eventlet keeps an unpatched copy of the module.
        return getattr(patcher.original(module), name)
    return getattr(importlib.import_module(module), name)


if TYPE_CHECKING:
    from _thread import RLock, start_new_thread
    from os import close, read
    from os import open as open_fd
    from select import epoll, poll
    from signal import set_wakeup_fd
    from socket import socket
    from threading import Lock
else:
    globals().update({name: _original(*where) for name, where in ORIGINALS.items()})
