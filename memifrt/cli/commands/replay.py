"""``memifrt replay``: send the packets of a capture file on a memif, with their own timing or at a rate.

Owns the command line, and the rounds of a replay. Its parts are in ``memifrt.cli.replay``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import os
import re
import time
from collections.abc import Callable

from memifrt.capture.flows import Flows
from memifrt.capture.link_layer import BROADCAST, OURS, LinkLayer
from memifrt.capture.rewrite import VLAN_MODES, VLAN_PROTOCOLS, Rewriting, parse_mac_pair, parse_maps
from memifrt.cli.arguments import (
    MANY,
    Command,
    Parser,
    add_peer_arguments,
    checked,
    file_name,
    number,
    own_mac,
    seconds,
    session_options,
    whole,
)
from memifrt.cli.endpoint import memif_endpoint
from memifrt.cli.program import SessionOptions, complain, ended_by_signal, session, status_of_signal
from memifrt.cli.progress import Progress, progress
from memifrt.cli.replay.outcome import Outcome
from memifrt.cli.replay.pace import Pace
from memifrt.cli.replay.player import Conduct, Player, TimeIsOver
from memifrt.cli.replay.recording import Recording
from memifrt.cli.replay.selection import CUT_CHOICES, SHORTEST_FRAME, Selection, padded
from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.packets import format_mac, parse_mac
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.port import MemifPort
from memifrt.types import Mode

#: Seconds between two attempts to connect. It is short because a user waits at the terminal.
_RECONNECT_INTERVAL = 0.2
_PR_SET_TIMERSLACK = 29
#: The smallest rate or speed. With less, the time of a packet in nanoseconds does not fit into a float.
_LEAST = 1e-9


def replay(
    path: str,
    end: MemifEndpoint,
    pace: Pace,
    *,
    loops: int = 1,
    drop: bool = False,
    cut: str | None = None,
    link_layer: LinkLayer | None = None,
    limit: int | None = None,
    preload: bool = False,
    pad: bool = False,
    rewriting: Rewriting = Rewriting(),  # noqa: B008 - it is frozen
    flows: Flows | None = None,
    conduct: Conduct = Conduct(),  # noqa: B008 - it is frozen
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
    on_ready: Callable[[], object] = lambda: None,
) -> Outcome:
    """Wait for a peer and send it the packets of a capture.

    :param path: a pcap or pcapng file; ``-`` is standard input.
    :param loops: how often to play it; 0 repeats it until a signal. Captured times begin anew in every round; a rate
        goes on.
    :param drop: whether to drop packets for which the ring has no room, and keep the timing, instead of waiting.
    :param cut: what to do with packets that were cut at capture. ``pad`` fills them up with zeros, ``send`` sends the
        captured part, ``skip`` leaves them out; None leaves them out too and counts as a failure.
    :param link_layer: how to convert packets that the memif cannot carry; None does not convert them.
    :param limit: the most packets to send, over all rounds; None for no limit.
    :param preload: whether to read the whole capture before the peer is waited for.
    :param pad: whether to fill up frames that are shorter than the shortest of Ethernet.
    :param rewriting: the addresses and tags to rewrite.
    :param flows: counts the flows of the packets that are sent, if it is given.
    :param conduct: when to stop, what to print and whether to ask.
    :param on_ready: called when the interface is created.
    :returns: the totals.
    :raises CaptureFileError: the file is not a capture, or has no packet.
    :raises ConfigError: the memif carries none of the link types of the file.
    :raises MemifError: the file cannot be read, or the interface cannot be created.
    """
    _be_punctual()
    hint = "; --max-gap limits the gaps of the capture" if pace.speed and not pace.max_gap else ""
    with contextlib.ExitStack() as stack:
        edit = rewriting.edit(end.mode)
        if conduct.ask and path == "-":
            raise ConfigError("--oneatatime reads answers from standard input, so the capture must be a file")
        recording = stack.enter_context(Recording(path, again=loops != 1 or preload))
        outcome = Outcome()
        edits = [*(() if edit is None else (edit,)), *((padded,) if pad and end.mode is not Mode.IP else ())]
        layer = link_layer or LinkLayer(end.mode)
        selection = Selection(recording, layer, cut, outcome, edits=edits, limit=limit, flows=flows)
        selection.check()
        if preload:
            recording.preload()
        runtime = stack.enter_context(
            session("replay", reconnect_interval=_RECONNECT_INTERVAL, session_options=session_options)
        )
        port = MemifPort(runtime, end)
        on_ready()
        with Progress() if conduct.quiet or conduct.ask else progress("replay", recording.size * loops) as shown:
            player = Player(runtime, port, shown, outcome=outcome, drop=drop, hint=hint, conduct=conduct)
            recording.wait = player.wait_for_input
            played = False
            with contextlib.suppress(PollCancelled, Disconnected):
                player.wait_for_peer()
                with contextlib.suppress(TimeIsOver):
                    _play_rounds(player, recording, selection, pace, loops, conduct.report_every == 0)
                played = True
            with contextlib.suppress(PollCancelled, Disconnected):  # a second signal also ends this
                player.drain()
                player.outcome.complete = played
        return player.outcome


def _play_rounds(
    player: Player, recording: Recording, selection: Selection, pace: Pace, loops: int, reports: bool
) -> None:
    seconds = 0.0
    outcome = player.outcome

    def count_shortened() -> None:
        outcome.shortened += 1

    # A rate goes on from round to round. Captured times begin anew.
    rate = None if pace.speed else pace.clock()
    began = time.monotonic_ns() if rate else None
    try:
        for number in itertools.count() if loops == 0 else range(loops):
            base = number * recording.size
            before = player.outcome.accepted
            try:
                player.play(
                    selection.packets(),
                    rate or pace.clock(count_shortened),
                    lambda: base + recording.offset,  # noqa: B023
                    began,
                )
            finally:
                seconds += player.outcome.seconds
            if reports:
                player.report(seconds)
            if selection.left == 0:
                return
            nothing = player.outcome.accepted == before  # an endless loop would send nothing for ever
            if player.outcome.broken is not None or (nothing and loops == 0):
                return
    finally:
        player.outcome.seconds = seconds


def _be_punctual() -> None:
    """Reduce the timer slack of this process: by default the kernel may prolong a sleep by 50 us."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1000))


