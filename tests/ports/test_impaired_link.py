"""A link with impairments between two memifs, in a thread: as a test of a user has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from memifrt import Interface, MemifError, Runtime
from memifrt.impairments import ImpairedLink, Impairment
from tests.lib.support import wait_until


class Ends:
    """The peers of a link's ends, in the test's thread, and what each has received."""

    def __init__(self, runtime: Runtime, a: str, b: str, **options: Any) -> None:
        self._runtime = runtime
        self.received: dict[str, list[bytes]] = {"a": [], "b": []}
        self.a = self._make("a", a, options)
        self.b = self._make("b", b, options)

    def _make(self, name: str, path: str, options: dict[str, Any]) -> Interface:
        def on_interrupt(interface: Interface, qid: int) -> None:
            self.received[name] += interface.rx_queues[qid].recv(1024)

        return self._runtime.create_interface(socket=path, name=name, on_interrupt=on_interrupt, **options)

    def wait_for(self, name: str, count: int) -> list[bytes]:
        wait_until(lambda: len(self.received[name]) >= count, self._runtime)
        return self.received[name]

    def send(self, interface: Interface, packets: list[bytes], qid: int = 0) -> None:
        rest = [*packets]

        def sent() -> bool:
            del rest[: interface.tx_queues[qid].send(rest)]
            return not rest

        wait_until(sent, self._runtime)


@contextlib.contextmanager
def linked(
    runtime: Runtime, path: str, *, a_to_b: Impairment | None = None, b_to_a: Impairment | None = None, **options: Any
) -> Iterator[tuple[ImpairedLink, Ends]]:
    with ImpairedLink(path, f"{path}-b", a_to_b=a_to_b, b_to_a=b_to_a, **options) as link:
        of_peers = {name: value for name, value in options.items() if name != "rx_mode"}
        ends = Ends(runtime, path, f"{path}-b", **of_peers)
        wait_until(lambda: ends.a.connected and ends.b.connected and link.connected, runtime)
        assert link.wait_connected(0) is link
        yield link, ends


def numbered(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") * 15 for number in range(count)]


@pytest.mark.parametrize("rx_mode", ["interrupt", "adaptive", "polling"])
def test_delayed_packets_arrive_in_both_directions_in_their_order(
    rx_mode: str, runtime: Runtime, socket_path: str
) -> None:
    """Nothing but their time wakes the link."""
    there, back = Impairment(delay="5ms"), Impairment(delay="300us")
    with linked(runtime, socket_path, a_to_b=there, b_to_a=back, rx_mode=rx_mode) as (link, ends):
        packets = numbered(3000)
        ends.send(ends.a, packets)
        ends.send(ends.b, packets[:50])
        assert ends.wait_for("b", 3000) == packets
        assert ends.wait_for("a", 50) == packets[:50]
        assert (there.counters.delayed, back.counters.delayed) == (3000, 50)
        assert [report.dropped for report in link.reports()] == [0, 0]


def test_each_direction_has_its_own_impairment_which_can_be_changed(runtime: Runtime, socket_path: str) -> None:
    with linked(runtime, socket_path, a_to_b=Impairment(loss="100%")) as (link, ends):
        ends.send(ends.a, [b"lost"] * 10)
        ends.send(ends.b, [b"back"])
        assert ends.wait_for("a", 1) == [b"back"]
        wait_until(lambda: link.a_to_b.counters.lost == 10, runtime)
        link.a_to_b.loss = 0
        ends.send(ends.a, [b"there"])
        assert ends.wait_for("b", 1) == [b"there"]
        link.b_to_a.change(loss="100%", delay="1ms")
        ends.send(ends.b, [b"lost"])
        wait_until(lambda: link.b_to_a.counters.lost == 1, runtime)
        assert link.reports()[0].reasons == {"lost": 10}


def test_queues_keep_apart_and_in_order(runtime: Runtime, socket_path: str) -> None:
    impairment = Impairment(delay="2ms")
    with linked(runtime, socket_path, a_to_b=impairment, queues=2) as (_, ends):
        packets = numbered(400)
        ends.send(ends.a, packets[:200], 0)
        ends.send(ends.a, packets[200:], 1)
        found = ends.wait_for("b", 400)
        assert [packet for packet in found if packet in packets[:200]] == packets[:200]
        assert [packet for packet in found if packet in packets[200:]] == packets[200:]


def test_what_is_held_for_a_peer_that_goes_is_dropped_and_the_next_one_gets_only_what_is_new(
    runtime: Runtime, peer_runtime: Runtime, socket_path: str
) -> None:
    with linked(runtime, socket_path, a_to_b=Impairment(delay="3600s")) as (link, ends):
        ends.send(ends.a, numbered(20))
        wait_until(lambda: link.reports()[0].delayed == 20, runtime)
        ends.b.delete()
        wait_until(lambda: link.reports()[0].reasons == {"without a peer": 20}, runtime)
        link.a_to_b.delay = 0
        received: list[bytes] = []
        again = peer_runtime.create_interface(
            socket=f"{socket_path}-b",
            on_interrupt=lambda interface, qid: received.extend(interface.rx_queues[qid].recv()),
        )
        wait_until(lambda: again.connected and link.connected, runtime, peer_runtime)
        ends.send(ends.a, [b"new"])
        wait_until(lambda: bool(received), runtime, peer_runtime)
        assert received == [b"new"]
        assert link.reports()[0].delayed == 0


def test_a_link_that_is_closed_drops_what_is_delayed(runtime: Runtime, socket_path: str) -> None:
    with linked(runtime, socket_path, a_to_b=Impairment(delay=3600)) as (link, ends):
        ends.send(ends.a, numbered(3))
        wait_until(lambda: link.reports()[0].delayed == 3, runtime)
        link.close()
        link.close()  # a second call is harmless
        assert not link.connected
        assert "3 still delayed" in link.reports()[0].line()


def test_options_that_are_wrong_leave_nothing_behind(socket_path: str) -> None:
    with pytest.raises(MemifError, match="queues"):
        ImpairedLink(socket_path, f"{socket_path}-b", queues=0)
    with pytest.raises(MemifError):
        ImpairedLink(socket_path, socket_path)
    both = Impairment(loss="1%")
    with pytest.raises(MemifError, match="make one for each direction"):
        ImpairedLink(socket_path, f"{socket_path}-b", a_to_b=both, b_to_a=both)


def test_a_filter_function_that_fails_ends_the_link_and_is_raised_at_its_end(
    runtime: Runtime, socket_path: str
) -> None:
    def match(packet: bytes) -> bool:
        raise ZeroDivisionError("in match")

    link = ImpairedLink(socket_path, f"{socket_path}-b", a_to_b=Impairment(loss="1%", match=match))
    ends = Ends(runtime, socket_path, f"{socket_path}-b")
    wait_until(lambda: ends.a.connected and ends.b.connected and link.connected, runtime)
    ends.send(ends.a, [b"packet"])
    wait_until(lambda: not link.running, runtime)
    with pytest.raises(ZeroDivisionError, match="in match"):
        link.close()
    link.close()


def test_a_link_without_peers_says_so(socket_path: str) -> None:
    with (
        ImpairedLink(socket_path, f"{socket_path}-b") as link,
        pytest.raises(MemifError, match=r"memif0 on .*: no peer has connected within 0.01 s"),
    ):
        link.wait_connected(0.01)
