"""memif in asyncio, on its own loop and on uvloop: awaiting, cancelling, and what else runs in the loop meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import random
import socket
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import uvloop

from memifrt import ConfigError, Disconnected, ErrorCode, FdEvent, Interface, MemifError, MemifOSError, Runtime, State
from memifrt.asyncio import AsyncioInterface, open_interface, open_runtime
from memifrt.options import RoleName
from memifrt.poll.asyncio import AsyncioPoller
from tests.lib.flooder import BURST, flooding
from tests.lib.support import DEADLINE
from tests.lib.ticker import ATTEMPTS, BEAT, LATE, Beats, hold_up

T = TypeVar("T")
Main = Callable[[], Coroutine[Any, Any, T]]

READ, WRITE, DEL = FdEvent.READ, FdEvent.WRITE, FdEvent.DEL

# libuv makes a pipe for signals with the first loop of a process, and keeps it: no test is to blame for it.
uvloop.new_event_loop().close()


class Runner:
    """Runs a coroutine to its end in a new loop, in debug mode. What nobody caught is in ``errors``."""

    def __init__(self, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._make_loop = make_loop
        self.errors: list[BaseException] = []

    def __call__(self, main: Main[T], timeout: float = DEADLINE) -> T:
        loop = self._make_loop()
        loop.set_debug(True)
        loop.set_exception_handler(lambda loop, context: self.errors.append(context.get("exception") or _said(context)))
        try:
            return loop.run_until_complete(asyncio.wait_for(main(), timeout))
        finally:
            left = asyncio.all_tasks(loop)
            loop.close()
            assert not left


def _said(context: dict[str, Any]) -> BaseException:
    return AssertionError(context["message"])


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Runner]:
    runner = Runner(request.param)
    yield runner
    assert runner.errors == []


@contextlib.asynccontextmanager
async def pair(socket_name: str, **options: Any) -> Any:
    """A master and a slave, connected, in one runtime; options of one end start with ``master_`` or ``slave_``."""
    async with open_runtime(reconnect_interval=0.02) as runtime:
        ends = []
        async with contextlib.AsyncExitStack() as stack:
            for role in ("master", "slave"):
                own = {
                    key.removeprefix("master_").removeprefix("slave_"): value
                    for key, value in options.items()
                    if not key.startswith("slave_" if role == "master" else "master_")
                }
                ends.append(
                    await stack.enter_async_context(
                        open_interface(runtime=runtime, socket=socket_name, role=role, **own)
                    )
                )
            await asyncio.gather(*(end.wait_connected() for end in ends))
            yield ends


async def until(predicate: Callable[[], object]) -> None:
    while not predicate():
        await asyncio.sleep(0.001)


async def cancelled(task: asyncio.Task[T]) -> list[T]:
    """Cancel a task; its result, if it had one already."""
    task.cancel()
    try:
        return [await task]
    except asyncio.CancelledError:
        return []


# --- a life ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["master", "slave"])
def test_an_echo_of_each_level(run: Runner, socket_path: str, role: RoleName) -> None:
    async def main() -> None:
        other: RoleName = "slave" if role == "master" else "master"
        async with (
            open_interface(socket=socket_path, role=role, app_name="near", reconnect_interval=0.02) as near,
            open_interface(socket=socket_path, role=other, app_name="far", reconnect_interval=0.02) as far,
        ):
            await asyncio.gather(near.wait_connected(), far.wait_connected())
            assert near.state is State.CONNECTED
            assert near.details().remote_app_name == "far"

            async def echo() -> None:
                async for burst in far.bursts():
                    await far.send(burst)

            task = asyncio.create_task(echo())
            for number in range(100):
                assert await near.send([b"%d" % number]) == 1
                assert await near.recv() == [b"%d" % number]
            assert near.counters.rx.packets == near.counters.tx.packets == 100
            assert await cancelled(task) == []
        assert not os.path.exists(socket_path)

    run(main)


def test_interfaces_share_a_runtime(run: Runner, socket_name: str) -> None:
    async def main() -> None:
        async with open_runtime("shared", reconnect_interval=0.02) as runtime, contextlib.AsyncExitStack() as stack:
            ends: dict[tuple[str, int], AsyncioInterface] = {}
            for number in range(8):
                for role in ("master", "slave"):
                    ends[role, number] = await stack.enter_async_context(
                        open_interface(runtime=runtime, socket=socket_name, id=number, role=role)
                    )
            assert len(runtime.interfaces) == 16
            await asyncio.gather(*(end.wait_connected() for end in ends.values()))
            for number in range(8):
                await ends["slave", number].send([b"%d" % number])
            received = await asyncio.gather(*(ends["master", number].recv() for number in range(8)))
            assert received == [[b"%d" % number] for number in range(8)]
        assert runtime.closed

    run(main)


def test_a_slave_waits_for_a_master_that_comes_later(run: Runner, socket_path: str) -> None:
    async def main() -> None:
        async with open_interface(socket=socket_path, role="slave", reconnect_interval=0.01) as slave:
            waiting = asyncio.create_task(slave.wait_connected())
            await asyncio.sleep(0)
            assert isinstance(slave.last_error, MemifOSError)
            assert "no such file" in str(slave.last_error).lower()
            async with open_interface(socket=socket_path, role="master") as master:
                await asyncio.gather(waiting, master.wait_connected())

    run(main)


def test_leaving_the_block_wakes_who_waits_with_disconnected(run: Runner, socket_name: str) -> None:
    async def main() -> None:
        async with pair(socket_name, reconnect=True, log2_ring_size=2) as (_, slave):
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(slave.recv()) for _ in range(3)]
            tasks.append(asyncio.create_task(slave.send([b"x"] * 20)))
            await asyncio.sleep(0)
        await asyncio.wait(tasks)
        assert {str(task.exception()) for task in tasks} == {f"{slave} is deleted"}

    run(main)


def test_a_disconnect_ends_the_wait_or_is_waited_out(run: Runner, socket_name: str) -> None:
    async def main() -> None:
        async with pair(socket_name, slave_reconnect=True) as (master, slave):
            ends, goes_on = asyncio.create_task(master.recv()), asyncio.create_task(slave.recv())
            await asyncio.sleep(0)
            master.disconnect("enough")
            with pytest.raises(Disconnected, match="enough"):
                await ends
            await asyncio.gather(master.wait_connected(), slave.wait_connected())
            await master.send([b"again"])
            assert await goes_on == [b"again"]

    run(main)


def test_a_timeout_of_asyncio_s_own(run: Runner, socket_name: str) -> None:
    async def main() -> None:
        async with pair(socket_name) as (master, slave):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(master.recv(), 0.01)
            await slave.send([b"later"])
            assert await asyncio.wait_for(master.recv(), DEADLINE) == [b"later"]

    run(main)


def test_a_long_send_waits_for_room_as_often_as_it_takes(run: Runner, socket_name: str) -> None:
    async def main() -> None:
        async with pair(socket_name, log2_ring_size=5) as (master, slave):
            packets = [number.to_bytes(4, "little") for number in range(2000)]
            task = asyncio.create_task(slave.send(packets))
            received: list[bytes] = []
            while len(received) < len(packets):
                received += await master.recv(7)
            assert await task == 2000
            assert received == packets

    run(main)


# --- cancelling -----------------------------------------------------------------------------------------------------


def test_cancelling_at_any_point_loses_no_packet(run: Runner, socket_name: str) -> None:
    rng = random.Random(7)

    async def main() -> None:
        async with pair(socket_name, batch=5) as (master, slave):
            sent = 0
            received: list[int] = []

            async def send() -> None:
                nonlocal sent
                while sent < 1500:
                    slave.tx_queues[0].send([sent.to_bytes(4, "little")])
                    sent += 1
                    for _ in range(rng.randrange(3)):
                        await asyncio.sleep(0)

            sender = asyncio.create_task(send())
            cancellations = 0
            while len(received) < 1500:
                task = asyncio.create_task(master.recv(rng.randrange(1, 4)))
                for _ in range(rng.randrange(5)):
                    await asyncio.sleep(0)
                if rng.randrange(4) or sender.done():
                    taken = [await asyncio.wait_for(task, DEADLINE)]
                else:
                    taken = await cancelled(task)
                    cancellations += not taken
                received += [int.from_bytes(packet, "little") for packets in taken for packet in packets]
            await sender
            assert received == list(range(1500))
            assert cancellations > 20

    run(main)


def test_a_cancelled_program_leaves_nothing(run: Runner, socket_path: str) -> None:
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
        tasks: list[asyncio.Task[None]] = []
        for what in ("wait_connected", "recv", "bursts", "send"):
            for alone in (True, False):
                tasks = [asyncio.create_task(wait("master", what))]
                await asyncio.sleep(0.005)
                if not alone:
                    tasks.append(asyncio.create_task(wait("slave", what)))
                    await asyncio.sleep(0.02)
                for task in reversed(tasks):
                    await cancelled(task)
                    assert task.done()

    run(main)


# --- bursts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["break", "raise", "cancel in the body", "cancel in the wait", "return", "aclose", "async with"]
)
def test_a_burst_is_given_back_however_the_loop_is_left(run: Runner, socket_name: str, how: str) -> None:
    async def main() -> None:
        async with pair(socket_name, log2_ring_size=3) as (master, slave):
            views: list[memoryview] = []

            async def receive() -> None:
                if how == "aclose":
                    bursts = slave.bursts(limit=4)
                    views.append((await bursts.__anext__())[0])
                    await bursts.aclose()
                    assert [burst async for burst in bursts] == []
                    return
                if how == "async with":
                    async with slave.bursts(limit=4) as bursts:
                        async for burst in bursts:
                            views.append(burst[0])
                            break
                    return
                async for burst in slave.bursts(limit=4):
                    views.append(burst[0])
                    assert master.tx_queues[0].free() == 7
                    if how == "break":
                        break
                    if how == "return":
                        return
                    if how == "raise":
                        raise ZeroDivisionError
                    if how == "cancel in the body":
                        await asyncio.Event().wait()

            for _ in range(20):
                task = asyncio.create_task(receive())
                await master.send([b"packet"])
                await until(lambda: views)
                if how.startswith("cancel"):
                    if how == "cancel in the wait":
                        await until(lambda: master.tx_queues[0].free() == 8)
                    await cancelled(task)
                else:
                    await asyncio.wait([task])
                    assert isinstance(task.exception(), ZeroDivisionError | None)
                assert master.tx_queues[0].free() == 8
                with pytest.raises(ValueError):
                    views.pop()[0]

    gc.disable()  # dropped is given back: no collector must be needed
    try:
        run(main)
    finally:
        gc.enable()


# --- callbacks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_interrupt"])
def test_what_a_callback_raises_reaches_the_loop_and_everything_goes_on(
    run: Runner, socket_name: str, callback: str
) -> None:
    calls: list[str] = []

    def fail(interface: Interface, *_: object) -> None:
        calls.append(callback)
        raise ZeroDivisionError(callback)

    async def main() -> None:
        async with pair(socket_name, **{f"master_{callback}": fail}) as (master, slave):
            for _ in range(2):
                received = asyncio.create_task(master.recv())
                await asyncio.sleep(0)
                await slave.send([b"packet"])
                assert await received == [b"packet"]
                slave.disconnect("enough")
                await until(lambda: not master.connected)
                await asyncio.gather(master.wait_connected(), slave.wait_connected())
            master.interface.on_disconnect = None  # else the block raises it, as closing a runtime does

    run(main)
    assert calls
    assert [str(error) for error in run.errors] == calls
    assert {type(error) for error in run.errors} == {ZeroDivisionError}
    run.errors.clear()


def test_with_nobody_receiving_the_loop_sleeps(run: Runner, socket_name: str) -> None:
    interrupts: list[int] = []

    async def main() -> None:
        on_interrupt = lambda interface, qid: interrupts.append(qid)  # noqa: E731
        async with pair(socket_name, master_on_interrupt=on_interrupt) as (master, slave):
            await slave.send([b"one"])
            await until(lambda: interrupts)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert interrupts == [0]
            assert await master.recv() == [b"one"]

    run(main)


# --- what is asked for ----------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named_and_leave_nothing(run: Runner, socket_name: str) -> None:
    async def main() -> None:
        wrong: list[tuple[str, Any]] = [
            ("batch is 0", open_runtime(batch=0)),
            ("reconnect_interval is -1", open_runtime(reconnect_interval=-1)),
            ("batch is 1.5", open_interface(socket=socket_name, batch=1.5)),  # type: ignore[arg-type]
            ("role is 'boss'", open_interface(socket=socket_name, role="boss")),  # type: ignore[arg-type]
            ("app_name", open_interface(socket=socket_name, app_name="x" * 32)),
        ]
        for words, context in wrong:
            with pytest.raises(ConfigError, match=words):
                async with context:
                    pass
        with Runtime() as internal, pytest.raises(ConfigError, match="open_runtime"):
            async with open_interface(runtime=internal):
                pass
        async with open_runtime() as runtime:
            with pytest.raises(ConfigError, match="app_name is 'mine'"):
                async with open_interface(runtime=runtime, app_name="mine"):
                    pass
            assert runtime.interfaces == ()

    run(main)


# --- the adapter ----------------------------------------------------------------------------------------------------


def test_no_more_than_a_batch_of_events_is_handled_in_a_round(run: Runner) -> None:
    """Ten are ready at once: they take four rounds of three, in which whatever else is due runs too."""
    rounds: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        poller = AsyncioPoller(batch=3)
        fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(10)]
        handled: list[int] = []
        turn = 0

        def count() -> None:
            nonlocal turn
            turn += 1
            if len(handled) < len(fds):
                loop.call_soon(count)

        def handler(fd: int, events: FdEvent) -> None:
            os.eventfd_read(fd)
            handled.append(fd)
            rounds.append(turn)

        poller.start(handler)
        for fd in fds:
            poller.update(fd, READ)
        count()
        await until(lambda: len(handled) == len(fds))
        assert {*handled} == {*fds}
        poller.close()
        for fd in fds:
            os.close(fd)

    run(main)
    assert max(rounds.count(turn) for turn in rounds) == 3
    assert len({*rounds}) == 4


def test_an_fd_that_is_ready_all_the_time_does_not_starve_the_others(run: Runner) -> None:
    async def main() -> None:
        poller = AsyncioPoller(batch=2)
        fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(9)]
        handled = dict.fromkeys(fds, 0)

        def handler(fd: int, events: FdEvent) -> None:
            handled[fd] += 1

        poller.start(handler)
        for fd in fds:
            poller.update(fd, READ)
        await until(lambda: sum(handled.values()) > 900)
        assert min(handled.values()) > 50
        for fd in fds:
            poller.update(fd, DEL)
            os.close(fd)
        assert len(poller) == 0

    run(main)


def test_an_fd_that_is_withdrawn_while_it_is_postponed_is_forgotten(run: Runner) -> None:
    async def main() -> None:
        poller = AsyncioPoller(batch=1)
        first, second = (os.eventfd(1, os.EFD_NONBLOCK) for _ in range(2))
        handled: list[int] = []

        def handler(fd: int, events: FdEvent) -> None:
            handled.append(fd)
            for watched in (first, second):
                poller.update(watched, DEL)

        poller.start(handler)
        for fd in (first, second):
            poller.update(fd, READ)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(handled) == 1
        for fd in (first, second):
            os.close(fd)

    run(main)


def test_an_fd_of_a_transport_is_refused_and_nothing_is_left(run: Runner) -> None:
    async def main() -> None:
        ends = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ends[0])
        poller = AsyncioPoller()
        for events in (READ, WRITE, READ | WRITE):
            with pytest.raises(RuntimeError):
                poller.update(ends[0].fileno(), events)
        assert len(poller) == 0
        writer.close()
        await writer.wait_closed()
        ends[1].close()

    run(main)


def test_an_event_for_nobody_is_an_error(run: Runner) -> None:
    async def main() -> None:
        poller = AsyncioPoller()
        fd = os.eventfd(1, os.EFD_NONBLOCK)
        poller.update(fd, READ)
        await until(lambda: run.errors)
        poller.close()
        os.close(fd)

    run(main)
    assert "start(handler)" in str(run.errors[0])
    run.errors.clear()


def test_a_runtime_may_be_closed_after_its_loop(run: Runner, socket_name: str) -> None:
    runtimes: list[Runtime] = []

    async def main() -> None:
        poller = AsyncioPoller()
        runtime = Runtime(control_fd_update=poller.update)
        poller.start(runtime.control_fd_handler)
        runtime.create_interface(socket=socket_name, role="master")
        runtimes.append(runtime)

    run(main)
    runtimes[0].close()


def test_a_hook_that_cannot_watch_fails_the_call(run: Runner, socket_name: str) -> None:
    async def main() -> None:
        def refuse(fd: int, events: FdEvent) -> None:
            raise RuntimeError("no more room")

        poller = AsyncioPoller()
        with Runtime(control_fd_update=poller.update) as runtime:
            poller.start(runtime.control_fd_handler)
            poller._loop = Refusing(poller._loop)  # type: ignore[assignment]
            with pytest.raises(MemifError, match="File descriptor") as failed:
                runtime.create_interface(socket=socket_name, role="master")
            assert failed.value.code is ErrorCode.CB_FDUPDATE
            assert len(poller) == 1

    run(main)


class Refusing:
    """A loop that uses every fd itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def add_reader(self, fd: int, *_: object) -> None:
        raise RuntimeError(f"File descriptor {fd} is used by transport")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


