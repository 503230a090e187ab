"""Arguments that commands share: what an interface is asked for with, and how one argument is read.

A command is a :class:`Command` value in its own module; ``memifrt.cli.command_line`` lists them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from memifrt.cli.program import InterfaceOptions, Watching, default_mac, one_line
from memifrt.cli.run_in_loop import LOOPS
from memifrt.control.address import Address
from memifrt.errors import ConfigError
from memifrt.packets import format_mac, parse_ip, parse_mac
from memifrt.stats.prometheus import parse_endpoint
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

#: Limits for what is counted in requests and seconds.
MANY = 1_000_000_000
_SHORTEST, _LONGEST = 0.001, 86400


@dataclass(frozen=True, slots=True)
class Command:
    """One ``memifrt NAME``.

    :ivar help: one line, in lower case, without a full stop.
    :ivar epilog: what stands below the options in ``--help``: an example, and the exit statuses if they tell anything.
    :ivar add_arguments: fills the parser.
    :ivar run: does it, with what was parsed; the exit status. A :class:`~memifrt.MemifError` or ``OSError`` that it
        raises becomes one line and status 2.
    """

    name: str
    help: str
    epilog: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
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
    in_endpoints = [found for value in arguments for found in re.findall(r"[:,]secret=([^,]*)", value)]
    return [secret for secret in following + attached + in_endpoints if secret]


# --- an interface --------------------------------------------------------------------------------------------------


def add_interface_arguments(parser: Parser, ip: str) -> None:
    add = add_peer_arguments(parser, "interrupt").add_argument
    add("--ip", type=checked(parse_ip), default=ip, metavar="A.B.C.D", help=f"own IPv4 address; default {ip}")
    mac = format_mac(default_mac(parse_ip(ip)))
    add("--mac", type=checked(own_mac), metavar="M", help=f"own MAC address; default 02:fe and the IP address ({mac})")


def add_peer_arguments(parser: Parser, rx_mode: str) -> argparse._ArgumentGroup:
    """What it takes to meet any peer: :func:`add_ring_arguments`, secret and mode."""
    group = add_ring_arguments(parser, rx_mode)
    add = group.add_argument
    add(
        "--secret",
        type=checked(secret_bytes),
        metavar="S",
        help=f"at most {SECRET_BYTES} bytes: a master demands it, a slave presents it",
    )
    add(
        "--mode",
        type=checked(mode_name),
        default=Mode.ETHERNET,
        metavar="ethernet|ip",
        help="ethernet or ip, the same on both ends; default ethernet",
    )
    return group


def add_ring_arguments(parser: Parser, rx_mode: str) -> argparse._ArgumentGroup:
    """What every command that has an interface asks for."""
    group = parser.add_argument_group("interface")
    add = group.add_argument
    add(
        "--role",
        type=checked(parse_role),
        default="slave",
        metavar="master|slave",
        help="master (or server) listens, slave (or client) connects; default slave",
    )
    add(
        "--socket",
        type=checked(socket_path),
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"control socket, @name for an abstract one; default {DEFAULT_SOCKET}",
    )
    add(
        "--id",
        type=whole(0, 0xFFFFFFFF),
        default=0,
        metavar="N",
        help="interface id, the same on both ends; default 0",
    )
    add("--queues", type=whole(1, MAX_QUEUES), default=1, metavar="N", help="queues in each direction; default 1")
    add(
        "--ring-size",
        type=checked(log2_ring_size),
        default=str(1 << DEFAULT_LOG2_RING_SIZE),
        metavar="N",
        dest="log2_ring_size",
        help=f"slots of a ring, a power of two; default {1 << DEFAULT_LOG2_RING_SIZE}",
    )
    add(
        "--buffer-size",
        type=whole(1, MAX_BUFFER_SIZE),
        default=DEFAULT_BUFFER_SIZE,
        metavar="N",
        help=f"bytes of a buffer; longer packets take several; default {DEFAULT_BUFFER_SIZE}",
    )
    add(
        "--rx-mode",
        type=checked(parse_rx_mode),
        default=rx_mode,
        metavar="interrupt|polling|adaptive",
        help="interrupt waits for packets, polling looks for them all the time, adaptive waits and spares the peer its "
        f"kicks under load; default {rx_mode}",
    )
    add_watching_arguments(parser)
    return group


def add_loop_argument(parser: Parser) -> None:
    """``--loop``: see :mod:`memifrt.cli.run_in_loop`."""
    parser.add_argument(
        "--loop",
        choices=LOOPS,
        default=LOOPS[0],
        metavar="LOOP",
        help=f"the event loop to run in: {', '.join(LOOPS)}; default {LOOPS[0]}",
    )


def add_watching_arguments(parser: Parser) -> None:
    """For every command that has an interface; see :func:`watching`."""
    add = parser.add_argument_group("statistics").add_argument
    add("--stats", type=checked(socket_path), metavar="PATH", help="open a stats socket, for memifrt top PATH")
    add(
        "--prometheus",
        type=checked(endpoint),
        metavar="ADDRESS:PORT",
        help="serve /metrics for Prometheus there; port 0 lets the system choose",
    )


def watching(arguments: argparse.Namespace) -> Watching:
    return Watching(arguments.stats, arguments.prometheus)


def interface_options(arguments: argparse.Namespace) -> InterfaceOptions:
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
        watching=watching(arguments),
    )


# --- one argument ---------------------------------------------------------------------------------------------------


def checked(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """``parse`` for argparse, with its own words for what is wrong."""

    def checked(text: str) -> _T:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _SHORTEST <= value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {_SHORTEST} to {_LONGEST}")
    return value


def seconds_or_zero(text: str) -> float:
    try:
        return 0.0 if text == "0" else seconds(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or 0") from error


def log2_ring_size(text: str) -> int:
    size = int(text) if re.fullmatch(r"[0-9]{1,20}", text) else 0
    if size & (size - 1) or not 1 <= size <= 1 << MAX_LOG2_RING_SIZE:
        raise ConfigError(f"{text!r} is not a power of two from 1 to {1 << MAX_LOG2_RING_SIZE}")
    return size.bit_length() - 1


def own_mac(text: str) -> bytes:
    mac = parse_mac(text)
    if mac[0] & 1 or not any(mac):
        raise ConfigError(f"{text!r} cannot be an interface's own address; it must be unicast, like 02:fe:00:00:00:01")
    return mac


def mode_name(text: str) -> Mode:
    """Of libmemif's modes, those whose packets a program here can read."""
    if text.lower() not in ("ethernet", "ip"):
        raise ConfigError(f"{text!r} is no mode of packets that can be answered; it must be ethernet or ip")
    return parse_mode(text)


def secret_bytes(text: str) -> bytes:
    return check_secret(os.fsencode(text))  # the bytes that were typed, whatever they encode


def socket_path(text: str) -> str:
    return Address.parse(text).path


def endpoint(text: str) -> str:
    parse_endpoint(text)
    return text
