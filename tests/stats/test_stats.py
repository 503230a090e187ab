"""The stats socket and the Prometheus endpoint: what they say, to whom, and what nobody can make them do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from memifrt import ConfigError, ErrorCode, FdEvent, MemifError, MemifOSError, Runtime
from memifrt.cli.command_line import COMMANDS, main
from memifrt.stats.client import parse_snapshot
from memifrt.stats.prometheus import metrics, parse_endpoint
from memifrt.stats.server import MAX_CLIENTS
from memifrt.stats.snapshot import QueueStats, Snapshot, snapshot
from memifrt.system.original_functions import epoll
from tests.lib import loops, loops_async
from tests.lib.forked import NOBODY, in_child
from tests.lib.patched import open_fds
from tests.lib.peer import ScriptedSlave
from tests.lib.programs import end, read_until, running
from tests.lib.support import DEADLINE, Pair, connect, running_in_thread, wait_until

SECRET = "hunter2hunter2"


@pytest.fixture
def stats_path(tmp_path: Path) -> str:
    return str(tmp_path / "stats.sock")


class Asker:
    """One client of a stats socket, on a plain blocking socket."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        self.socket.connect("\0" + path[1:] if path.startswith("@") else path)
        self._lines = self.socket.makefile("rb")

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self, *runtimes: Runtime) -> bytes:
        """The next line; empty at the end."""
        if runtimes:
            wait_until(lambda: select.select([self.socket], [], [], 0)[0], *runtimes)
        with contextlib.suppress(ConnectionResetError):
            return self._lines.readline()
        return b""

    def snapshot(self, *runtimes: Runtime) -> Snapshot:
        return parse_snapshot(self.line(*runtimes))  # which checks every name of the schema

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


@pytest.fixture
def ask() -> Iterator[Callable[[str], Asker]]:
    """``ask(path)``: a client, closed afterwards."""
    with contextlib.ExitStack() as stack:

        def make(path: str) -> Asker:
            asker = Asker(path)
            stack.callback(asker.close)
            return asker

        yield make


Ask = Callable[[str], Asker]


@pytest.fixture
def watched(stats_path: str) -> Iterator[Runtime]:
    """A runtime with a stats socket."""
    with Runtime("watched", reconnect_interval=0.02, stats_socket=stats_path) as runtime:
        yield runtime


# --- what it says ---------------------------------------------------------------------------------------------------


def test_a_client_gets_a_snapshot_at_once_and_one_for_each_newline(watched: Runtime, stats_path: str, ask: Ask) -> None:
    client = ask(stats_path)
    first = client.snapshot(watched)
    assert (first["schema"], first["version"]) == ("memifrt-stats", 1)
    assert (first["name"], first["pid"], first["interfaces"]) == ("watched", os.getpid(), [])
    client.say(b"\n")
    second = client.snapshot(watched)
    client.say(b"\n\n")
    third, fourth = client.snapshot(watched), client.snapshot(watched)
    times = [each["monotonic"] for each in (first, second, third, fourth)]
    assert times == sorted(times)
    assert len(set(times)) == 4


def test_a_snapshot_tells_of_both_ends(watched: Runtime, peer_runtime: Runtime, stats_path: str, ask: Ask) -> None:
    before = time.time()
    pair = connect(
        watched, peer_runtime, "@memifrt-stats-test", id=7, num_s2m_rings=2, master_name="ours", slave_name="theirs"
    )
    (interface,) = ask(stats_path).snapshot(watched)["interfaces"]
    assert {name: interface[name] for name in ("id", "name", "role", "mode", "socket", "state", "error")} == {
        "id": 7,
        "name": "ours",
        "role": "master",
        "mode": "ethernet",
        "socket": "@memifrt-stats-test",
        "state": "connected",
        "error": "",
    }
    assert interface["peer"] == {
        "app_name": "peer",
        "name": "theirs",
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
    }
    assert interface["connected_since"] is not None
    assert before <= interface["connected_since"] <= time.time()
    assert [(queue["direction"], queue["qid"], queue["ring"]) for queue in interface["queues"]] == [
        ("rx", 0, "s2m"),
        ("rx", 1, "s2m"),
        ("tx", 0, "m2s"),
    ]
    assert [queue["rx_mode"] for queue in interface["queues"]] == ["interrupt", "interrupt", None]
    assert pair.master.connected


