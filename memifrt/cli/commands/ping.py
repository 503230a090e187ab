"""``memifrt ping``: send ICMP or ICMPv6 echo requests over memif, with the output and the exit status of ping.

Owns when to send, which replies are pending, and the statistics. It sleeps in the loop until the next deadline.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import time
from dataclasses import dataclass

from memifrt.cli.arguments import (
    MANY,
    Command,
    Parser,
    add_interface_arguments,
    add_loop_argument,
    checked,
    program_interface,
    seconds,
    seconds_or_zero,
    unicast_ip,
    whole,
)
from memifrt.cli.commands.responder import answer_for, poll_queues, serve
from memifrt.cli.program import ProgramInterface, complain
from memifrt.cli.run_in_loop import Waiter, run
from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.interface import Interface
from memifrt.packets import (
    MAX_PAYLOAD,
    MAX_PAYLOAD_IPV6,
    EchoReply,
    arp_request,
    echo_request,
    format_ip,
    neighbour_solicitation,
    parse_arp_reply,
    parse_echo_reply,
    parse_neighbour_advertisement,
)
from memifrt.ports.drain import INTERVAL, Drain
from memifrt.queue import TxQueue
from memifrt.ring import Packet
from memifrt.types import Mode, check_range

#: Seconds between two attempts to connect. It is short because a user waits at the terminal.
_RECONNECT_INTERVAL = 0.2
#: Seconds between two looks for room in the transmit ring: no event says that a peer made room.
_ROOM_INTERVAL = 0.01
#: Seconds after which the question for the target's MAC address is repeated, as hosts do.
_ASK_INTERVAL = 1.0
#: Seconds between two requests of a flood if no reply comes back sooner, as in ping.
FLOOD_INTERVAL = 0.01
#: The most bytes of a pattern, as in ping.
_LONGEST_PATTERN = 16
#: The most seconds to let the peer take packets before the end.
_DRAIN_LIMIT = 3.0
#: Bytes of the IP and ICMP headers, by the length of an address. ping adds those of IPv4 to the size in its first line.
_HEADERS = {4: 28, 16: 48}
_ETHERNET_HEADER = 14
#: The text that ping prints for a target that does not tell its MAC address, by protocol.
_UNREACHABLE = "Destination Host Unreachable"
_UNREACHABLE_IPV6 = "Destination unreachable: Address unreachable"
#: Bytes of the ICMP header, which ping adds to the size in each line.
_ICMP_HEADER = 8


@dataclass(frozen=True, slots=True)
class PingOptions:
    """What to send, and when to stop.

    ``interval`` and ``wait`` are in seconds. With ``count`` None, ping sends until Ctrl+C. With ``once``, ping ends
    when the connection ends; otherwise it connects again.

    :ivar deadline: seconds after which ping ends. With a deadline ping sends until ``count`` requests are answered.
    :ivar quiet: print only the first line and the totals.
    :ivar flood: send the next request with each reply, and at least one in each interval; print a dot for each request
        that has no reply.
    :ivar timestamps: print the Unix time before each line.
    :ivar ttl: the time to live, or the hop limit, of each request.
    :ivar pattern: bytes that fill the payload, again and again; empty for 0, 1, 2, …
    :ivar source: the address to send from; None for the first one of the target's protocol.
    :ivar interface: the text after the source address in the first line; None if ``-I`` is not given.
    """

    target: bytes
    count: int | None = None
    interval: float = 1.0
    size: int = 56
    wait: float = 10.0
    once: bool = False
    deadline: float | None = None
    quiet: bool = False
    flood: bool = False
    timestamps: bool = False
    ttl: int = 64
    pattern: bytes = b""
    source: bytes | None = None
    interface: str | None = None

    def __post_init__(self) -> None:
        check_range("the size", self.size, 0, MAX_PAYLOAD_IPV6 if self.is_ipv6 else MAX_PAYLOAD)

    @property
    def is_ipv6(self) -> bool:
        """Whether the target's address is an IPv6 address."""
        return len(self.target) == 16


