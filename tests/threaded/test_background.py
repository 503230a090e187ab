"""A runtime whose events a thread handles: what is done in it, who ends it, and what it leaves."""

from __future__ import annotations

import functools
import gc
import select
import threading
import weakref
from collections.abc import Iterator

import pytest

from memifrt import ConfigError, FdEvent, Interface, MemifError, Runtime
from memifrt.threaded.runtime_thread import Background
from tests.lib.forked import in_child
from tests.lib.peer import VppSlave
from tests.lib.support import DEADLINE


@pytest.fixture
def background() -> Iterator[Background]:
    with Background(Runtime("background", reconnect_interval=0.02)) as background:
        yield background


def connect(background: Background, socket: str) -> tuple[Interface, Interface]:
    """Both ends in the background; returns once both are connected."""
    up = [threading.Event(), threading.Event()]

    def create() -> tuple[Interface, Interface]:
        make = background.runtime.create_interface
        return (
            make(socket=socket, role="master", on_connect=lambda interface: up[0].set()),
            make(socket=socket, role="slave", on_connect=lambda interface: up[1].set()),
        )

    ends = background.call(create)
    assert all(event.wait(DEADLINE) for event in up)
    return ends


def test_interfaces_connect_and_interrupt_without_anybody_polling(background: Background, socket_name: str) -> None:
    master, slave = connect(background, socket_name)
    received: list[bytes] = []
    come = threading.Event()

    def on_interrupt(interface: Interface, qid: int) -> None:
        received.extend(interface.rx_queues[qid].recv())
        come.set()

    def listen() -> None:
        master.on_interrupt = on_interrupt

    background.call(listen)
    slave.tx_queues[0].send([b"packet"])
    assert come.wait(DEADLINE)
    assert received == [b"packet"]


def test_a_peer_of_few_packets_a_kick_is_kicked_until_it_has_them_all(background: Background, socket_name: str) -> None:
    up = threading.Event()
    master = background.call(
        lambda: background.runtime.create_interface(
            socket=socket_name, role="master", on_connect=lambda interface: up.set()
        )
    )
    with VppSlave(socket_name) as peer:
        for step in peer.STEPS:
            peer.say(step)
            assert select.select([peer.socket], [], [], DEADLINE)[0]
            peer.answer(step)
        assert up.wait(DEADLINE)
        peer.post()
        assert master.tx_queues[0].send([b"packet"] * 1024) == 1024
        kicked = select.poll()
        kicked.register(peer.rx_fd, select.POLLIN)
        while peer.taken < 1024:
            assert kicked.poll(DEADLINE * 1000)
            peer.on_kick()


def test_call_runs_in_the_thread_and_brings_back_what_happens(background: Background) -> None:
    assert background.call(threading.current_thread) is not threading.current_thread()
    assert background.call(lambda: background.call(lambda: 5)) == 5  # from the thread itself too
    with pytest.raises(ConfigError, match="role is 'boss'"):
        background.call(lambda: background.runtime.create_interface(role="boss"))  # type: ignore[arg-type]
    assert background.failure is None


def test_exception_of_a_callback_is_kept_and_the_thread_goes_on(background: Background, socket_name: str) -> None:
    def fail(interface: Interface) -> None:
        raise ValueError("in a callback")

    interface = background.call(
        lambda: background.runtime.create_interface(socket=socket_name, role="master", on_connect=fail)
    )
    up = threading.Event()
    background.call(
        lambda: background.runtime.create_interface(socket=socket_name, on_connect=lambda interface: up.set())
    )
    assert up.wait(DEADLINE)
    assert background.call(lambda: interface.connected)
    assert str(background.failure) == "in a callback"
    background.post(lambda: pytest.fail("later"))
    assert background.call(lambda: 1) == 1
    assert str(background.failure) == "in a callback"


def test_close_closes_the_runtime_and_refuses_what_comes_later(background: Background) -> None:
    background.close()
    assert background.runtime.closed
    with pytest.raises(MemifError, match="the thread for the events of"):
        background.call(lambda: 1)
    background.post(lambda: pytest.fail("it has ended"))
    assert not background.retain()
    background.release()
    background.close()
    assert background.failure is None


def test_close_from_the_thread_itself_ends_it(background: Background) -> None:
    background.call(background.close)
    background.close()
    assert background.runtime.closed


def test_thread_stays_until_its_last_user_goes(background: Background) -> None:
    assert background.retain()
    background.release()
    assert background.call(lambda: 1) == 1
    background.release()
    assert background.runtime.closed


def test_release_without_waiting_ends_it_soon(background: Background) -> None:
    background.release(wait=False)
    background._thread.join(DEADLINE)
    assert background.runtime.closed


def test_runtime_of_the_application_is_given_back(runtime: Runtime) -> None:
    with Background(runtime, close_runtime=False) as background:
        background.call(lambda: None)
    assert not runtime.closed
    assert runtime.poll_event(0) == 0


def test_runtime_that_its_owner_closes_is_no_obstacle(runtime: Runtime) -> None:
    with Background(runtime, close_runtime=False) as background:
        background.call(lambda: None)
        runtime.close()
    assert background.failure is None


def test_cancel_of_a_poll_is_nothing_to_it(background: Background) -> None:
    background.runtime.cancel_poll_event()
    assert background.call(lambda: 1) == 1
    assert background.failure is None


def test_runtime_in_external_mode_is_refused() -> None:
    def hook(fd: int, events: FdEvent) -> None:
        return None

    with Runtime("external", control_fd_update=hook) as external, pytest.raises(ConfigError, match="internal mode"):
        Background(external)


def test_exception_that_call_raises_keeps_nothing_alive(background: Background) -> None:
    class Held:
        pass

    def fail(held: Held) -> None:
        raise KeyError

    held = Held()
    reference = weakref.ref(held)
    with pytest.raises(KeyError):
        background.call(functools.partial(fail, held))
    background.call(int)  # the thread has left the call before
    del held
    gc.collect()
    assert reference() is None


def test_forked_child_is_refused_and_ends_nothing(background: Background) -> None:
    def child() -> None:
        with pytest.raises(MemifError):
            background.call(lambda: 1)
        background.release()
        background.close()

    in_child(child)
    assert background.call(lambda: 1) == 1
