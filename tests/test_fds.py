"""Owned fds and eventfds: closed once, missed when forgotten, left alone in a forked child, never in the way."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

from memifrt.fds import EventFd, OwnedFd
from tests.forked import in_child
from tests.support import DEADLINE

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


def test_draining_does_not_block_even_if_the_peer_has_made_the_fd_blocking(event: EventFd) -> None:
    peer = os.dup(event.fileno())
    os.set_blocking(peer, True)
    assert not event.drain()
    os.eventfd_write(peer, 1)
    assert event.drain()
    assert not event.drain()
    os.close(peer)


def test_kicking_does_not_block_even_if_the_peer_has_made_the_fd_blocking_and_filled_it(event: EventFd) -> None:
    os.set_blocking(event.fileno(), True)
    os.eventfd_write(event.fileno(), FULL)
    returned = threading.Event()

    def kick() -> None:
        event.notify()
        returned.set()

    thread = threading.Thread(target=kick)
    thread.start()
    in_time = returned.wait(1)
    os.eventfd_read(event.fileno())  # lets go of a thread that waits
    thread.join()
    assert in_time


def test_a_closed_eventfd_takes_kicks_in_silence() -> None:
    event = EventFd.create("test event")
    event.close()
    event.notify()
    assert not event.drain()


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

    thread = threading.Thread(target=work)
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

    threads = [threading.Thread(target=run, args=(use,)) for use in (event.notify, event.notify, drain)]
    for thread in threads:
        thread.start()
    assert seen.wait(DEADLINE)
    event.close()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
