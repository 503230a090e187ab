"""One packet each way, in one process: the first test to look at when everything fails."""

from __future__ import annotations

from collections.abc import Callable

from tests.lib.support import Pair


def test_packets_pass_in_both_directions(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    assert pair.slave.tx_queues[0].send([b"to the master"]) == 1
    assert pair.master.tx_queues[0].send([b"to the slave"]) == 1
    assert pair.master.rx_queues[0].recv() == [b"to the master"]
    assert pair.slave.rx_queues[0].recv() == [b"to the slave"]
