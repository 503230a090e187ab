"""Owned fds and eventfds: closed once, missed when forgotten, left alone in a forked child, never in the way."""

from __future__ import annotations

import errno
import gc
import os
import select
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from memifrt.system.eventfd import PythonCalls
from memifrt.system.fds import EventFd, OwnedFd
from memifrt.system.kick import kick_for
from tests.lib.forked import beside, in_child
from tests.lib.patched import PATCHED
from tests.lib.support import DEADLINE
from tests.lib.threads import Thread

#: The largest count that an eventfd holds.
FULL = 0xFFFFFFFFFFFFFFFE


def new_eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def event() -> Iterator[EventFd]:
    event = EventFd.create("test event")
    yield event
    event.close()


# --- ownership ------------------------------------------------------------------------------------------------------

#: Both classes own an fd in the same way.
each_class = pytest.mark.parametrize("kind", [OwnedFd, EventFd])
Kind = Callable[[int, str], OwnedFd]


@each_class
def test_closing_closes_the_fd(kind: Kind) -> None:
    number = new_eventfd()
    owned = kind(number, "thing")
    assert (owned.fileno(), owned.closed) == (number, False)
    owned.close()
    assert (owned.fileno(), owned.closed) == (-1, True)
    assert not is_open(number)


@each_class
def test_closing_twice_spares_whoever_has_the_number_now(kind: Kind) -> None:
    number = new_eventfd()
    owned = kind(number, "thing")
    owned.close()
    other = new_eventfd()
    assert other == number
    owned.close()
    assert is_open(other)
    os.close(other)


@each_class
def test_a_forgotten_fd_is_missed_and_closed(kind: Kind) -> None:
    number = new_eventfd()
    owned = kind(number, "thing")
    with pytest.warns(ResourceWarning, match=rf"unclosed <thing fd={number}>"):
        del owned  # the only reference
    assert not is_open(number)


@each_class
@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forgotten_fd_is_closed_also_where_warnings_are_errors(kind: Kind) -> None:
    number = new_eventfd()
    owned = kind(number, "thing")
    del owned
    assert not is_open(number)


@each_class
def test_a_detached_fd_is_the_caller_s(kind: Kind) -> None:
    number = new_eventfd()
    owned = kind(number, "thing")
    assert owned.detach() == number
    assert owned.closed
    owned.close()
    del owned
    gc.collect()
    assert is_open(number)
    os.close(number)


@each_class
def test_a_forked_child_closes_nothing(kind: Kind) -> None:
    number = new_eventfd()
    owned = kind(number, "thing")

    def check() -> None:
        owned.close()
        assert owned.closed
        assert is_open(number)

    in_child(check)
    assert is_open(number)
    owned.close()


def test_a_forked_child_forgets_without_a_warning() -> None:
    number = new_eventfd()
    holder = [OwnedFd(number, "thing")]

    def check() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            holder.clear()
            gc.collect()
        assert caught == []
        assert is_open(number)

    in_child(check)
    holder[0].close()


def test_what_the_child_makes_is_its_own_to_close() -> None:
    def check() -> None:
        owned = OwnedFd(new_eventfd(), "thing")
        number = owned.fileno()
        owned.close()
        assert not is_open(number)

    in_child(check)


def test_an_fd_says_what_it_is() -> None:
    owned = OwnedFd(new_eventfd(), "listener on @x")
    assert repr(owned) == f"<listener on @x fd={owned.fileno()}>"
    owned.close()
    assert repr(owned) == "<listener on @x fd=-1>"


# --- eventfds -------------------------------------------------------------------------------------------------------


def test_a_new_eventfd_is_not_inherited_and_does_not_block(event: EventFd) -> None:
    assert not os.get_inheritable(event.fileno())
    assert not os.get_blocking(event.fileno())


def test_one_drain_takes_all_kicks(event: EventFd) -> None:
    assert not event.drain()
    event.notify()
    event.notify()
    assert event.drain()
    assert not event.drain()


def test_a_full_counter_still_says_that_there_is_something(event: EventFd) -> None:
    os.eventfd_write(event.fileno(), FULL)
    event.notify()  # would block, or raise
    assert event.drain()
    assert not event.drain()


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES])
def test_draining_works_where_preadv2_does_not(event: EventFd, monkeypatch: pytest.MonkeyPatch, refusal: int) -> None:
    def refuse(*arguments: Any) -> int:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "preadv", refuse)
    calls = PythonCalls(event.fileno())
    assert not calls.drain()
    event.notify()
    os.set_blocking(event.fileno(), True)  # as a peer can
    assert calls.drain()
    assert not calls.drain()


def test_draining_does_not_block_even_if_the_peer_has_made_the_fd_blocking(event: EventFd) -> None:
    peer = os.dup(event.fileno())
    os.set_blocking(peer, True)
    assert not event.drain()
    os.eventfd_write(peer, 1)
    assert event.drain()
    assert not event.drain()
    os.close(peer)


