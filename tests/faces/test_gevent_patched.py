"""memifrt in processes that gevent has patched, before or after memifrt was imported, and in one that it has not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.lib.gevent_programs import PROGRAMS
from tests.lib.support import DEADLINE

LOOPS = ["libev-cext"] + ["libuv-cffi"] * (importlib.util.find_spec("_cffi_backend") is not None)


def run(order: str, name: str, loop: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.lib.gevent_programs", order, name],
        env={**os.environ, "GEVENT_LOOP": loop},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_patched_before_memifrt_is_imported(name: str) -> None:
    run("before", name, LOOPS[0])


@pytest.mark.parametrize("loop", LOOPS[1:])
@pytest.mark.parametrize("name", ["others_run", "flood", "pool", "children"])
def test_patched_with_another_loop(name: str, loop: str) -> None:
    run("before", name, loop)


@pytest.mark.parametrize("name", ["exchange", "others_run", "native"])
def test_patched_after_memifrt_is_imported(name: str) -> None:
    run("after", name, LOOPS[0])


@pytest.mark.parametrize("name", ["exchange", "native", "pool"])
def test_not_patched(name: str) -> None:
    run("without", name, LOOPS[0])
