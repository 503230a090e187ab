"""The page in the browser: serves one HTML file, and snapshots as server-sent events for it.

Owns the list of open event streams and when they get a snapshot, and the headers that restrict the page. Knows programs
only by their snapshots. ``web.html`` next to this file is the page; it shows and computes everything by itself.

``GET /`` is the page and ``GET /events`` the stream. An event is one line of JSON: ``interval`` (seconds between two
events) and ``programs``, a list of objects with ``path`` (of the stats socket, or empty), ``error`` and ``stats`` (a
snapshot, or null; without the MAC addresses of a switch).

A reader that is too slow skips snapshots: the server never keeps more than one event for it. A reader that skips
:data:`MAX_SKIPPED` events in a row is disconnected.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import TypedDict

from memifrt.errors import ConfigError
from memifrt.poll.epoll import EpollPoller
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule, TimerHandle
from memifrt.stats.http_server import HttpClient, Request, head, listen, response, split_endpoint
from memifrt.stats.server import Server
from memifrt.stats.snapshot import Snapshot, SnapshotSource, snapshot
from memifrt.system import original_functions
from memifrt.types import FdEvent

#: Seconds between two events of a runtime's page.
INTERVAL = 1.0
#: The number of events that a reader may skip in a row.
MAX_SKIPPED = 30
#: Bytes of events that the kernel holds for one reader. With more, a slow reader would see old snapshots.
_SEND_BUFFER = 64 << 10
#: Milliseconds after which a browser opens a broken stream again.
_RETRY = 2000
_HTML = os.path.join(os.path.dirname(__file__), "web.html")
#: Headers of every response. Nothing is kept, embedded elsewhere, or read by another origin.
_HEADERS = (
    "Cache-Control: no-store",
    "X-Content-Type-Options: nosniff",
    "X-Frame-Options: DENY",
    "Referrer-Policy: no-referrer",
    "Cross-Origin-Resource-Policy: same-origin",
)


class ProgramStats(TypedDict):
    """One program on the page. ``error`` says why it does not answer; ``stats`` is then its last snapshot."""

    path: str
    error: str
    stats: Snapshot | None


#: Returns the programs to show, at the moment of the call.
ProgramSource = Callable[[], Sequence[ProgramStats]]


def parse_endpoint(text: str | int) -> tuple[str, int]:
    """Parse ``127.0.0.1:8080``, ``[::1]:8080`` or a port alone, which means 127.0.0.1. Port 0: the system chooses.

    :raises ConfigError: the text does not have this form.
    """
    written = str(text) if isinstance(text, int) and not isinstance(text, bool) else text
    if isinstance(written, str) and re.fullmatch(r"[0-9]{1,5}", written):
        written = f"127.0.0.1:{written}"
    endpoint = split_endpoint(written)
    if endpoint is None:
        raise ConfigError(
            f"the endpoint of the page is {text!r}; it must be ADDRESS:PORT, like 127.0.0.1:8080, or a port, like 8080"
        )
    return endpoint


class _Browser(HttpClient):
    """One connection of a browser: it gets the page, or becomes a stream of events."""

    def __init__(self, sock: original_functions.socket, page: PageServer) -> None:
        super().__init__(sock)
        self._page = page
        self._is_stream = False
        self._event: bytes | None = None
        self._skipped = 0

    def offer(self, event: bytes) -> bool:
        """Take an event to send next, or skip it if an earlier one is not sent yet.

        :returns: whether it was taken.
        """
        if self._output or self._event is not None:
            self._skipped += 1
            return False
        self._skipped, self._event = 0, event
        return True

    @property
    def is_stuck(self) -> bool:
        """Whether the browser has skipped too many events."""
        return self._skipped >= MAX_SKIPPED

    def close(self) -> None:
        self._page.forget_stream(self)
        super().close()

    @property
    def _due(self) -> bool:
        return self._event is not None if self._is_stream else super()._due

    @property
    def _finished(self) -> bool:
        return super()._finished and not self._is_stream

    def _take(self, data: bytes) -> None:
        if not self._is_stream:  # else a client could make its request grow
            super()._take(data)

    def _answer(self) -> bytes:
        if self._is_stream and self._event is not None:
            event, self._event = self._event, None
            return event
        return super()._answer()

    def _respond(self, request: Request) -> bytes:
        page = self._page
        if not page.admits(request.host):
            return _refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this page is only for this host: open {page.url}, or the address that your tunnel listens on\n",
                with_body=request.wants_body,
            )
        if request.path == "/":
            return response(
                HTTPStatus.OK,
                page.html,
                kind="text/html; charset=utf-8",
                headers=[*_HEADERS, page.policy],
                with_body=request.wants_body,
            )
        if request.path == "/events":
            start = head(HTTPStatus.OK, "text/event-stream", _HEADERS)
            if not request.wants_body:
                return start
            first = page.event()
            self._is_stream = True
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            page.add_stream(self)
            return start + f"retry: {_RETRY}\n\n".encode() + first
        return _refusal(HTTPStatus.NOT_FOUND, "the page is at /\n", with_body=request.wants_body)


def _refusal(status: HTTPStatus, text: str, *, with_body: bool = True) -> bytes:
    return response(
        status, text, headers=[*_HEADERS, "Content-Security-Policy: default-src 'none'"], with_body=with_body
    )


class PageServer:
    """Serves the page to browsers, in a runtime's loop.

    :param source: returns the programs to show.
    :param endpoint: ``ADDRESS:PORT``, or a port on 127.0.0.1.
    :param interval: seconds between two events.
    :param publishes_itself: whether a timer sends the events. Otherwise the owner calls :meth:`publish`.
    :raises ConfigError: the endpoint has another form.
    :raises MemifOSError: we cannot listen there.
    """

    def __init__(
        self,
        source: ProgramSource,
        registry: FdRegistry,
        schedule: Schedule,
        endpoint: str | int,
        *,
        interval: float,
        publishes_itself: bool = True,
    ) -> None:
        self._source = source
        self._schedule = schedule
        self._interval = interval
        self._publishes_itself = publishes_itself
        self._timer: TimerHandle | None = None
        self._streams: list[_Browser] = []
        address = parse_endpoint(endpoint)
        self._is_local = _is_loopback_address(address[0])
        with open(_HTML, encoding="utf-8") as file:
            #: The page.
            self.html = file.read()
        #: The header that lets the page run its own script, and nothing else.
        self.policy = _content_security_policy(self.html)
        listener = listen(address, "the page", str(endpoint))
        #: The URL of the page, with the actual port.
        self.url = listener.url
        self._server = Server(registry, schedule, listener, lambda sock: _Browser(sock, self))

    def publish(self) -> None:
        """Send an event with the state of now to every open stream."""
        if not self._streams:
            return
        event = self.event()  # one for all: a hundred interfaces are some 100 KB
        for stream in list(self._streams):
            if stream.offer(event):
                self._server.advance(stream)
            elif stream.is_stuck:
                self._server.disconnect(stream)

    def close(self) -> None:
        """Close every connection and stop listening. Closing twice is harmless."""
        self._schedule.cancel(self._timer)
        self._server.close()

    # --- called by the connections ------------------------------------------------------------------------------

    def admits(self, host: str | None) -> bool:
        """Return whether a request for ``host`` may be answered.

        A page on a loopback address answers only to names of this host. Otherwise a website with a name that is made to
        resolve to 127.0.0.1 could read the page with the user's browser (DNS rebinding). The port does not matter, so
        that a tunnel to another port works.
        """
        return not self._is_local or (host is not None and _is_loopback(host))

    def event(self) -> bytes:
        """Return the state of now as a server-sent event."""
        contents = {"interval": self._interval, "programs": [_without_addresses(each) for each in self._source()]}
        return b"data: " + json.dumps(contents, separators=(",", ":")).encode() + b"\n\n"

    def add_stream(self, stream: _Browser) -> None:
        self._streams.append(stream)
        if self._publishes_itself and self._timer is None:
            self._timer = self._schedule.after(self._interval, self._on_timer)

    def forget_stream(self, stream: _Browser) -> None:
        if stream in self._streams:
            self._streams.remove(stream)

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self.publish()
        finally:
            if self._streams:
                self._timer = self._schedule.after(self._interval, self._on_timer)


def _without_addresses(program: ProgramStats) -> ProgramStats:
    """Leave out a switch's table of MAC addresses: the page does not show it, and it may have thousands."""
    stats = program["stats"]
    if stats is None or "switch" not in stats:
        return program
    return {**program, "stats": {**stats, "switch": {**stats["switch"], "addresses": []}}}


