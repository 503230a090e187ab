"""The contract of every loop's adapter, on eventlet's hub: in a process of its own, as its import changes a process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.support import DEADLINE

ROOT = Path(__file__).parents[2]


def test_eventlet_s_hub_keeps_the_contract() -> None:
    if importlib.util.find_spec("eventlet") is None:
        pytest.skip("eventlet is not installed (pip install -e '.[dev]')")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-W", "ignore"]
    done = subprocess.run(
        [*command, "tests/poll/test_loops.py", "-k", "eventlet"],
        cwd=ROOT,
        env={**os.environ, "MEMIFRT_TEST_EVENTLET": "1", "PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=5 * DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
