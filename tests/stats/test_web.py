"""The page in the browser: what it shows, to whom, and what nobody can make it do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

import memifrt.stats
from memifrt import ConfigError, FdEvent, MemifOSError, Runtime, sockets
from memifrt.cli.command_line import main
from memifrt.control.channel import Credentials
from memifrt.stats import web
from memifrt.stats.client import parse_snapshot
from memifrt.stats.server import MAX_CLIENTS
from memifrt.stats.snapshot import snapshot
from memifrt.stats.switch import AddressStats
from memifrt.stats.web import ProgramStats, parse_endpoint, standalone_page
from tests.lib import loops, loops_async
from tests.lib.browser import Browser, browser
from tests.lib.forked import in_child
from tests.lib.programs import end, read_until, running
from tests.lib.support import DEADLINE, connect, running_in_thread, wait_until
from tests.stats.test_grafana import SWITCH

HTML = Path(memifrt.stats.__file__).with_name("web.html").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the pages of this process send ten events a second instead of one."""
    monkeypatch.setattr(web, "INTERVAL", 0.1)


@pytest.fixture
def shown() -> Iterator[Runtime]:
    """A runtime with a page."""
    with Runtime("shown", reconnect_interval=0.02, web=0) as runtime:
        yield runtime


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def get(url: str, path: str = "/", method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], str]:
    """The status, headers and body of one request; ``host`` is the ``Host`` header."""
    connection = http.client.HTTPConnection(*address(url), timeout=DEADLINE)
    try:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


