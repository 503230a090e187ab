"""What a wake-up costs: ``recv`` of a packet, beside ``recv`` of a datagram by a socket of the same loop.

``callback`` is the core: ``on_interrupt`` within ``poll_event``, beside a plain ``select.epoll``. The others are faces.

    python -m benchmarks.faces [--rounds N] [--seconds N]

A feeder, a process of its own, sends one packet at a time and then pauses, so that the receiver sleeps in between. The
figure is the receiver's own CPU time for each packet, in microseconds.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import memifrt

_ROOT = Path(__file__).resolve().parent.parent
LOOPS = ("callback", "gevent", "asyncio", "trio")
TRANSPORTS = ("memif", "datagram")
_SELF = (sys.executable, "-m", "benchmarks.faces")
_PACKET = bytes(64)
#: Seconds between two packets: longer than any of these wake-ups takes.
_GAP = 0.0002
#: Packets before the clock starts.
_WARM_UP = 200


def wake_up_microseconds(loop: str, transport: str, seconds: float) -> float:
    """CPU time of one wake-up that receives one packet, measured in processes of their own."""
    command = [*_SELF, "--receive", loop, transport, "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


# --- the feeder -------------------------------------------------------------------------------------------------------


def _feed(transport: str, address: str) -> None:
    """Send packets until the receiver ends this process."""
    if transport == "datagram":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.connect(f"\0{address}")
            _pace(lambda: out.send(_PACKET))
        return
    with memifrt.Runtime("feeder", reconnect_interval=0.05) as runtime:
        interface = runtime.create_interface(socket=f"@{address}", role="slave")
        while not interface.connected:
            runtime.poll_event(1)
        queue, packets = interface.tx_queues[0], [_PACKET]
        _pace(lambda: queue.send(packets))


def _pace(send: Callable[[], object]) -> None:
    while True:
        send()
        time.sleep(_GAP)


# --- the receivers ----------------------------------------------------------------------------------------------------


class _Clock:
    """Counts packets, and the CPU time of this process from the first one after the warm-up on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._packets = 0
        self._end = float("inf")
        self._cpu = 0.0

    def tick(self) -> bool:
        """One packet has come; whether to go on."""
        self._packets += 1
        if self._packets == _WARM_UP:
            self._end = time.monotonic() + self._seconds
            self._cpu = time.process_time()
        return time.monotonic() < self._end

    @property
    def microseconds(self) -> float:
        return (time.process_time() - self._cpu) / (self._packets - _WARM_UP) * 1e6


def _callback_memif(address: str, clock: _Clock) -> None:
    going = True

    def on_interrupt(interface: memifrt.Interface, qid: int) -> None:
        nonlocal going
        for _ in interface.rx_queues[qid].recv():
            going = clock.tick() and going

    with memifrt.Runtime("receiver") as runtime:
        runtime.create_interface(socket=f"@{address}", role="master", on_interrupt=on_interrupt)
        while going:
            runtime.poll_event()


def _callback_datagram(address: str, clock: _Clock) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver,
        select.epoll() as epoll,
    ):
        receiver.bind(f"\0{address}")
        epoll.register(receiver, select.EPOLLIN)
        going = True
        while going:
            for _ in epoll.poll():
                going = bool(receiver.recv(2048)) and clock.tick()


def _gevent_memif(address: str, clock: _Clock) -> None:
    import memifrt.gevent

    with memifrt.gevent.open_interface(socket=f"@{address}", role="master") as interface:
        interface.wait_connected()
        while True:
            for _ in interface.recv():
                if not clock.tick():
                    return


def _gevent_datagram(address: str, clock: _Clock) -> None:
    from gevent import socket as gevent_socket

    with gevent_socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:  # type: ignore[attr-defined]
        receiver.bind(f"\0{address}")
        while receiver.recv(2048) and clock.tick():
            pass


def _asyncio_memif(address: str, clock: _Clock) -> None:
    import asyncio

    import memifrt.asyncio

    async def main() -> None:
        async with memifrt.asyncio.open_interface(socket=f"@{address}", role="master") as interface:
            await interface.wait_connected()
            while True:
                for _ in await interface.recv():
                    if not clock.tick():
                        return

    asyncio.run(main())


def _asyncio_datagram(address: str, clock: _Clock) -> None:
    import asyncio

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
            receiver.bind(f"\0{address}")
            while await loop.sock_recv(receiver, 2048) and clock.tick():
                pass

    asyncio.run(main())


def _trio_memif(address: str, clock: _Clock) -> None:
    import trio

    import memifrt.trio

    async def main() -> None:
        async with memifrt.trio.open_interface(socket=f"@{address}", role="master") as interface:
            await interface.wait_connected()
            while True:
                for _ in await interface.recv():
                    if not clock.tick():
                        return

    trio.run(main)


def _trio_datagram(address: str, clock: _Clock) -> None:
    import trio

    async def main() -> None:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            await receiver.bind(f"\0{address}")
            while await receiver.recv(2048) and clock.tick():
                pass

    trio.run(main)


_RECEIVERS: dict[tuple[str, str], Callable[[str, _Clock], None]] = {
    ("callback", "memif"): _callback_memif,
    ("callback", "datagram"): _callback_datagram,
    ("gevent", "memif"): _gevent_memif,
    ("gevent", "datagram"): _gevent_datagram,
    ("asyncio", "memif"): _asyncio_memif,
    ("asyncio", "datagram"): _asyncio_datagram,
    ("trio", "memif"): _trio_memif,
    ("trio", "datagram"): _trio_datagram,
}


def _receive(loop: str, transport: str, seconds: float) -> float:
    address = f"memifrt-faces-{os.getpid()}"
    feeder = subprocess.Popen(
        ["sh", "-c", 'until "$@" 2>/dev/null; do sleep 0.1; done', "feed", *_SELF, "--feed", transport, address],
        cwd=_ROOT,
        start_new_session=True,
    )
    clock = _Clock(seconds)
    try:
        _RECEIVERS[loop, transport](address, clock)
        return clock.microseconds
    finally:
        os.killpg(feeder.pid, 9)
        feeder.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure; default 1")
    parser.add_argument("--loops", choices=LOOPS, nargs="+", default=LOOPS)
    parser.add_argument("--receive", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--feed", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.feed:
        _feed(*arguments.feed)
    elif arguments.receive:
        loop, transport = arguments.receive
        print(_receive(loop, transport, arguments.seconds))
    else:
        _compare(arguments.loops, arguments.rounds, arguments.seconds)
    return 0


def _compare(loops: list[str], rounds: int, seconds: float) -> None:
    figures: dict[tuple[str, str], list[float]] = {(loop, kind): [] for loop in loops for kind in TRANSPORTS}
    for _ in range(rounds):
        for case, taken in figures.items():
            taken.append(wake_up_microseconds(*case, seconds))
    for loop in loops:
        memif, datagram = (statistics.median(figures[loop, kind]) for kind in TRANSPORTS)
        print(f"{loop:8} memif {memif:6.1f} us  datagram {datagram:6.1f} us  ratio {memif / datagram:.2f}")


if __name__ == "__main__":
    sys.exit(main())
