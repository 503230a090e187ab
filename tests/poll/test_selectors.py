"""memifrt in a selector that the application owns. What every adapter does is in :mod:`tests.poll.test_loops`."""

from __future__ import annotations

import os
import resource
import selectors
import socket
from collections.abc import Iterator

import pytest

from memifrt import ErrorCode, FdEvent, Interface, MemifError, Runtime
from memifrt.poll.selectors import SelectorPoller
from tests.lib.patched import SELECTORS
from tests.lib.support import DEADLINE, Recorder


@pytest.fixture(params=SELECTORS, ids=lambda kind: str(kind.__name__))
def selector(request: pytest.FixtureRequest) -> Iterator[selectors.BaseSelector]:
    with request.param() as selector:
        yield selector


def test_it_lives_beside_the_application_s_own_keys(selector: selectors.BaseSelector, socket_name: str) -> None:
    """The loop of the standard library's documentation: every key's data is what to call."""
    near, far = socket.socketpair()
    lines: list[bytes] = []
    selector.register(near, selectors.EVENT_READ, lambda file, mask: lines.append(file.recv(64)))
    poller, recorder = SelectorPoller(selector), Recorder()

    def echo(interface: Interface, qid: int) -> None:
        with interface.rx_queues[qid].burst() as burst:
            interface.tx_queues[qid].forward(burst)

    with near, far, Runtime("mine", control_fd_update=poller.update) as runtime:
        poller.start(runtime.control_fd_handler)
        master = runtime.create_interface(socket=socket_name, role="master", on_interrupt=echo)
        slave = runtime.create_interface(socket=socket_name, role="slave", on_interrupt=recorder.on_interrupt)
        far.send(b"a line")
        sent = False
        while not (lines and recorder.count("interrupt")):
            ready = selector.select(DEADLINE)
            assert ready
            for key, mask in ready:
                key.data(key.fileobj, mask)
            if master.connected and slave.connected and not sent:
                sent = bool(slave.tx_queues[0].send([b"packet"]))
        assert slave.rx_queues[0].recv() == [b"packet"]
        assert lines == [b"a line"]
        assert len(poller) == len(selector.get_map()) - 1
        # A loop with data of another kind knows ours by it.
        assert {key.fd for key in selector.get_map().values() if key.data is not poller} == {near.fileno()}
        runtime.close()
        assert len(poller) == 0
        assert [*selector.get_map()] == [near.fileno()]


def test_events_before_the_start_are_not_lost(selector: selectors.BaseSelector) -> None:
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    poller = SelectorPoller(selector)
    seen: list[tuple[int, FdEvent]] = []
    poller.update(fd, FdEvent.READ)
    for start in (False, True):
        if start:
            poller.start(lambda fd, events: seen.append((fd, events)))
        ((key, mask),) = selector.select(DEADLINE)
        poller(key.fd, mask)
    poller.update(fd, FdEvent.DEL)
    poller(fd, selectors.EVENT_READ)
    os.close(fd)
    assert seen == [(fd, FdEvent.READ)]


def test_an_fd_that_select_has_no_room_for_is_refused() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft <= 1100:
        pytest.skip(f"this process may open no more than {soft} files")
    with selectors.SelectSelector() as selector:
        poller = SelectorPoller(selector)
        fds = [os.eventfd(0) for _ in range(1100)]
        try:
            with pytest.raises(MemifError, match=r"too large for select\(\)") as caught:
                Runtime(control_fd_update=poller.update)
            assert caught.value.code is ErrorCode.CB_FDUPDATE
            assert len(poller) == 0
            assert not selector.get_map()
        finally:
            for fd in fds:
                os.close(fd)


def test_closing_takes_every_key_out(selector: selectors.BaseSelector) -> None:
    poller = SelectorPoller(selector)
    runtime = Runtime(control_fd_update=poller.update)
    assert len(selector.get_map()) == 1
    poller.close()
    poller.close()
    assert not selector.get_map()
    runtime.close()
    assert runtime.closed


def test_a_runtime_may_be_closed_after_its_selector() -> None:
    with selectors.DefaultSelector() as selector:
        poller = SelectorPoller(selector)
        runtime = Runtime(control_fd_update=poller.update)
    runtime.close()
    assert runtime.closed
    assert len(poller) == 0