# --- the command line ------------------------------------------------------------------------------------------------


def positive(text: str) -> float:
    """Parse a number above 0 for argparse."""
    value = number(text)
    if not _LEAST <= value <= MANY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 (from {_LEAST:g} on) and up to {MANY}")
    return value


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("path", type=file_name, metavar="FILE", help="pcap or pcapng; - reads standard input")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "-x", "--speed", "--multiplier", type=positive, metavar="X", help="X times as fast as captured; default 1"
    )
    pace.add_argument("-p", "--pps", type=positive, metavar="N", help="packets a second")
    pace.add_argument("-M", "--mbps", type=positive, metavar="N", help="megabits a second, without any framing")
    pace.add_argument("-t", "--topspeed", action="store_true", help="as fast as the peer takes them")
    pace.add_argument(
        "-o",
        "--oneatatime",
        action="store_true",
        help="one packet for each line of standard input, or as many as it says",
    )
    add = parser.add_argument
    add(
        "-l",
        "--loop",
        type=whole(0, MANY),
        default=1,
        metavar="N",
        help="play the file N times, 0: until Ctrl+C; default 1",
    )
    add("-L", "--limit", type=whole(1, MANY), metavar="N", help="send at most N packets, over all rounds")
    add("--duration", type=seconds, default=0.0, metavar="SECONDS", help="stop after SECONDS; default: no limit")
    add(
        "-K",
        "--preload-pcap",
        action="store_true",
        dest="preload",
        help="read the whole file into memory before waiting for the peer",
    )
    add("-q", "--quiet", action="store_true", help="print no progress and no announcements, only the totals")
    add("--flow-stats", action="store_true", help="print a line with the number of flows, and of flows a second")
    add(
        "--max-gap",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="the longest gap between two packets, whatever the captured times say; default: no limit",
    )
    add(
        "--maxsleep",
        type=whole(0, MANY),
        default=0,
        metavar="MS",
        help="like --max-gap, in milliseconds; 0 and default: no limit",
    )
    short = parser.add_mutually_exclusive_group()
    short.add_argument(
        "--pad",
        action="store_true",
        help="fill up with zeros: packets that were cut at capture, and frames shorter than "
        f"the {SHORTEST_FRAME} bytes of the shortest Ethernet frame",
    )
    short.add_argument(
        "--cut",
        choices=CUT_CHOICES,
        help="packets that were cut at capture: pad fills them up with zeros, send sends the captured part, skip "
        "leaves them out; default: they are left out, and the exit status is 1",
    )
    add(
        "--convert",
        action="store_true",
        help="convert packets that the memif cannot carry: raw IP packets and the cooked packets of tcpdump -i any get "
        "an Ethernet header; in mode ip, Ethernet frames and cooked packets lose their headers",
    )
    add(
        "--src-mac",
        type=checked(own_mac),
        default=OURS,
        metavar="M",
        help="source address of Ethernet headers that --convert makes; default: the sender's if the capture has it, "
        f"else {format_mac(OURS)}",
    )
    add(
        "--dst-mac",
        type=checked(parse_mac),
        default=BROADCAST,
        metavar="M",
        help=f"destination address of Ethernet headers that --convert makes; default {format_mac(BROADCAST)}",
    )
    add("--drop", action="store_true", help="drop packets when the ring is full, instead of waiting for room")
    _add_rewriting(parser)
    add_peer_arguments(parser, "interrupt")


