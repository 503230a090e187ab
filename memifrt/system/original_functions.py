"""The standard library as it is underneath gevent's monkey-patching.

Owns the choice of the real thing where ``monkey.patch_all()`` puts another, whether it came before this import or comes
after it. What memifrt does under a lock or on a socket never waits, so it has no use for a hub: a queue must work in
any thread, and a connection must close at once. Never imports gevent by itself.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__all__ = ["Lock", "RLock", "epoll", "is_patched", "poll", "socket", "start_new_thread"]


def is_patched() -> bool:
    """Whether gevent has replaced the blocking calls of this process with cooperative ones."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("select"))


def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(importlib.import_module(module), name)


if TYPE_CHECKING:
    from _thread import start_new_thread
    from select import epoll, poll
    from socket import socket
    from threading import Lock, RLock
else:
    epoll = _original("select", "epoll")  # which patching removes
    poll = _original("select", "poll")
    socket = _original("socket", "socket")
    Lock = _original("threading", "Lock")
    RLock = _original("_thread", "RLock")  # that of threading is made of locks that are patched
    start_new_thread = _original("_thread", "start_new_thread")