@dataclass(slots=True)
class Statistics:
    """The totals so far. Times are in seconds."""

    transmitted: int = 0
    received: int = 0
    duplicates: int = 0
    corrupted: int = 0
    errors: int = 0
    #: Corrupted replies to requests that also got another reply.
    surplus: int = 0
    started: float = 0.0
    shortest: float = math.inf
    longest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    #: The time of the last request, and the average that favours the latest replies, as ping computes it.
    last_request: float = 0.0
    average: float | None = None

    @property
    def settled(self) -> int:
        """The number of requests that need no further reply."""
        return self.received + self.corrupted + self.errors - self.surplus

    def add(self, trip: float) -> None:
        """Count a reply that took ``trip`` seconds."""
        self.received += 1
        self.shortest = min(self.shortest, trip)
        self.longest = max(self.longest, trip)
        self.total += trip
        self.squares += trip * trip
        self.average = trip if self.average is None else self.average + (trip - self.average) / 8

    def text(self, host: str, now: float, *, flood: bool = False) -> str:
        """Return the last lines that ping prints.

        :param flood: also print the time between two requests and the moving average.
        """
        extra = [("duplicates", self.duplicates), ("corrupted", self.corrupted), ("errors", self.errors)]
        line = f"{self.transmitted} packets transmitted, {self.received} received"
        line += "".join(f", +{number} {what}" for what, number in extra if number)
        if self.transmitted:
            lost = 100 * (self.transmitted - self.received) / self.transmitted
            line += f", {lost:g}% packet loss, time {(now - self.started) * 1000:.0f}ms"
        lines = ["", f"--- {host} ping statistics ---", line]
        if self.received:
            mean = self.total / self.received
            deviation = math.sqrt(max(self.squares / self.received - mean * mean, 0.0))
            times = "/".join(f"{seconds * 1000:.3f}" for seconds in (self.shortest, mean, self.longest, deviation))
            line = f"rtt min/avg/max/mdev = {times} ms"
            if flood and self.transmitted > 1 and self.average is not None:
                gap = (self.last_request - self.started) / (self.transmitted - 1)
                line += f", ipg/ewma {gap * 1000:.3f}/{self.average * 1000:.3f} ms"
            lines.append(line)
        return "\n".join(lines)


def ping(options: PingOptions, program: ProgramInterface, *, loop: str = "internal") -> Statistics:
    """Ping until every request has a reply or its time is over, or until Ctrl+C or SIGTERM. Print each reply.

    :param loop: one of :data:`memifrt.cli.run_in_loop.LOOPS`.
    :raises MemifError: an option is wrong, or a master cannot listen.
    """
    if options.target in program.ips:
        raise ConfigError(f"the target {format_ip(options.target)} is this end's own --ip; it must be the peer's")
    _own_address(options, program)
    _check_size(options, program)

    async def main(waiter: Waiter) -> Statistics:
        pinger = _Pinger(waiter, options, program)
        await pinger.run()
        return pinger.statistics

    session_options = program.session_options
    return run("ping", main, loop=loop, reconnect_interval=_RECONNECT_INTERVAL, session_options=session_options)


def _own_address(options: PingOptions, program: ProgramInterface) -> bytes:
    """Return the address to send from: the first one of the target's protocol.

    :raises ConfigError: there is none.
    """
    for ip in program.ips if options.source is None else (options.source,):
        if len(ip) == len(options.target):
            return ip
    option, given, too = ("--ip", program.ips[0], " too") if options.source is None else ("-I", options.source, "")
    wanted, example = ("IPv6", "2001:db8::3") if options.is_ipv6 else ("IPv4", "192.168.1.3")
    raise ConfigError(
        f"the target {format_ip(options.target)} is an {wanted} address, and {option} {format_ip(given)} is not; "
        f"give an {wanted} address{too}, like {option} {example}"
    )


def _check_size(options: PingOptions, interface: ProgramInterface) -> None:
    """Check that a packet with the payload fits into the ring, if this end is the slave.

    :raises ConfigError: the packet is too long.
    """
    size = options.size
    packet = size + _HEADERS[len(options.target)] + (_ETHERNET_HEADER if interface.config.mode is Mode.ETHERNET else 0)
    interface.config.check_length(f"a payload of {size} bytes makes a packet of {packet}", packet)


