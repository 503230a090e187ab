"""memif in trio: awaiting, cancelling, what callbacks raise, and what else runs meanwhile."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import random
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from memifrt import ConfigError, Disconnected, FdEvent, Interface, MemifOSError, Runtime, State
from memifrt.options import RoleName
from memifrt.poll.trio import TrioPoller
from memifrt.trio import TrioInterface, open_interface, open_runtime
from tests.lib.flooder import BURST, flooding
from tests.lib.patched import PATCHED
from tests.lib.support import DEADLINE, runtime_of
from tests.lib.ticker import ATTEMPTS, BEAT, LATE, Beats

pytestmark = pytest.mark.skipif(PATCHED, reason="gevent's patches remove select.epoll, which trio needs")

READ, DEL = FdEvent.READ, FdEvent.DEL


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run it to its end, within the deadline."""

    async def guarded() -> None:
        with trio.fail_after(DEADLINE):
            await main()

    trio.run(guarded)


@contextlib.asynccontextmanager
async def pair(socket_name: str, **options: Any) -> AsyncIterator[tuple[TrioInterface, TrioInterface]]:
    """A master and a slave, connected, in one runtime; options of one end start with ``master_`` or ``slave_``."""
    common = {key: value for key, value in options.items() if not key.startswith(("master_", "slave_"))}
    async with open_runtime(reconnect_interval=0.02) as runtime, contextlib.AsyncExitStack() as stack:
        ends = []
        for role in ("master", "slave"):
            own = {key.removeprefix(f"{role}_"): value for key, value in options.items() if key.startswith(f"{role}_")}
            ends.append(
                await stack.enter_async_context(
                    open_interface(runtime=runtime, socket=socket_name, role=role, **{**common, **own})
                )
            )
        for end in ends:
            await end.wait_connected()
        yield ends[0], ends[1]


async def until(predicate: Callable[[], object]) -> None:
    while not predicate():
        await trio.sleep(0.001)


# --- a life ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["master", "slave"])
def test_an_echo_of_each_level(socket_path: str, role: RoleName) -> None:
    async def echo(far: TrioInterface) -> None:
        async for burst in far.bursts():
            await far.send(burst)

    async def main() -> None:
        other: RoleName = "slave" if role == "master" else "master"
        async with (
            open_interface(socket=socket_path, role=role, app_name="near", reconnect_interval=0.02) as near,
            open_interface(socket=socket_path, role=other, app_name="far", reconnect_interval=0.02) as far,
            trio.open_nursery() as nursery,
        ):
            await near.wait_connected()
            await far.wait_connected()
            assert near.state is State.CONNECTED
            assert near.details().remote_app_name == "far"
            nursery.start_soon(echo, far)
            for number in range(100):
                assert await near.send([b"%d" % number]) == 1
                assert await near.recv() == [b"%d" % number]
            assert near.counters.rx.packets == near.counters.tx.packets == 100
            nursery.cancel_scope.cancel()
        assert not os.path.exists(socket_path)

    run(main)