# --- what else runs in the loop -------------------------------------------------------------------------------------


async def tick(beats: Beats) -> None:
    """A task like any other, which wants to run every 5 ms."""
    while True:
        await asyncio.sleep(BEAT)
        beats.beat()


Load = Callable[[str, Beats], Coroutine[Any, Any, None]]


async def idle(socket_name: str, beats: Beats) -> None:
    async with pair(socket_name) as (master, slave):
        tasks = [asyncio.create_task(end.recv()) for end in (master, slave)]
        await until(lambda: beats.count >= 60)
        for task in tasks:
            await cancelled(task)


async def nobody_listens(socket_name: str, beats: Beats) -> None:
    async with contextlib.AsyncExitStack() as stack:
        slaves = [
            await stack.enter_async_context(
                open_interface(socket=socket_name, id=number, role="slave", reconnect_interval=0.001)
            )
            for number in range(5)
        ]
        tasks = [asyncio.create_task(slave.wait_connected()) for slave in slaves]
        await until(lambda: beats.count >= 60)
        for task in tasks:
            await cancelled(task)


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


async def flood(socket_name: str, beats: Beats) -> None:
    async with open_interface(socket=socket_name, role="master", reconnect=True) as master:
        with flooding(socket_name):
            await master.wait_connected()
            task = asyncio.create_task(handle_packets(master))
            start = beats.count
            await until(lambda: beats.count >= start + 60 and has_received(master, 50_000))
            await cancelled(task)


