"""A peer that takes only so many packets for a kick: nothing stays in its ring, and who keeps up is not disturbed."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memifrt import Interface, Runtime
from memifrt.options import RoleName
from memifrt.poll.schedule import Schedule
from memifrt.stats.prometheus import metrics
from memifrt.stats.snapshot import snapshot
from memifrt.system.timerfd import TimerFd
from tests.lib.peer import VPP_BATCH, VPP_FRAME, VppMaster, VppSlave
from tests.lib.support import DEADLINE, Pair, running_in_thread
from tests.lib.threads import Thread

ROLES = ["master", "slave"]
MakePair = Callable[..., Pair]
PACKET = bytes(60)


class Link:
    """An interface and a connected peer with VPP's habits."""

    def __init__(self, runtime: Runtime, interface: Interface, peer: VppMaster | VppSlave) -> None:
        self.runtime, self.interface, self.peer = runtime, interface, peer
        if isinstance(peer, VppSlave):
            peer.post()

    @property
    def tx(self) -> Any:
        return self.interface.tx_queues[0]

    def taken(self, count: int) -> Callable[[], bool]:
        """Whether the peer has taken so many; it looks when it is kicked."""

        def look() -> bool:
            self.peer.on_kick()
            return self.peer.taken >= count

        return look


@pytest.fixture(params=ROLES)
def link(request: pytest.FixtureRequest, runtime: Runtime, socket_path: str) -> Iterator[Link]:
    with connected(request.param, runtime, socket_path) as peer:
        yield Link(runtime, runtime.interfaces[0], peer)


def connected(role: RoleName, runtime: Runtime, path: str) -> VppMaster | VppSlave:
    """A peer that is connected to a new interface of ``role``."""
    if role == "master":
        runtime.create_interface(socket=path, role=role)
        return VppSlave(path, runtime).run()
    peer = VppMaster(path, runtime)
    runtime.create_interface(socket=path, role=role)
    peer.run()
    peer.wait(lambda: runtime.interfaces[0].connected)
    return peer


def test_a_full_ring_is_taken_to_its_end_after_the_last_send(link: Link) -> None:
    count = link.tx.send([PACKET] * 1024)
    assert count == 1024
    link.peer.wait(link.taken(count))
    assert link.peer.kicks >= count / VPP_FRAME
    assert link.tx.counters.interrupts == 1
    assert link.tx.counters.repeated_kicks >= count / VPP_FRAME - 1


def test_a_peer_of_few_packets_a_kick_gets_as_many_kicks_as_it_needs(link: Link) -> None:
    link.peer.frame = 2
    assert link.tx.send([PACKET] * 9) == 9
    link.peer.wait(link.taken(9))


def test_room_for_a_long_chain_comes_although_nothing_can_be_sent_before(link: Link) -> None:
    assert link.tx.send([PACKET] * 1024) == 1024
    chain = bytes(300 * 2048)
    link.peer.wait(lambda: link.peer.on_kick() or link.tx.send([chain]))


def test_packets_that_came_masked_are_kicked_once_the_peer_wants_interrupts(link: Link) -> None:
    link.peer.rx.flags = 1
    assert link.tx.send([PACKET]) == 1
    link.peer.rx.flags = 0
    link.peer.wait(link.taken(1))
    assert link.tx.counters.interrupts == 0
    assert link.tx.counters.repeated_kicks > 0


def test_a_masked_peer_is_never_kicked(link: Link) -> None:
    link.peer.rx.flags = 1
    assert link.tx.send([PACKET] * 300) == 300
    watched = iter(range(8))
    link.peer.wait(lambda: next(watched, None) is None or wait_for_timer(link.runtime))
    assert not link.peer.on_kick()
    assert link.tx.counters.repeated_kicks == 0