def test_a_slave_waits_for_a_master_that_comes_later(socket_path: str) -> None:
    async def main() -> None:
        async with (
            open_interface(socket=socket_path, role="slave", reconnect_interval=0.01) as slave,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(slave.wait_connected)
            await trio.testing.wait_all_tasks_blocked()
            assert isinstance(slave.last_error, MemifOSError)
            assert "no such file" in str(slave.last_error).lower()
            master = await nursery.start(run_master, socket_path)
            await slave.wait_connected()
            await master.wait_connected()
            nursery.cancel_scope.cancel()

    run(main)


async def run_master(socket_path: str, task_status: trio.TaskStatus[TrioInterface] = trio.TASK_STATUS_IGNORED) -> None:
    async with open_interface(socket=socket_path, role="master") as master:
        task_status.started(master)
        await trio.sleep_forever()


def test_a_disconnect_ends_the_wait_or_is_waited_out(socket_name: str) -> None:
    reasons: list[str] = []
    received: list[bytes] = []

    async def main() -> None:
        async def ends(master: TrioInterface) -> None:
            with pytest.raises(Disconnected) as ended:
                await master.recv()
            reasons.append(str(ended.value))

        async def goes_on(slave: TrioInterface) -> None:
            received.extend(await slave.recv())

        async with pair(socket_name, slave_reconnect=True) as (master, slave), trio.open_nursery() as nursery:
            nursery.start_soon(ends, master)
            nursery.start_soon(goes_on, slave)
            await trio.testing.wait_all_tasks_blocked()
            master.disconnect("enough")
            await until(lambda: reasons)
            await master.wait_connected()
            await slave.wait_connected()
            await master.send([b"again"])

    run(main)
    assert reasons == ["enough"]
    assert received == [b"again"]


def test_a_long_send_waits_for_room_as_often_as_it_takes(socket_name: str) -> None:
    packets = [number.to_bytes(4, "little") for number in range(2000)]
    received: list[bytes] = []

    async def main() -> None:
        async with pair(socket_name, log2_ring_size=5) as (master, slave), trio.open_nursery() as nursery:
            nursery.start_soon(slave.send, packets)
            while len(received) < len(packets):
                received.extend(await master.recv(7))

    run(main)
    assert received == packets


def test_leaving_the_block_wakes_who_waits_with_disconnected(socket_name: str) -> None:
    ended: list[str] = []

    async def wait(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except Disconnected as reason:
            ended.append(str(reason))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            async with pair(socket_name, reconnect=True, log2_ring_size=2) as (_, slave):
                for _ in range(3):
                    nursery.start_soon(wait, slave.recv)
                nursery.start_soon(wait, lambda: slave.send([b"x"] * 20))
                await trio.sleep(0.01)
            await until(lambda: len(ended) == 4)
            assert {*ended} == {f"{slave} is deleted"}

    run(main)


# --- cancelling -----------------------------------------------------------------------------------------------------


def test_cancelling_at_any_point_loses_no_packet(socket_name: str) -> None:
    rng = random.Random(7)
    count = 1000
    received: list[int] = []
    cancellations = 0

    async def send(slave: TrioInterface) -> None:
        for number in range(count):
            slave.tx_queues[0].send([number.to_bytes(4, "little")])
            for _ in range(rng.randrange(3)):
                await trio.lowlevel.checkpoint()

    async def take(master: TrioInterface, scope: trio.CancelScope) -> None:
        nonlocal cancellations
        with scope:
            received.extend(int.from_bytes(packet, "little") for packet in await master.recv(rng.randrange(1, 4)))
        cancellations += scope.cancelled_caught

    async def main() -> None:
        async with pair(socket_name, batch=5) as (master, slave), trio.open_nursery() as nursery:
            nursery.start_soon(send, slave)
            while len(received) < count:
                scope = trio.CancelScope()
                async with trio.open_nursery() as taker:
                    taker.start_soon(take, master, scope)
                    for _ in range(rng.randrange(5)):
                        await trio.lowlevel.checkpoint()
                    if not rng.randrange(4) or len(received) + 3 >= count:
                        scope.cancel()

    run(main)
    assert received == list(range(count))
    assert cancellations > 20


def test_every_call_is_a_cancellation_point(socket_name: str) -> None:
    async def main() -> None:
        async with pair(socket_name) as (master, slave):
            slave.tx_queues[0].send([b"packet"])
            calls: list[Callable[[], Awaitable[object]]] = [
                master.recv,
                master.wait_connected,
                lambda: master.send([b"x"]),
                lambda: master.bursts().__anext__(),
            ]
            for call in calls:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await call()
                assert scope.cancelled_caught
            assert await master.recv() == [b"packet"]
            assert slave.rx_queues[0].recv() == []

    run(main)


def test_a_cancelled_program_leaves_nothing(socket_path: str) -> None:
    """Whatever it waits for: the fixtures see what is left open."""

    async def wait(role: RoleName, what: str) -> None:
        async with open_interface(socket=socket_path, role=role, reconnect=True) as interface:
            if what == "recv":
                await interface.recv()
            elif what == "bursts":
                async for _ in interface.bursts():
                    pass
            elif what == "send":
                await interface.send([b"x"] * 5000)
            else:
                await interface.wait_connected()

    async def main() -> None:
        for what in ("wait_connected", "recv", "bursts", "send"):
            for alone in (True, False):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait, "master", what)
                    await trio.sleep(0.005)
                    if not alone:
                        nursery.start_soon(wait, "slave", what)
                        await trio.sleep(0.02)
                    nursery.cancel_scope.cancel()

    run(main)


# --- bursts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["break", "raise", "cancel in the body", "aclose", "async with"])
def test_a_burst_is_given_back_however_the_loop_is_left(socket_name: str, how: str) -> None:
    async def receive(master: TrioInterface, slave: TrioInterface) -> memoryview:
        view = memoryview(b"")
        if how == "aclose":
            bursts = slave.bursts(limit=4)
            view = (await bursts.__anext__())[0]
            await bursts.aclose()
            assert [burst async for burst in bursts] == []
            return view
        if how == "async with":
            async with slave.bursts(limit=4) as bursts:
                async for burst in bursts:
                    view = burst[0]
                    break
            return view
        with trio.CancelScope() as scope, contextlib.suppress(ZeroDivisionError):
            async for burst in slave.bursts(limit=4):
                view = burst[0]
                assert master.tx_queues[0].free() == 7
                if how == "break":
                    break
                if how == "raise":
                    raise ZeroDivisionError
                scope.cancel()
                await trio.sleep_forever()
        return view

    async def main() -> None:
        async with pair(socket_name, log2_ring_size=3) as (master, slave):
            for _ in range(20):
                await master.send([b"packet"])
                view = await receive(master, slave)
                assert master.tx_queues[0].free() == 8
                with pytest.raises(ValueError):
                    view[0]

    gc.disable()  # dropped is given back: no collector must be needed
    try:
        run(main)
    finally:
        gc.enable()


# --- what is raised -------------------------------------------------------------------------------------------------


def test_what_the_block_raises_comes_out_as_it_is(socket_name: str) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with open_interface(socket=socket_name, role="master"):
                raise ZeroDivisionError
        with pytest.raises(SystemExit):
            async with open_interface(socket=socket_name, role="master"):
                sys.exit(1)
        with pytest.raises(Disconnected):
            async with open_interface(socket=socket_name, role="master") as master:
                await master.recv()

    run(main)


@pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_interrupt"])
def test_what_a_callback_raises_comes_out_of_the_nursery_and_cancels_the_block(socket_name: str, callback: str) -> None:
    runtimes: list[Runtime] = []

    def fail(interface: Interface, *_: object) -> None:
        raise ZeroDivisionError(callback)

    async def main() -> None:
        async with open_interface(socket=socket_name, role="slave", reconnect_interval=0.02) as slave:
            options: dict[str, Any] = {callback: fail}
            async with open_interface(socket=socket_name, role="master", **options) as master:
                runtimes.append(runtime_of(master.interface))
                await slave.wait_connected()
                await slave.send([b"packet"])
                if callback == "on_disconnect":
                    slave.disconnect("enough")
                await trio.sleep_forever()

    # A group of exceptions, which Python 3.10 has no name for.
    with pytest.raises(BaseException) as raised:
        run(main)
    assert hasattr(raised.value, "exceptions")
    assert [type(error) for error in leaves(raised.value)] == [ZeroDivisionError]
    assert runtimes[0].closed


def leaves(error: BaseException) -> list[BaseException]:
    """What is in a group of exceptions, and in the groups in it."""
    inside: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return [leaf for inner in inside for leaf in leaves(inner)] or [error]


def test_wrong_arguments_are_named_and_leave_nothing(socket_name: str) -> None:
    async def main() -> None:
        wrong: list[tuple[str, Any]] = [
            ("batch is 0", open_runtime(batch=0)),
            ("batch is 0", open_interface(socket=socket_name, batch=0)),
            ("role is 'boss'", open_interface(socket=socket_name, role="boss")),  # type: ignore[arg-type]
        ]
        for words, context in wrong:
            with pytest.raises(ConfigError, match=words):
                async with context:
                    pass
        with Runtime() as internal, pytest.raises(ConfigError, match="open_runtime"):
            async with open_interface(runtime=internal):
                pass

    run(main)


# --- the adapter ----------------------------------------------------------------------------------------------------


def test_no_more_than_a_batch_of_events_is_handled_in_a_round() -> None:
    rounds: list[int] = []

    class Count(trio.abc.Instrument):
        turn = 0

        def before_io_wait(self, timeout: float) -> None:
            self.turn += 1

    async def main() -> None:
        fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(10)]
        count = Count()
        trio.lowlevel.add_instrument(count)

        def handler(fd: int, events: FdEvent) -> None:
            os.eventfd_read(fd)
            rounds.append(count.turn)

        async with trio.open_nursery() as nursery:
            poller = TrioPoller(nursery, batch=3)
            poller.start(handler)
            for fd in fds:
                poller.update(fd, READ)
            await until(lambda: len(rounds) == len(fds))
            poller.close()
        for fd in fds:
            os.close(fd)

    run(main)
    assert max(rounds.count(turn) for turn in rounds) <= 3