def queue_of(snapshot: Snapshot, role: str, direction: str) -> QueueStats:
    (interface,) = (found for found in snapshot["interfaces"] if found["role"] == role)
    (queue,) = (found for found in interface["queues"] if found["direction"] == direction)
    return queue


def test_counters_and_slots_in_use_are_those_of_the_rings(runtime: Runtime, socket_name: str) -> None:
    pair = connect(runtime, runtime, socket_name, log2_ring_size=4)
    assert pair.slave.tx_queues[0].send([b"x" * 60] * 5) == 5
    assert pair.master.tx_queues[0].send([b"y" * 100] * 20) == 16
    now = snapshot(runtime)
    for role, direction in (("slave", "tx"), ("master", "rx")):
        assert queue_of(now, role, direction)["used"] == 5
    for role, direction in (("master", "tx"), ("slave", "rx")):
        assert queue_of(now, role, direction)["used"] == 16
    sent = queue_of(now, "master", "tx")
    assert (sent["packets"], sent["bytes"], sent["ring_full"], sent["interrupts"]) == (16, 1600, 1, 1)
    assert (sent["head"], sent["tail"], sent["ring_size"]) == (16, 16, 16)
    assert len(pair.master.rx_queues[0].recv()) == 5
    assert len(pair.slave.rx_queues[0].recv()) == 16
    later = snapshot(runtime)
    assert [queue["used"] for interface in later["interfaces"] for queue in interface["queues"]] == [0, 0, 0, 0]
    assert queue_of(later, "master", "rx")["packets"] == 5


def test_indices_that_the_peer_makes_up_end_nothing_and_stay_in_range(runtime: Runtime, socket_path: str) -> None:
    master = runtime.create_interface(socket=socket_path, role="master")
    with ScriptedSlave(socket_path, runtime).run() as peer:
        peer.wait(lambda: master.connected)
        for head in (0, 1, 15, 16, 17, 0x8000, 0xFFFF):
            peer.tx.head = peer.rx.head = head
            for direction in ("rx", "tx"):
                used = queue_of(snapshot(runtime), "master", direction)["used"]
                assert used is not None
                assert 0 <= used <= 16
        assert master.connected


def test_connections_and_violations_are_counted_and_counters_survive_them(runtime: Runtime, socket_path: str) -> None:
    master = runtime.create_interface(socket=socket_path, role="master")
    with ScriptedSlave(socket_path, runtime).run() as peer:
        peer.wait(lambda: master.connected)
        peer.publish(b"packet")
        assert master.rx_queues[0].recv() == [b"packet"]
    wait_until(lambda: not master.connected, runtime)
    with ScriptedSlave(socket_path, runtime).run() as peer:
        peer.wait(lambda: master.connected)
        peer.tx.head = 0x8000
        with pytest.raises(MemifError):
            master.rx_queues[0].recv()
        peer.wait(lambda: not master.connected)
    (interface,) = snapshot(runtime)["interfaces"]
    assert (interface["connects"], interface["disconnects"], interface["violations"]) == (2, 2, 1)
    assert (interface["state"], interface["peer"], interface["connected_since"]) == ("disconnected", None, None)
    assert "head 32768" in interface["error"]
    queue = queue_of(snapshot(runtime), "master", "rx")
    assert (queue["packets"], queue["used"], queue["head"], queue["masked"]) == (1, None, None, None)


def test_the_secret_is_in_nothing_that_is_said(stats_path: str, socket_name: str, ask: Ask) -> None:
    with Runtime("keeps it", stats_socket=stats_path, prometheus="127.0.0.1:0") as runtime:
        connect(runtime, runtime, socket_name, secret=SECRET)
        with running_in_thread(runtime):
            text = ask(stats_path).line() + get(runtime)[2]
    assert b"keeps it" in text
    assert SECRET.encode() not in text