@pytest.fixture(params=["by the kernel", "by a write"])
def kicked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EventFd]:
    """An eventfd that is kicked as it can be on this system, or as it is where the kernel offers nothing better."""
    if request.param == "by a write":
        monkeypatch.setattr("memifrt.system.kick.kick_for", lambda fd: None)
    event = EventFd.create("test event")
    yield event
    event.close()


def _ends(event: EventFd, work: Callable[[], object], seconds: float) -> bool:
    """Whether the work on an eventfd in blocking mode ends by itself; a write that waits is let go of."""
    ended = threading.Event()

    def run() -> None:
        work()
        ended.set()

    thread = Thread(target=run)
    thread.start()
    by_itself = ended.wait(seconds)
    while not ended.is_set():
        with suppress(BlockingIOError):
            os.preadv(event.fileno(), [bytearray(8)], -1, os.RWF_NOWAIT)
        ended.wait(0.01)
    thread.join()
    return by_itself


def test_kicking_does_not_block_even_if_the_peer_has_made_the_fd_blocking_and_filled_it(kicked: EventFd) -> None:
    os.set_blocking(kicked.fileno(), True)
    os.eventfd_write(kicked.fileno(), FULL)
    assert _ends(kicked, kicked.notify, 1)
    assert kicked.drain()


def test_kicking_does_not_block_while_the_peer_fills_the_counter_again_and_again(event: EventFd) -> None:
    """At any moment the next write would wait: no check before it helps."""
    if kick_for(event.fileno()) is None:
        pytest.skip("this system has no kick that cannot block")

    def fill() -> None:
        room = select.poll()
        room.register(event.fileno(), select.POLLOUT)
        while True:  # until it is killed
            os.set_blocking(event.fileno(), True)
            if room.poll(0):
                with suppress(BlockingIOError):
                    os.eventfd_write(event.fileno(), FULL)

    def kick() -> None:
        for _ in range(30_000):
            event.notify()
            event.drain()

    with beside(fill):
        assert _ends(event, kick, DEADLINE)


def test_kicks_that_cannot_block_come_back_when_fds_do(event: EventFd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first eventfd of a process may be the last that it can have."""
    if kick_for(event.fileno()) is None:
        pytest.skip("this system has no kick that cannot block")
    monkeypatch.setattr("memifrt.system.kick._context", None)
    with monkeypatch.context() as without_fds:
        without_fds.setattr("os.eventfd", raiser(OSError(errno.EMFILE, "too many open files")))
        assert kick_for(event.fileno()) is None
    assert kick_for(event.fileno()) is not None


def test_a_system_without_such_kicks_is_asked_once(event: EventFd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memifrt.system.kick._context", None)
    monkeypatch.setattr("memifrt.system.kick._refused", False)
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(machine="pdp11"))
    assert kick_for(event.fileno()) is None
    monkeypatch.setattr("os.uname", raiser(AssertionError("asked again")))
    assert kick_for(event.fileno()) is None


def raiser(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: object) -> Any:
        raise error

    return fail


def test_every_kick_counts(kicked: EventFd) -> None:
    for _ in range(1500):  # more than the kernel keeps completions of
        kicked.notify()
    assert os.eventfd_read(kicked.fileno()) == 1500


def test_a_forked_child_kicks_too(kicked: EventFd) -> None:
    def check() -> None:
        kicked.notify()
        own = EventFd.create("the child's own")
        own.notify()
        assert own.drain()
        own.close()

    in_child(check)
    assert os.eventfd_read(kicked.fileno()) == 1


def test_a_closed_eventfd_takes_kicks_in_silence() -> None:
    event = EventFd.create("test event")
    event.close()
    event.notify()
    assert not event.drain()


@pytest.mark.skipif(PATCHED, reason="gevent's Condition does not wait for a thread of the operating system")
@pytest.mark.parametrize("use", [EventFd.notify, EventFd.drain])
def test_a_thread_that_goes_on_after_the_close_never_reaches_the_next_file(use: Callable[[EventFd], object]) -> None:
    event = EventFd.create("test event")
    number = event.fileno()
    rounds = 0
    advanced = threading.Condition()
    stop = False

    def work() -> None:
        nonlocal rounds
        while not stop:
            use(event)
            with advanced:
                rounds += 1
                advanced.notify_all()

    def await_rounds(count: int) -> None:
        with advanced:
            target = rounds + count
            assert advanced.wait_for(lambda: rounds >= target, DEADLINE)

    thread = Thread(target=work)
    thread.start()
    other = -1
    try:
        await_rounds(10)
        event.close()
        other = os.eventfd(7, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        assert other == number
        await_rounds(100)
        assert os.eventfd_read(other) == 7
    finally:
        stop = True
        thread.join()
        if other >= 0:
            os.close(other)


def test_kicks_from_several_threads_while_one_drains_are_all_harmless() -> None:
    event = EventFd.create("test event")
    seen = threading.Event()
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(use: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                use()
        except BaseException as error:
            failures.append(error)

    def drain() -> None:
        if event.drain():
            seen.set()

    threads = [Thread(target=run, args=(use,)) for use in (event.notify, event.notify, drain)]
    for thread in threads:
        thread.start()
    assert seen.wait(DEADLINE)
    event.close()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