class Reader:
    """A stream of events, on a plain socket."""

    def __init__(self, url: str, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(address(url))
        self.socket.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.lines = self.socket.makefile("rb")

    @property
    def is_readable(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def event(self) -> dict[str, Any]:
        """The next event."""
        for line in self.lines:
            if line.startswith(b"data: "):
                return cast("dict[str, Any]", json.loads(line[6:]))
        raise EOFError

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@pytest.fixture
def read() -> Iterator[Callable[..., Reader]]:
    """``read(url)``: a stream, closed afterwards."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> Reader:
            reader = Reader(url, **options)
            stack.callback(reader.close)
            return reader

        yield make


Read = Callable[..., Reader]

# --- the file -------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_without_outside_resources() -> None:
    urls = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"')]*", HTML))
    assert {url for url in urls if not url.endswith("//www.w3.org/2000/svg")} == set()
    assert re.findall(r"<(?:script|style|iframe|object|embed|form)[^>]+>|@import|url\(|src=", HTML) == []


def test_the_page_turns_no_text_into_html() -> None:
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval|Function\(", HTML) == []
    assert re.findall(r"\son\w+=", HTML) == []


def test_nothing_of_it_is_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    program = f"""
import sys, memifrt
from memifrt.cli.command_line import main
with memifrt.Runtime(stats_socket={str(tmp_path / "stats")!r}, prometheus="127.0.0.1:0"): pass
assert main(["top", "--once", "/nowhere/stats"]) == 1
before = "memifrt.stats.web" in sys.modules
with memifrt.Runtime(web=0): pass
print(before, "memifrt.stats.web" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.split()[-2:] == ["False", "True"]


# --- requests -------------------------------------------------------------------------------------------------------


def test_the_page_may_run_its_own_script_and_reach_its_own_server_alone(shown: Runtime) -> None:
    with running_in_thread(shown):
        status, headers, body = get(shown.web_url)
    assert (status, body) == (200, HTML)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert [name for name in headers if name.startswith(("Set-Cookie", "Access-Control"))] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/?x", 200), ("HEAD", "/", 200), ("HEAD", "/events", 200), ("GET", "/metrics", 404), ("POST", "/", 405)],
)
def test_requests_get_a_status(method: str, path: str, status: int, shown: Runtime) -> None:
    with running_in_thread(shown):
        found, _, body = get(shown.web_url, path, method)
    assert found == status
    assert (body == "") == (method == "HEAD")


@pytest.mark.parametrize(
    ("host", "admitted"),
    [
        ("localhost", True),
        ("LocalHost:9000", True),  # by way of a tunnel
        ("127.0.0.1:8080", True),
        ("127.1.2.3", True),
        ("[::1]:8080", True),
        ("[::ffff:127.0.0.1]:8080", True),
        ("[::ffff:192.0.2.1]:8080", False),
        (" \t localhost \t ", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("192.0.2.1", False),
        ("", False),
        ("localhost:80:80", False),
    ],
)
def test_a_page_on_loopback_answers_only_to_names_of_this_host(host: str, admitted: bool, shown: Runtime) -> None:
    with running_in_thread(shown):
        for path in ("/", "/metrics"):
            assert (get(shown.web_url, path, host=host)[0] != 421) == admitted
        status, _, body = get(shown.web_url, "/events", "HEAD" if admitted else "GET", host)
    assert status == (200 if admitted else 421)
    assert "interfaces" not in body


@pytest.mark.parametrize("headers", [b"", b"Host: localhost\r\nHost: evil.example\r\n"])
def test_no_host_or_two_are_refused(headers: bytes, shown: Runtime) -> None:
    with running_in_thread(shown), socket.create_connection(address(shown.web_url), timeout=DEADLINE) as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + headers + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 421 ")


def test_a_page_on_every_address_answers_to_every_name() -> None:
    with Runtime(web="0.0.0.0:0") as runtime, running_in_thread(runtime):
        assert runtime.web_url.startswith("http://0.0.0.0:")
        assert get(runtime.web_url, host="router.example")[0] == 200


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("8080", ("127.0.0.1", 8080)),
        (8080, ("127.0.0.1", 8080)),
        (0, ("127.0.0.1", 0)),
        ("localhost:8080", ("127.0.0.1", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
    ],
)
def test_an_endpoint_is_an_address_and_a_port_or_a_port(text: str | int, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["", ":8080", "127.0.0.1", "65536", 65536, -1, True, "example.org:80", "::1:80", "1²"])
def test_anything_else_is_an_error_that_shows_it(text: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        parse_endpoint(text)


def test_a_port_in_use_is_an_error_that_names_it(shown: Runtime) -> None:
    endpoint = urlsplit(shown.web_url).netloc
    with pytest.raises(MemifOSError, match=f"cannot serve the page on {endpoint}: .*EADDRINUSE"):
        Runtime(web=endpoint)


# --- events ---------------------------------------------------------------------------------------------------------


def test_a_stream_starts_with_a_snapshot_and_goes_on(shown: Runtime, read: Read) -> None:
    reader = read(shown.web_url)
    times = []
    for _ in range(2):
        wait_until(lambda: reader.is_readable, shown)
        event = reader.event()
        (program,) = event["programs"]
        assert (event["interval"], program["path"], program["error"]) == (0.1, "", "")
        now = parse_snapshot(json.dumps(program["stats"]).encode())
        assert now["name"] == "shown"
        times.append(now["monotonic"])
    assert times[0] < times[1]
    reader.close()
    wait_until(lambda: not shown._schedule.pending, shown)  # without readers nothing is due


def test_what_a_reader_of_events_sends_is_ignored(shown: Runtime, read: Read) -> None:
    reader = read(shown.web_url)
    with running_in_thread(shown):
        reader.event()
        reader.socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        assert reader.event()["programs"]
        assert get(shown.web_url)[0] == 200


def test_readers_without_number_keep_nobody_out(shown: Runtime, read: Read) -> None:
    with running_in_thread(shown):
        for _ in range(2 * MAX_CLIENTS):
            assert read(shown.web_url).event()["programs"]
        assert get(shown.web_url)[0] == 200


def test_a_slow_reader_skips_events_and_one_that_never_reads_is_disconnected(read: Read) -> None:
    with Runtime("large") as runtime:
        for number in range(100):
            runtime.create_interface(socket=f"@memifrt-nobody-{os.getpid()}", id=number)
        large = snapshot(runtime)
    turn = [0]

    def source() -> list[ProgramStats]:
        return [{"path": str(turn[0]), "error": "", "stats": large}]

    with standalone_page(source, 0, 1.0) as page:
        slow, dead = (read(page.url, receive_buffer=4096) for _ in range(2))
        received = bytearray()

        def publish(*turns: int) -> None:
            """Publish once for each number, which the event then has as its path."""
            for turn[0] in turns:
                page.publish()

        def handle(until: Callable[[], object]) -> None:
            """Handle the page's events, and let the slow reader read, until something is true."""
            deadline = time.monotonic() + DEADLINE
            while not until():
                assert time.monotonic() < deadline
                select.select([page.fileno(), slow.socket.fileno()], [], [], 0.1)
                page.handle_events()
                with contextlib.suppress(BlockingIOError):
                    received.extend(slow.socket.recv(1 << 16))

        slow.socket.setblocking(False)
        handle(lambda: received.endswith(b"\n\n") and b"data: " in received)
        handle(lambda: dead.is_readable)
        publish(*range(1, 20))
        # The kernel holds a few events for a reader, and the server the rest of one. Later ones are skipped.

        def newest_arrives() -> bool:
            publish(99)
            return re.search(rb'"path":"99".*\n\n', received) is not None

        handle(newest_arrives)
        seen = [int(number) for number in re.findall(rb'"path":"([0-9]+)"', received)]
        assert seen == sorted(seen)
        assert seen[0] == 0
        assert len(set(seen) - {99}) < 20, "a slow reader was sent every event"

        def dead_is_gone() -> bool:
            publish(100)
            return len(page._page._streams) == 1

        handle(dead_is_gone)
        assert ended(dead.socket), "a reader that takes nothing is still there"
        assert not ended(slow.socket)


def ended(sock: socket.socket) -> bool:
    """Whether the other end has closed the connection, once everything before that is read."""
    sock.setblocking(False)
    try:
        while sock.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("driver", [*loops.DRIVERS, *loops_async.DRIVERS], ids=str)
def test_it_is_live_in_every_loop(driver: loops.Driver, read: Read) -> None:
    def scenario(loop: loops.Loop) -> loops.Scenario:
        with Runtime("anywhere", control_fd_update=loop.update, web=0) as runtime:
            loop.start(runtime.control_fd_handler)
            reader = read(runtime.web_url)
            yield lambda: reader.is_readable
            assert reader.event()["programs"][0]["stats"]["name"] == "anywhere"
            reader.close()

    driver.run(scenario)


def test_every_fd_goes_through_the_hook_and_is_removed(read: Read) -> None:
    told: list[tuple[int, FdEvent]] = []
    with Runtime(control_fd_update=lambda fd, events: told.append((fd, events)), web=0) as runtime:
        listener = told[-1][0]
        reader = read(runtime.web_url)
        runtime.control_fd_handler(listener, FdEvent.READ)
        runtime.control_fd_handler(told[-1][0], FdEvent.READ)
        assert reader.event()["programs"]
    assert reader.lines.read().strip() == b""
    added = [fd for fd, events in told if not events & (FdEvent.DEL | FdEvent.MOD)]
    removed = [fd for fd, events in told if events & FdEvent.DEL]
    assert sorted(added) == sorted(removed)


def test_a_forked_child_leaves_the_stream_to_its_parent(shown: Runtime, read: Read) -> None:
    reader = read(shown.web_url)
    wait_until(lambda: reader.is_readable, shown)
    assert reader.event()["programs"][0]["stats"]["pid"] == os.getpid()
    in_child(shown.close)
    wait_until(lambda: reader.is_readable, shown)
    assert reader.event()["programs"][0]["stats"]["pid"] == os.getpid()


# --- programs -------------------------------------------------------------------------------------------------------


def test_a_program_says_where_its_page_is_and_top_serves_what_stats_sockets_say(tmp_path: Path) -> None:
    path = str(tmp_path / "stats")
    arguments = ["--role", "master", "--socket", f"@memifrt-web-{os.getpid()}", "--web", "0", "--stats", path]
    with running("responder", *arguments) as responder:
        url = read_until(responder, "page on", stderr=True).split()[-1]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        assert get(url)[0] == 200
        with running("top", "--web", "0", "-i", "0.1", path, str(tmp_path / "gone")) as top:
            reader = Reader(read_until(top, "memifrt top: page on http://127.0.0.1:", stderr=True).split()[-1])
            with contextlib.closing(reader):
                found = reader.event()
                while not (found["programs"][0]["stats"] and found["programs"][1]["error"]):
                    found = reader.event()
                first, second = found["programs"]
                assert (found["interval"], first["path"], first["error"]) == (0.1, path, "")
                assert first["stats"]["interfaces"][0]["role"] == "master"
                assert (second["path"], second["stats"]) == (str(tmp_path / "gone"), None)
                assert "no such file" in second["error"]
                end(responder)
                while not found["programs"][0]["error"]:
                    found = reader.event()
                assert found["programs"][0]["stats"]["name"] == "memifrt responder"
            status, _, error = end(top)
            assert (status, error) == (0, "")


@pytest.mark.parametrize("option", ["--once", "--json"])
def test_top_serves_a_page_or_prints(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--web", "0", option, "/nowhere/stats"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--web" in error


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    # A website whose name resolves to this host.
    rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with browser(tmp_path_factory.mktemp("browser"), rules) as window:
        yield window


@pytest.fixture
def window(shared_window: Browser) -> Iterator[Browser]:
    """A browser, whose console must stay empty."""
    shared_window.size(1280, 900)
    shared_window.complaints()
    yield shared_window
    assert shared_window.complaints() == []
    shared_window.open("about:blank")


HOSTILE = "<img src=x onerror=pwned=1>"


def test_the_page_shows_state_peer_queues_rates_and_the_handshake_log(
    window: Browser, shown: Runtime, peer_runtime: Runtime, socket_name: str
) -> None:
    pair = connect(shown, peer_runtime, socket_name, id=7, master_name="ours", slave_name="theirs", log2_ring_size=4)
    shown.create_interface(socket="/nowhere/memif.sock", id=8)
    with running_in_thread(shown):
        window.open(shown.web_url)
        window.wait_for("document.querySelectorAll('details.interface[open]').length === 2")
        text = window.text()
        for words in ("shown", "memif 7 master (ours)", "connected", "peer (theirs)", socket_name, "rx 0", "tx 0"):
            assert words in text
        assert "'theirs' of 'peer'" in text
        assert "memif 8 slave" in text
        assert "directory /nowhere" in text or "No such file" in text
        assert "1 of 2 up" in text
        pair.master.tx_queues[0].send([b"x" * 60] * 20)
        window.wait_for("document.querySelector('.row .bar.full') !== null")  # 16 of 16 slots are used
        window.wait_for("[...programs.get('').histories.values()].flat().some((rate) => rate > 0)")
        window.wait_for("document.querySelector('.tx .curve').getAttribute('d').includes(' 1.0')")  # a peak
        assert window.run("return document.getElementById('sum-drops').textContent") == "1"
        for scheme, dark in (("dark", True), ("light", False)):
            window.media(prefers_color_scheme=scheme)
            colour = window.run("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", colour))) < 3 * 128) == dark


def test_an_interface_that_never_had_a_peer_is_not_called_disconnected(
    window: Browser, shown: Runtime, peer_runtime: Runtime, socket_name: str
) -> None:
    rows = "[...document.querySelectorAll('details.interface')].map((row) => row.querySelector('.state').innerText)"
    logs = "[...document.querySelectorAll('details.interface')].map((row) => row.querySelector('.log').innerText)"
    shown.create_interface(socket=f"{socket_name}-waits", role="master", id=1)
    shown.create_interface(socket=f"{socket_name}-tries", id=2)
    pair = connect(shown, peer_runtime, socket_name, id=3)
    with running_in_thread(shown):
        window.open(shown.web_url)
        window.wait_for(f"{rows}.length === 3 && {logs}[1].includes('not connected')")
        waiting, trying, up = window.run(f"return {rows}")
        assert waiting.startswith("waiting for a peer")
        assert trying.startswith("no peer yet")
        assert up.startswith("connected")
        assert "disconnected" not in window.text()
        pair.slave.disconnect("enough")
        peer_runtime.close()
        window.wait_for(f"{rows}[2].startsWith('disconnected') && {logs}[2].includes('disconnected')")
        assert "disconnected" not in "".join(window.run(f"return [...{rows}, ...{logs}].filter((_, i) => i % 3 < 2)"))


def test_a_peer_of_another_process_namespace_has_no_pid(
    window: Browser, shown: Runtime, peer_runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def channel(sock: socket.socket) -> Any:
        made = make(sock)
        made.credentials = Credentials(0, 1000, 1000)
        return made

    make = sockets.Channel  # type: ignore[attr-defined]
    monkeypatch.setattr(sockets, "Channel", channel)
    connect(shown, peer_runtime, socket_name)
    with running_in_thread(shown):
        window.open(shown.web_url)
        window.wait_for("document.querySelector('.facts').innerText.includes('in another process namespace')")


def test_the_page_shows_a_switch_and_the_counters_of_the_application(window: Browser, shown: Runtime) -> None:
    address: AddressStats = {"mac": "02:00:00:00:00:01", "vlan": 0, "port": 0, "age": 1.0}
    shown.application_counters["a to b"] = lambda: {HOSTILE: 42}
    shown.switch_stats = lambda: {**SWITCH, "addresses": 5 * [address]}
    with running_in_thread(shown):
        window.open(shown.web_url)
        window.wait_for("document.querySelectorAll('.extra:not([hidden]) tbody tr').length === 2")
        port, counter = window.run("return [...document.querySelectorAll('.extra tbody tr')].map(row => row.innerText)")
        cells = port.split()
        assert (cells[:2], cells[3], cells[6:]) == (["port", "up"], "1", ["1", "1", "0", "0", "1"])
        assert counter.split("\t")[:3] == ["a to b", HOSTILE, "42"]
        window.wait_for("document.querySelectorAll('.extra tbody tr')[0].cells[4].innerText === '0'")
        assert window.run("return programs.get('').stats.switch.addresses.length") == 0


def test_fifty_interfaces_fit_and_can_be_filtered(window: Browser, shown: Runtime) -> None:
    for number in range(50):
        shown.create_interface(
            socket=f"@memifrt-fifty-{os.getpid()}", role="master", id=number, name=f"port{number:02}"
        )
    with running_in_thread(shown):
        window.open(shown.web_url)
        window.wait_for("document.querySelectorAll('details.interface').length === 50")
        for width in (390, 1280, 1920):
            window.size(width, 900)
            assert window.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        window.run(
            "const box = document.getElementById('filter'); box.value = 'port07'; box.dispatchEvent(new Event('input'))"
        )
        visible = window.run(
            "return [...document.querySelectorAll('.interface')].filter(e => !e.hidden).map(e => e.innerText)"
        )
        assert len(visible) == 1
        assert "port07" in visible[0]
        window.run("document.querySelector('.interface:not([hidden]) summary').click()")
        window.wait_for("document.querySelector('.interface[open]').innerText.includes('Handshake log')")


def test_markup_in_the_names_of_a_peer_is_text(window: Browser, shown: Runtime, socket_name: str) -> None:
    with Runtime(HOSTILE) as hostile:
        pair = connect(shown, hostile, socket_name, slave_name="a\u202eb\x1b<b>")
        with running_in_thread(shown):
            window.open(shown.web_url)
            window.wait_for("document.querySelector('.interface[open]') !== null")
            text = window.text()
            assert f"{HOSTILE} (a\\u{{202e}}b\\u{{1b}}<b>)" in text
            assert HOSTILE in window.run("return document.querySelector('.log').innerText")
            pair.slave.disconnect(HOSTILE)
            hostile.close()
            window.wait_for("document.querySelector('.row .state').innerText.startsWith('disconnected')")
            window.wait_for(f"document.querySelector('.facts').innerText.includes({json.dumps(HOSTILE)})")
            assert window.run("return document.querySelectorAll('img, b').length + (window.pwned || 0)") == 0


def test_a_browser_cannot_be_led_here_by_another_name(window: Browser, shown: Runtime) -> None:
    with running_in_thread(shown):
        window.open(shown.web_url.replace("127.0.0.1", "evil.example"))
        assert "this page is only for this host" in window.text()
        assert "shown" not in window.text()
        complaints = window.complaints()
    assert [complaint for complaint in complaints if "421" not in complaint] == []


def test_a_slow_reader_does_not_hold_up_a_browser_and_a_page_finds_its_program_again(
    window: Browser, shown: Runtime, read: Read
) -> None:
    read(shown.web_url, receive_buffer=4096)
    with running_in_thread(shown):
        window.open(shown.web_url)
        first = window.wait_for("programs.size && programs.get('').stats.time")
        window.wait_for(f"programs.get('').stats.time > {first}")
    where = urlsplit(shown.web_url).netloc
    shown.close()
    window.wait_for("document.getElementById('live').textContent.includes('not connected')")
    with Runtime("again", web=where) as again, running_in_thread(again):
        window.wait_for("document.querySelector('h2').textContent === 'again'")
        assert "live, every 0.1 s" in window.text()
    complaints = [complaint for complaint in window.complaints() if "net::ERR_" not in complaint]
    assert complaints == []
