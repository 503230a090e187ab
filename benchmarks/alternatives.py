"""What a Python program would take instead of memif: the same payloads, one way, from process to process.

Each transport is a sender and a receiver; ``measure`` runs them pinned to two cores and gives packets a second as the
receiver counts them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing as mp
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

#: Packets between two looks at the clock.
_ROUND = 256
#: Samples that an iceoryx2 subscriber holds, as many as a ring has slots.
_SAMPLES = 1024
_VETH = ("memifrt-b0", "memifrt-b1")

#: (packet size in bytes, seconds, (receiver's core, sender's core)) -> packets a second.
Transport = Callable[[int, float, tuple[int, int]], float]
Counter = Callable[[], int]
Sender = Callable[[], None]


def _pump(send: Sender, cpu: int, ready: Connection) -> None:
    os.sched_setaffinity(0, {cpu})
    ready.send(b"")
    with contextlib.suppress(OSError):
        while True:
            for _ in range(_ROUND):
                send()


def _count(receive: Counter, seconds: float) -> float:
    """Packets a second: from the first one on, for so long."""
    while not receive():
        pass
    start, packets = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        for _ in range(_ROUND):
            packets += receive()
    return packets / (time.monotonic() - start)


def _run(make_sender: Callable[[], Sender], receive: Counter, seconds: float, cpus: tuple[int, int]) -> float:
    context = mp.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=lambda: _pump(make_sender(), cpus[1], there), daemon=True)
    process.start()
    before = os.sched_getaffinity(0)
    try:
        here.recv()
        os.sched_setaffinity(0, {cpus[0]})
        return _count(receive, seconds)
    finally:
        os.sched_setaffinity(0, before)
        process.kill()
        process.join()


def seqpacket(size: int, seconds: float, cpus: tuple[int, int]) -> float:
    """``AF_UNIX`` ``SOCK_SEQPACKET``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packet = bytes(size)

    def make_sender() -> Sender:
        ours.close()
        return lambda: theirs.sendall(packet)

    with ours, theirs:
        return _run(make_sender, lambda: bool(ours.recv(65536)), seconds, cpus)


def pipe(size: int, seconds: float, cpus: tuple[int, int]) -> float:
    """``multiprocessing.Pipe``, bytes."""
    ours, theirs = mp.Pipe(duplex=False)
    packet = bytes(size)
    with ours, theirs:
        return _run(lambda: lambda: theirs.send_bytes(packet), lambda: bool(ours.recv_bytes()), seconds, cpus)


def iceoryx(size: int, seconds: float, cpus: tuple[int, int]) -> float:
    """iceoryx2, publish and subscribe, zero copy: the publisher lends a sample and sends it without touching the data,
    and waits while the subscriber's buffer is full; the subscriber polls."""
    import iceoryx2

    name = iceoryx2.ServiceName.new(f"memifrt/{os.getpid()}/{time.monotonic_ns()}")
    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)

    def make_service() -> tuple[Any, Any]:
        # A node of each process's own, made after the fork.
        modes = iceoryx2.SignalHandlingMode
        node = iceoryx2.NodeBuilder.new().signal_handling_mode(modes.Disabled).create(iceoryx2.ServiceType.Ipc)
        builder = node.service_builder(name).publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
        return node, builder.enable_safe_overflow(False).subscriber_max_buffer_size(_SAMPLES).open_or_create()

    def make_sender() -> Sender:
        _, service = make_service()
        builder = service.publisher_builder().initial_max_slice_len(size)
        publisher = builder.backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered).create()
        lend = publisher.loan_slice_uninit

        def send() -> None:
            lend(size).assume_init().send()

        return send

    ends: list[Any] = []

    def receive() -> int:
        if not ends:
            node, service = make_service()
            ends.extend((service.subscriber_builder().buffer_size(_SAMPLES).create(), service, node))
        return ends[0].receive() is not None

    try:
        return _run(make_sender, receive, seconds, cpus)
    finally:
        if ends:
            ends[-1].try_cleanup_dead_nodes()  # what the publisher left, which is killed


def zeromq(size: int, seconds: float, cpus: tuple[int, int]) -> float:
    """pyzmq, PUSH to PULL over ipc."""
    import zmq

    packet = bytes(size)
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/zmq"

        def make_sender() -> Sender:
            # A context of the child's own: they do not survive a fork. It lives as long as the process.
            push = zmq.Context().socket(zmq.PUSH)
            push.connect(address)
            return lambda: push.send(packet)

        context = zmq.Context()
        pull = context.socket(zmq.PULL)
        try:
            pull.bind(address)
            return _run(make_sender, lambda: bool(pull.recv()), seconds, cpus)
        finally:
            context.destroy(linger=0)


@contextlib.contextmanager
def _veth() -> Iterator[tuple[socket.socket, socket.socket]]:
    subprocess.run(["ip", "link", "add", _VETH[0], "type", "veth", "peer", "name", _VETH[1]], check=True)
    try:
        for name in _VETH:
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        with contextlib.ExitStack() as stack:
            ends = []
            for name in _VETH:
                end = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)))
                end.bind((name, 0x88B5))
                ends.append(end)
            yield ends[0], ends[1]
    finally:
        subprocess.run(["ip", "link", "del", _VETH[0]], check=True)


def veth(size: int, seconds: float, cpus: tuple[int, int]) -> float:
    """``AF_PACKET`` sockets on a veth pair, with an ethertype for experiments. Needs root and iproute2."""
    frame = bytes.fromhex("02000000000202000000000188b5").ljust(size, b"\0")
    with _veth() as (ours, theirs):
        return _run(lambda: lambda: _send_frame(theirs, frame), lambda: bool(ours.recv(65536)), seconds, cpus)


def _send_frame(sock: socket.socket, frame: bytes) -> None:
    with contextlib.suppress(BlockingIOError, InterruptedError):
        sock.send(frame)


def seqpacket_round_trip(size: int, seconds: float, cpus: tuple[int, int]) -> float:
    """Median microseconds there and back over ``SOCK_SEQPACKET``, blocking at both ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packet = bytes(size)

    def make_echo() -> Sender:
        ours.close()
        return lambda: theirs.sendall(theirs.recv(65536) or sys.exit(0))

    times: list[int] = []

    def once() -> int:
        start = time.perf_counter_ns()
        ours.sendall(packet)
        ours.recv(65536)
        times.append(time.perf_counter_ns() - start)
        return 1

    with ours, theirs:
        _run(make_echo, once, seconds, cpus)
    return sorted(times)[len(times) // 2] / 1e3


def available() -> dict[str, Transport | None]:
    """Return the transports by name; None for one that is not installed. Without root there is no veth."""
    return {
        name: transport if module is None or importlib.util.find_spec(module) is not None else None
        for name, (transport, module) in TRANSPORTS.items()
        if transport is not veth or _has_veth()
    }


def _has_veth() -> bool:
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(OSError, subprocess.CalledProcessError), _veth():
        return True
    return False


#: By name, with the module that must be installed.
TRANSPORTS: dict[str, tuple[Transport, str | None]] = {
    "AF_UNIX SEQPACKET": (seqpacket, None),
    "multiprocessing.Pipe": (pipe, None),
    "pyzmq ipc": (zeromq, "zmq"),
    "iceoryx2 publish and subscribe, zero copy": (iceoryx, "iceoryx2"),
    "veth AF_PACKET": (veth, None),
}
