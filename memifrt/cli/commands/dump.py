"""``memifrt dump``: print a line for each packet of a memif, or write a capture file.

It is either an endpoint, which takes all packets and sends none, or it sits between two memifs and forwards each packet
after it is captured. With ``-r`` the packets come from a capture file, and there is no memif. Owns the command line;
the parts are in ``memifrt.cli.dump``, and the pump (``memifrt.ports.forwarding``) moves the packets.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Sequence

from memifrt.capture.lines import LineStyle
from memifrt.capture.pcap import MAX_SNAPLEN
from memifrt.cli.arguments import (
    MANY,
    PEER_OPTIONS,
    SESSION_OPTIONS,
    Command,
    Parser,
    add_peer_arguments,
    checked,
    file_name,
    session_options,
    whole,
)
from memifrt.cli.dump.capture import Capture, Preparation, capturing
from memifrt.cli.dump.from_file import dump_file
from memifrt.cli.dump.options import DumpOptions, Rotation
from memifrt.cli.endpoint import MEMIF_SYNTAX, check_pair, memif_endpoint, parse_memif_endpoint
from memifrt.cli.impair import (
    ImpairmentOptions,
    Impairments,
    add_impairment_arguments,
    impairment_options,
    impairments_given,
    watching,
)
from memifrt.cli.postrotate import parse_command
from memifrt.cli.program import SessionOptions, complain, ended_by_signal, session, status_of_signal
from memifrt.errors import ConfigError
from memifrt.options import DEFAULT_RECONNECT_INTERVAL
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.forwarding import Carry, Direction, Pump, Record, Report, Watch
from memifrt.ports.nowhere import Nowhere
from memifrt.ports.port import MemifPort
from memifrt.types import RxMode

_STYLES = ("tcpdump", "scapy")
_MEGABYTE = 1_000_000
_DAY = 86400


def dump(
    ends: Sequence[MemifEndpoint],
    options: DumpOptions,
    *,
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
    impairment_options: ImpairmentOptions = ImpairmentOptions(),  # noqa: B008 - it is frozen
    on_ready: Callable[[Sequence[str]], object] = lambda lines: None,
) -> tuple[int, list[Report]]:
    """Capture packets of one memif, or between two, until Ctrl+C, SIGTERM or the last packet.

    :param impairment_options: between two memifs, the impairments; packets are captured when they leave them.
    :param on_ready: called when the interfaces are created, with a line for each impaired direction.
    :returns: the number of captured packets, and between two memifs the totals of each direction.
    :raises MemifError: an option is wrong, an interface cannot be created, or a file cannot be written.
    """
    if len(ends) == 2:
        check_pair(*ends)
    elif impairment_options:
        raise ConfigError("impairments are for packets between two memifs: they need --between A B")
    polling = any(end.config.rx_mode is RxMode.POLLING for end in ends)
    impairments = Impairments(impairment_options, ends[0].mode)
    preparation = Preparation.of(options, ends)
    with session("dump", reconnect_interval=DEFAULT_RECONNECT_INTERVAL, session_options=session_options) as runtime:
        ports = [MemifPort(runtime, end) for end in ends]
        impairments.count_in(runtime)
        with capturing(options, ends, runtime.cancel_poll_event, preparation) as capture:
            one = [Carry(ports[0], Nowhere("nowhere"), capture.record)]
            ways: Sequence[Direction] = between(ports, capture, impairments) if len(ports) == 2 else one
            pump = Pump(runtime, ways, polling=polling, on_idle=capture.flush)
            on_ready(impairments.describe())
            try:
                with watching(impairments, impairment_options, lambda line: complain(f"memifrt dump: {line}")):
                    pump.run()
                reports = [way.report() for way in ways]
            finally:
                pump.close()
        # A burst that is recorded as a whole does not count its packets.
        capture.packets += sum(way.source.received.packets for way in ways if isinstance(way, Watch))
        return capture.packets, reports if len(ends) == 2 else []


def between(
    ports: Sequence[MemifPort], capture: Capture, impairments: Impairments | None = None
) -> Sequence[Direction]:
    """Return both directions between two ports, each with the capture."""
    records = [functools.partial(capture.record, interface=number) for number in (0, 1)]
    impaired = (None, None) if impairments is None else impairments.directions(ports[0], ports[1], records)
    return [
        way or _captured(source, target, capture, record)
        for way, source, target, record in zip(impaired, ports, ports[::-1], records, strict=True)
    ]


def _captured(source: MemifPort, target: MemifPort, capture: Capture, record: Record) -> Direction:
    if capture.takes_bursts:
        return Watch(source, target, capture.record_burst)
    return Carry(source, target, record)


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "filter",
        nargs="*",
        metavar="FILTER",
        help="only packets that match, in tcpdump's language, like: icmp or arp; needs libpcap",
    )
    add(
        "-r",
        dest="source",
        type=file_name,
        metavar="FILE",
        help="read packets from a capture, perhaps compressed, instead of a memif; - is standard input",
    )
    add(
        "-w",
        dest="path",
        metavar="FILE",
        help="write a capture: pcapng if FILE ends with .pcapng, else pcap; .gz or .zst after that compresses it; "
        "- is standard output",
    )
    add("-c", type=whole(1, MANY), dest="count", metavar="COUNT", help="stop after COUNT packets")
    add(
        "-G",
        type=whole(1, _DAY),
        default=0,
        dest="seconds",
        metavar="SECONDS",
        help="start a new file every SECONDS seconds",
    )
    add(
        "-C",
        type=whole(1, MANY),
        default=0,
        dest="megabytes",
        metavar="MB",
        help="start a new file after MB million bytes; the files are FILE-0001, FILE-0002, … or, if FILE contains a "
        "%%, what strftime makes of FILE",
    )
    add(
        "-W",
        type=whole(1, MANY),
        default=0,
        dest="files",
        metavar="COUNT",
        help="with -C: keep COUNT files as a ring, named FILE0, FILE1, … as by tcpdump; with -G alone: end after COUNT "
        "files",
    )
    add(
        "-z",
        type=checked(parse_command),
        default=(),
        dest="postrotate",
        metavar="COMMAND",
        help="run COMMAND FILE, without a shell, on each file that -C or -G ends",
    )
    add(
        "-s",
        "--snaplen",
        type=whole(0, MAX_SNAPLEN),
        default=0,
        metavar="N",
        help=f"the most bytes of a packet to keep in a file or to print; 0 and default: {MAX_SNAPLEN}",
    )
    _add_line_arguments(parser)
    add(
        "--style",
        choices=_STYLES,
        default=_STYLES[0],
        help="the lines: tcpdump's, or scapy's summaries; default %(default)s",
    )
    add(
        "--between",
        nargs=2,
        type=checked(parse_memif_endpoint),
        metavar=("A", "B"),
        help="capture between two memifs, in both directions, instead of at the end of one",
    )
    add_impairment_arguments(parser)
    add_peer_arguments(parser, "adaptive")


def _add_line_arguments(parser: Parser) -> None:
    add = parser.add_argument_group("lines, as by tcpdump; without effect with -w").add_argument
    add("-n", action="store_true", help="numbers instead of names; memifrt never looks names up")
    add("-e", action="store_true", help="print the link-level header: MAC addresses, EtherType, VLAN tags")
    add("-v", action="count", default=0, help="print more: the fields of the IP header, checksums; -vv: also of UDP")
    add("-q", action="store_true", help="print less about protocols")
    add("-x", action="count", default=0, help="dump the packet in hex, without its link-level header; -xx: with it")
    add("-X", action="count", default=0, help="like -x and -xx, in hex and ASCII")
    add("-A", action="count", default=0, help="dump the packet in ASCII; -AA: with its link-level header")
    add(
        "-t",
        action="count",
        default=0,
        help="-t: no times; -tt: seconds since 1970; -ttt: since the previous line; -tttt: with the date; "
        "-ttttt: since the first line",
    )
    add("--nano", action="store_true", help="print times in nanoseconds instead of microseconds")


def _line_style(arguments: argparse.Namespace) -> LineStyle:
    dumps = (("X", arguments.X), ("x", arguments.x), ("A", arguments.A))  # the first one wins, as in tcpdump
    dump = next((sign * min(count, 2) for sign, count in dumps if count), "")
    return LineStyle(arguments.t, arguments.nano, arguments.e, arguments.v, arguments.q, dump)


def _check_effects(arguments: argparse.Namespace) -> None:
    """Check that no option is given that has no effect because of others.

    :raises ConfigError: there is one.
    """
    parser: Parser = arguments.parser
    if arguments.source is not None:
        others = [*PEER_OPTIONS, *SESSION_OPTIONS, "--between"]
        for name in [*(name for name in parser.options_given() if name in others), *impairments_given(parser)]:
            what = "for a memif" if name in others else "an impairment between two memifs"
            raise ConfigError(f"-r reads a file, and {name} is {what}; give one of them")
    elif arguments.between is not None:
        parser.refuse_given(PEER_OPTIONS, "with --between: its ends have their own options, like @lab,role=master")
    elif given := impairments_given(parser):
        raise ConfigError(f"{given[0]}: impairments are for packets between two memifs: they need --between A B")


def _run(arguments: argparse.Namespace) -> int:
    _check_effects(arguments)
    options = DumpOptions(
        path=arguments.path,
        count=arguments.count,
        rotation=Rotation(arguments.seconds, arguments.megabytes * _MEGABYTE, arguments.files),
        snaplen=arguments.snaplen or MAX_SNAPLEN,
        filter=" ".join(arguments.filter),
        style=arguments.style,
        lines=_line_style(arguments),
        command=arguments.postrotate,
    )
    if arguments.source is not None:
        matched, read = dump_file(arguments.source, options)
        complain(f"memifrt dump: {matched} packets of the {read} read")
        # A pipe may have no end of its own.
        return status_of_signal() if ended_by_signal() and os.path.isfile(arguments.source) else 0
    ends = arguments.between or [memif_endpoint(arguments)]

    def on_ready(impairments: Sequence[str]) -> None:
        for line in impairments:
            complain(f"memifrt dump: {line}")
        complain(f"memifrt dump: capturing on {' and '.join(map(str, ends))}; Ctrl+C ends it")

    packets, reports = dump(
        ends,
        options,
        session_options=session_options(arguments),
        impairment_options=impairment_options(arguments),
        on_ready=on_ready,
    )
    complain(f"memifrt dump: {packets} packets captured")
    for report in reports:
        complain(f"memifrt dump: {report.line()}")
    return 0


COMMAND = Command(
    "dump",
    "capture the packets of a memif, as lines or into a file, at its end or between two memifs",
    f"""A and B of --between:
{MEMIF_SYNTAX}

examples:
  memifrt dump --role master --socket @lab
  memifrt dump --socket /run/vpp/memif.sock -w - | wireshark -k -i -
  memifrt dump --between @left,role=master /run/vpp/memif.sock -w lab.pcapng -C 100
  memifrt dump --socket @lab -w lab.pcap.zst -C 100 -W 10
  memifrt dump -r lab.pcap.zst -ne -ttt udp port 53

exit status: 0, also after Ctrl+C, but 130 if it came before the end of the
file of -r; 3 without a peer in time; 2 on errors""",
    _add_arguments,
    _run,
)
