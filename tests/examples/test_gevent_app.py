"""The gevent example as a program: pings on memif and HTTP beside each other, neither in the way of the other."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from memifrt import Runtime
from memifrt.packets import arp_request, parse_arp_reply
from tests.examples.test_examples import OUR_IP, OUR_MAC, THEIR_IP, THEIR_MAC, Peer, Program, request
from tests.lib.support import DEADLINE
from tests.lib.threads import Event, Thread

T = TypeVar("T")
#: What stands before the program's path: gevent can patch a process before it runs a program.
WAYS = {"plain": (), "patched": ("-m", "gevent.monkey")}


@pytest.fixture
def peer(runtime: Runtime, socket_name: str) -> Peer:
    """A master that listens before the example is started."""
    return Peer(runtime, socket_name, "master")


@pytest.fixture(params=WAYS)
def app(request: pytest.FixtureRequest, peer: Peer, socket_name: str) -> Iterator[Program]:
    """The example, which connects to the peer and serves HTTP on a port of the system's choice."""
    arguments = ("--socket", socket_name, "--http", "127.0.0.1:0", "--queues", "2")
    program = Program("gevent_app", *arguments, options=WAYS[request.param])
    yield program
    with program.process:
        program.process.kill()


@pytest.fixture
def port(app: Program, peer: Peer) -> int:
    """Where it serves HTTP, once it is connected."""
    app.wait(lambda: len(app.lines) == 2 and peer.interface.connected, peer.runtime)
    first, second = sorted(app.lines)  # in either order
    assert first == "connected to 'test'"
    found = re.search(r"answers for 192\.168\.1\.2; http://127\.0\.0\.1:(\d+)/", second)
    assert found
    return int(found[1])


def beside(call: Callable[[], T], runtime: Runtime) -> T:
    """Do what blocks in a thread, while the runtime's events are handled."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=work)
    thread.start()
    while thread.is_alive():
        runtime.poll_event(0.01)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def get(port: int, path: str = "/") -> tuple[int, Any]:
    """The status, and what the JSON says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if answer.status == 200 else body


def received_more_than(port: int, packets: int) -> int:
    """Ask until more than so many packets have come; return how many."""
    while (received := int(get(port)[1]["received"]["packets"])) <= packets:
        pass
    return received


def test_it_answers_pings_and_shows_them(app: Program, port: int, peer: Peer, runtime: Runtime) -> None:
    assert peer.interface.tx_queues[0].send([arp_request(OUR_MAC, OUR_IP, THEIR_IP)]) == 1
    ((_, packet),) = peer.replies(app)
    assert parse_arp_reply(packet) == (THEIR_IP, THEIR_MAC)
    for qid in (0, 1):
        assert peer.ping(app, qid=qid) == qid
    status, shown = beside(lambda: get(port), runtime)
    assert status == 200
    assert (shown["state"], shown["peer"], shown["error"]) == ("connected", "test", "")
    assert (shown["received"]["packets"], shown["sent"]["packets"]) == (3, 3)
    assert beside(lambda: get(port, "/else"), runtime)[0] == 404
    assert app.interrupt() == (0, "")
    assert app.lines[-1].startswith("disconnected: ")


def test_a_slow_http_client_delays_no_ping(app: Program, port: int, peer: Peer, runtime: Runtime) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
        for _ in range(3):
            peer.ping(app)
        slow.sendall(b"here\r\nConnection: close\r\n\r\n")

        def rest() -> bytes:
            # A socket of this thread: gevent's belong to the thread that made them.
            with socket.socket(fileno=os.dup(slow.fileno())) as ours:
                ours.settimeout(DEADLINE)
                with ours.makefile("rb") as answer:
                    return answer.read()

        assert b"200 OK" in beside(rest, runtime)
    assert app.interrupt(signal.SIGTERM) == (0, "")


def test_a_flood_does_not_starve_http(app: Program, port: int, peer: Peer, runtime: Runtime) -> None:
    """Both of its queues always have packets. What comes back is left where it is, and so is lost."""
    over = Event()
    peer.interface.on_interrupt = None
    sent = 0

    def flood() -> None:
        nonlocal sent
        requests = [request(number) for number in range(256)]
        while not over.is_set():
            for queue in peer.interface.tx_queues:
                sent += queue.send(requests)
            for back in peer.interface.rx_queues:
                back.recv(1024)

    flooding = Thread(target=flood)
    flooding.start()
    try:
        # The first answer may come before the first packet.
        before = beside(lambda: received_more_than(port, 0), runtime)
        beside(lambda: received_more_than(port, before), runtime)
    finally:
        over.set()
        flooding.join()
    assert app.interrupt() == (0, "")


def test_it_survives_its_peer(app: Program, port: int, peer: Peer, runtime: Runtime, socket_name: str) -> None:
    peer.ping(app)
    peer.interface.delete()
    app.line("disconnected: peer disconnected: interface deleted", runtime)
    assert beside(lambda: get(port), runtime)[1]["state"] == "disconnected"
    again = Peer(runtime, socket_name, "master")
    again.connect(app)
    again.ping(app)
    assert app.interrupt() == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ip", "1.2.3"], "'1.2.3' is not an IP address"),
        (["--socket", ""], "socket is ''"),
        (["--queues", "0"], "num_s2m_rings is 0"),
        (["--role", "master", "--socket", "/nowhere/memif.sock"], "the directory /nowhere does not exist"),
        (["--http", "127.0.0.1:x"], "--http is '127.0.0.1:x'; it must be ADDRESS:PORT"),
    ],
)
def test_what_cannot_be_is_one_line_on_stderr(arguments: list[str], words: str) -> None:
    program = Program("gevent_app", *arguments)
    with program.process:
        status, err = program.finish()
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("gevent_app: ")
    assert words in err


def test_signal_without_a_peer_ends_it_with_0(app: Program, port: int) -> None:
    assert app.interrupt() == (0, "")
