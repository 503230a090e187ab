"""The tests in a process that gevent has patched: ``make test-patched``."""

from __future__ import annotations

import sys

import pytest


def _is_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


PATCHED = _is_patched()

#: For a test with a thread that never waits: as a greenlet it would let nobody else run.
needs_threads = pytest.mark.skipif(PATCHED, reason="gevent has made its threads greenlets, and one of them never waits")


def let_patched_closes_happen() -> None:
    """Let the hub go round: a patched ``os.close``, and a patched socket's, closes there."""
    if PATCHED:
        import gevent

        gevent.sleep(0)
        gevent.sleep(0)
