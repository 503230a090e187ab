"""HTTP for the statistics: one request for each connection, on a TCP socket in the runtime's loop.

Owns the listener, the reading and checking of a request, and the form of a response. Knows nothing of what is served.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from memifrt.errors import os_error
from memifrt.stats.server import Client
from memifrt.system import original_functions
from memifrt.system.fds import OwnedFd, accept, own_socket

#: The longest headers of a request in bytes. A scraper sends a few hundred, a browser a thousand.
_LONGEST_REQUEST = 8192
_BACKLOG = 64
#: How much of a refused request is read, in bytes and in seconds, after the answer to it.
_MOST_DRAINED, _DRAIN_TIME = 1 << 20, 2.0
_DRAIN_PIECE = 1 << 16
#: The end of the headers, and a header that announces a body.
_END = re.compile(rb"\r?\n\r?\n")
_BODY = re.compile(rb"(?i)\n(content-length:[ \t]*0*[1-9]|transfer-encoding:)")


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    :ivar path: the path, without the query.
    :ivar host: the ``Host`` header; None if it is missing, or given twice.
    :ivar wants_body: False for ``HEAD``.
    """

    path: str
    host: str | None
    wants_body: bool


class HttpClient(Client):
    """Reads one request, sends one response, and closes the connection.

    If the client may still be sending, such as a request that is too large, the rest is read before the connection is
    closed. Otherwise the kernel would reset the connection, and the client might never see the response. Both the bytes
    and the time for this are limited.
    """

    request_bytes = _LONGEST_REQUEST + 1

    def __init__(self, sock: original_functions.socket) -> None:
        super().__init__(sock)
        self._request = b""
        self._answered = False
        #: Whether the request may go on behind the bytes that were read.
        self._goes_on = False
        #: The bytes that were read after the response; None before that.
        self._drained: int | None = None

    def advance(self) -> bool:
        if self._drained is not None:
            return self._drain()
        stays = super().advance()
        if stays or not self._answered or not self._goes_on:
            return stays
        self._socket.shutdown(socket.SHUT_WR)  # the client sees the end of the response
        self._drained, self.time_limit = 0, _DRAIN_TIME
        return self._drain()

    def _drain(self) -> bool:
        """Read once, and throw it away. Return False at the end, or at the limit."""
        assert self._drained is not None
        try:
            count = len(self._socket.recv(_DRAIN_PIECE))
        except BlockingIOError:
            return True
        self._drained += count
        return count > 0 and self._drained < _MOST_DRAINED

    @abstractmethod
    def _respond(self, request: Request) -> bytes:
        """Return the response to a ``GET`` or ``HEAD`` request."""

    @property
    def _due(self) -> bool:
        return not self._answered and (len(self._request) > _LONGEST_REQUEST or _END.search(self._request) is not None)

    @property
    def _finished(self) -> bool:
        return self._answered

    def _take(self, data: bytes) -> None:
        self._request += data

    def _answer(self) -> bytes:
        self._answered = True
        self._goes_on = True  # unless it is a whole request, with nothing behind its headers
        end = _END.search(self._request)
        if end is None or end.end() > _LONGEST_REQUEST:
            return response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        line = re.match(rb"([A-Z]+) (\S+) HTTP/1\.[01]\r?\n", self._request)
        if line is None:
            return response(HTTPStatus.BAD_REQUEST)
        headers = self._request[line.end() - 1 : end.end()]
        self._goes_on = end.end() < len(self._request) or _BODY.search(headers) is not None
        method, path = line[1], line[2].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return response(HTTPStatus.METHOD_NOT_ALLOWED, headers=["Allow: GET, HEAD"])
        hosts = re.findall(rb"(?im)^host:([^\r\n]*)", headers)
        host = hosts[0].decode("latin-1").strip(" \t") if len(hosts) == 1 else None
        return self._respond(Request(path.decode("latin-1"), host, method == b"GET"))


def response(
    status: HTTPStatus,
    text: str = "",
    *,
    kind: str = "text/plain; charset=utf-8",
    headers: Sequence[str] = (),
    with_body: bool = True,
) -> bytes:
    """Return a response with a body, which is the status's phrase if ``text`` is empty."""
    body = (text or f"{status.phrase}\n").encode()
    return head(status, kind, [f"Content-Length: {len(body)}", *headers]) + (body if with_body else b"")


def head(status: HTTPStatus, kind: str, headers: Sequence[str]) -> bytes:
    """Return the status line and the headers of a response."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {kind}", *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


# --- the listener ---------------------------------------------------------------------------------------------------


class TcpListener(OwnedFd):
    """A listening TCP socket.

    :param what: what it serves, for errors.
    """

    __slots__ = ("_socket", "_what")

    def __init__(self, sock: original_functions.socket, what: str) -> None:
        super().__init__(sock.fileno(), f"listener for {what}")
        self._socket = own_socket(sock)
        self._what = what

    def accept(self) -> original_functions.socket | None:
        """Accept the next connection; return None if none waits.

        :raises MemifOSError: ``accept`` failed.
        """
        try:
            return accept(self._socket)
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            raise os_error(f"cannot accept a connection for {self._what}", error) from error

    @property
    def url(self) -> str:
        """The URL, with the actual port and a slash at the end."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def close(self) -> None:
        self._socket.detach()  # super() closes the fd, except in a forked child
        super().close()


def listen(endpoint: tuple[str, int], what: str, text: str) -> TcpListener:
    """Listen on an address and a port.

    :param what: what it serves, for errors.
    :param text: the endpoint as the user wrote it, for errors.
    :raises MemifOSError: we cannot listen there.
    """
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    try:
        sock = original_functions.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(endpoint)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise os_error(f"cannot serve {what} on {text}", error) from error
    return TcpListener(sock, what)


def split_endpoint(text: object) -> tuple[str, int] | None:
    """Split ``127.0.0.1:9100`` or ``[::1]:9100`` into an address and a port. Return None for any other text."""
    found = (
        re.fullmatch(r"(?:\[(?P<v6>[^]]+)\]|(?P<v4>[^:]+)):(?P<port>[0-9]{1,5})", text)
        if isinstance(text, str)
        else None
    )
    if found is not None and int(found["port"]) <= 0xFFFF:
        host = "127.0.0.1" if found["v4"] == "localhost" else found["v4"] or found["v6"]
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return None
        if (address.version == 6) == (found["v6"] is not None):
            return str(address), int(found["port"])
    return None
