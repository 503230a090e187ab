"""The inbox between the thread that receives and its readers: order, waits, the end of the peer and of the inbox."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator

import pytest

from memifrt import Disconnected, ForkedError
from memifrt.threaded.inbox import Inbox
from tests.lib.forked import in_child
from tests.lib.support import DEADLINE
from tests.lib.threads import Thread


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox("test")
    yield made
    made.close()


def is_readable(inbox: Inbox) -> bool:
    """Whether the fd is, which must agree with the property."""
    found = bool(select.select([inbox.fileno()], [], [], 0)[0])
    assert found == inbox.readable
    return found


@pytest.mark.parametrize("fd_first", [False, True])
def test_packets_come_out_in_order_and_the_fd_counts_them(inbox: Inbox, fd_first: bool) -> None:
    if fd_first:
        assert not is_readable(inbox)
    inbox.put([b"one", b"two"])
    inbox.put([])
    inbox.put([b"three", b"four"])
    assert len(inbox) == 4
    assert is_readable(inbox)
    first, second = inbox.take(), inbox.take()
    assert first is not None
    assert second is not None
    assert (first[0], second[0]) == (b"one", b"two")
    assert first[1] == second[1], "packets of one call have one time"
    assert is_readable(inbox)
    assert inbox.take_all(1) == [b"three"]
    assert inbox.take_all() == [b"four"]
    assert not is_readable(inbox)
    assert inbox.take() is None
    assert inbox.take_all(3) == []


def test_the_end_comes_after_the_packets_and_stays_readable(inbox: Inbox) -> None:
    inbox.put([b"last"])
    inbox.end()
    inbox.end()
    assert inbox.take_all() == [b"last"]
    for _ in range(2):
        assert is_readable(inbox)
        with pytest.raises(EOFError, match="the test has ended"):
            inbox.take()
    assert not inbox.wait(1, None, needs_peer=False)


def test_a_closed_inbox_gives_nothing_more(inbox: Inbox) -> None:
    inbox.put([b"unread"])
    inbox.fileno()
    inbox.close()
    inbox.close()
    inbox.put([b"late"])
    assert inbox.fileno() == -1
    with pytest.raises(EOFError, match="the test is closed"):
        inbox.take()


def test_an_inbox_that_is_closed_first_makes_no_fd(inbox: Inbox) -> None:
    inbox.close()
    assert inbox.fileno() == -1


def test_a_reader_that_needs_the_peer_learns_why_it_left(inbox: Inbox) -> None:
    with pytest.raises(Disconnected, match="nobody has connected yet"):
        inbox.wait(1, None, needs_peer=True)
    inbox.peer_came()
    assert inbox.wait_connected(None)
    assert not inbox.wait(1, 0, needs_peer=True)
    inbox.put([b"packet"])
    inbox.peer_left(Disconnected("gone home"))
    assert inbox.wait_disconnected(None)
    assert inbox.wait(1, None, needs_peer=True), "what came before can still be read"
    with pytest.raises(Disconnected, match="not connected: gone home"):
        inbox.wait(2, None, needs_peer=True)
    assert not inbox.wait(2, 0, needs_peer=False), "this reader waits for the peer to come back"
    inbox.peer_left()
    assert str(inbox.reason) == "gone home"


@pytest.mark.parametrize(
    "wake",
    [
        lambda inbox: inbox.put([b"packet"]),
        lambda inbox: inbox.peer_left(Disconnected("gone")),
        lambda inbox: inbox.end(),
        lambda inbox: inbox.close(),
    ],
    ids=["packet", "peer", "end", "close"],
)
def test_a_waiting_reader_is_woken(inbox: Inbox, wake: Callable[[Inbox], None]) -> None:
    inbox.peer_came()
    outcome: list[object] = []

    def read() -> None:
        try:
            outcome.append(inbox.wait(1, DEADLINE, needs_peer=True))
        except Disconnected as error:
            outcome.append(str(error))

    reader = Thread(target=read)
    reader.start()
    wake(inbox)
    reader.join()
    assert outcome in ([True], [False], ["not connected: gone"])


def test_a_forked_child_has_no_inbox(inbox: Inbox) -> None:
    inbox.peer_came()
    inbox.put([b"packet"])
    assert is_readable(inbox)

    def child() -> None:
        assert (len(inbox), inbox.connected, inbox.readable) == (0, False, True)
        waits: list[Callable[[], object]] = [
            inbox.take,
            inbox.take_all,
            inbox.fileno,
            lambda: inbox.wait(1, None, needs_peer=False),
            lambda: inbox.wait_connected(None),
            lambda: inbox.wait_disconnected(None),
        ]
        for call in waits:
            with pytest.raises(ForkedError, match="this test belongs to process"):
                call()
        inbox.close()

    in_child(child)
    assert inbox.take_all() == [b"packet"]
    assert not is_readable(inbox)
