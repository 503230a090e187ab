"""An asyncio program with memif in its loop: a task answers pings, and HTTP shows the interface's state and counters.

Ctrl+C ends it. Example:
  python asyncio_app.py --role master --socket @lab --http 127.0.0.1:8080

In another terminal:
  memifrt ping --socket @lab 192.168.1.2
  curl http://127.0.0.1:8080/
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import asdict

from memifrt import Disconnected, Interface, MemifError
from memifrt.asyncio import AsyncioInterface, open_interface
from memifrt.packets import parse_ip, parse_mac, reply_in_place

MAC = parse_mac("02:fe:00:00:01:02")
#: Seconds that an HTTP client has to send its request and to take the response.
CLIENT_TIMEOUT = 10.0

# --- memif ----------------------------------------------------------------------------------------------------------


def on_connect(interface: Interface) -> None:
    if not interface.tx_queues:
        interface.disconnect("a transmit queue is needed")
        return
    print(f"connected to {interface.details().remote_app_name or '(without a name)'!r}")


def on_disconnect(interface: Interface, reason: Disconnected) -> None:
    print(f"{'disconnected' if reason.established else 'not connected'}: {reason}")


async def answer_pings(interface: AsyncioInterface, ip: bytes) -> None:
    """Answer pings until cancelled. With ``reconnect`` the loop continues with the next peer."""
    async for burst in interface.bursts():
        for packet in burst.packets():
            if not reply_in_place(packet, ip, MAC):  # writes the reply over the request
                packet.drop()
        with contextlib.suppress(Disconnected):  # on_disconnect reports it
            interface.tx_queues[0].forward(burst)  # if the ring is full, replies are lost, as on a wire


# --- HTTP -----------------------------------------------------------------------------------------------------------


def status(interface: AsyncioInterface) -> dict[str, object]:
    details, counters = interface.details(), interface.counters
    return {
        "interface": str(interface),
        "state": details.state.value,
        "error": details.error,
        "peer": details.remote_app_name,
        "rx": asdict(counters.rx),
        "tx": asdict(counters.tx),
    }


def respond(request: bytes, interface: AsyncioInterface) -> bytes:
    """Return the response to the head of a request."""
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0]
    if method != b"GET":
        code, body = "405 Method Not Allowed", "only GET\n"
    elif path != b"/":
        code, body = "404 Not Found", "there is only /\n"
    else:
        code, body = "200 OK", json.dumps(status(interface), indent=2) + "\n"
    kind = "application/json" if code.startswith("200") else "text/plain"
    head = f"HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, interface: AsyncioInterface) -> None:
    writer.write(respond(await reader.readuntil(b"\r\n\r\n"), interface))
    await writer.drain()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, interface: AsyncioInterface) -> None:
    """Serve one client in its own task, so that a slow client does not delay others."""
    try:
        await asyncio.wait_for(converse(reader, writer, interface), CLIENT_TIMEOUT)
    except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        pass  # too slow, gone, or not HTTP
    except asyncio.CancelledError:
        pass  # the program ends
    finally:
        writer.close()


# --- both in one loop -----------------------------------------------------------------------------------------------


async def run(args: argparse.Namespace) -> None:
    host, port = args.http
    ip = parse_ip(args.ip)
    async with open_interface(
        app_name="asyncio-app",
        socket=args.socket,
        id=args.id,
        role=args.role,
        reconnect=True,
        on_connect=on_connect,
        on_disconnect=on_disconnect,
    ) as interface:
        server = await asyncio.start_server(lambda reader, writer: serve(reader, writer, interface), host, port)
        try:
            host, port = server.sockets[0].getsockname()[:2]
            print(f"{interface} answers for {args.ip}; its state is on http://{host}:{port}/; Ctrl+C ends it")
            task = asyncio.create_task(answer_pings(interface, ip))
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await task
        finally:
            server.close()


def http_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--http", type=http_address, default="127.0.0.1:8080", metavar="HOST:PORT", help="default: %(default)s"
    )
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same at both ends (default: 0)")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    args = parser.parse_args()
    try:
        asyncio.run(run(args))
    except (MemifError, OSError) as error:
        print(f"asyncio_app: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