def _add_rewriting(parser: Parser) -> None:
    add = parser.add_argument_group("rewriting, as by tcprewrite; checksums stay right").add_argument
    mac, maps = checked(parse_mac), checked(parse_maps)
    add("--enet-dmac", type=mac, metavar="MAC", help="destination address of all frames")
    add("--enet-smac", type=mac, metavar="MAC", help="source address of all frames")
    add(
        "--enet-subsmac",
        type=checked(parse_mac_pair),
        action="append",
        default=[],
        metavar="OLD,NEW",
        help="replace a MAC address wherever it is source or destination; may be given again",
    )
    add("--enet-vlan", choices=VLAN_MODES, help="add a VLAN tag in front of others, or delete the first one")
    add("--enet-vlan-tag", type=whole(0, 4095), metavar="N", help="number of the VLAN to add")
    add("--enet-vlan-pri", type=whole(0, 7), metavar="N", help="priority of the tag to add; default 0")
    add(
        "--enet-vlan-cfi",
        type=whole(0, 1),
        metavar="N",
        help="drop eligible bit (CFI) of the tag; default 0",
    )
    add(
        "--enet-vlan-proto",
        choices=tuple(VLAN_PROTOCOLS),
        help="kind of the tag to add; default 802.1q",
    )
    syntax = "OLD:NEW,…, networks like 10.0.0.0/8:192.168.0.0/16 or [2001:db8::/32]:[fd00::/32]"
    add("-S", "--srcipmap", type=maps, default=(), metavar="MAP", help=f"move source addresses of IP and ARP: {syntax}")
    add("-D", "--dstipmap", type=maps, default=(), metavar="MAP", help="move destination addresses, in the same way")
    add("-N", "--pnat", type=maps, default=(), metavar="MAP", help="move both, in the same way")


def _rewriting(arguments: argparse.Namespace) -> Rewriting:
    return Rewriting(
        arguments.enet_dmac,
        arguments.enet_smac,
        tuple(arguments.enet_subsmac),
        arguments.enet_vlan,
        arguments.enet_vlan_tag,
        arguments.enet_vlan_pri,
        arguments.enet_vlan_cfi,
        arguments.enet_vlan_proto,
        arguments.srcipmap + arguments.pnat,
        arguments.dstipmap + arguments.pnat,
    )