@pytest.mark.parametrize("name", ['"}]\n{"', "\x1b[2J", "路由器", "[red]x[/red]", "\\"])
def test_whatever_names_peers_have_a_snapshot_is_one_line_of_ascii(
    name: str, watched: Runtime, peer_runtime: Runtime, socket_name: str, stats_path: str, ask: Ask
) -> None:
    connect(watched, peer_runtime, socket_name, slave_name=name)
    client = ask(stats_path)
    line = client.line(watched)
    assert line.isascii()
    assert line.count(b"\n") == 1
    (interface,) = parse_snapshot(line)["interfaces"]
    assert interface["peer"] is not None
    assert interface["peer"]["name"] == name
    text = metrics(parse_snapshot(line))
    assert all(re.fullmatch(r"# (HELP|TYPE) .*|[a-z_]+\{.*\} [0-9.]+", row) for row in text.splitlines())


# --- to whom --------------------------------------------------------------------------------------------------------


def test_only_the_owner_may_ask(
    watched: Runtime, stats_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(os.stat(stats_path).st_mode) == 0o600
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the directories above are closed to others

    def check() -> None:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as stranger, pytest.raises(PermissionError):
            stranger.connect(os.path.basename(stats_path))

    if os.geteuid() == 0:
        in_child(check, uid=NOBODY)


def test_an_abstract_name_is_as_good(socket_name: str, ask: Ask) -> None:
    with Runtime("abstract", stats_socket=socket_name) as runtime:
        assert ask(socket_name).snapshot(runtime)["name"] == "abstract"


def test_the_file_goes_with_the_runtime_and_its_clients_are_hung_up_on(stats_path: str, ask: Ask) -> None:
    runtime = Runtime(stats_socket=stats_path)
    client = ask(stats_path)
    client.snapshot(runtime)
    runtime.close()
    assert client.line() == b""
    assert not os.path.exists(stats_path)


def test_a_stale_file_is_replaced(stats_path: str, ask: Ask) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(stats_path)
    with Runtime("new", stats_socket=stats_path) as runtime:
        assert ask(stats_path).snapshot(runtime)["name"] == "new"


def test_a_runtime_that_cannot_be_made_leaves_no_file(stats_path: str) -> None:
    with pytest.raises(ConfigError):
        Runtime(stats_socket=stats_path, prometheus="nonsense")
    assert not os.path.exists(stats_path)


def test_a_path_in_use_is_an_error_that_names_it(watched: Runtime, stats_path: str) -> None:
    with pytest.raises(MemifOSError, match=f"cannot listen on {stats_path}: somebody listens there already"):
        Runtime(stats_socket=stats_path)
    assert os.path.exists(stats_path)


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("", ErrorCode.INVAL_ARG, "must be a path"),
        ("/nowhere/stats", ErrorCode.NO_FILE, "directory /nowhere"),
        (__file__, ErrorCode.FILE_NOT_SOCK, "not a socket"),
        ("x" * 108, ErrorCode.INVAL_ARG, "108 bytes"),
    ],
)
def test_a_path_where_nothing_can_listen_is_an_error(path: str, code: ErrorCode, words: str) -> None:
    with pytest.raises(MemifError, match=words) as caught:
        Runtime(stats_socket=path)
    assert caught.value.code is code


# --- in any loop ----------------------------------------------------------------------------------------------------


class Loop:
    """An epoll of the application's own, and all that the hook was told."""

    def __init__(self) -> None:
        self.epoll = epoll()
        self.told: list[tuple[int, FdEvent]] = []

    def hook(self, fd: int, events: FdEvent) -> None:
        self.told.append((fd, events))
        mask = (select.EPOLLIN if events & FdEvent.READ else 0) | (select.EPOLLOUT if events & FdEvent.WRITE else 0)
        if events & FdEvent.DEL:
            self.epoll.unregister(fd)
        elif events & FdEvent.MOD:
            self.epoll.modify(fd, mask)
        else:
            self.epoll.register(fd, mask)

    def turn(self, runtime: Runtime) -> None:
        for fd, mask in self.epoll.poll(1):
            events = FdEvent(0)
            events |= FdEvent.READ if mask & select.EPOLLIN else FdEvent(0)
            events |= FdEvent.WRITE if mask & select.EPOLLOUT else FdEvent(0)
            events |= FdEvent.ERROR if mask & (select.EPOLLERR | select.EPOLLHUP) else FdEvent(0)
            runtime.control_fd_handler(fd, events)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.epoll.close()


