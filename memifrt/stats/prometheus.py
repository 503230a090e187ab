"""The Prometheus endpoint: serves a runtime's snapshot over HTTP, in Prometheus' text format.

Owns the names of the metrics, and the part of HTTP that ``GET /metrics`` needs: one request for each connection. Knows
interfaces only by their snapshot.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from memifrt.errors import ConfigError, os_error
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule
from memifrt.stats.server import Client, Server
from memifrt.stats.snapshot import InterfaceStats, QueueStats, Snapshot
from memifrt.stats.switch import SwitchStats
from memifrt.system import original_functions
from memifrt.system.fds import OwnedFd, accept, own_socket
from memifrt.types import printable

#: The longest request in bytes. A scraper sends a few hundred.
_LONGEST_REQUEST = 8192
_BACKLOG = 64
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


# --- the metrics ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Metric:
    name: str
    kind: str
    help: str


_RUNTIME = _Metric("memifrt_info", "gauge", "The runtime.")
_APPLICATION = _Metric("memifrt_application_total", "counter", "Counters of the application.")
_UP = _Metric("memifrt_interface_up", "gauge", "Whether the interface is connected.")
_PEER = _Metric("memifrt_interface_peer_info", "gauge", "The peer of a connected interface.")
_SINCE = _Metric("memifrt_interface_connected_timestamp_seconds", "gauge", "Unix time of the current connection.")

_OF_INTERFACES: tuple[tuple[_Metric, Callable[[InterfaceStats], float]], ...] = (
    (_UP, lambda interface: int(_is_up(interface))),
    (
        _Metric("memifrt_interface_connects_total", "counter", "Connections that were established."),
        lambda interface: interface["connects"],
    ),
    (
        _Metric("memifrt_interface_disconnects_total", "counter", "Conversations with a peer that ended."),
        lambda interface: interface["disconnects"],
    ),
    (
        _Metric("memifrt_interface_violations_total", "counter", "Conversations that the peer's violation ended."),
        lambda interface: interface["violations"],
    ),
)

_OF_QUEUES: tuple[tuple[_Metric, Callable[[QueueStats], float | None]], ...] = (
    (_Metric("memifrt_queue_packets_total", "counter", "Packets."), lambda queue: queue["packets"]),
    (_Metric("memifrt_queue_bytes_total", "counter", "Bytes of packets."), lambda queue: queue["bytes"]),
    (
        _Metric("memifrt_queue_interrupts_total", "counter", "Kicks found (rx) or sent (tx)."),
        lambda queue: queue["interrupts"],
    ),
    (
        _Metric("memifrt_queue_ring_full_total", "counter", "Calls that could not take all they were given."),
        lambda queue: queue["ring_full"],
    ),
    (
        _Metric("memifrt_queue_bad_descriptors_total", "counter", "Descriptors that break the protocol."),
        lambda queue: queue["bad_descriptors"],
    ),
    (
        _Metric("memifrt_queue_repeated_kicks_total", "counter", "Kicks sent again: the peer had left packets (tx)."),
        lambda queue: queue["repeated_kicks"],
    ),
    (_Metric("memifrt_queue_ring_slots", "gauge", "Slots of the ring."), lambda queue: queue["ring_size"]),
    (
        _Metric("memifrt_queue_ring_used_slots", "gauge", "Slots that the sender cannot fill now."),
        lambda queue: queue["used"],
    ),
)

_PORT_UP = _Metric("memifrt_switch_port_up", "gauge", "Whether packets can leave at this port of a switch.")
_ADDRESSES = _Metric("memifrt_switch_port_addresses", "gauge", "MAC addresses that were learned at this port.")
_PORT_PACKETS = _Metric("memifrt_switch_port_packets_total", "counter", "Packets of this port.")
_PORT_BYTES = _Metric("memifrt_switch_port_bytes_total", "counter", "Bytes of this port's packets.")
_LOST = _Metric("memifrt_switch_port_dropped_total", "counter", "Packets dropped at this port, by reason.")


def metrics(snapshot: Snapshot) -> str:
    """Return a snapshot in Prometheus' text format.

    The labels ``role``, ``id`` and ``socket`` identify an interface. Queues also have ``direction`` and ``queue``.
    """
    interfaces = [(_labels(_identity(interface)), interface) for interface in snapshot["interfaces"]]
    queues = [
        (f"{where},{_labels({'direction': queue['direction'], 'queue': queue['qid']})}", queue)
        for where, interface in interfaces
        for queue in interface["queues"]
    ]
    runtime = _labels({"name": snapshot["name"], "pid": snapshot["pid"], "rings": snapshot["rings"]})
    lines = _family(_RUNTIME, [(runtime, 1)])
    for metric, value in _OF_INTERFACES:
        lines += _family(metric, ((where, value(interface)) for where, interface in interfaces))
    lines += _family(_SINCE, ((where, interface["connected_since"]) for where, interface in interfaces))
    lines += _family(
        _PEER, ((f"{where},{_peer(interface)}", 1) for where, interface in interfaces if _is_up(interface))
    )
    for metric, value_of in _OF_QUEUES:
        lines += _family(metric, ((where, value_of(queue)) for where, queue in queues))
    lines += _family(
        _APPLICATION,
        ((_labels({"group": each["group"], "counter": each["name"]}), each["value"]) for each in snapshot["counters"]),
    )
    if "switch" in snapshot:
        lines += _switch(snapshot["switch"])
    return "".join(f"{line}\n" for line in lines)


def _switch(switch: SwitchStats) -> list[str]:
    """Return the lines of a switch. The label ``port`` has the name of a port."""
    ports = [({"port": port["name"]}, port) for port in switch["ports"]]
    lines = _family(_PORT_UP, ((_labels(where), int(port["up"])) for where, port in ports))
    lines += _family(_ADDRESSES, ((_labels(where), port["addresses"]) for where, port in ports))
    packets = [(where, port["rx_packets"], port["tx_packets"]) for where, port in ports]
    octets = [(where, port["rx_bytes"], port["tx_bytes"]) for where, port in ports]
    for metric, counts in ((_PORT_PACKETS, packets), (_PORT_BYTES, octets)):
        both = [(where, way, count) for where, *pair in counts for way, count in zip(("rx", "tx"), pair, strict=True)]
        lines += _family(metric, ((_labels({**where, "direction": way}), count) for where, way, count in both))
    return lines + _family(
        _LOST,
        (
            (_labels({**where, "reason": loss["reason"]}), loss["packets"])
            for where, port in ports
            for loss in port["losses"]
        ),
    )


def _is_up(interface: InterfaceStats) -> bool:
    return interface["state"] == "connected"


def _identity(interface: InterfaceStats) -> dict[str, object]:
    return {"role": interface["role"], "id": interface["id"], "socket": interface["socket"]}


def _peer(interface: InterfaceStats) -> str:
    peer = interface["peer"]
    return "" if peer is None else _labels({"app": peer["app_name"], "name": peer["name"], "pid": peer["pid"]})


def _family(metric: _Metric, samples: Iterable[tuple[str, float | None]]) -> list[str]:
    """Return the lines of one metric: its help, its type and its samples; no line if there is no sample."""
    lines = [f"{metric.name}{{{labels}}} {value}" for labels, value in samples if value is not None]
    return [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *lines] if lines else []


def _labels(values: Mapping[str, object]) -> str:
    return ",".join(f"{name}={_quoted(value)}" for name, value in values.items())


def _quoted(value: object) -> str:
    text = printable(str(value)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


# --- HTTP -----------------------------------------------------------------------------------------------------------


class _HttpClient(Client):
    """Reads one request, sends one response, and closes the connection."""

    request_bytes = _LONGEST_REQUEST + 1

    def __init__(self, sock: original_functions.socket, source: Callable[[], Snapshot]) -> None:
        super().__init__(sock)
        self._source = source
        self._request = b""
        self._answered = False

    @property
    def _due(self) -> bool:
        return not self._answered and (
            len(self._request) > _LONGEST_REQUEST or re.search(rb"\r?\n\r?\n", self._request) is not None
        )

    @property
    def _finished(self) -> bool:
        return self._answered

    def _take(self, data: bytes) -> None:
        self._request += data

    def _answer(self) -> bytes:
        self._answered = True
        if len(self._request) > _LONGEST_REQUEST:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        line = re.match(rb"([A-Z]+) (\S+) HTTP/1\.[01]\r?\n", self._request)
        if line is None:
            return _response(HTTPStatus.BAD_REQUEST)
        method, path = line[1], line[2].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, allow="GET, HEAD")
        with_body = method == b"GET"
        if path != b"/metrics":
            return _response(HTTPStatus.NOT_FOUND, "the metrics are at /metrics\n", with_body=with_body)
        return _response(HTTPStatus.OK, metrics(self._source()), kind=_TEXT_FORMAT, with_body=with_body)


def _response(
    status: HTTPStatus,
    text: str = "",
    *,
    kind: str = "text/plain; charset=utf-8",
    allow: str = "",
    with_body: bool = True,
) -> bytes:
    body = (text or f"{status.phrase}\n").encode()
    head = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    head += [f"Allow: {allow}"] if allow else []
    head += ["Connection: close", "", ""]
    return "\r\n".join(head).encode() + (body if with_body else b"")


# --- the listener ---------------------------------------------------------------------------------------------------


class _TcpListener(OwnedFd):
    """A listening TCP socket."""

    __slots__ = ("_socket",)

    def __init__(self, sock: original_functions.socket) -> None:
        super().__init__(sock.fileno(), "listener for Prometheus")
        self._socket = own_socket(sock)

    def accept(self) -> original_functions.socket | None:
        """Accept the next connection; return None if none waits.

        :raises MemifOSError: ``accept`` failed.
        """
        try:
            return accept(self._socket)
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            raise os_error("cannot accept a connection for metrics", error) from error

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def close(self) -> None:
        self._socket.detach()  # super() closes the fd, except in a forked child
        super().close()


def parse_endpoint(text: str) -> tuple[str, int]:
    """Parse ``127.0.0.1:9100`` or ``[::1]:9100`` into an address and a port. Port 0 lets the system choose.

    :raises ConfigError: the text does not have this form.
    """
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
            pass
        else:
            if (address.version == 6) == (found["v6"] is not None):
                return str(address), int(found["port"])
    raise ConfigError(f"the endpoint for Prometheus is {text!r}; it must be ADDRESS:PORT, like 127.0.0.1:9100")


def serve(
    source: Callable[[], Snapshot], registry: FdRegistry, schedule: Schedule, endpoint: str
) -> tuple[Server, str]:
    """Serve snapshots from ``source`` over HTTP. Return the server and its URL, with the actual port.

    :raises ConfigError: the endpoint is not ``ADDRESS:PORT``.
    :raises MemifOSError: we cannot listen on the endpoint.
    """
    host, port = parse_endpoint(endpoint)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = original_functions.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise os_error(f"cannot serve metrics on {endpoint}", error) from error
    listener = _TcpListener(sock)
    url = listener.url
    return Server(registry, schedule, listener, lambda client: _HttpClient(client, source)), url
