"""Copies and pickles: objects that own fds or memory refuse both, and errors survive both."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from memifrt import ConfigError, Disconnected, ErrorCode, ForkedError, MemifError, PollCancelled, RingViolation, Runtime
from memifrt.asyncio import AsyncioInterface
from memifrt.connection.connection import Connection
from memifrt.control.channel import Channel
from memifrt.errors import MemifOSError, NoQueueYet, PacketTypeError, ProtocolError, os_error
from memifrt.system.fds import EventFd, OwnedFd
from memifrt.system.not_copied import NotCopied
from memifrt.testing.ports import MemifPort
from memifrt.threaded.inbox import Inbox
from memifrt.threaded.runtime_thread import Background
from memifrt.waiting.base_interface import BurstHolder
from tests.lib.peer import assert_packets_pass
from tests.lib.support import Pair, connect


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


WAYS = [copy.copy, copy.deepcopy, through_pickle]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rings", ["native", "python"], indirect=True)
def test_a_copy_is_refused_and_the_original_goes_on(
    runtime: Runtime, socket_name: str, way: Callable[[Any], Any]
) -> None:
    pair = connect(runtime, runtime, socket_name)
    pair.slave.tx_queues[0].send([b"packet"])
    connection = pair.master.connection
    assert isinstance(connection, Connection)
    with pair.master.rx_queues[0].burst() as burst:
        for thing in (
            runtime,
            pair.master,
            pair.master.socket,
            pair.master.rx_queues[0],
            pair.slave.tx_queues[0],
            burst,
            connection._channel,
        ):
            with pytest.raises(TypeError, match="cannot be copied or pickled") as caught:
                way(thing)
            assert repr(thing) in str(caught.value)
    assert_packets_pass(Pair(pair.master, pair.slave, (runtime,)))


@pytest.mark.parametrize(
    "kind", [AsyncioInterface, Background, BurstHolder, Channel, EventFd, Inbox, MemifPort, OwnedFd, Runtime]
)
def test_what_owns_fds_or_threads_is_not_copied(kind: type) -> None:
    assert issubclass(kind, NotCopied)


ERRORS = [
    MemifError(ErrorCode.NOMEM, "no memory"),
    ConfigError("wrong", ErrorCode.MAX_RING),
    PacketTypeError("not a packet"),
    NoQueueYet("none yet"),
    ProtocolError(ErrorCode.COOKIE, "bad cookie"),
    RingViolation("broken", sending=True),
    Disconnected("gone", ErrorCode.DISCONNECT, established=True),
    ForkedError(12, "queue"),
    PollCancelled(),
    os_error("cannot open it", OSError(errno.ENOENT, ""), path="/a/path"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_to_another_process(error: MemifError, way: Callable[[Any], Any]) -> None:
    again = way(error)
    assert type(again) is type(error)
    assert (str(again), again.code, again.args) == (str(error), error.code, error.args)
    assert vars(again) == vars(error)
    if isinstance(error, MemifOSError):
        assert isinstance(again, MemifOSError)
        assert (again.errno, again.strerror, again.filename) == (error.errno, error.strerror, error.filename)