def _is_loopback(host: str) -> bool:
    """Return whether a ``Host`` header names this host: ``localhost`` or a loopback address, with any port."""
    found = re.fullmatch(r"(?:\[(?P<v6>[^]]+)\]|(?P<name>[^:]+))(?::[0-9]{1,5})?", host)
    if found is None:
        return False
    if found["name"] is not None and found["name"].lower() == "localhost":
        return True
    try:
        return _is_loopback_address(found["v6"] or found["name"])
    except ValueError:
        return False


def _is_loopback_address(text: str) -> bool:
    """Return whether an IP address is a loopback address, also as an IPv4 address in IPv6 (``::ffff:127.0.0.1``).

    :raises ValueError: the text is not an IP address.
    """
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _content_security_policy(html: str) -> str:
    """Return the header that allows the page's own style and script, by their hashes, and connections to the server.

    The page must not turn text into HTML, which trusted types enforce in the browsers that have them.
    """
    hashes = {}
    for tag in ("script", "style"):
        content = html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return (
        "Content-Security-Policy: default-src 'none'; "
        f"script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def serve(runtime: SnapshotSource, registry: FdRegistry, schedule: Schedule, endpoint: str | int) -> PageServer:
    """Serve the page of a runtime.

    :raises ConfigError: the endpoint has another form.
    :raises MemifOSError: we cannot listen there.
    """

    def source() -> list[ProgramStats]:
        return [{"path": "", "error": "", "stats": snapshot(runtime)}]

    return PageServer(source, registry, schedule, endpoint, interval=INTERVAL)


class StandalonePage:
    """A page without a runtime, in a loop of its own: the caller watches one fd.

    :ivar url: the URL of the page.
    """

    def __init__(self, source: ProgramSource, endpoint: str | int, interval: float) -> None:
        from memifrt.system.timerfd import TimerFd  # which imports ctypes

        with contextlib.ExitStack() as opened:
            self._poller = EpollPoller()
            opened.callback(self._poller.close)
            timer = TimerFd()
            opened.callback(timer.close)
            self._registry = FdRegistry(self._poller.update)
            schedule = Schedule(timer)
            self._registry.add(timer.fileno(), FdEvent.READ, lambda events: schedule.run())
            opened.callback(self._registry.remove_all)
            self._page = PageServer(
                source, self._registry, schedule, endpoint, interval=interval, publishes_itself=False
            )
            opened.callback(self._page.close)
            self.url = self._page.url
            self._opened = opened.pop_all()

    def fileno(self) -> int:
        """Return an fd that is readable while :meth:`handle_events` has events to handle."""
        return self._poller.fileno()

    def handle_events(self) -> None:
        """Handle the events that are ready, without waiting."""
        for fd, events in self._poller.wait(0)[0]:
            self._registry.dispatch(fd, events)

    def publish(self) -> None:
        """Send the state of now to every open page."""
        self._page.publish()

    def close(self) -> None:
        self._opened.close()


@contextlib.contextmanager
def standalone_page(source: ProgramSource, endpoint: str | int, interval: float) -> Iterator[StandalonePage]:
    """Open a :class:`StandalonePage`, and close it afterwards.

    :param interval: seconds between two calls of :meth:`StandalonePage.publish`, for the page.
    :raises ConfigError: the endpoint has another form.
    :raises MemifOSError: we cannot listen there.
    """
    page = StandalonePage(source, endpoint, interval)
    try:
        yield page
    finally:
        page.close()