async def a_peer_is_killed_and_comes_back(socket_name: str, beats: Beats) -> None:
    async with open_interface(socket=socket_name, role="master", reconnect=True) as master:
        task = asyncio.create_task(handle_packets(master))
        for _ in range(2):
            with flooding(socket_name) as program:
                enough = master.counters.rx.packets + 5000
                await until(functools.partial(has_received, master, enough))
                program.kill()
                await until(lambda: not master.connected)
        await cancelled(task)


def has_received(interface: AsyncioInterface, count: int) -> bool:
    return interface.counters.rx.packets >= count


async def handle_packets(interface: AsyncioInterface) -> None:
    async for burst in interface.bursts():
        assert sum(zlib.crc32(packet) for packet in burst)


@pytest.mark.parametrize("load", [idle, nobody_listens, endless_packets, flood, a_peer_is_killed_and_comes_back])
def test_a_ticker_misses_no_beat(run: Runner, socket_name: str, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does asyncio's debug mode find a callback slow, unless the machine held us up."""

    async def main() -> Beats:
        beats = Beats()
        task = asyncio.create_task(tick(beats))
        await load(socket_name, beats)
        await cancelled(task)
        return beats

    seen = []
    for _ in range(ATTEMPTS):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "asyncio"):
            beats = run(main)
        slow = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
        seen.append((beats.worst, beats.stalled, slow))
        if beats.worst <= LATE and (not slow or beats.stalled > LATE):
            return
    raise AssertionError(seen)


def test_a_loop_that_is_held_up_is_noticed(run: Runner) -> None:
    async def main() -> Beats:
        beats = Beats()
        task = asyncio.create_task(tick(beats))
        await until(lambda: beats.count > 3)
        hold_up()
        await until(lambda: beats.count > 6)
        await cancelled(task)
        return beats

    assert run(main).worst > LATE
