"""``memifrt switch``: join any number of memifs, TAP devices and kernel interfaces by a learning Ethernet switch.

Owns the ports' text and the lines that are printed; the switch itself is in ``memifrt.switch``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

from memifrt.capture.pcap import MAX_SNAPLEN, check_writable
from memifrt.cli.arguments import (
    MANY,
    Command,
    Parser,
    add_session_arguments,
    checked,
    file_name,
    seconds,
    session_options,
    socket_path,
    whole,
)
from memifrt.cli.endpoint import SYNTAX, check_pair, parse_endpoint
from memifrt.cli.program import SessionOptions, complain, one_line, session
from memifrt.columns import cut_middle, left, width
from memifrt.errors import ConfigError
from memifrt.options import DEFAULT_RECONNECT_INTERVAL
from memifrt.ports.endpoint import Endpoint, MemifEndpoint, TapEndpoint
from memifrt.ports.packet_socket import PacketPort
from memifrt.ports.port import MemifPort, Port
from memifrt.ports.tap import TapPort
from memifrt.runtime import Runtime
from memifrt.stats.client import observing
from memifrt.stats.switch import PortStats, SwitchStats
from memifrt.switch.loop import SwitchLoop
from memifrt.switch.mirror import Mirror
from memifrt.switch.port import DEFAULT_QUEUE
from memifrt.switch.storm import FloodLimits
from memifrt.switch.switch import Switch, check_vlans
from memifrt.switch.table import DEFAULT_AGEING, DEFAULT_LIMIT, DEFAULT_PORT_LIMIT, ForwardingTable
from memifrt.switch.vlan import PortVlans, parse_vlan, parse_vlans
from memifrt.types import Mode, RxMode

_T = TypeVar("_T")

#: The most addresses of the table: the stats socket sends all of them at once.
_MOST_ADDRESSES = 65536
_MOST_WAITING = 1 << 20
#: Seconds that a program has to answer on its stats socket.
_PATIENCE = 2.0
_ALL = "all"
#: Titles for a narrow terminal, and the fewest characters of a name there.
_SHORT_TITLES = {"rx packets": "rx", "tx packets": "tx", "flooded": "flood", "waiting": "wait", "dropped": "drop"}
_SHORTEST_NAME = 8


@dataclass(frozen=True, slots=True)
class SwitchEnd:
    """A port of a switch as data: the endpoint, and its VLANs or None."""

    endpoint: Endpoint
    vlans: PortVlans | None = None


@dataclass(frozen=True, slots=True)
class SwitchOptions:
    """The options of a switch.

    :ivar ageing: seconds after which an unused address is forgotten.
    :ivar addresses: the most addresses of all ports.
    :ivar port_addresses: the most addresses of one port.
    :ivar queue: the most packets that wait for room in one port.
    :ivar mirror: the mirrored ports, by name or number from 1 on; ``all`` for all.
    :ivar path: the capture file for them; None mirrors nothing.
    """

    ageing: float = DEFAULT_AGEING
    addresses: int = DEFAULT_LIMIT
    port_addresses: int = DEFAULT_PORT_LIMIT
    queue: int = DEFAULT_QUEUE
    limits: FloodLimits = field(default_factory=FloodLimits)
    mirror: tuple[str, ...] = ()
    path: str | None = None
    snaplen: int = MAX_SNAPLEN

    def __post_init__(self) -> None:
        if bool(self.mirror) != (self.path is not None):
            raise ConfigError("--mirror PORT and --write FILE belong together: give both, or none")
        if self.path == "-" and sys.stdout.isatty():
            raise ConfigError("--write - writes a capture, and standard output is a terminal: pipe it, or name a file")


def parse_end(text: str) -> SwitchEnd:
    """Parse a port of a switch: an endpoint that may have ``vlan=N``, or ``trunk=N+N`` with ``native=N``.

    :raises ConfigError: the text is not a port of a switch.
    """
    vlan: dict[str, str] = {}
    rest: list[str] = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in ("vlan", "trunk", "native"):
            rest.append(part)
        elif key in vlan:
            raise ConfigError(f"{key} is given twice")
        else:
            vlan[key] = value
    endpoint = parse_endpoint(",".join(rest))
    if endpoint.mode is not Mode.ETHERNET:
        raise ConfigError(f"{endpoint} carries IP packets (mode=ip); a switch needs Ethernet frames (mode=ethernet)")
    if "vlan" in vlan and len(vlan) > 1:
        raise ConfigError("vlan makes an access port, trunk and native make a trunk: give one or the other")
    if "native" in vlan and "trunk" not in vlan:
        raise ConfigError("native needs trunk, like trunk=10+20,native=1")
    if "vlan" in vlan:
        return SwitchEnd(endpoint, PortVlans(_named("vlan", vlan["vlan"], parse_vlan)))
    if "trunk" in vlan:
        native = _named("native", vlan["native"], parse_vlan) if "native" in vlan else 0
        return SwitchEnd(endpoint, PortVlans(native, _named("trunk", vlan["trunk"], parse_vlans)))
    return SwitchEnd(endpoint)


def _named(key: str, text: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def port_names(ends: Sequence[SwitchEnd]) -> list[str]:
    """Return a name for each port. Ports that would have the same name get their number."""
    names = [str(end.endpoint) for end in ends]
    often = Counter(names)
    return [f"{name}#{number}" if often[name] > 1 else name for number, name in enumerate(names, 1)]


def switch(
    ends: Sequence[SwitchEnd],
    options: SwitchOptions = SwitchOptions(),
    *,
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
    on_ready: Callable[[], object] = lambda: None,
) -> SwitchStats:
    """Switch packets between ports until Ctrl+C or SIGTERM.

    :param on_ready: called when all ports are open.
    :returns: the counters of all ports, and the table.
    :raises MemifError: the ports do not go together, one cannot be opened, or fewer than two are left.
    """
    names = _checked_names(ends)
    mirrored = mirrored_ports(options.mirror, names)
    if options.path is not None:
        check_writable(options.path)
    polling = any(
        isinstance(end.endpoint, MemifEndpoint) and end.endpoint.config.rx_mode is RxMode.POLLING for end in ends
    )
    table = ForwardingTable(ageing=options.ageing, limit=options.addresses, port_limit=options.port_addresses)
    with (
        session("switch", reconnect_interval=DEFAULT_RECONNECT_INTERVAL, session_options=session_options) as runtime,
        contextlib.ExitStack() as stack,
    ):
        ports: dict[int, Port] = {}
        # Open the local ends first, so that a peer does not see a switch that fails.
        for number, end in sorted(enumerate(ends), key=lambda each: isinstance(each[1].endpoint, MemifEndpoint)):
            ports[number] = _port(runtime, end.endpoint)
            stack.callback(ports[number].close)
        mirror = None
        if options.path is not None:
            outgoing = _ALL not in options.mirror
            mirror = Mirror(options.path, names, mirrored, outgoing=outgoing, snaplen=options.snaplen)
            stack.callback(mirror.close)
        joined = [(name, ports[number], ends[number].vlans) for number, name in enumerate(names)]
        running = Switch(joined, table, queue=options.queue, limits=options.limits, mirror=mirror)
        loop = SwitchLoop(runtime, running, polling=polling)
        on_ready()
        loop.run()
        for port in ports.values():
            port.count_losses()
        return running.stats()


def _checked_names(ends: Sequence[SwitchEnd]) -> list[str]:
    if len(ends) < 2:
        raise ConfigError(f"a switch needs at least two ports, and {len(ends) or 'none'} is given")
    for a, b in itertools.combinations([end.endpoint for end in ends], 2):
        check_pair(a, b)
    names = port_names(ends)
    check_vlans([(name, end.vlans) for name, end in zip(names, ends, strict=True)])
    return names


def mirrored_ports(mirror: Sequence[str], names: Sequence[str]) -> set[int]:
    """Return the numbers, from 0 on, of the ports to mirror.

    :raises ConfigError: there is no such port.
    """
    found: set[int] = set()
    for text in mirror:
        if text == _ALL:
            found.update(range(len(names)))
        elif text in names:
            found.add(names.index(text))
        elif text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= len(names):
            found.add(int(text) - 1)
        else:
            raise ConfigError(
                f"--mirror {text!r}: there is no such port; it must be all, a number from 1 to {len(names)}, or one of "
                + ", ".join(names)
            )
    return found


def _port(runtime: Runtime, end: Endpoint) -> Port:
    if isinstance(end, MemifEndpoint):
        return MemifPort(runtime, end)
    return TapPort(end) if isinstance(end, TapEndpoint) else PacketPort(end, waits=False)


# --- lines ----------------------------------------------------------------------------------------------------------


def table_lines(stats: SwitchStats, room: int | None = None) -> Iterator[str]:
    """Return the ports and the addresses of a switch as lines of text.

    :param room: the columns of the terminal, into which titles and names are shortened; None: as long as they are.
    """
    ports = stats["ports"]
    yield from _columns(
        ["port", "name", "vlan", "link", "macs", "rx packets", "tx packets", "flooded", "waiting", "dropped"],
        [
            [
                str(number),
                port["name"],
                port["vlans"] or "-",
                "up" if port["up"] else "down",
                str(port["addresses"]),
                str(port["rx_packets"]),
                str(port["tx_packets"]),
                str(port["flooded"]),
                str(port["waiting"]),
                str(_dropped(port)),
            ]
            for number, port in enumerate(ports, 1)
        ],
        room,
    )
    for number, port in enumerate(ports, 1):
        if port["losses"]:
            yield f"port {number} dropped: {_reasons(port)}"
        if port["evicted"]:
            yield f"port {number} lost {port['evicted']} addresses to the limits"
    yield ""
    addresses = sorted(stats["addresses"], key=lambda address: (address["vlan"], address["mac"]))
    yield from _columns(
        ["mac", "vlan", "port", "name", "age"],
        [
            [
                address["mac"],
                str(address["vlan"] or "-"),
                str(address["port"] + 1),
                ports[address["port"]]["name"] if 0 <= address["port"] < len(ports) else "-",
                f"{address['age']:.0f} s",
            ]
            for address in addresses
        ],
        room,
    )
    last = (
        f"{len(addresses)} of at most {stats['limit']} addresses ({stats['port_limit']} a port), "
        f"forgotten after {stats['ageing']:g} s; {stats['moved']} moved, {stats['expired']} expired"
    )
    yield from [last] if room is None else textwrap.wrap(last, room)


def _columns(titles: list[str], rows: list[list[str]], room: int | None) -> Iterator[str]:
    table = [titles, *([one_line(cell[:200]) for cell in row] for row in rows)]
    if room is not None and _width_of(table) > room:
        table[0] = [_SHORT_TITLES.get(title, title) for title in titles]
        column = titles.index("name")
        rest = _width_of([[*row[:column], "", *row[column + 1 :]] for row in table])
        for row in table[1:]:
            row[column] = cut_middle(row[column], max(room - rest, _SHORTEST_NAME), "~")
    widths = _widths(table)
    for row in table:
        yield "  ".join(map(left, row, widths)).rstrip()


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(width, column)) for column in zip(*table, strict=True)]


def _width_of(table: Sequence[Sequence[str]]) -> int:
    widths = _widths(table)
    return sum(widths) + 2 * (len(widths) - 1)


def _dropped(port: PortStats) -> int:
    return sum(loss["packets"] for loss in port["losses"])


def _reasons(port: PortStats) -> str:
    return one_line(", ".join(f"{loss['packets']} {loss['reason']}" for loss in port["losses"]))


def summary_line(port: PortStats) -> str:
    """Return the totals of a port as one line."""
    line = (
        f"{port['name']}: {port['rx_packets']} packets in ({port['rx_bytes']} bytes), {port['tx_packets']} out "
        f"({port['tx_bytes']} bytes), {_dropped(port)} dropped"
    )
    return line + (f" ({_reasons(port)})" if port["losses"] else "")


def show(path: str) -> int:
    """Print the table of a running switch.

    :raises ConfigError: no switch answers on this stats socket.
    """
    with observing([path]) as observer:
        observer.ask()
        observer.wait(_PATIENCE)
        (program,) = observer.programs
        if program.snapshot is None or program.error:
            raise ConfigError(f"--show {path}: {program.error or 'no answer'}")
        if "switch" not in program.snapshot:
            raise ConfigError(f"--show {path}: {program.snapshot['name']} is not a switch")
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in table_lines(program.snapshot["switch"], room):
            print(line)
    return 0


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("ports", nargs="*", type=checked(parse_end), metavar="PORT", help="a port; at least two")
    add(
        "--ageing",
        type=seconds,
        default=DEFAULT_AGEING,
        metavar="SECONDS",
        help=f"forget addresses that were not seen for so long; default {DEFAULT_AGEING:g}",
    )
    add(
        "--max-addresses",
        dest="addresses",
        type=whole(1, _MOST_ADDRESSES),
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"the most addresses of all ports; then the port with the most loses its oldest; default {DEFAULT_LIMIT}",
    )
    add(
        "--max-port-addresses",
        dest="port_addresses",
        type=whole(1, _MOST_ADDRESSES),
        default=DEFAULT_PORT_LIMIT,
        metavar="N",
        help=f"the most addresses of one port; then it loses its oldest; default {DEFAULT_PORT_LIMIT}",
    )
    add(
        "--queue",
        type=whole(0, _MOST_WAITING),
        default=DEFAULT_QUEUE,
        metavar="N",
        help=f"the most packets that wait for room in one port; more are dropped; default {DEFAULT_QUEUE}",
    )
    for kind, what in (
        ("broadcast", "broadcasts"),
        ("multicast", "multicasts"),
        ("unknown", "packets to unknown addresses"),
    ):
        add(
            f"--limit-{kind}",
            type=whole(1, MANY),
            default=0,
            metavar="N",
            help=f"the most {what} a second that each port may send to all; default: no limit",
        )
    add(
        "--mirror",
        action="append",
        default=[],
        metavar="PORT|all",
        help="copy the packets of this port (its name, or its number from 1 on) into the --write file; may be repeated",
    )
    add(
        "--write",
        dest="path",
        type=file_name,
        metavar="FILE",
        help="the capture of --mirror: pcapng if FILE ends with .pcapng, else pcap; - is standard output",
    )
    add(
        "--snaplen",
        type=whole(1, MAX_SNAPLEN),
        default=MAX_SNAPLEN,
        metavar="N",
        help=f"the most bytes of a packet to keep in the capture; default {MAX_SNAPLEN}",
    )
    add("--show", type=checked(socket_path), metavar="PATH", help="print the table of the switch with --stats PATH")
    add_session_arguments(parser)


def _options(arguments: argparse.Namespace) -> SwitchOptions:
    """Return the options: each argument has the name of its field."""
    given = {each.name: getattr(arguments, each.name) for each in fields(SwitchOptions) if each.name != "limits"}
    limits = {each.name: getattr(arguments, f"limit_{each.name}") for each in fields(FloodLimits)}
    return SwitchOptions(**{**given, "mirror": tuple(arguments.mirror), "limits": FloodLimits(**limits)})


def _run(arguments: argparse.Namespace) -> int:
    if arguments.show is not None:
        if arguments.ports:
            raise ConfigError("--show asks a running switch: give no ports")
        for option in arguments.parser.options_given():
            if option != "--show":
                raise ConfigError(f"--show asks a running switch: give no {option}")
        return show(arguments.show)
    if arguments.path is None:
        arguments.parser.refuse_given(["--snaplen"], "without --write FILE, which has the capture")
    options = _options(arguments)
    names = port_names(arguments.ports)

    def on_ready() -> None:
        complain(f"memifrt switch: switching between {', '.join(names)}; Ctrl+C ends it")

    stats = switch(arguments.ports, options, session_options=session_options(arguments), on_ready=on_ready)
    for port in stats["ports"]:
        if options.path == "-":  # standard output is the capture
            complain(f"memifrt switch: {summary_line(port)}")
        else:
            print(summary_line(port), flush=True)
    return 0


COMMAND = Command(
    "switch",
    "join memifs, TAP devices and kernel interfaces by a learning Ethernet switch",
    f"""ports:
{SYNTAX}
  with VLANs every port also has
  vlan=N    an access port: frames without tags, of VLAN N
  trunk=N+N|N-N|all[,native=N]
            a trunk: tagged frames of these VLANs, and frames without a tag
            of the native one

examples:
  memifrt switch tap:red0,netns=red tap:blue0,netns=blue memif:/run/vpp/memif.sock,role=master --stats /run/sw.stats
  memifrt switch tap:a,vlan=10 tap:b,vlan=20 memif:@uplink,trunk=10+20 --mirror all --write lab.pcapng
  memifrt switch --show /run/sw.stats""",
    _add_arguments,
    _run,
)