def test_an_fd_that_is_ready_all_the_time_does_not_starve_the_others() -> None:
    async def main() -> None:
        fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(9)]
        handled = dict.fromkeys(fds, 0)

        def handler(fd: int, events: FdEvent) -> None:
            handled[fd] += 1

        async with trio.open_nursery() as nursery:
            poller = TrioPoller(nursery, batch=2)
            poller.start(handler)
            for fd in fds:
                poller.update(fd, READ)
            await until(lambda: sum(handled.values()) > 900)
            assert min(handled.values()) > 30
            for fd in fds:
                poller.update(fd, DEL)
                os.close(fd)

    run(main)


def test_an_application_s_own_waiter_learns_that_the_fd_closes() -> None:
    """notify_closing: else it would wait for what has another file's number."""
    closed: list[int] = []

    async def wait_in_vain(fd: int) -> None:
        try:
            await trio.lowlevel.wait_writable(fd)
        except trio.ClosedResourceError:
            closed.append(fd)

    async def main() -> None:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        os.eventfd_write(fd, 2**64 - 2)  # full: never writable
        async with trio.open_nursery() as nursery:
            poller = TrioPoller(nursery)
            poller.start(lambda fd, events: None)
            poller.update(fd, READ)
            nursery.start_soon(wait_in_vain, fd)
            await trio.sleep(0.01)
            assert closed == []
            poller.update(fd, DEL)
            os.close(fd)
        assert closed == [fd]

    run(main)


