"""The standard library as it is underneath the monkey-patching of gevent and eventlet.

Owns the choice of the original where ``monkey.patch_all()`` or ``eventlet.monkey_patch()`` puts another function,
whether it came before this import or comes after it. What memifrt does under a lock or on a socket never waits, so it
has no use for a hub: a queue must work in any thread, and an fd must be closed when ``close()`` returns. Never imports
gevent or eventlet by itself.

The core takes every function and class that either of them replaces from here.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__all__ = [
    "ORIGINALS",
    "Lock",
    "RLock",
    "close",
    "epoll",
    "is_patched",
    "open_fd",
    "poll",
    "read",
    "socket",
    "start_new_thread",
]

#: Every original, as module and name in the standard library. RLock is not that of ``threading``, which is made of
#: locks that are patched.
ORIGINALS = {
    "Lock": ("_thread", "allocate_lock"),
    "RLock": ("_thread", "RLock"),
    "close": ("os", "close"),  # gevent from 25.8.1 on closes later, when its hub has gone round
    "epoll": ("select", "epoll"),  # which patching removes
    "open_fd": ("os", "open"),
    "poll": ("select", "poll"),
    "read": ("os", "read"),  # eventlet's waits where the original raises BlockingIOError
    "socket": ("socket", "socket"),
    "start_new_thread": ("_thread", "start_new_thread"),
}


def is_patched(module: str = "select") -> bool:
    """Whether gevent has replaced the blocking calls of this module with cooperative ones."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def threads_are_patched() -> bool:
    """Whether a new thread is a greenlet, of gevent or of eventlet."""
    patcher = sys.modules.get("eventlet.patcher")
    return is_patched("threading") or (patcher is not None and bool(patcher.is_monkey_patched("thread")))


def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched(module):
        return monkey.get_original(module, name)
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None:
        # Its own copy of the module, without any patch.
        return getattr(patcher.original(module), name)
    return getattr(importlib.import_module(module), name)


if TYPE_CHECKING:
    from _thread import RLock, start_new_thread
    from os import close, read
    from os import open as open_fd
    from select import epoll, poll
    from socket import socket
    from threading import Lock
else:
    globals().update({name: _original(*where) for name, where in ORIGINALS.items()})
