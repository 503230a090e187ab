"""The command line: ``memifrt responder``, ``ping``, ``demo`` and ``bench``.

Owns the arguments and the exit statuses. Every error is one line on standard error and status 2.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypedDict, TypeVar

import memifrt
from memifrt.apps.bench import APIS, CHECKS, ICMP_TARGET, MODES, PAYLOADS, Bench, Options
from memifrt.apps.demo import demo
from memifrt.apps.packets import MAX_PAYLOAD, format_mac, parse_ip, parse_mac
from memifrt.apps.ping import PingOptions, ping
from memifrt.apps.responder import respond
from memifrt.apps.session import InterfaceOptions, complain, default_mac, one_line
from memifrt.control.address import Address
from memifrt.errors import ConfigError, MemifError
from memifrt.types import (
    DEFAULT_BUFFER_SIZE,
    DEFAULT_LOG2_RING_SIZE,
    DEFAULT_SOCKET,
    MAX_BUFFER_SIZE,
    MAX_LOG2_RING_SIZE,
    MAX_QUEUES,
    SECRET_BYTES,
    Mode,
    check_secret,
    parse_mode,
    parse_role,
    parse_rx_mode,
)

_T = TypeVar("_T")
_Group = argparse._ArgumentGroup

_RESPONDER_IP = "192.168.1.2"
_PING_IP = "192.168.1.3"

#: Limits for what is counted in requests and seconds.
_MANY = 1_000_000_000
_SHORTEST, _LONGEST = 0.001, 86400

_EPILOGS = {
    "memifrt": """examples:
  memifrt demo
  memifrt responder --role master --socket @lab &
  memifrt ping --socket @lab 192.168.1.2""",
    "responder": """example, against VPP (create interface memif id 0 master; set interface state memif0/0 up;
set interface ip address memif0/0 192.168.1.1/24; ping 192.168.1.2):
  memifrt responder --socket /run/vpp/memif.sock --ip 192.168.1.2""",
    "ping": """example, with a responder in another terminal (memifrt responder --role master --socket @lab):
  memifrt ping --socket @lab -c 5 192.168.1.2

exit status: 0 if any reply came, 1 if none did, 2 on other errors""",
    "demo": """example:
  memifrt demo -c 100 -i 0.01

exit status: 0 if every ping was answered, 1 if not, 2 on other errors""",
    "bench": """example, in two terminals, packets there and back:
  memifrt bench echo --role slave --socket @lab --cpu 0 --seconds 0
  memifrt bench gen --role master --socket @lab --cpu 1

source sends, sink receives, echo sends back, gen sends and checks what comes back,
rr sends one packet at a time and waits for it: p50, p99, p99.9""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments)
    try:
        parsed, unknown = parser.parse_known_args(arguments)
        if unknown:
            # Its name alone: what stands behind a misspelt --secret is not to be shown.
            parser.error(f"unknown argument {unknown[0].partition('=')[0]}")
        command: Callable[[argparse.Namespace], int] = parsed.run
        return command(parsed)
    except SystemExit as error:  # argparse has printed
        return error.code if isinstance(error.code, int) else 2
    except MemifError as error:
        return _fail(f"memifrt {parsed.command}: {error}")
    except BrokenPipeError:
        # Nobody reads what we print (memifrt ping … | head): the flush at exit must not fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"memifrt {parsed.command}: {error}")
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, before or after the part that ends by itself


def _fail(line: str) -> int:
    complain(line)
    return 2


# --- the commands ---------------------------------------------------------------------------------------------------


def _responder(arguments: argparse.Namespace) -> int:
    respond(_interface_options(arguments), until_eof=arguments.until_eof)
    return 0


def _ping(arguments: argparse.Namespace) -> int:
    options = PingOptions(arguments.target, arguments.count, arguments.interval, arguments.size, arguments.wait)
    return 0 if ping(options, _interface_options(arguments)).received else 1


def _demo(arguments: argparse.Namespace) -> int:
    return demo(arguments.count, arguments.interval)


def _bench(arguments: argparse.Namespace) -> int:
    given = {**vars(arguments), "mode": arguments.what}
    options = Options(**{name: given[name] for name in Options.__dataclass_fields__})
    result = Bench(options).run(live=sys.stderr.isatty() and not arguments.json)
    print(result.json() if arguments.json else "\n".join(result.lines()))
    return 0


