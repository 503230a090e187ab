"""A gevent web server with a memif interface beside it: greenlets answer pings, HTTP shows the interface.

Ctrl+C ends it. `python -m gevent.monkey gevent_app.py` runs the same, monkey-patched. Example:
  python gevent_app.py --role master --socket @lab --http 127.0.0.1:8080

In another terminal:
  memifrt ping --socket @lab 192.168.1.2
  curl http://127.0.0.1:8080/
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict

import gevent
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from memifrt import Disconnected, Interface, MemifError
from memifrt.gevent import GeventInterface, open_interface
from memifrt.packets import format_ip, parse_ip, parse_mac, reply_in_place

MAC = parse_mac("02:fe:00:00:01:02")

StartResponse = Callable[[str, list[tuple[str, str]]], object]

# --- memif ----------------------------------------------------------------------------------------------------------


def answer_pings(interface: GeventInterface, qid: int, ip: bytes) -> None:
    """Answer pings on one queue, in its own greenlet. During a flood of packets the web server still gets its turns."""
    while True:
        try:
            for burst in interface.bursts(qid):
                for packet in burst.packets():
                    if not reply_in_place(packet, ip, MAC):  # writes the reply over the request
                        packet.drop()
                # If the ring is full, the remaining replies are lost, as on a wire.
                interface.tx_queues[qid].forward(burst)
        except Disconnected:
            # The peer disconnected while we answered. bursts() waits for it to return, unless this program ends.
            if interface.interface.deleted:
                return


def on_connect(interface: Interface) -> None:
    print(f"connected to {interface.details().remote_app_name or '(without a name)'!r}")


def on_disconnect(interface: Interface, reason: Disconnected) -> None:
    print(f"{'disconnected' if reason.established else 'not connected'}: {reason}")


# --- HTTP -----------------------------------------------------------------------------------------------------------


def report(interface: GeventInterface, ip: bytes) -> dict[str, object]:
    """Return the contents of the page."""
    details, counters = interface.details(), interface.counters
    return {
        "interface": str(interface),
        "answers for": format_ip(ip),
        "state": details.state.value,
        "peer": details.remote_app_name,
        "error": details.error,
        "received": asdict(counters.rx),
        "sent": asdict(counters.tx),
    }


class Application:
    """The WSGI application. pywsgi calls it in a greenlet for each request."""

    def __init__(self, interface: GeventInterface, ip: bytes) -> None:
        self._interface = interface
        self._ip = ip

    def __call__(self, environ: dict[str, str], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There is only /.\n"]
        body = json.dumps(report(self._interface, self._ip), indent=2).encode() + b"\n"
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


# --- both -----------------------------------------------------------------------------------------------------------


def serve(interface: GeventInterface, ip: bytes, address: str, queues: int) -> None:
    """Answer pings and HTTP requests until a signal comes."""
    ending = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, ending.set)
    server = WSGIServer(address, Application(interface, ip), log=None)
    server.start()
    answering = [gevent.spawn(answer_pings, interface, qid, ip) for qid in range(queues)]
    page = f"http://{server.server_host}:{server.server_port}/"
    print(f"{interface} answers for {format_ip(ip)}; {page} shows it; Ctrl+C ends it")
    try:
        ending.wait()
    finally:
        server.stop(timeout=1)
        gevent.killall(answering)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same at both ends (default: 0)")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    parser.add_argument("--queues", type=int, default=1, help="queues in each direction (default: 1)")
    parser.add_argument("--http", default="127.0.0.1:8080", help="address and port of HTTP (default: %(default)s)")
    args = parser.parse_args()
    try:
        ip = parse_ip(args.ip)
        if not args.http.rpartition(":")[2].isdecimal():
            raise ValueError(f"--http is {args.http!r}; it must be ADDRESS:PORT, like 127.0.0.1:8080")
        with open_interface(
            app_name="gevent-app",
            socket=args.socket,
            id=args.id,
            role=args.role,
            num_s2m_rings=args.queues,
            num_m2s_rings=args.queues,
            reconnect=True,
            on_connect=on_connect,
            on_disconnect=on_disconnect,
        ) as interface:
            serve(interface, ip, args.http, args.queues)
    except (MemifError, OSError, ValueError) as error:
        print(f"gevent_app: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
