"""Trials through DPDK's testpmd: what it sends back is recognized, with its addresses exchanged or not."""

from __future__ import annotations

import functools
import os

import pytest

from memifrt import Runtime
from memifrt.throughput import IMIX, FrameSize
from memifrt.throughput.memif_trial import MemifTrial
from tests.lib.support import wait_until
from tests.lib.testpmd import DpdkTestpmd, missing

pytest.importorskip("numpy", reason="numpy is not installed (pip install -e '.[dev]')")
# One testpmd at a time: each keeps a core busy.
pytestmark = [
    pytest.mark.testpmd,
    pytest.mark.xdist_group("testpmd"),
    pytest.mark.skipif(bool(missing()) and os.environ.get("CI") != "true", reason=missing()),
]


@pytest.mark.parametrize("forward", ["io", "macswap"])
def test_frames_that_testpmd_sends_back_are_counted(runtime: Runtime, socket_name: str, forward: str) -> None:
    with DpdkTestpmd(socket_name, forward=forward) as testpmd:
        interface = runtime.create_interface(socket=socket_name, role="slave", rx_mode="polling")
        wait_until(lambda: interface.connected, runtime)
        testpmd.start_forwarding()
        trial = MemifTrial([interface], poll=functools.partial(runtime.poll_event, 0), settle=1.0)
        for size in (FrameSize.of(64), IMIX):
            result = trial.measure(2000, 0.1, size, latency=True)
            assert result.offered == 200
            assert result.received == result.sent
            assert result.sent == 200 or result.late
            assert result.latency is not None
            assert result.latency.count == result.received
        interface.delete()