def _interface_options(arguments: argparse.Namespace) -> InterfaceOptions:
    return InterfaceOptions(
        ip=arguments.ip,
        mac=default_mac(arguments.ip) if arguments.mac is None else arguments.mac,
        role=arguments.role,
        socket=arguments.socket,
        id=arguments.id,
        secret=arguments.secret,
        queues=arguments.queues,
        log2_ring_size=arguments.log2_ring_size,
        buffer_size=arguments.buffer_size,
        rx_mode=arguments.rx_mode,
        mode=arguments.mode,
    )


# --- the arguments --------------------------------------------------------------------------------------------------


class _Style(TypedDict):
    epilog: str
    formatter_class: type[argparse.HelpFormatter]
    allow_abbrev: bool


class _Parser(argparse.ArgumentParser):
    """Errors in one line, and never a secret in them."""

    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        for secret in _secrets(self.given):
            for shown in (secret, repr(secret)[1:-1]):
                message = re.sub(rf"(?<!\w){re.escape(shown)}(?!\w)", "***", message)
        self.exit(2, one_line(f"{self.prog}: {message} (see {self.prog} --help)") + "\n")


def _secrets(arguments: Sequence[str]) -> list[str]:
    following = [value for option, value in itertools.pairwise(arguments) if option == "--secret"]
    attached = [value.partition("=")[2] for value in arguments if value.startswith("--secret=")]
    return [secret for secret in following + attached if secret]


def _parser(arguments: Sequence[str]) -> _Parser:
    parser = _Parser(
        "memifrt", description="memif, the shared memory packet interface, in Python.", **_style("memifrt")
    )
    parser.given = arguments
    parser.add_argument("--version", action="version", version=f"memifrt {memifrt.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> _Parser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **_style(name))
        command.given = arguments
        command.set_defaults(run=run)
        return command

    _add_demo_arguments(add("demo", _demo, "a responder and a pinger, two processes: nothing else is needed"))
    responder = add("responder", _responder, "answer ARP and ICMP echo (ping) until Ctrl+C")
    _add_interface_arguments(responder, _RESPONDER_IP)
    responder.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)  # for a parent that may die
    pinger = add("ping", _ping, "send ICMP echo requests and report the replies")
    _add_ping_arguments(pinger)
    _add_interface_arguments(pinger, _PING_IP)
    _add_bench_arguments(add("bench", _bench, "measure: packets a second, CPU time a packet, round trips"))
    return parser


