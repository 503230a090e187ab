"""Fixtures for every test, and the check that none leaves anything behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memifrt import Runtime
from memifrt.ring import load
from memifrt.system.eventfd import PythonCalls
from tests.lib.exploring import choose_profile
from tests.lib.patched import open_fds, open_what_gevent_keeps
from tests.lib.support import Pair, connect, wait_for_closes

choose_profile()
# A run that was started with SIGINT ignored (nohup, or "&" in a script) would hand that on to every program that a test
# ends by Ctrl+C. It goes into each worker and program from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

open_what_gevent_keeps()

#: Modules whose every test runs on both ring implementations. The rings' own tests do so by themselves.
_ON_BOTH_RINGS = {
    "test_interface",
    "test_rekick",
    "test_libmemif",
    "test_smoke",
    "test_testpmd",
    "test_wakeups",
    "test_forward_from",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = any(mark.args[0] == "rings" for mark in metafunc.definition.iter_markers("parametrize"))
    if metafunc.module.__name__.rpartition(".")[2] in _ON_BOTH_RINGS and not chosen:
        metafunc.parametrize("rings", ["native", "python"], indirect=True)


def pytest_collection_finish() -> None:
    """Keep the tests themselves out of every later collection of garbage: there are thousands of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def rings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring implementation under a test that asks for one, in this process and in those that it starts."""
    name = getattr(request, "param", None)
    if name is not None:
        implementation = load(name)
        for user in ("memifrt.connection.shared_memory", "memifrt.libmemif.buffers"):
            monkeypatch.setattr(f"{user}.implementation", implementation)
        monkeypatch.setenv("MEMIFRT_RING", name)


@pytest.fixture
def readable_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eventfds without compiled calls: a compiled queue calls ``EventFd.notify`` and ``drain``, which take patches."""
    monkeypatch.setattr("memifrt.system.fds.calls_for", PythonCalls)


def _fds() -> dict[int, str]:
    found = {}
    for fd in open_fds():
        with contextlib.suppress(FileNotFoundError):  # a thread has closed it meanwhile
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def _threads() -> set[threading.Thread]:
    """Every thread but those that ``threading`` did not start: it keeps a dummy of them after their end."""
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


def _mappings() -> list[str]:
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "memif region" in line]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test: the same fds and threads as before, no mapping of a region, no socket file."""
    threads = _threads()
    fds = _fds()
    yield
    # Only then: a collection takes longer than most tests. What a cycle of garbage keeps open is open until it runs.
    wait_for_closes()
    if _fds().keys() - fds.keys() or _mappings():
        gc.collect()
        wait_for_closes()
    # matplotlib on Python 3.10 keeps the files of fonts that it has used.
    left = {fd: what for fd, what in _fds().items() if fd not in fds and "/mpl-data/fonts/" not in what}
    assert not left, f"open fds: {left}"
    assert not _threads() - threads
    assert not _mappings()
    path = request.node.funcargs.get("tmp_path")
    if path is not None:
        sockets = [file for file in Path(path).rglob("*") if stat.S_ISSOCK(file.lstat().st_mode)]
        assert not sockets, f"socket files: {sockets}"


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A runtime in internal mode, closed afterwards. Slaves retry fast."""
    with Runtime("test", reconnect_interval=0.02) as runtime:
        yield runtime


@pytest.fixture
def peer_runtime() -> Iterator[Runtime]:
    """A second one, for the other end."""
    with Runtime("peer", reconnect_interval=0.02) as runtime:
        yield runtime


@pytest.fixture
def socket_name() -> str:
    """An abstract socket of this test's own."""
    return f"@memifrt-test-{uuid.uuid4().hex}"


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    """A path for a socket file, short enough for an address."""
    return str(tmp_path / "memif.sock")


@pytest.fixture
def make_pair(runtime: Runtime, peer_runtime: Runtime, socket_name: str) -> Callable[..., Pair]:
    """``make_pair(**options)``: a master and a slave, connected, each with a runtime of its own."""

    def make(**options: Any) -> Pair:
        return connect(runtime, peer_runtime, socket_name, **options)

    return make
