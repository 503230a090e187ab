"""Packets that a peer sent just before it left come out of every face, before ``Disconnected`` does.

The end and the packets reach the loop in one round. Which of them it handles first is chance.
"""

from __future__ import annotations

from typing import Any

import anyio
import gevent
import pytest
import uvloop

import memifrt.asyncio
import memifrt.gevent
import memifrt.trio
from memifrt import Disconnected
from memifrt.waiting.base_interface import BaseInterface
from tests.lib.patched import PATCHED
from tests.lib.support import DEADLINE

# The first loop of uvloop and the hub of gevent open fds that stay.
uvloop.new_event_loop().close()
gevent.get_hub()

LAST = [b"%d" % number for number in range(5)]
BACKENDS = [
    pytest.param(memifrt.asyncio, "asyncio", {}, id="asyncio"),
    pytest.param(memifrt.asyncio, "asyncio", {"use_uvloop": True}, id="uvloop"),
    pytest.param(
        memifrt.trio,
        "trio",
        {},
        id="trio",
        marks=pytest.mark.skipif(PATCHED, reason="gevent's patches remove select.epoll, which trio needs"),
    ),
]
WAYS = pytest.mark.parametrize("way", ["recv", "bursts"])
WHEN = pytest.mark.parametrize("waits", [True, False], ids=["waits", "comes later"])


def send_and_leave(peer: BaseInterface[Any]) -> None:
    """In one go, without a turn for the loop."""
    assert peer.tx_queues[0].send(LAST) == len(LAST)
    peer.disconnect("that was all")


@WAYS
@WHEN
@pytest.mark.parametrize(("face", "backend", "options"), BACKENDS)
def test_in_a_loop_that_awaits(
    socket_name: str, face: Any, backend: str, options: dict[str, Any], way: str, waits: bool
) -> None:
    received: list[bytes] = []
    reasons: list[str] = []

    async def receive(interface: Any) -> None:
        try:
            if way == "recv":
                while True:
                    received.extend(await interface.recv(2))
            async for burst in interface.bursts(limit=2):
                received.extend(bytes(packet) for packet in burst.packets())
        except Disconnected as error:
            reasons.append(str(error))

    async def main() -> None:
        with anyio.fail_after(DEADLINE):
            async with (
                face.open_runtime() as runtime,
                face.open_interface(runtime=runtime, socket=socket_name, role="master") as interface,
                face.open_interface(runtime=runtime, socket=socket_name, role="slave") as peer,
            ):
                await interface.wait_connected()
                await peer.wait_connected()
                async with anyio.create_task_group() as group:
                    if waits:
                        group.start_soon(receive, interface)
                        await anyio.wait_all_tasks_blocked()
                    send_and_leave(peer)
                    if not waits:
                        while interface.connected:
                            await anyio.sleep(0.001)
                        group.start_soon(receive, interface)

    anyio.run(main, backend=backend, backend_options=options)
    assert received == LAST
    assert len(reasons) == 1
    assert "that was all" in reasons[0]


@WAYS
@WHEN
def test_in_gevent(socket_name: str, way: str, waits: bool) -> None:
    received: list[bytes] = []
    reasons: list[str] = []

    def receive() -> None:
        try:
            if way == "recv":
                while True:
                    received.extend(interface.recv(2))
            for burst in interface.bursts(limit=2):
                received.extend(bytes(packet) for packet in burst.packets())
        except Disconnected as error:
            reasons.append(str(error))

    with (
        gevent.Timeout(DEADLINE),
        memifrt.gevent.open_runtime() as runtime,
        memifrt.gevent.open_interface(runtime=runtime, socket=socket_name, role="master") as interface,
        memifrt.gevent.open_interface(runtime=runtime, socket=socket_name, role="slave") as peer,
    ):
        interface.wait_connected()
        peer.wait_connected()
        greenlet = gevent.Greenlet(receive)
        if waits:
            greenlet.start()
            gevent.sleep(0)
        send_and_leave(peer)
        if not waits:
            while interface.connected:
                gevent.sleep(0.001)
            greenlet.start()
        greenlet.join()
    assert received == LAST
    assert len(reasons) == 1
    assert "that was all" in reasons[0]