class _Pinger:
    """One run of ping."""

    def __init__(self, waiter: Waiter, options: PingOptions, program: ProgramInterface) -> None:
        self.statistics = Statistics()
        self._options = options
        self._own = program
        self._ip = _own_address(options, program)
        self._answer = answer_for(program)
        self._host = format_ip(options.target)
        self._identifier = os.getpid() & 0xFFFF
        pattern = options.pattern or bytes(range(256))
        self._payload = (pattern * (options.size // len(pattern) + 1))[: options.size]
        self._deadline = math.inf if options.deadline is None else time.monotonic() + options.deadline
        #: The MAC address of the target, or None until it has told us. IP mode needs none.
        self._mac: bytes | None = None if program.config.mode is Mode.ETHERNET else bytes(6)
        self._sequence = 0
        self._next_request = 0.0
        #: The time since which there is no room for the next request.
        self._stuck_since: float | None = None
        self._last_deadline = 0.0
        #: The time of each request, by its sequence number on the wire: at most 65536 entries.
        self._sent: dict[int, float] = {}
        self._answered: set[int] = set()
        #: Requests that got only replies with a wrong checksum.
        self._corrupted: set[int] = set()
        #: Requests that wait for the MAC address and then for room, with their deadlines.
        self._unresolved: dict[int, float] = {}
        self._next_question = 0.0
        self._waiter = waiter
        self._interface = program.create(waiter.runtime, self._receive, self._on_connect, self._on_disconnect)
        if options.once and self._interface.last_error is not None:
            raise self._interface.last_error

    async def run(self) -> None:
        if self._options.pattern:
            _print(f"PATTERN: 0x{self._options.pattern.hex()}")
        _print(self._first_line())
        with contextlib.suppress(PollCancelled):
            while not self._finished():
                await self._waiter.wait(self._patience())
                if self._own.polling and self._interface.connected:
                    poll_queues(self._interface, self._receive)
                self._on_time(time.monotonic())
        await self._drain()
        _print(self.statistics.text(self._host, time.monotonic(), flood=self._options.flood))

    def _first_line(self) -> str:
        size = self._options.size
        interface = self._options.interface
        source = "" if interface is None else f"from {format_ip(self._ip)} {interface}: "
        if self._options.is_ipv6:
            return f"PING {self._host}({self._host}) {source}{size} data bytes"
        return f"PING {self._host} ({self._host}) {source}{size}({size + _HEADERS[4]}) bytes of data."

    def _report(self, line: str, mark: str) -> None:
        """Print what became of a request: a line, or the ``mark`` of a flood."""
        if self._options.quiet:
            return
        if self._options.flood:
            _write(mark)
        else:
            _print(f"[{time.time():.6f}] {line}" if self._options.timestamps else line)

    async def _drain(self) -> None:
        """Give the peer time to take what was sent. A second Ctrl+C ends the wait."""
        drain = Drain([self._interface], _DRAIN_LIMIT)
        with contextlib.suppress(PollCancelled):
            while drain.goes_on():
                await self._waiter.wait(INTERVAL)
        left = drain.left(self._interface)
        if left:
            complain(f"memifrt ping: {left} packet{'s were' if left > 1 else ' was'} not taken by the peer")

    # --- when ---------------------------------------------------------------------------------------------------

    @property
    def _all_requested(self) -> bool:
        """Whether no further request is sent. With a deadline it is the replies that count."""
        options = self._options
        return options.count is not None and options.deadline is None and self._sequence >= options.count

    def _finished(self) -> bool:
        count, now = self._options.count, time.monotonic()
        if self._options.deadline is not None:
            return now >= self._deadline or (count is not None and self.statistics.settled >= count)
        if not self._all_requested:
            return False
        waited = not self._unresolved and now >= self._last_deadline
        return waited or self.statistics.settled >= self._sequence

    def _patience(self) -> float | None:
        """Return the seconds until the next deadline; None if there is none."""
        if self._own.polling and self._interface.connected:
            return 0
        due = [next(iter(self._unresolved.values()), math.inf), self._deadline]  # the oldest has the first deadline
        if self._unresolved and self._mac is not None:
            due.append(time.monotonic() + _ROOM_INTERVAL)
        elif self._unresolved and self._interface.connected:
            due.append(self._next_question)
        if self._all_requested:
            due.append(self._last_deadline)
        elif self._interface.connected:
            due.append(self._next_request)
        first = min(due)
        return None if first == math.inf else max(first - time.monotonic(), 0.0)

    def _on_time(self, now: float) -> None:
        if self._mac is not None:
            self._send_resolved(self._mac, now)
        while self._unresolved and next(iter(self._unresolved.values())) <= now:
            sequence = next(iter(self._unresolved))
            del self._unresolved[sequence]
            self.statistics.errors += 1
            what = _UNREACHABLE_IPV6 if self._options.is_ipv6 else _UNREACHABLE
            self._report(f"From {format_ip(self._ip)} icmp_seq={sequence} {what}", "\bE")
        if self._unresolved and self._mac is None and self._interface.connected and now >= self._next_question:
            self._ask(now)
        if self._interface.connected and not self._all_requested and now >= self._next_request:
            if self._has_room(self._sequence + 1, now):
                self._request(now)
            else:
                self._next_request = now + _ROOM_INTERVAL

    # --- sending ------------------------------------------------------------------------------------------------

    def _has_room(self, sequence: int, now: float) -> bool:
        """Return whether to send a request now.

        There may be no room yet: a slave posts buffers only after it is connected, and a peer may be slow. If the peer
        never makes room, this returns True in the end: the request is then sent and fails.
        """
        with contextlib.suppress(Disconnected):
            if any(queue.free() for queue in self._queue(sequence)):
                self._stuck_since = None
                return True
        if self._stuck_since is None:
            self._stuck_since = now
        return now >= self._stuck_since + self._options.wait

    def _request(self, now: float) -> None:
        self._sequence += 1
        if not self.statistics.transmitted:
            self.statistics.started = now
        self.statistics.transmitted += 1
        self.statistics.last_request = now
        since = now if self._options.flood else self._next_request
        self._next_request = max(since + self._options.interval, now)
        if self._options.flood and not self._options.quiet:
            _write(".")
        self._last_deadline = now + self._options.wait
        if self._mac is None:
            self._unresolved[self._sequence] = self._last_deadline
            self._ask(now)
        else:
            self._send_echo(self._sequence, self._mac)

    def _ask(self, now: float) -> None:
        """Ask for the MAC address of the target, and plan the next question in case there is no answer."""
        self._next_question = now + _ASK_INTERVAL
        question = neighbour_solicitation if self._options.is_ipv6 else arp_request
        self._transmit(question(self._own.mac, self._ip, self._options.target), self._sequence)

    def _send_resolved(self, mac: bytes, now: float) -> None:
        """Send the requests that waited for the MAC address, while there is room."""
        while self._unresolved:
            sequence = next(iter(self._unresolved))
            if not self._has_room(sequence, now):
                return
            del self._unresolved[sequence]
            self._send_echo(sequence, mac)

    def _send_echo(self, sequence: int, mac: bytes) -> None:
        on_wire = sequence & 0xFFFF
        packet = echo_request(
            source_mac=self._own.mac,
            source_ip=self._ip,
            target_mac=mac,
            target_ip=self._options.target,
            identifier=self._identifier,
            sequence=on_wire,
            payload=self._payload,
            mode=self._own.config.mode,
            ttl=self._options.ttl,
        )
        self._answered.discard(on_wire)
        self._corrupted.discard(on_wire)
        self._sent[on_wire] = now = time.monotonic()
        self._last_deadline = max(self._last_deadline, now + self._options.wait)
        if not self._transmit(packet, sequence):
            del self._sent[on_wire]
            self.statistics.errors += 1
            complain(f"memifrt ping: icmp_seq={sequence} was not sent: the peer takes no packets")

    def _transmit(self, packet: bytes, sequence: int) -> bool:
        """Send a packet; return False if there is no room or no peer."""
        with contextlib.suppress(Disconnected):  # the next event of the control channel reports it
            return any(queue.send([packet]) for queue in self._queue(sequence))
        return False

    def _queue(self, sequence: int) -> tuple[TxQueue, ...]:
        """Return the queue for a request, each in turn. The tuple is empty if the slave offered no queue."""
        queues = self._interface.tx_queues
        return queues and (queues[sequence % len(queues)],)

    # --- receiving ----------------------------------------------------------------------------------------------

    def _receive(self, interface: Interface, qid: int) -> None:
        serve(interface, qid, self._take)

    def _take(self, packet: Packet) -> bool:
        """Handle a received packet. Return True if it was a request to us and is now its reply."""
        data = bytes(packet)  # a copy, because the peer may change the packet at any time
        reply = parse_echo_reply(data, self._own.config.mode, any_checksum=True)
        if reply is not None:
            self._on_reply(reply, time.monotonic())
        elif self._own.config.mode is Mode.ETHERNET and (told := self._told(data)) is not None:
            ip, mac = told
            if ip == self._options.target:
                self._mac = mac
        else:
            return self._answer(packet)
        return False

    def _told(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return the IP and MAC address that a packet tells; None if it tells none."""
        return parse_neighbour_advertisement(data) if self._options.is_ipv6 else parse_arp_reply(data)

    def _on_reply(self, reply: EchoReply, now: float) -> None:
        sent = self._sent.get(reply.sequence)
        if reply.identifier != self._identifier or reply.source_ip != self._options.target or sent is None:
            return
        line = f"{len(reply.payload) + _ICMP_HEADER} bytes from {self._host}: icmp_seq={reply.sequence} ttl={reply.ttl}"
        line += f" time={_milliseconds(now - sent)} ms"
        wrong = _difference(self._payload, reply.payload)
        if not reply.checksum_is_right:
            self.statistics.corrupted += 1
            self.statistics.surplus += reply.sequence in self._answered or reply.sequence in self._corrupted
            self._corrupted.add(reply.sequence)
            self._report(f"{line} (BAD CHECKSUM!){wrong}", "\bC")
            return
        if reply.sequence in self._corrupted:
            self._corrupted.discard(reply.sequence)
            self.statistics.surplus += 1
        if reply.sequence in self._answered:
            self.statistics.duplicates += 1
            line += " (DUP!)"
        elif wrong:
            self.statistics.corrupted += 1
        else:
            self.statistics.add(now - sent)
        self._answered.add(reply.sequence)
        self._report(line + wrong, "\bC" if wrong else "\b \b")
        if self._options.flood and self._options.interval <= FLOOD_INTERVAL:
            self._next_request = now  # as fast as the replies come back

    # --- the connection -----------------------------------------------------------------------------------------

    def _on_connect(self, interface: Interface) -> None:
        self._next_request = time.monotonic()
        self._stuck_since = None

    def _on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        if self._own.config.mode is Mode.ETHERNET:
            self._mac = None  # the next peer may have another address
        if self._options.once and not interface.deleted:
            self._waiter.cancel()


def _difference(expected: bytes, received: bytes) -> str:
    """Return a text in ping's format that says where a payload differs; empty if it does not."""
    if received == expected:
        return ""
    if len(received) != len(expected):
        return f"\nwrong data size {len(received)} should be {len(expected)}"
    at = next(index for index, (a, b) in enumerate(zip(expected, received, strict=True)) if a != b)
    return f"\nwrong data byte #{at} should be 0x{expected[at]:x} but was 0x{received[at]:x}"


def _milliseconds(seconds: float) -> str:
    """Return a time in milliseconds as ping prints it, with about three significant digits."""
    milliseconds = seconds * 1000
    digits = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"


def _print(line: str) -> None:
    print(line, flush=True)


def _write(mark: str) -> None:
    print(mark, end="", flush=True)


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    size = f"bytes of payload, at most {MAX_PAYLOAD} over IPv4; default 56"
    add("target", type=checked(unicast_ip), metavar="TARGET", help="IPv4 or IPv6 address to ping")
    add("-c", type=whole(1, MANY), dest="count", metavar="COUNT", help="stop after COUNT requests; default: Ctrl+C")
    add("-i", type=seconds, dest="interval", metavar="SECONDS", help="between two requests; default 1, with -f 0.01")
    add("-s", type=whole(0, MAX_PAYLOAD_IPV6), default=56, dest="size", metavar="SIZE", help=size)
    add(
        "-W",
        type=seconds_or_zero,
        default=10.0,
        dest="wait",
        metavar="SECONDS",
        help="how long to wait for the MAC address, and for the last reply; 0: no limit; default 10",
    )
    add(
        "-w",
        type=seconds,
        dest="deadline",
        metavar="SECONDS",
        help="end after this time, whatever was sent; with -c: send until COUNT requests are answered, or until then",
    )
    add("-q", action="store_true", dest="quiet", help="print only the first line and the totals")
    add(
        "-f",
        action="store_true",
        dest="flood",
        help="flood: send as fast as replies come, at least 100 times a second; one dot for each missing reply",
    )
    add("-n", action="store_true", dest="numeric", help="never look up names; it is always so")
    add("-D", action="store_true", dest="timestamps", help="print the Unix time before each line")
    add("-t", type=whole(1, 255), default=64, dest="ttl", metavar="TTL", help="time to live, or hop limit; default 64")
    add("-p", type=_pattern, default=b"", dest="pattern", metavar="HEX", help="fill packets with these 1 to 16 bytes")
    add(
        "-I",
        type=checked(_source),
        dest="source",
        metavar="ADDRESS",
        help="send from this own address (it is added to the defaults of --ip), or memifN: --id N",
    )
    add_interface_arguments(parser, "192.168.1.3", "fe80::3")
    add_loop_argument(parser)


def _pattern(text: str) -> bytes:
    """Parse the hexadecimal digits of ``-p``. As in ping, the last byte may have a single digit."""
    if not re.fullmatch(rf"[0-9A-Fa-f]{{1,{2 * _LONGEST_PATTERN}}}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a pattern; it must be 1 to {2 * _LONGEST_PATTERN} hexadecimal digits, like ff00"
        )
    return bytes(int(text[at : at + 2], 16) for at in range(0, len(text), 2))


def _source(text: str) -> bytes | int:
    """Parse ``-I``: an address, or the N of ``memifN``."""
    interface = re.fullmatch(r"memif([0-9]{1,10})", text)
    try:
        return whole(0, 0xFFFFFFFF)(interface[1]) if interface else unicast_ip(text)
    except (ConfigError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{error}; give an own address, or memifN for the interface with --id N") from error


def _apply_source(arguments: argparse.Namespace) -> tuple[bytes | None, str | None]:
    """Let ``-I`` change ``--ip`` or ``--id``. Return the source address, and the name for the first line.

    :raises ConfigError: ``-I`` contradicts ``--ip`` or ``--id``.
    """
    source = arguments.source
    if isinstance(source, int):
        if arguments.id not in (0, source):
            raise ConfigError(f"argument -I: memif{source} is not the interface with --id {arguments.id}")
        arguments.id = source
        return None, f"memif{source}"
    if source is None:
        return None, None
    if arguments.ip is None:
        arguments.ip = [source, *(ip for ip in arguments.default_ips if len(ip) != len(source))]
    elif source not in arguments.ip:
        own = ", ".join(map(format_ip, arguments.ip))
        raise ConfigError(f"argument -I: {format_ip(source)} is not an own address; --ip gives {own}")
    return source, ""


def _status(options: PingOptions, statistics: Statistics) -> int:
    """Return ping's exit status."""
    enough = options.count if options.count is not None and options.deadline is not None else 1
    return 0 if statistics.received >= enough else 1


def _run(arguments: argparse.Namespace) -> int:
    if len(arguments.target) == 4 and arguments.size > MAX_PAYLOAD:
        raise ConfigError(
            f"argument -s: '{arguments.size}' is not a whole number from 0 to {MAX_PAYLOAD}, the most that an IPv4 "
            f"packet holds"
        )
    source, interface = _apply_source(arguments)
    interval = FLOOD_INTERVAL if arguments.flood else 1.0
    options = PingOptions(
        arguments.target,
        arguments.count,
        interval if arguments.interval is None else arguments.interval,
        arguments.size,
        arguments.wait or math.inf,
        deadline=arguments.deadline,
        quiet=arguments.quiet,
        flood=arguments.flood,
        timestamps=arguments.timestamps,
        ttl=arguments.ttl,
        pattern=arguments.pattern,
        source=source,
        interface=interface,
    )
    return _status(options, ping(options, program_interface(arguments), loop=arguments.loop))


COMMAND = Command(
    "ping",
    "send ICMP or ICMPv6 echo requests and report the replies",
    """example, with a responder in another terminal (memifrt responder --role master --socket @lab):
  memifrt ping --socket @lab -c 5 192.168.1.2
  memifrt ping --socket @lab -c 5 fe80::2
  memifrt ping --socket @lab -q -c 100 -w 10 -f 192.168.1.2

exit status: 0 if any reply came (with -c and -w: COUNT replies), 1 if not,
2 on other errors""",
    _add_arguments,
    _run,
)
