"""``memifrt bridge``: connect two of a memif, a TAP device and a kernel interface."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence

from memifrt.cli.arguments import Command, Parser, add_session_arguments, checked, session_options
from memifrt.cli.endpoint import SYNTAX, check_pair, parse_endpoint
from memifrt.cli.impair import (
    ImpairmentOptions,
    Impairments,
    add_impairment_arguments,
    impairment_options,
    watching,
)
from memifrt.cli.program import SessionOptions, complain, session
from memifrt.options import DEFAULT_RECONNECT_INTERVAL
from memifrt.ports.endpoint import Endpoint, MemifEndpoint, TapEndpoint
from memifrt.ports.forwarding import Pump, Report, direction
from memifrt.ports.packet_socket import PacketPort
from memifrt.ports.port import MemifPort, Port
from memifrt.ports.tap import TapPort
from memifrt.runtime import Runtime
from memifrt.types import RxMode


def bridge(
    a: Endpoint,
    b: Endpoint,
    *,
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
    impairment_options: ImpairmentOptions = ImpairmentOptions(),  # noqa: B008 - it is frozen
    on_ready: Callable[[Sequence[str]], object] = lambda lines: None,
) -> tuple[Report, Report]:
    """Forward packets in both directions until Ctrl+C or SIGTERM.

    :param on_ready: called when both ends are open, with a line for each impaired direction.
    :returns: the totals from ``a`` to ``b``, and from ``b`` to ``a``.
    :raises MemifError: an end cannot be opened, or is gone.
    """
    check_pair(a, b)
    polling = any(isinstance(end, MemifEndpoint) and end.config.rx_mode is RxMode.POLLING for end in (a, b))
    interval = DEFAULT_RECONNECT_INTERVAL
    impairments = Impairments(impairment_options, a.mode)
    with (
        session("bridge", reconnect_interval=interval, session_options=session_options) as runtime,
        contextlib.ExitStack() as stack,
    ):
        ports: dict[Endpoint, Port] = {}
        # Open the local ends first, so that a peer does not see a bridge that fails.
        for end in sorted((a, b), key=lambda end: isinstance(end, MemifEndpoint)):
            ports[end] = _port(runtime, end)
            stack.callback(ports[end].close)
        impairments.count_in(runtime)
        impaired = impairments.directions(ports[a], ports[b])
        there = impaired[0] or direction(ports[a], ports[b])
        back = impaired[1] or direction(ports[b], ports[a])
        pump = Pump(runtime, (there, back), polling=polling)
        on_ready(impairments.describe())
        with watching(impairments, impairment_options, lambda line: complain(f"memifrt bridge: {line}")):
            pump.run()
        return there.report(), back.report()


def _port(runtime: Runtime, end: Endpoint) -> Port:
    if isinstance(end, MemifEndpoint):
        return MemifPort(runtime, end)
    return TapPort(end) if isinstance(end, TapEndpoint) else PacketPort(end)


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("a", type=checked(parse_endpoint), metavar="A", help="one end")
    parser.add_argument("b", type=checked(parse_endpoint), metavar="B", help="the other end")
    add_impairment_arguments(parser)
    add_session_arguments(parser)


def _run(arguments: argparse.Namespace) -> int:
    a, b = arguments.a, arguments.b

    def on_ready(impairments: Sequence[str]) -> None:
        for line in impairments:
            print(line)
        print(f"bridging {a} and {b}; Ctrl+C ends it", flush=True)

    reports = bridge(
        a,
        b,
        session_options=session_options(arguments),
        impairment_options=impairment_options(arguments),
        on_ready=on_ready,
    )
    for report in reports:
        print(report.line(), flush=True)
    return 0


COMMAND = Command(
    "bridge",
    "connect a memif to a TAP device, a kernel interface, or another memif",
    f"""ends:
{SYNTAX}

example, VPP's memif0/0 as an interface of the network namespace red (create interface memif id 0 master):
  memifrt bridge memif:/run/vpp/memif.sock tap:vpp0,netns=red
  ip -n red address add 192.168.1.2/24 dev vpp0

example, a slow link that loses packets:
  memifrt bridge memif:@left,role=master memif:@right,role=master --delay 10ms --jitter 2ms --loss 1%""",
    _add_arguments,
    _run,
)