def _style(name: str) -> _Style:
    return {
        "epilog": _EPILOGS[name],
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _add_interface_arguments(parser: _Parser, ip: str) -> None:
    add = _add_ring_arguments(parser, "interrupt").add_argument
    add("--ip", type=_checked(parse_ip), default=ip, metavar="A.B.C.D", help=f"own IPv4 address; default {ip}")
    mac = format_mac(default_mac(parse_ip(ip)))
    add(
        "--mac", type=_checked(_own_mac), metavar="M", help=f"own MAC address; default 02:fe and the IP address ({mac})"
    )
    add(
        "--secret",
        type=_checked(_secret),
        metavar="S",
        help=f"at most {SECRET_BYTES} bytes: a master demands it, a slave presents it",
    )
    add(
        "--mode",
        type=_checked(_mode),
        default=Mode.ETHERNET,
        metavar="ethernet|ip",
        help="ethernet or ip, the same on both ends; default ethernet",
    )


def _add_ring_arguments(parser: _Parser, rx_mode: str) -> _Group:
    """What every command that has an interface asks for."""
    group = parser.add_argument_group("interface")
    add = group.add_argument
    add(
        "--role",
        type=_checked(parse_role),
        default="slave",
        metavar="master|slave",
        help="master (or server) listens, slave (or client) connects; default slave",
    )
    add(
        "--socket",
        type=_checked(_socket_path),
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"control socket, @name for an abstract one; default {DEFAULT_SOCKET}",
    )
    add(
        "--id",
        type=_whole(0, 0xFFFFFFFF),
        default=0,
        metavar="N",
        help="interface id, the same on both ends; default 0",
    )
    add("--queues", type=_whole(1, MAX_QUEUES), default=1, metavar="N", help="queues in each direction; default 1")
    add(
        "--ring-size",
        type=_checked(_log2_ring_size),
        default=str(1 << DEFAULT_LOG2_RING_SIZE),
        metavar="N",
        dest="log2_ring_size",
        help=f"slots of a ring, a power of two; default {1 << DEFAULT_LOG2_RING_SIZE}",
    )
    add(
        "--buffer-size",
        type=_whole(1, MAX_BUFFER_SIZE),
        default=DEFAULT_BUFFER_SIZE,
        metavar="N",
        help=f"bytes of a buffer; longer packets take several; default {DEFAULT_BUFFER_SIZE}",
    )
    add(
        "--rx-mode",
        type=_checked(parse_rx_mode),
        default=rx_mode,
        metavar="interrupt|polling|adaptive",
        help="interrupt waits for packets, polling looks for them all the time, adaptive waits and spares the peer its "
        f"kicks under load; default {rx_mode}",
    )
    return group


def _add_bench_arguments(parser: _Parser) -> None:
    add = parser.add_argument
    add("what", choices=MODES, metavar="WHAT", help=", ".join(MODES))
    add("--size", type=_whole(1, 65535), default=64, metavar="N", help="bytes of a packet; default 64")
    add("--burst", type=_whole(1, 1 << MAX_LOG2_RING_SIZE), default=256, metavar="N", help="default 256")
    add(
        "--seconds",
        type=_seconds_or_zero,
        default=3.0,
        metavar="N",
        help="how long, from the first packet on; 0: until the peer disconnects; default 3",
    )
    add("--api", choices=APIS, default="burst", help="level of the data plane for source, sink, echo; default burst")
    add("--check", choices=CHECKS, default="content", help="what gen checks; default content")
    add("--payload", choices=PAYLOADS, default="zeros", help=f"icmp: echo requests to {ICMP_TARGET}; default zeros")
    add("--window", type=_whole(0, 1 << 16), default=0, metavar="N", help="gen: packets in flight; default 4 bursts")
    add("--cpu", type=_whole(0, 4095), metavar="N", help="pin this process to a core")
    add("--json", action="store_true", help="print one line of JSON")
    _add_ring_arguments(parser, "polling")


def _add_ping_arguments(parser: _Parser) -> None:
    add = parser.add_argument
    add("target", type=_checked(parse_ip), metavar="TARGET", help="IPv4 address to ping")
    add("-c", type=_whole(1, _MANY), dest="count", metavar="COUNT", help="stop after COUNT requests; default: Ctrl+C")
    add("-i", type=_seconds, default=1.0, dest="interval", metavar="SECONDS", help="between two requests; default 1")
    add("-s", type=_whole(0, MAX_PAYLOAD), default=56, dest="size", metavar="SIZE", help="bytes of payload; default 56")
    add(
        "-W",
        type=_seconds,
        default=10.0,
        dest="wait",
        metavar="SECONDS",
        help="how long to wait for ARP, and for the last reply; default 10",
    )


def _add_demo_arguments(parser: _Parser) -> None:
    parser.add_argument("-c", type=_whole(1, _MANY), default=5, dest="count", metavar="COUNT", help="pings; default 5")
    parser.add_argument(
        "-i", type=_seconds, default=0.2, dest="interval", metavar="SECONDS", help="between two pings; default 0.2"
    )


# --- one argument ---------------------------------------------------------------------------------------------------


def _checked(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """``parse`` for argparse, with its own words for what is wrong."""

    def checked(text: str) -> _T:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _SHORTEST <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {_SHORTEST} to {_LONGEST}")
    return seconds


def _seconds_or_zero(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _log2_ring_size(text: str) -> int:
    size = int(text) if re.fullmatch(r"[0-9]{1,20}", text) else 0
    if size & (size - 1) or not 1 <= size <= 1 << MAX_LOG2_RING_SIZE:
        raise ConfigError(f"{text!r} is not a power of two from 1 to {1 << MAX_LOG2_RING_SIZE}")
    return size.bit_length() - 1


def _own_mac(text: str) -> bytes:
    mac = parse_mac(text)
    if mac[0] & 1 or not any(mac):
        raise ConfigError(f"{text!r} cannot be an interface's own address; it must be unicast, like 02:fe:00:00:00:01")
    return mac


def _mode(text: str) -> Mode:
    mode = parse_mode(text)
    if mode is Mode.PUNT_INJECT:
        raise ConfigError(f"{text!r} carries no packets that can be answered; it must be ethernet or ip")
    return mode


def _secret(text: str) -> bytes:
    return check_secret(os.fsencode(text))  # the bytes that were typed, whatever they encode


def _socket_path(text: str) -> str:
    return Address.parse(text).path