def test_every_fd_goes_through_the_hook(loop: Loop, stats_path: str, ask: Ask) -> None:
    with Runtime("external", control_fd_update=loop.hook, stats_socket=stats_path) as runtime:
        known = len(loop.told)
        client = ask(stats_path)
        while not select.select([client.socket], [], [], 0)[0]:
            loop.turn(runtime)
        assert client.snapshot()["name"] == "external"
        ((fd, events),) = loop.told[known:]
        assert events == FdEvent.READ
        client.close()
        while (fd, FdEvent.DEL) not in loop.told:
            loop.turn(runtime)
    added = [fd for fd, events in loop.told if not events & (FdEvent.DEL | FdEvent.MOD)]
    removed = [fd for fd, events in loop.told if events & FdEvent.DEL]
    assert sorted(added) == sorted(removed)


def test_a_hook_that_refuses_the_listener_leaves_nothing(stats_path: str) -> None:
    def hook(fd: int, events: FdEvent) -> None:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ValueError("no sockets here")

    with pytest.raises(MemifError, match="no sockets here") as caught:
        Runtime(control_fd_update=hook, stats_socket=stats_path)
    assert caught.value.code is ErrorCode.CB_FDUPDATE
    assert not os.path.exists(stats_path)


def test_a_hook_that_refuses_a_client_hangs_up_on_it(loop: Loop, stats_path: str, ask: Ask) -> None:
    with Runtime(control_fd_update=loop.hook, stats_socket=stats_path) as runtime:
        client = ask(stats_path)
        loop.epoll.close()
        listener = loop.told[-1][0]
        with pytest.raises(MemifError) as caught:
            runtime.control_fd_handler(listener, FdEvent.READ)
        assert caught.value.code is ErrorCode.CB_FDUPDATE
        assert client.line() == b""
        loop.hook = lambda fd, events: None  # type: ignore[method-assign]
        with contextlib.suppress(MemifError):
            runtime.close()


def test_a_forked_child_leaves_the_socket_to_its_parent(watched: Runtime, stats_path: str, ask: Ask) -> None:
    client = ask(stats_path)
    client.snapshot(watched)
    in_child(watched.close)
    assert os.path.exists(stats_path)
    client.say(b"\n")
    assert client.snapshot(watched)["pid"] == os.getpid()


@pytest.mark.parametrize("driver", [*loops.DRIVERS, *loops_async.DRIVERS], ids=str)
def test_it_answers_in_every_loop(driver: loops.Driver, stats_path: str, ask: Ask) -> None:
    def scenario(loop: loops.Loop) -> loops.Scenario:
        with Runtime("anywhere", control_fd_update=loop.update, stats_socket=stats_path) as runtime:
            loop.start(runtime.control_fd_handler)
            client = ask(stats_path)
            for _ in range(3):
                yield lambda: select.select([client.socket], [], [], 0)[0]
                assert client.snapshot()["name"] == "anywhere"
                client.say(b"\n")
            client.close()

    driver.run(scenario)


# --- what nobody can make it do -------------------------------------------------------------------------------------


def fds() -> int:
    return len(open_fds())


def settle(runtime: Runtime) -> None:
    """Handle events until there are none: a server that spins for somebody's sake never gets there."""
    deadline = time.monotonic() + DEADLINE
    while runtime.poll_event(0):
        assert time.monotonic() < deadline, "events without end"


@pytest.mark.parametrize("said", [b"", b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"x" * 100_000, b"\xff\n" * 1000])
def test_whatever_a_client_says_the_next_is_answered(said: bytes, watched: Runtime, stats_path: str, ask: Ask) -> None:
    rude = ask(stats_path)
    rude.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        rude.socket.send(said)
    for _ in range(3):
        watched.poll_event(0)
    assert ask(stats_path).snapshot(watched)["name"] == "watched"
    rude.close()
    settle(watched)