def _pace(arguments: argparse.Namespace) -> Pace:
    if arguments.max_gap and arguments.maxsleep:
        raise ConfigError("--max-gap and --maxsleep are the same limit; give one of them")
    paced = arguments.pps or arguments.mbps or arguments.topspeed or arguments.oneatatime
    return Pace(
        0.0 if paced else arguments.speed or 1.0,
        arguments.pps or 0.0,
        arguments.mbps or 0.0,
        arguments.max_gap or arguments.maxsleep / 1000,
    )


def _conduct(arguments: argparse.Namespace) -> Conduct:
    """Return the conduct. A whole number for ``--stats`` means seconds, as for tcpreplay, and no stats socket."""
    report_every = None
    if arguments.stats is not None and re.fullmatch("[0-9]{1,6}", arguments.stats):
        report_every, arguments.stats = float(arguments.stats), None
    elif arguments.stats is not None and re.fullmatch(r"[-+]?[0-9.]+", arguments.stats):
        raise ConfigError(f"--stats {arguments.stats}: a number must be whole seconds, 0 to 999999; ./ marks a path")
    return Conduct(arguments.duration, report_every, arguments.oneatatime, arguments.quiet)


def _run(arguments: argparse.Namespace) -> int:
    pace, conduct, rewriting = _pace(arguments), _conduct(arguments), _rewriting(arguments)
    end = memif_endpoint(arguments)
    macs = ["--src-mac", "--dst-mac"]
    if not arguments.convert:
        arguments.parser.refuse_given(macs, "without --convert, which makes Ethernet headers")
    elif end.mode is Mode.IP:
        arguments.parser.refuse_given(macs, "in mode ip, in which packets have no Ethernet header")
    flows = Flows(end.mode) if arguments.flow_stats else None

    def on_ready() -> None:
        if not conduct.quiet:
            complain(f"memifrt replay: {arguments.path} onto {end}; Ctrl+C ends it")

    outcome = replay(
        arguments.path,
        end,
        pace,
        loops=arguments.loop,
        drop=arguments.drop,
        cut="pad" if arguments.pad else arguments.cut,
        limit=arguments.limit,
        preload=arguments.preload,
        pad=arguments.pad,
        rewriting=rewriting,
        flows=flows,
        conduct=conduct,
        link_layer=LinkLayer(end.mode, arguments.convert, arguments.src_mac, arguments.dst_mac),
        session_options=session_options(arguments),
        on_ready=on_ready,
    )
    print(outcome.line(), flush=True)
    if flows is not None:
        print(flows.line(outcome.seconds), flush=True)
    if outcome.broken is not None:
        raise outcome.broken
    # The peer never offered room, or all packets are too long for the ring.
    nothing = (outcome.dropped or outcome.skipped) and not outcome.accepted
    left_out = outcome.foreign or (outcome.cut and arguments.cut != "skip")
    if ended_by_signal() and not outcome.complete:
        if arguments.loop and os.path.isfile(arguments.path):
            return status_of_signal()
        outcome.complete = True  # a pipe or an endless loop has no end of its own
    return 0 if outcome.complete and not outcome.unread and not nothing and not left_out else 1


COMMAND = Command(
    "replay",
    "send the packets of a capture file, with their own timing or at a rate",
    """examples:
  memifrt replay lab.pcap --socket @lab
  memifrt replay lab.pcapng --socket /run/vpp/memif.sock --pps 1000 --loop 10
  memifrt replay lab.pcap.gz --socket @lab -t -L 1000 --enet-dmac 02:fe:00:00:00:02 --pnat 10.0.0.0/8:192.168.0.0/16

--stats with a number instead of a PATH prints the totals every so many
seconds, with 0 after each round, as tcpreplay does.

exit status: 0 if the peer has taken all packets; 1 if not, or if packets were
left out because they were cut at capture or have another link type; 3 without
a peer in time; 2 on errors; 130 after Ctrl+C, but as if the capture had ended
with --loop 0 or a pipe""",
    _add_arguments,
    _run,
)