def test_the_task_is_there_as_long_as_there_are_fds() -> None:
    async def main() -> None:
        seen: list[int] = []

        def handler(fd: int, events: FdEvent) -> None:
            seen.append(fd)
            poller.update(fd, DEL)

        fd = os.eventfd(1, os.EFD_NONBLOCK)
        async with trio.open_nursery() as nursery:
            poller = TrioPoller(nursery)
            poller.start(handler)
            for turn in (1, 2, 3):
                assert not nursery.child_tasks
                poller.update(fd, READ)
                await until(functools.partial(has, seen, turn))
                await trio.testing.wait_all_tasks_blocked()
        os.close(fd)

    run(main)


def has(seen: list[int], count: int) -> bool:
    return len(seen) == count


def test_nothing_is_watched_when_the_nursery_is_cancelled(socket_name: str) -> None:
    async def main() -> None:
        fd = os.eventfd(1, os.EFD_NONBLOCK)
        async with trio.open_nursery() as nursery:
            poller = TrioPoller(nursery)
            poller.start(lambda fd, events: None)
            poller.update(fd, READ)
            nursery.cancel_scope.cancel()
        poller.update(fd, FdEvent.WRITE | FdEvent.MOD)
        poller.update(fd, DEL)
        with pytest.raises(RuntimeError):
            poller.update(fd, READ)
        assert len(poller) == 0
        os.close(fd)

    run(main)