def test_a_client_that_takes_nothing_costs_one_answer_and_no_events(stats_path: str, ask: Ask) -> None:
    with Runtime("x" * 31, stats_socket=stats_path) as runtime:
        for number in range(200):  # the answers are long
            runtime.create_interface(socket=f"@memifrt-nobody-{os.getpid()}", id=number)
        greedy = ask(stats_path)
        settle(runtime)
        greedy.socket.setblocking(False)
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                greedy.socket.send(b"\n" * 1000)
            runtime.poll_event(0)
        settle(runtime)  # its socket is full: nothing is to be done for it
        greedy.socket.setblocking(True)
        with running_in_thread(runtime):
            assert len(ask(stats_path).snapshot()["interfaces"]) == 200
            assert len(greedy.snapshot()["interfaces"]) == 200  # and it may have the rest all the same
            assert len(greedy.snapshot()["interfaces"]) == 200


def test_of_many_clients_the_one_silent_longest_is_hung_up_on(watched: Runtime, stats_path: str, ask: Ask) -> None:
    settle(watched)
    before = fds()
    clients = [ask(stats_path) for _ in range(MAX_CLIENTS)]
    for client in clients:
        client.snapshot(watched)
    clients[0].say(b"\n")
    clients[0].snapshot(watched)
    late = [ask(stats_path) for _ in range(3)]
    for client in late:
        client.snapshot(watched)
    settle(watched)
    assert [client.line() for client in clients[1:4]] == [b"", b"", b""]
    for client in (clients[0], *clients[4:], *late):
        client.say(b"\n")
        assert client.snapshot(watched)["name"] == "watched"
    assert fds() - before <= 2 * len(clients + late)  # ours, and theirs


def test_a_thousand_who_come_and_go_leave_nothing(watched: Runtime, stats_path: str) -> None:
    settle(watched)
    before = fds()
    for _ in range(1000):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(stats_path)
        watched.poll_event(0)
    settle(watched)
    assert fds() == before


def test_a_runtime_out_of_fds_does_not_spin_and_answers_later(
    watched: Runtime, stats_path: str, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    client, spare = ask(stats_path), os.open("/dev/null", os.O_RDONLY)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, limits[1]))  # nothing above it, and nothing free below it
    holes = []
    try:
        with contextlib.suppress(OSError):
            while True:
                holes.append(os.dup(0))
        watched.poll_event(DEADLINE)
        assert "too many open files" in caplog.text.lower()
        assert watched.poll_event(0) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in (*holes, spare):
            os.close(fd)
    assert client.snapshot(watched)["name"] == "watched"


def test_a_client_that_closes_its_sending_side_gets_its_answer(watched: Runtime, stats_path: str, ask: Ask) -> None:
    client = ask(stats_path)
    client.say(b"\n")
    client.socket.shutdown(socket.SHUT_WR)
    client.snapshot(watched)
    client.snapshot(watched)
    settle(watched)
    assert client.line() == b""


# --- programs -------------------------------------------------------------------------------------------------------


def test_every_command_with_an_interface_can_be_watched(capsys: pytest.CaptureFixture[str]) -> None:
    deaf = set()
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        if not ("--stats PATH" in text and "--prometheus ADDRESS:PORT" in text and "--web [ADDRESS:]PORT" in text):
            deaf.add(command)
    # Those that have none, or for a moment; and the one that Wireshark runs, with arguments of its own.
    assert deaf == {"demo", "doctor", "extcap", "top"}


def test_a_bench_that_polls_all_the_time_answers(stats_path: str, socket_name: str, ask: Ask) -> None:
    arguments = ["--socket", socket_name, "--seconds", "0"]
    with (
        running("bench", "echo", *arguments) as echo,
        running("bench", "source", "--role", "master", *arguments, "--stats", stats_path) as source,
    ):
        read_until(source, "connected to", stderr=True)
        client = ask(stats_path)
        packets = 0
        deadline = time.monotonic() + DEADLINE
        while not packets:
            assert time.monotonic() < deadline
            packets = queue_of(client.snapshot(), "master", "tx")["packets"]
            client.say(b"\n")
        end(source)
        end(echo)
    assert not os.path.exists(stats_path)


