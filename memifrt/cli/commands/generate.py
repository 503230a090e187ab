"""``memifrt generate``: send streams of packets on a memif, and check what comes back.

Owns the arguments, the interfaces and what is printed. :mod:`memifrt.traffic` does the work. It needs packages of the
extra ``traffic``, so it is imported when the command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memifrt.cli.arguments import (
    MANY,
    Command,
    Parser,
    add_peer_arguments,
    checked,
    file_name,
    seconds_or_zero,
    session_options,
    whole,
)
from memifrt.cli.endpoint import MEMIF_SYNTAX, check_pair, memif_endpoint, parse_memif_endpoint
from memifrt.cli.generator_memifs import RECONNECT_INTERVAL, create, polling, wait_for_peers
from memifrt.cli.program import SessionOptions, complain, print_whole, session, status_of_signal
from memifrt.errors import ConfigError, PollCancelled
from memifrt.interface import Interface
from memifrt.ports.drain import INTERVAL, Drain
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.runtime import Runtime
from memifrt.types import Role

if TYPE_CHECKING:
    from memifrt.traffic import Rate, Report, Stream

#: The columns of a table that is not printed on a terminal.
_WIDE = 200
#: The texts of --direction; :mod:`memifrt.traffic.stream` has them, too.
_DIRECTIONS = ("forward", "backward", "both")
#: As :data:`memifrt.traffic.fields.SYNTAX` says it.
_FIELDS = """\
  NAME=FIRST..LAST [increment|decrement|random] [step N] [seed N]
  NAME=VALUE,VALUE,...
            NAME is eth.src, eth.dst, vlan.id, vlan.priority, vlan.dei,
            ipv4.src, ipv4.dst, ipv4.ttl, ipv4.dscp, ipv4.ecn, ipv4.id,
            ipv4.flags, ipv4.fragment_offset, ipv4.version, ipv4.ihl,
            ipv6.src, ipv6.dst, ipv6.hop_limit, ipv6.traffic_class,
            ipv6.flow_label, ipv6.version, udp.src, udp.dst, tcp.src, tcp.dst,
            tcp.seq, tcp.ack, tcp.flags, tcp.window, or @OFFSET:WIDTH in bytes"""


def generate(
    ends: Sequence[MemifEndpoint],
    streams: Sequence[Stream],
    *,
    rate: Rate | str = "max",
    duration: float | None = None,
    count: int | None = None,
    check: bool = False,
    link_speed: float | None = None,
    settle: float | None = None,
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
    on_ready: Callable[[], object] = lambda: None,
) -> Report | None:
    """Wait for the peers, send streams, and return the report; None if a signal ended it before a packet was sent.

    :param ends: one memif, or two: what is sent on one is expected on the other.
    :param settle: see :meth:`memifrt.traffic.Generator.run`.
    :param on_ready: called when the interfaces are created.
    :raises ConfigError: a stream is wrong.
    :raises MemifError: an interface cannot be created.
    """
    from memifrt.traffic import Generator
    from memifrt.traffic.stream import check_streams
    from memifrt.traffic.view import INTERVAL as VIEW_INTERVAL
    from memifrt.traffic.view import View

    # Before anybody waits for a peer. Only a slave knows its queues and rings by then.
    queues = [end.config.num_s2m_rings if end.config.role is Role.SLAVE else 1 for end in ends]
    longest = check_streams(streams, [end.mode for end in ends], check=check, queues=queues)
    for end in ends:
        end.config.check_length(f"the longest packet has {longest} bytes", longest)
    with session("generate", reconnect_interval=RECONNECT_INTERVAL, session_options=session_options) as runtime:
        interfaces = [create(runtime, end) for end in ends]
        on_ready()
        try:
            wait_for_peers(runtime, interfaces)
        except PollCancelled:
            return None
        generator = Generator(
            interfaces, streams, check=check, link_speed=link_speed, poll=lambda: runtime.poll_event(0)
        )
        with View(sys.stderr, duration) as view:
            report = generator.run(
                duration=duration,
                rate=rate,
                count=count,
                settle=settle,
                on_sample=view.update if view.shown else None,
                sample_interval=VIEW_INTERVAL if view.shown else None,
            )
        with contextlib.suppress(PollCancelled):  # a second signal also ends this
            _drain(runtime, interfaces)
        return report


def _drain(runtime: Runtime, interfaces: Sequence[Interface]) -> None:
    """Wait until the peers have taken the packets in the rings, because a disconnect throws them away."""
    drain = Drain(interfaces)
    while drain.goes_on():
        runtime.poll_event(INTERVAL)


# --- the command line ------------------------------------------------------------------------------------------------


def _traffic(module: str, name: str) -> Any:
    """Return a name of a module of memifrt.traffic.

    :raises ConfigError: a package of the extra is not installed.
    """
    try:
        return getattr(importlib.import_module(f"memifrt.traffic.{module}"), name)
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _missing(error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(f"{error.name} is not installed: pip install 'memifrt[traffic]'")


def _parsed(module: str, name: str) -> Callable[[str], Any]:
    """Return a parser for argparse that is imported when it is used."""

    def parse(text: str) -> Any:
        return _traffic(module, name)(text)

    return checked(parse)


def _add_arguments(parser: Parser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", type=file_name, metavar="FILE", help="streams from a YAML or TOML file")
    source.add_argument(
        "--packet", metavar="EXPRESSION", help="a scapy expression, like 'Ether()/IP(dst=\"10.0.0.1\")/UDP()', or hex"
    )
    source.add_argument("--pcap", type=file_name, metavar="FILE", help="the packets of a capture file, again and again")
    add = parser.add_argument_group("traffic").add_argument
    add(
        "--size",
        type=_parsed("template", "parse_sizes"),
        metavar="SIZES",
        help="frame size with the 4 bytes of the FCS: N, N,N,... or imix; default: as the packet is",
    )
    add("--no-fcs", action="store_true", help="sizes do not count an FCS: 64 puts 64 bytes into a buffer, not 60")
    add(
        "--field",
        type=_parsed("fields", "parse_field"),
        action="append",
        metavar="FIELD",
        help="a field that varies, like 'ipv4.src=10.0.0.1..10.0.0.254'; may be given several times (see below)",
    )
    add(
        "--rate",
        type=_parsed("rate", "parse_rate"),
        metavar="RATE",
        help="1000, 1.5Mpps, 10Gbps (layer 2), 10Gbpsl1 (layer 1), 50%% (of --link-speed) or max; default max",
    )
    add("--burst", type=whole(1, 1 << 20), metavar="N", help="send N packets at once, less often; default 1")
    add("--count", type=whole(1, MANY * MANY), metavar="N", help="packets in each direction; default: no limit")
    add("--duration", type=_parsed("rate", "parse_time"), metavar="TIME", help="10, 500ms, 1m; default: until Ctrl+C")
    add("--link-speed", type=_parsed("rate", "parse_speed"), metavar="SPEED", help="what a rate in %% is of: 10Gbps")
    add(
        "--signed",
        action="store_true",
        help="mark the packets, and check what comes back for loss, duplication, reordering, corruption and latency",
    )
    add(
        "--settle",
        type=seconds_or_zero,
        metavar="SECONDS",
        help="how long to wait at the end for the next packet on its way; default 0.5, without --signed 0.1",
    )
    add(
        "--to",
        type=checked(parse_memif_endpoint),
        metavar="MEMIF",
        help="a second memif (see below): what is sent on one is expected on the other",
    )
    add("--direction", choices=_DIRECTIONS, help="with --to: which memif sends; default both")
    output = parser.add_argument_group("output")
    kind = output.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="print the report as JSON")
    kind.add_argument("--csv", action="store_true", help="print the report as CSV, a line for each stream")
    output.add_argument(
        "--plot", type=_parsed("plot", "plot_path"), metavar="FILE", help="draw rate and latency into FILE.png or .svg"
    )
    add_peer_arguments(parser, "polling")


def _run(arguments: argparse.Namespace) -> int:
    try:
        return _run_with_packages(arguments)
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _run_with_packages(arguments: argparse.Namespace) -> int:
    end = memif_endpoint(arguments)
    ends = [end]
    if arguments.to is not None:
        to = polling(arguments.to)
        check_pair(end, to)
        ends.append(to)
    elif arguments.direction not in (None, "forward"):
        raise ConfigError(f"--direction {arguments.direction} needs a second memif: --to")
    streams, rate, duration, count, link_speed = _what_to_send(arguments)
    for each in (rate, *(stream.own_rate for stream in streams)):
        if each is not None and each.unit == "percent" and link_speed is None:
            raise ConfigError(f"the rate {each} needs the speed of a link: --link-speed 10Gbps")
    _refuse_without_effect(arguments, streams, rate)
    if arguments.plot:
        _traffic("plot", "check_plot")(arguments.plot)

    def on_ready() -> None:
        where = " and ".join(map(str, ends))
        complain(f"memifrt generate: {len(streams)} stream{'s' * (len(streams) != 1)} on {where}; Ctrl+C ends it")

    has_end = duration is not None or count is not None or all(stream.count is not None for stream in streams)
    report = generate(
        ends,
        streams,
        rate=rate or "max",
        duration=duration,
        count=count,
        check=arguments.signed,
        link_speed=link_speed,
        settle=arguments.settle,
        session_options=session_options(arguments),
        on_ready=on_ready,
    )
    if report is None:
        complain("memifrt generate: ended before a peer was there; nothing was sent")
        return status_of_signal() if has_end else 1
    _print(report, arguments)
    if report.error:
        complain(f"memifrt generate: {report.error}; the report ends here")
    if report.ended == "interrupted" and has_end:
        return status_of_signal()
    return 0 if report.ended != "disconnected" and report.total.sent else 1


def _refuse_without_effect(arguments: argparse.Namespace, streams: Sequence[Stream], rate: Rate | None) -> None:
    """Refuse options that nothing in this run would look at.

    :raises ConfigError: there is one.
    """
    if arguments.no_fcs and arguments.size is None and arguments.file is None:
        raise ConfigError("--no-fcs has no effect without --size: it says what a size counts")
    rates = [stream.own_rate or rate for stream in streams]
    if arguments.rate is not None and all(stream.own_rate is not None for stream in streams):
        raise ConfigError(f"--rate {rate} has no effect: each stream of {arguments.file} has a rate of its own")
    if arguments.link_speed is not None and not any(each is not None and each.unit == "percent" for each in rates):
        raise ConfigError("--link-speed has no effect: no rate is in per cent of it, like --rate 50%")
    from memifrt.traffic.stream import title_of

    for stream, each in zip(streams, rates, strict=True):
        if stream.burst > 1 and (each is None or each.unit == "max"):
            raise ConfigError(
                f"{title_of(stream.name)}: a burst of {stream.burst} has no effect as fast as it goes; it needs a rate"
            )


def _what_to_send(
    arguments: argparse.Namespace,
) -> tuple[list[Stream], Rate | None, float | None, int | None, float | None]:
    """Return the streams, and the rate, duration, count and link speed of the run."""
    if arguments.file is not None:
        for option in ("size", "field", "burst"):
            if getattr(arguments, option) is not None:
                raise ConfigError(f"--{option} is for --packet and --pcap; with --file, the file says it")
        if arguments.no_fcs:
            raise ConfigError("--no-fcs is for --packet and --pcap; with --file, the file says it (fcs: false)")
        found = _traffic("file", "load_file")(arguments.file)
        streams = [_directed(stream, arguments.direction) for stream in found.streams]
        return (
            streams,
            arguments.rate or found.rate,
            arguments.duration or found.duration,
            arguments.count or found.count,
            arguments.link_speed or found.link_speed,
        )
    stream = _traffic("stream", "Stream")(
        arguments.packet,
        arguments.pcap,
        size=arguments.size,
        fcs=not arguments.no_fcs,
        fields=arguments.field or (),
        burst=arguments.burst or 1,
        direction=arguments.direction,
    )
    return [stream], arguments.rate, arguments.duration, arguments.count, arguments.link_speed


def _directed(stream: Stream, direction: str | None) -> Stream:
    if direction is None:
        return stream
    if stream.direction not in (None, direction):
        from memifrt.traffic.stream import title_of

        raise ConfigError(
            f"{title_of(stream.name)}: the file says direction {stream.direction}, and --direction says {direction}; "
            "leave one of them out"
        )
    return stream.with_(direction=direction)


def _print(report: Report, arguments: argparse.Namespace) -> None:
    from memifrt.traffic.view import page

    with contextlib.ExitStack() as stack:
        if arguments.plot:  # also if standard output takes nothing
            stack.callback(_traffic("plot", "plot"), report, arguments.plot)
        if arguments.json:
            text = json.dumps(report.as_dict()) + "\n"
        elif arguments.csv:
            text = report.csv()
        else:
            text = page(report, shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE) + "\n"
        print_whole(text)


COMMAND = Command(
    "generate",
    "send streams of packets, and check what comes back",
    f"""fields:
{_FIELDS}

memifs:
{MEMIF_SYNTAX}

examples:
  memifrt generate --socket @lab --packet 'Ether()/IP(dst="10.0.0.1")/UDP()' --size 64 --duration 10
  memifrt generate --socket @lab --packet 'Ether()/IP()/UDP()' --size imix --rate 1Mpps --duration 1m --signed
  memifrt generate --socket @a --to memif:@b --file streams.yaml --signed --plot run.svg

exit status: 0; 1 if the peer left, or nothing could be sent; 2 on errors;
3 without a peer in time; after Ctrl+C 130 if --count or --duration was not
reached, and 0 if there was no such end""",
    _add_arguments,
    _run,
)