def test_a_peer_that_does_not_react_is_kicked_ever_more_seldom(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    after = Schedule.after

    def noted(schedule: Schedule, delay: float, action: Callable[[], object]) -> Any:
        delays.append(delay)
        return after(schedule, min(delay, 0.001), action)

    monkeypatch.setattr(Schedule, "after", noted)
    link.tx.send([PACKET] * 500)
    link.peer.wait(lambda: delays.count(1.0) > 3)
    assert delays == sorted(delays)
    assert max(delays) == 1.0
    link.peer.wait(link.taken(500))


def test_buffers_that_a_zero_copy_slave_keeps_do_not_cost_kicks_for_ever(
    runtime: Runtime, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.create_interface(socket=socket_path, role="master")
    after = Schedule.after
    with VppSlave(socket_path, runtime).run() as peer:
        monkeypatch.setattr(
            Schedule, "after", lambda schedule, delay, action: after(schedule, min(delay, 0.001), action)
        )
        link = Link(runtime, runtime.interfaces[0], peer)
        left = VPP_BATCH - 1
        assert link.tx.send([PACKET] * left) == left
        link.peer.wait(link.taken(left))
        assert link.tx.in_flight() == left  # it has taken them all, and nobody can see it

        def quiet() -> bool:
            link.peer.on_kick()
            return not armed(runtime)

        peer.wait(quiet)
        kicks = link.tx.counters.repeated_kicks
        assert not link.peer.on_kick()
        assert link.tx.counters.repeated_kicks == kicks < 20


def test_a_lone_packet_arms_no_timer(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(link.peer, VppSlave):
        link.peer.batch = 1  # as without zero copy: buffers that it keeps would look like packets
    posts: list[float] = []
    monkeypatch.setattr(Schedule, "post", lambda schedule, delay, action: posts.append(delay))
    for number in range(1, 1000):
        link.tx.send([PACKET])
        assert link.taken(number)()
    assert not posts


def test_a_peer_that_keeps_up_is_never_kicked_again(make_pair: MakePair) -> None:
    pair = make_pair(slave_rx_mode="interrupt", master_rx_mode="interrupt")
    for sender, receiver in ((pair.master, pair.slave), (pair.slave, pair.master)):
        got = 0
        for _ in range(200):
            sent = sender.tx_queues[0].send([PACKET] * 32)
            got += len(receiver.rx_queues[0].recv(64))
            for runtime in pair.runtimes:
                runtime.poll_event(0)
        assert got == 6400
        assert sent == 32
        assert sender.tx_queues[0].counters.repeated_kicks == 0


def test_sends_of_another_thread_are_watched_too(link: Link) -> None:
    with running_in_thread(link.runtime):
        assert link.tx.send([PACKET] * 1024) == 1024
        poll = select.poll()
        poll.register(link.peer.rx_fd, select.POLLIN)
        while link.peer.taken < 1024:
            assert poll.poll(DEADLINE * 1000)
            link.peer.on_kick()


def test_the_stats_and_the_metrics_count_repeated_kicks(link: Link) -> None:
    link.tx.send([PACKET] * 1024)
    link.peer.wait(link.taken(1024))
    kicks = link.tx.counters.repeated_kicks
    queues = snapshot(link.runtime)["interfaces"][0]["queues"]
    assert [queue["repeated_kicks"] for queue in queues if queue["direction"] == "tx"] == [kicks]
    assert f" {kicks}\n" in metrics(snapshot(link.runtime)).partition("memifrt_queue_repeated_kicks_total{")[2]
    assert link.interface.details().tx_queues[0].counters.repeated_kicks == kicks


def test_a_disconnect_ends_the_watch(link: Link) -> None:
    link.tx.send([PACKET] * 1024)
    link.runtime.set_reconnect_interval(0)
    link.interface.disconnect()
    link.peer.wait(lambda: not armed(link.runtime))


# --- a schedule that other threads post to --------------------------------------------------------------------------


def test_posts_from_many_threads_are_all_called_on_the_schedules_own() -> None:
    with_timer = TimerFd()
    schedule = Schedule(with_timer)
    called: list[int] = []
    count, threads = 200, 4

    def post() -> None:
        for _ in range(count):
            schedule.post(0.0005, lambda: called.append(threading.get_ident()))

    workers = [Thread(target=post) for _ in range(threads)]
    for worker in workers:
        worker.start()
    poll = select.poll()
    poll.register(with_timer.fileno(), select.POLLIN)
    while len(called) < count * threads:
        assert poll.poll(DEADLINE * 1000)
        schedule.after(0.001, lambda: None)
        schedule.run()
    for worker in workers:
        worker.join()
    assert set(called) == {threading.get_ident()}
    with_timer.close()
    schedule.post(0, lambda: None)  # too late: it is never called, and raises nothing


def armed(runtime: Runtime) -> bool:
    return len(runtime._schedule) > 0


def wait_for_timer(runtime: Runtime) -> bool:
    runtime.poll_event(0.01)
    return False
