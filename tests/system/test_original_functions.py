"""The core uses no function that gevent or eventlet replaces, but those from ``memifrt.system.original_functions``."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import memifrt
from memifrt.system.original_functions import ORIGINALS

_PATCH = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
_CHANGED = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
names = "os select socket threading _thread time signal subprocess queue selectors ssl".split()
before = {name: dict(vars(importlib.import_module(name))) for name in names}
exec(sys.argv[1])
print(json.dumps([
    [name, key] for name, there in before.items() for key, value in there.items()
    if vars(sys.modules[name]).get(key) is not value
]))
"""
_CORE = """__init__ errors interface options packets/* queue/* rekick runtime sockets types system/* connection/*
control/* memory/* ring/* stats/server stats/snapshot stats/prometheus stats/http_server stats/web
poll/acceptor poll/epoll poll/hook poll/schedule poll/trio"""
#: Types that are only looked at, and functions that wait for nobody. Of signals, gevent replaces SIGCHLD's alone.
_HARMLESS = {("socket", "socket"), ("threading", "current_thread"), ("signal", "signal"), ("signal", "getsignal")}


def require(library: str) -> None:
    """Skip without the library. It is not imported here: eventlet's import changes how this process may fork."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed (pip install -e '.[dev]')")


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("library", _PATCH)
def test_the_core_uses_nothing_that_is_patched(library: str) -> None:
    require(library)
    patched = {(module, name) for module, name in json.loads(run(_CHANGED, _PATCH[library]))}
    assert patched  # else the test looks at nothing
    home = Path(memifrt.__file__).parent
    files = {pattern: list(home.glob(f"{pattern}.py")) for pattern in _CORE.split()}
    assert all(files.values())
    for file in {*itertools.chain.from_iterable(files.values())} - {home / "system" / "original_functions.py"}:
        tree = ast.parse(file.read_text())
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if not alias.asname
        }
        used = {
            (node.value.id, node.attr)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported
        } | {
            (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        assert (file.name, sorted((used & patched) - _HARMLESS)) == (file.name, [])


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("library", _PATCH)
def test_the_originals_are_those_of_an_unpatched_process(library: str, order: str) -> None:
    require(library)
    steps = [_PATCH[library], "from memifrt.system import original_functions"]
    program = "; ".join(steps if order == "before" else steps[::-1])
    shown = run(f"{program}; o = original_functions\nfor n in o.ORIGINALS: print(n, getattr(o, n).__module__)")
    homes = dict(line.split() for line in shown.splitlines())
    expected = {"os": "posix"}
    assert homes == {name: expected.get(module, module) for name, (module, _) in ORIGINALS.items()}


_EXCHANGE = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
exec(sys.argv[1])
import memifrt

def open_fds():
    # Not libffi, which ctypes loads: since 3.5 it keeps its own library open.
    fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [what for fd in fds if os.path.islink(fd) and "/libffi." not in (what := os.readlink(fd))]

fds = len(open_fds())
with memifrt.Runtime("one") as runtime:
    master, slave = (runtime.create_interface(socket=sys.argv[2], role=role) for role in ("master", "slave"))
    while not (master.connected and slave.connected):
        runtime.poll_event(0)
    slave.tx_queues[0].send([b"packet"])
    assert master.rx_queues[0].recv() == [b"packet"]
hub = 2 * ("gevent" in sys.modules)
assert len(open_fds()) <= fds + hub, open_fds()
print("done")
"""


@pytest.mark.parametrize("library", _PATCH)
def test_close_has_closed_when_it_returns(library: str, socket_name: str) -> None:
    require(library)
    assert run(_EXCHANGE, _PATCH[library], socket_name) == "done\n"


_BACKGROUND = """
import sys, gevent.monkey
gevent.monkey.patch_all(thread=sys.argv[1] == "thread")
import memifrt
from memifrt.threaded.runtime_thread import Background
with Background(memifrt.Runtime("background")) as background:
    assert background.call(lambda: 1) == 1
    assert background.call(lambda: 2) == 2
assert background.runtime.closed
assert background.failure is None
print("done")
"""


@pytest.mark.parametrize("threads", ["thread", "no thread"])
def test_a_background_runtime_lives_in_a_patched_process(threads: str) -> None:
    pytest.importorskip("gevent")
    assert run(_BACKGROUND, threads) == "done\n"
