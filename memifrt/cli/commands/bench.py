"""``memifrt bench``: run one end of a measurement, on one of the three levels of the data plane.

It prints the figures of this process: packets a second since the first packet, and CPU time for each packet. An echo, a
source or a sink may have a thread for each queue.
"""

from __future__ import annotations

import argparse
import sys

from memifrt.cli.arguments import (
    Command,
    Parser,
    add_loop_argument,
    add_ring_arguments,
    checked,
    interface_config,
    seconds_or_zero,
    session_options,
    whole,
)
from memifrt.cli.bench.measurement import Bench
from memifrt.cli.bench.options import (
    APIS,
    CHECKS,
    ICMP_TARGET,
    IMIX,
    MODES,
    PAYLOADS,
    SHORTEST_INTERVAL,
    Options,
)
from memifrt.cli.plots import SUFFIXES, plot_bench, plot_path
from memifrt.cli.program import complain, ended_by_signal, status_of_signal
from memifrt.drawing import check_matplotlib
from memifrt.types import MAX_LOG2_RING_SIZE


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("what", choices=MODES, metavar="WHAT", help=f"{', '.join(MODES)}: see below")
    add(
        "--size",
        type=_size,
        default=64,
        metavar="N",
        help="bytes of a packet; imix: gen sends 64, 570 and 1518 bytes as 7:4:1; default 64",
    )
    add(
        "--burst",
        type=whole(1, 1 << MAX_LOG2_RING_SIZE),
        default=256,
        metavar="N",
        help="packets a call, of this end alone; default 256",
    )
    add(
        "-t",
        "--seconds",
        type=seconds_or_zero,
        default=3.0,
        metavar="N",
        help="how long to measure, from the first packet; 0: until the peer disconnects; default 3",
    )
    add("--api", choices=APIS, default="burst", help="level of the data plane for source, sink, echo; default burst")
    add(
        "--threads", action="store_true", help="source, sink, echo: a thread for each queue; --api=loop always has them"
    )
    add("--check", choices=CHECKS, default="content", help="what gen checks; default content")
    add("--payload", choices=PAYLOADS, default="zeros", help=f"icmp: echo requests to {ICMP_TARGET}; default zeros")
    add("--window", type=whole(0, 1 << 16), default=0, metavar="N", help="gen: packets in flight; default 4 bursts")
    add(
        "--cpu",
        type=_cpus,
        default=(),
        metavar="N[,N]",
        help="pin this process to these cores, and each of its threads to one of them",
    )
    add(
        "-i",
        "--interval",
        type=_interval,
        default=0.0,
        metavar="SECONDS",
        help="print a line about the rate and the loss this often, at least every 0.1 s; 0, the default: none",
    )
    add(
        "--plot",
        type=checked(plot_path),
        metavar="FILE",
        help=f"draw the rate over time and, for rr, the round trips: {', '.join(SUFFIXES)}; needs memifrt[plot]",
    )
    add("--json", action="store_true", help="print one line of JSON")
    add_loop_argument(parser)
    add_ring_arguments(parser, "polling")


def _size(text: str) -> int | str:
    try:
        return text if text == "imix" else whole(1, 65535)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or imix") from error


def _interval(text: str) -> float:
    value = seconds_or_zero(text)
    if 0 < value < SHORTEST_INTERVAL:
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, or a number of seconds from {SHORTEST_INTERVAL}")
    return value


def _cpus(text: str) -> tuple[int, ...]:
    return tuple(whole(0, 4095)(number) for number in text.split(","))


def _run(arguments: argparse.Namespace) -> int:
    given = {**vars(arguments), "mode": arguments.what, "session_options": session_options(arguments)}
    given["imix"] = arguments.size == "imix"
    if given["imix"]:
        given["size"] = max(size for size, _ in IMIX)
    config = interface_config(arguments)
    given |= {name: getattr(config, name) for name in ("num_s2m_rings", "num_m2s_rings", "ring_size")}
    options = Options(**{name: given[name] for name in Options.__dataclass_fields__})
    if options.plot:
        check_matplotlib()
    bench = Bench(options)
    if not arguments.json:
        bench.on_interval = lambda interval: print(interval.line(), flush=True)
    result = bench.run(live=sys.stderr.isatty() and not arguments.json)
    print(result.json() if arguments.json else "\n".join(result.lines()))
    if options.plot:
        title = f"memifrt bench {result.mode} ({result.impl} rings), {arguments.size} bytes"
        plot_bench(options.plot, title, result.intervals, bench.trips)
    if not options.seconds:
        return 0
    if ended_by_signal():
        return status_of_signal()
    if result.mode in ("gen", "rr") and not result.packets and not result.corrupted:
        complain("memifrt bench: no packet came back: the peer must send packets back, as memifrt bench echo does")
        return 1
    return 0


COMMAND = Command(
    "bench",
    "measure packets a second, CPU time for each packet, and round trips",
    """example, in two terminals, with packets sent and echoed:
  memifrt bench echo --role slave --socket @lab --cpu 0 --seconds 0
  memifrt bench gen --role master --socket @lab --cpu 1 -t 10 -i 1

source sends, sink receives, echo sends packets back,
gen sends packets and checks the returned ones,
rr sends one packet at a time and waits for it: p50, p99, p99.9

Both ends may have the same options: what is for another WHAT has no effect.

gen and rr end if no packet comes back within 10 s.

exit status: 0; 1 if no packet came back to gen or rr; 130 if Ctrl+C came
before --seconds were over (with the figures so far); 3 without a peer in
time; 2 on errors""",
    _add_arguments,
    _run,
)
