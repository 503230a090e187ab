"""The asyncio example as a program: pings over memif, its state over HTTP, and neither in the other's way."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from memifrt import Runtime
from memifrt.options import RoleName
from tests.examples.test_examples import Peer, Program
from tests.lib.flooder import flooding
from tests.lib.support import DEADLINE, wait_until

Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(*arguments)``: the running example; whatever happens, it is gone after the test."""
    programs: list[Program] = []

    def start(*arguments: str) -> Program:
        programs.append(Program("asyncio_app", *arguments))
        return programs[-1]

    yield start
    for program in programs:
        with program.process:  # closes the pipes and waits
            program.process.kill()


def started(start: Start, socket_path: str, *arguments: str) -> tuple[Program, str]:
    """The program, and the address that it serves."""
    program = start("--socket", socket_path, "--http", "127.0.0.1:0", *arguments)
    found = re.search(r"http://\S+:\d+/", program.line("answers for"))
    assert found
    return program, found[0]


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=DEADLINE) as response:
        assert response.headers["Content-Type"] == "application/json"
        state = json.load(response)
        assert isinstance(state, dict)
        return state


def client(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").rstrip("/").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=DEADLINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ip", "1.2.3"], "'1.2.3' is not an IP address"),
        (["--id", "-1"], "id is -1"),
        (["--http", "8080"], "'8080' is not HOST:PORT"),
        (["--http", "127.0.0.1:99999"], "'127.0.0.1:99999' is not HOST:PORT"),
        (["--http", "192.0.2.1:80"], "192.0.2.1"),  # an address that is nobody's
        (["--socket", "/nowhere/memif.sock", "--role", "master"], "the directory /nowhere does not exist"),
    ],
)
def test_wrong_argument_is_one_line_on_stderr(start: Start, socket_path: str, arguments: list[str], words: str) -> None:
    program = start("--socket", socket_path, *arguments)
    status, err = program.finish()
    assert status == 2
    assert err.startswith(("asyncio_app: ", "asyncio_app.py: "))
    assert words in err
    assert err.count("\n") == 1
    assert program.lines == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_with_0_and_a_goodbye(
    start: Start, runtime: Runtime, socket_path: str, number: signal.Signals
) -> None:
    peer = Peer(runtime, socket_path, "master")
    program, _ = started(start, socket_path)
    peer.connect(program)
    peer.ping(program)
    assert program.interrupt(number) == (0, "")
    wait_until(lambda: peer.reason, runtime)
    assert "interface deleted" in str(peer.reason)


def test_signal_ends_it_without_a_peer_and_in_spite_of_clients(start: Start, socket_path: str) -> None:
    program, url = started(start, socket_path, "--role", "master")
    with client(url) as silent, client(url) as unfinished:
        unfinished.sendall(b"GET / HTTP/1.1\r\n")
        assert get(url)["state"] == "disconnected"
        assert program.interrupt() == (0, "")
        assert silent.recv(1) == b""
    assert not os.path.exists(socket_path)


@pytest.mark.parametrize("role", ["master", "slave"])
def test_http_shows_the_state_and_the_counters(start: Start, runtime: Runtime, socket_path: str, role: str) -> None:
    ours: RoleName = "slave" if role == "master" else "master"
    program, url = started(start, socket_path, "--role", role)
    before = get(url)
    assert before["state"] == "disconnected"
    assert before["interface"] == f"memif 0 ({role}) on {socket_path}"
    assert ("no such file" in before["error"].lower()) == (role == "slave")
    for turn in (1, 2) if role == "master" else (1,):  # a slave comes again after 2 seconds only
        peer = Peer(runtime, socket_path, ours)
        peer.connect(program)
        peer.ping(program)
        peer.ping(program)
        assert peer.interface.tx_queues[0].send([b"\xff" * 60]) == 1
        peer.ping(program)
        state = get(url)
        assert (state["state"], state["peer"], state["error"]) == ("connected", "test", "")
        assert (state["rx"]["packets"], state["tx"]["packets"]) == (4 * turn, 3 * turn)
        peer.interface.delete()
        program.line("disconnected: ")
        assert get(url)["state"] == "disconnected"
    assert program.interrupt() == (0, "")


def test_what_is_not_a_request_for_the_state_is_told_so(start: Start, socket_path: str) -> None:
    program, url = started(start, socket_path, "--role", "master")
    for request, status in (
        (b"GET /favicon.ico HTTP/1.1\r\n\r\n", b"404"),
        (b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"\x16\x03\x01\r\n\r\n", b"405"),
        (b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * 20000, b""),
        (b"", b""),
    ):
        with client(url) as end:
            try:
                end.sendall(request)
                end.shutdown(socket.SHUT_WR)
                answer = end.recv(4096)
            except ConnectionError:  # it has hung up with the rest of the request unread
                answer = b""
        assert answer.partition(b" ")[2].startswith(status)
        assert bool(answer) == bool(status)
    assert get(url)["state"] == "disconnected"
    assert program.interrupt() == (0, "")


def test_slow_clients_delay_no_ping(start: Start, runtime: Runtime, socket_path: str) -> None:
    """None of them ever ends its request: a server that waited for one would answer no more."""
    peer = Peer(runtime, socket_path, "master")
    program, url = started(start, socket_path)
    peer.connect(program)
    slow = [client(url) for _ in range(20)]
    try:
        for end in slow:
            end.sendall(b"GET / HTTP/1.1\r\nHost: ")
        for _ in range(50):
            peer.ping(program)
        for end in slow:
            end.sendall(b"localhost\r\n\r\n")
            assert end.recv(4096).startswith(b"HTTP/1.1 200 OK")
    finally:
        for end in slow:
            end.close()
    assert program.interrupt() == (0, "")


def test_a_flood_of_packets_starves_neither_http_nor_pings(start: Start, runtime: Runtime, socket_path: str) -> None:
    program, url = started(start, socket_path, "--role", "master")
    with flooding(socket_path) as flooder:
        program.line("connected to 'flooder'")
        counts: list[int] = []
        with ThreadPoolExecutor(8) as clients:
            while len(counts) < 40 or counts[-1] < 50_000:
                counts += [state["rx"]["packets"] for state in clients.map(get, [url] * 8)]
        assert max(counts) > min(counts)
        flooder.kill()
        program.line("disconnected: ")
    peer = Peer(runtime, socket_path, "slave")
    peer.connect(program)
    peer.ping(program)
    assert program.interrupt() == (0, "")


def test_what_is_no_http_address_of_ours_is_an_error_of_the_system(start: Start, socket_path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        program = start("--socket", socket_path, "--http", f"127.0.0.1:{other.getsockname()[1]}")
        status, err = program.finish()
    assert status == 2
    assert "address already in use" in err.lower()
    with pytest.raises(urllib.error.URLError):
        get("http://127.0.0.1:1/")