def test_an_event_for_nobody_is_an_error() -> None:
    async def main() -> None:
        fd = os.eventfd(1, os.EFD_NONBLOCK)
        try:
            async with trio.open_nursery() as nursery:
                TrioPoller(nursery).update(fd, READ)
        finally:
            os.close(fd)

    with pytest.raises(BaseException) as raised:
        run(main)
    (error,) = leaves(raised.value)
    assert "start(handler)" in str(error)


def test_a_runtime_may_be_closed_after_trio(socket_name: str) -> None:
    runtimes: list[Runtime] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            poller = TrioPoller(nursery)
            runtime = Runtime(control_fd_update=poller.update)
            poller.start(runtime.control_fd_handler)
            runtime.create_interface(socket=socket_name, role="master")
            runtimes.append(runtime)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    run(main)
    runtimes[0].close()


# --- what else runs meanwhile ---------------------------------------------------------------------------------------


async def tick(beats: Beats) -> None:
    """A task like any other, which wants to run every 5 ms."""
    while True:
        await trio.sleep(BEAT)
        beats.beat()


Load = Callable[[str, Beats], Awaitable[None]]


async def idle(socket_name: str, beats: Beats) -> None:
    async with pair(socket_name) as (master, slave), trio.open_nursery() as nursery:
        for end in (master, slave):
            nursery.start_soon(end.recv)
        await until(lambda: beats.count >= 60)
        nursery.cancel_scope.cancel()


async def nobody_listens(socket_name: str, beats: Beats) -> None:
    async with open_interface(socket=socket_name, role="slave", reconnect_interval=0.001) as slave:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slave.wait_connected)
                await until(lambda: beats.count >= 60)
                scope.cancel()


async def endless_packets(socket_name: str, beats: Beats) -> None:
    """There is always another burst: whoever handles packets never waits for one."""
    async with pair(socket_name) as (master, slave):
        slave.tx_queues[0].send(BURST)
        async for burst in master.bursts():
            assert sum(zlib.crc32(packet) for packet in burst)
            assert slave.tx_queues[0].send(BURST) == len(BURST)
            assert time.monotonic() - beats.last < 1, "the ticker starves"
            if beats.count >= 60:
                break


async def a_peer_is_killed_and_comes_back(socket_name: str, beats: Beats) -> None:
    async with (
        open_interface(socket=socket_name, role="master", reconnect=True) as master,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(handle_packets, master)
        for turn in (1, 2):
            with flooding(socket_name) as program:
                while master.counters.rx.packets < turn * 20_000:
                    await trio.sleep(0.001)
                program.kill()
                await until(lambda: not master.connected)
        nursery.cancel_scope.cancel()


async def handle_packets(interface: TrioInterface) -> None:
    async for burst in interface.bursts():
        assert sum(zlib.crc32(packet) for packet in burst)


@pytest.mark.parametrize("load", [idle, nobody_listens, endless_packets, a_peer_is_killed_and_comes_back])
def test_a_ticker_misses_no_beat(socket_name: str, load: Load) -> None:
    seen = []
    for _ in range(ATTEMPTS):
        beats = Beats()
        run(functools.partial(main_with_a_ticker, socket_name, load, beats))
        seen.append(beats.worst)
        if beats.worst <= LATE:
            return
    raise AssertionError(seen)


async def main_with_a_ticker(socket_name: str, load: Load, beats: Beats) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick, beats)
        await load(socket_name, beats)
        nursery.cancel_scope.cancel()