def test_a_program_says_where_its_metrics_are(socket_name: str) -> None:
    arguments = ["--role", "master", "--socket", socket_name, "--prometheus", "127.0.0.1:0"]
    with running("responder", *arguments) as responder:
        line = read_until(responder, "metrics on", stderr=True)
        found = re.search(r"metrics on http://(127\.0\.0\.1):(\d+)/metrics$", line)
        assert found
        connection = http.client.HTTPConnection(found[1], int(found[2]), timeout=DEADLINE)
        connection.request("GET", "/metrics")
        assert b'memifrt_info{name="memifrt responder"' in connection.getresponse().read()
        connection.close()
        end(responder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stats", ""], ["--stats", "''", "path"]),
        (["--stats", "/nowhere/s"], ["/nowhere/s", "directory"]),
        (["--prometheus", "9100"], ["--prometheus", "'9100'", "127.0.0.1:9100"]),
        (["--prometheus", "192.0.2.1:9100"], ["192.0.2.1:9100", "Cannot assign"]),
        (["--web", ":8080"], ["--web", "':8080'", "127.0.0.1:8080"]),
        (["--web", "192.0.2.1:8080"], ["192.0.2.1:8080", "the page", "Cannot assign"]),
    ],
)
def test_a_wrong_place_is_one_line_that_names_it(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["responder", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert [word for word in words if word not in error] == []


# --- Prometheus -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scraped() -> Iterator[Runtime]:
    """A runtime with metrics, which handles its events in a thread."""
    with Runtime("scraped", prometheus="127.0.0.1:0") as runtime, running_in_thread(runtime):
        yield runtime


def get(runtime: Runtime, path: str = "/metrics", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body of one request."""
    connection = http.client.HTTPConnection(*address(runtime), timeout=DEADLINE)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def address(runtime: Runtime) -> tuple[str, int]:
    """Where the metrics are."""
    url = urlsplit(runtime.metrics_url)
    assert url.hostname is not None
    assert url.port is not None
    return url.hostname, url.port


def raw(runtime: Runtime, *pieces: bytes) -> bytes:
    """What comes back for bytes sent piece by piece."""
    with socket.create_connection(address(runtime), timeout=DEADLINE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        answer = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(65536):
                answer += data
        return bytes(answer)


def values(text: str) -> dict[str, float]:
    """Every sample of the text format by its name and labels."""
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def test_metrics_are_what_prometheus_reads(scraped: Runtime) -> None:
    status, headers, body = get(scraped)
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert int(headers["Content-Length"]) == len(body)
    text = body.decode()
    assert values(text) == {f'memifrt_info{{name="scraped",pid="{os.getpid()}",rings="native"}}': 1}
    assert text.endswith("\n")


def test_metrics_of_a_pair_have_its_counters(
    make_pair: Callable[..., Pair], runtime: Runtime, socket_name: str
) -> None:
    pair = make_pair(id=3)
    pair.master.tx_queues[0].send([b"x" * 60] * 2)
    text = metrics(snapshot(runtime))
    found = values(text)
    where = f'role="master",id="3",socket="{socket_name}"'
    assert found[f"memifrt_interface_up{{{where}}}"] == 1
    assert found[f'memifrt_queue_packets_total{{{where},direction="tx",queue="0"}}'] == 2
    assert found[f'memifrt_queue_bytes_total{{{where},direction="tx",queue="0"}}'] == 120
    assert found[f'memifrt_queue_ring_used_slots{{{where},direction="tx",queue="0"}}'] == 2
    assert found[f'memifrt_interface_peer_info{{{where},app="peer",name="",pid="{os.getpid()}"}}'] == 1
    for name in {re.split(r"[{ ]", sample)[0] for sample in found}:
        assert text.count(f"# HELP {name} ") == text.count(f"# TYPE {name} ") == 1
    families = [re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")]
    assert families == sorted(families, key=families.index), "samples of one family stand together"


def test_labels_are_escaped() -> None:
    now: Any = {"name": 'a"b\\c\nd\x1b', "pid": 1, "rings": "native", "interfaces": [], "counters": []}
    assert 'name="a\\"b\\\\c\\\\nd\\\\x1b"' in metrics(now)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics?name=x", 200),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/", 405),
    ],
)
def test_other_requests_get_a_status(method: str, path: str, status: int, scraped: Runtime) -> None:
    assert get(scraped, path, method)[0] == status


def test_head_gets_the_headers_alone(scraped: Runtime) -> None:
    status, headers, body = get(scraped, method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("pieces", "start"),
    [
        ([b"GET /metr", b"ics HTTP/1.1\r", b"\n\r", b"\n"], b"HTTP/1.1 200 OK\r\n"),
        ([b"GET /metrics HTTP/1.0\n\n"], b"HTTP/1.1 200 OK\r\n"),
        ([b"hello\r\n\r\n"], b"HTTP/1.1 400 Bad Request\r\n"),
        ([b"GET /metrics HTTP/2\r\n\r\n"], b"HTTP/1.1 400 Bad Request\r\n"),
        ([b"\0\xff" * 100 + b"\r\n\r\n"], b"HTTP/1.1 400 Bad Request\r\n"),
        ([b"GET /" + b"x" * 9000], b"HTTP/1.1 431 "),
    ],
)
def test_a_request_in_pieces_or_none_at_all_is_answered(pieces: list[bytes], start: bytes, scraped: Runtime) -> None:
    assert raw(scraped, *pieces).startswith(start)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * 300_000, 431),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, 405),
        (b"hello\r\n\r\n" + b"x" * 300_000, 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n" + b"x" * 300_000, 200),
    ],
)
def test_a_client_that_sends_too_much_sees_the_response_and_no_reset(
    request_: bytes, status: int, scraped: Runtime
) -> None:
    with socket.create_connection(address(scraped), timeout=DEADLINE) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while data := client.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_a_body_that_comes_after_the_response_resets_nothing(scraped: Runtime) -> None:
    with socket.create_connection(address(scraped), timeout=DEADLINE) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nContent-Length: 300000\r\n\r\n")
        while client.recv(65536):
            pass
        client.sendall(b"x" * 300_000)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_a_client_that_never_stops_sending_is_disconnected(scraped: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memifrt.stats.http_server._DRAIN_TIME", DEADLINE * 10)
    refused = False
    with socket.create_connection(address(scraped), timeout=DEADLINE) as client:
        try:
            for _ in range(1000):
                client.sendall(b"x" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            refused = True
    assert refused


def test_a_client_that_keeps_its_connection_after_a_refusal_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memifrt.stats.http_server._DRAIN_TIME", 0.01)
    with Runtime(prometheus="127.0.0.1:0") as runtime:
        before = len(open_fds())
        with socket.create_connection(address(runtime), timeout=DEADLINE) as client:
            client.sendall(b"hello\r\n\r\n")
            wait_until(lambda: len(open_fds()) == before + 2, runtime)
            wait_until(lambda: len(open_fds()) == before + 1, runtime)
            assert client.recv(4) == b"HTTP"


def test_clients_that_say_nothing_keep_nobody_out(scraped: Runtime) -> None:
    with contextlib.ExitStack() as silent:
        for _ in range(2 * MAX_CLIENTS):
            silent.enter_context(socket.create_connection(address(scraped), timeout=DEADLINE))
        assert get(scraped)[0] == 200


def test_the_endpoint_goes_with_the_runtime() -> None:
    with Runtime(prometheus="127.0.0.1:0") as runtime:
        where = address(runtime)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, timeout=DEADLINE)


def test_a_port_in_use_is_an_error_that_names_it(scraped: Runtime) -> None:
    endpoint = urlsplit(scraped.metrics_url).netloc
    with pytest.raises(MemifOSError, match=f"cannot serve metrics on {endpoint}: .*EADDRINUSE"):
        Runtime(prometheus=endpoint)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("localhost:0", ("127.0.0.1", 0)),
        ("[::1]:9100", ("::1", 9100)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_an_endpoint_is_an_address_and_a_port(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *("", "9100", ":9100", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "1.2.3.4:-1", "1.2.3.4: 1"),
        *("::1:9100", "[127.0.0.1]:1", "example.org:80"),
    ],
)
def test_anything_else_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        parse_endpoint(text)


def test_json_is_what_others_can_read(watched: Runtime, stats_path: str, ask: Ask) -> None:
    """Without any of our own code."""
    assert json.loads(ask(stats_path).line(watched))["schema"] == "memifrt-stats"
