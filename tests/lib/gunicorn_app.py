"""The application and the hooks for :mod:`tests.system.test_gunicorn`: it answers with what its packet interface did.

``MEMIFRT_WHEN`` says when the interface is opened: in each worker after the fork, or in the master before it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

import memifrt.gevent
from memifrt import ForkedError

bind = os.environ.get("MEMIFRT_BIND", "")
SOCKET = os.environ.get("MEMIFRT_SOCKET", "")
_opened: list[memifrt.gevent.GeventInterface] = []


def _open() -> None:
    name = f"{SOCKET}-{os.getpid()}"
    runtime = memifrt.gevent.open_runtime()
    _opened[:] = [
        memifrt.gevent.open_interface(socket=name, role="master", runtime=runtime),
        memifrt.gevent.open_interface(socket=name, role="slave", runtime=runtime),
    ]


def post_fork(server: object, worker: object) -> None:
    if os.environ["MEMIFRT_WHEN"] == "post_fork":
        _open()


if os.environ.get("MEMIFRT_WHEN") == "before":
    _open()


def application(environment: dict[str, str], start_response: Callable[..., object]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environment["PATH_INFO"] == "/hang":
        end = time.monotonic() + 60
        while time.monotonic() < end:  # no other greenlet runs: the worker does not answer its master
            pass
    master, slave = _opened
    try:
        slave.wait_connected(10)
        slave.send([b"packet"])
        said = b"%d packets" % len(master.recv(timeout=10))
    except ForkedError as error:
        said = str(error).encode()
    return [b"%d: %s" % (os.getpid(), said)]
