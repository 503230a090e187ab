"""``memifrt throughput``: measure NDR, PDR and latencies of a device on one or two memifs, by frame size.

Owns the arguments, the line that says what is tried, and where the report goes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from memifrt.capture.pcap import check_writable
from memifrt.capture.whole_file import write_whole
from memifrt.cli.arguments import Command, Parser, add_session_arguments, checked, file_name, seconds, session_options
from memifrt.cli.endpoint import MEMIF_SYNTAX, check_pair, parse_memif_endpoint
from memifrt.cli.generator_memifs import RECONNECT_INTERVAL, create, polling, wait_for_peers
from memifrt.cli.program import SessionOptions, complain, print_whole, session, status_of_signal
from memifrt.cli.progress import Progress, progress
from memifrt.drawing import check_matplotlib
from memifrt.errors import ConfigError, PollCancelled
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.throughput import METHODS, FrameSize, Method, Rate, Report, SizeReport, Step, parse_sizes
from memifrt.throughput import throughput as run_throughput
from memifrt.throughput.memif_trial import DIRECTIONS, Direction, MemifTrial, SelfTrial
from memifrt.throughput.memif_trial import require as require_generator
from memifrt.throughput.plot import picture_path, plot
from memifrt.throughput.report import pps
from memifrt.throughput.search import require as require_search
from memifrt.throughput.sizes import FCS
from memifrt.types import Mode

_DEFAULT_SIZES = "64,512,1518,9000,imix"
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6}


@dataclass(frozen=True, slots=True)
class Setup:
    """What to measure, and how.

    :ivar ends: one memif, on which the device sends back what it gets; or two, with the device between them.
    :ivar packet: see :class:`memifrt.throughput.memif_trial.MemifTrial`, as for ``fields``, ``direction`` and
        ``settle``.
    """

    ends: tuple[MemifEndpoint, ...]
    sizes: tuple[FrameSize, ...]
    method: Method
    packet: str | None = None
    fields: tuple[str, ...] = ()
    direction: Direction = "forward"
    settle: float = 0.2

    def __post_init__(self) -> None:
        if len(self.ends) == 2:
            check_pair(*self.ends)
        elif self.direction != "forward":
            raise ConfigError(f"--direction {self.direction} needs two memifs; with one it is forward")
        for end in self.ends:
            for size in self.sizes:
                length = size.longest - (FCS if end.mode is Mode.ETHERNET else 0)
                end.config.check_length(f"--sizes: a frame of {size.longest} bytes is a packet of {length}", length)


def throughput(
    setup: Setup,
    *,
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
    on_step: Callable[[Step], object] = lambda step: None,
    on_size: Callable[[SizeReport], object] = lambda report: None,
) -> Report:
    """Connect to the device, measure, and return the report. Ctrl+C and SIGTERM end it with what is known so far.

    :raises PollCancelled: Ctrl+C or SIGTERM came before the device was connected.
    :raises ConfigError: an argument is wrong, or a package is not installed.
    :raises MemifError: an end cannot be opened.
    """
    require_search()
    require_generator()
    # The generator's own memifs come first: a wrong packet or size is then known before the device is connected.
    with contextlib.ExitStack() as stack:
        generator = stack.enter_context(
            SelfTrial(setup.ends[0].config, packet=setup.packet, fields=setup.fields, direction=setup.direction)
        )
        for size in setup.sizes:
            generator.check_size(size)
        runtime = stack.enter_context(
            session("throughput", reconnect_interval=RECONNECT_INTERVAL, session_options=session_options)
        )
        interfaces = [create(runtime, polling(end)) for end in setup.ends]
        wait_for_peers(runtime, interfaces)
        poll = generator.poll = functools.partial(runtime.poll_event, 0)
        trial = MemifTrial(
            interfaces,
            poll=poll,
            packet=setup.packet,
            fields=setup.fields,
            direction=setup.direction,
            settle=setup.settle,
        )
        return run_throughput(
            trial, generator=generator, sizes=setup.sizes, method=setup.method, on_step=on_step, on_size=on_size
        )


# --- what is shown while it runs --------------------------------------------------------------------------------------


def step_line(step: Step) -> str:
    """Return what is tried now as a line of text."""
    if step.what == "generator":
        return f"{step.size}: generator against itself, trial {step.number}"
    if step.what == "latency":
        return f"{step.size}: latency at {pps(step.rate)}"
    return f"{step.size}: {pps(step.rate)} (#{step.number}); NDR {_bounds(step.ndr)}, PDR {_bounds(step.pdr)}"


def _bounds(rate: Rate | None) -> str:
    """Return the bounds of a rate in few characters: the line must fit into 80 columns."""
    if rate is None or (rate.lower is None and rate.upper is None):
        return "?"
    if rate.upper is None:
        return f">{_short(rate.lower or 0.0)}"
    return f"<{_short(rate.upper)}" if rate.lower is None else f"{_short(rate.lower)}-{_short(rate.upper)}"


def _short(rate: float) -> str:
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if rate >= factor:
            return f"{rate / factor:.3g}{unit}" if rate < 1e3 * factor else f"{rate / factor:.0f}{unit}"
    return f"{rate:.3g}"


def size_line(report: SizeReport) -> str:
    """Return the result of one frame size as a line of text."""
    rates = (("NDR", report.ndr), ("PDR", report.pdr))
    text = ", ".join(
        f"{name} {'unknown' if rate is None or rate.throughput is None else pps(rate.throughput)}"
        for name, rate in rates
    )
    return f"{report.size}: {text} in {len(report.trials)} trials" + (f"; {report.reason}" if report.reason else "")


class _Display:
    """Says what is tried now, and the result of each frame size."""

    def __init__(self, shown: Progress) -> None:
        self._progress = shown

    def step(self, step: Step) -> None:
        begins = step.what == "search" and step.number == 1
        if begins or time.monotonic() >= self._progress.due:
            self._progress.update(step_line(step))

    def size(self, report: SizeReport) -> None:
        complain(f"memifrt throughput: {size_line(report)}")


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("a", type=checked(parse_memif_endpoint), metavar="A", help="the memif to send on")
    add(
        "b",
        type=checked(parse_memif_endpoint),
        nargs="?",
        metavar="B",
        help="the memif to receive on; default: the device sends back on A",
    )
    add(
        "--sizes",
        type=checked(parse_sizes),
        default=_DEFAULT_SIZES,
        metavar="N,N,imix",
        help=f"frame sizes in bytes, with 4 for the FCS; default {_DEFAULT_SIZES}",
    )
    add(
        "--direction",
        choices=DIRECTIONS,
        default="forward",
        metavar="DIRECTION",
        help="forward: A to B; backward: B to A; both: both at the same time, rates are those of each; default forward",
    )
    add("--packet", metavar="EXPR", help="the packet as a scapy expression; default Ether()/IP()/UDP()")
    add(
        "--field",
        action="append",
        default=[],
        dest="fields",
        metavar="FIELD=VALUES",
        help="a field that varies, as for memifrt generate; may be given more than once",
    )
    search = parser.add_argument_group("search").add_argument
    search(
        "--method",
        choices=tuple(METHODS),
        default="csit",
        metavar="METHOD",
        help=f"{', '.join(METHODS)}: how long trials are and how many decide; default csit",
    )
    search("--trial", type=seconds, metavar="SECONDS", help="length of a trial; default: as the method has it")
    search("--sum", type=seconds, metavar="SECONDS", help="length of all trials that decide about a load; likewise")
    search("--width", type=_percent, metavar="PERCENT", help="how close the result must be; likewise")
    search("--pdr", type=_percent, metavar="PERCENT", help="the loss that PDR allows; default 0.5")
    search("--min-rate", type=_rate, metavar="RATE", help="lowest rate to try, like 250k or 1Mpps; default 1kpps")
    search("--max-rate", type=_rate, metavar="RATE", help="highest rate to try; default: the generator's own maximum")
    search("--time-limit", type=seconds, metavar="SECONDS", help="end the search of a size after this time")
    search(
        "--settle", type=seconds, default=0.2, metavar="SECONDS", help="how long to wait for late frames; default 0.2"
    )
    output = parser.add_argument_group("output").add_argument
    output(
        "--json",
        type=file_name,
        metavar="FILE",
        help="write the results as JSON, - for standard output instead of the table",
    )
    output("--plot", type=checked(picture_path), metavar="FILE", help="draw the results: a .png, .svg or .pdf")
    add_session_arguments(parser)


def _percent(text: str) -> float:
    value = float(text.rstrip("% ")) if re.fullmatch(r"[0-9]+(\.[0-9]+)? ?%?", text) else math.nan
    if not 0.01 <= value <= 50:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 0.01 to 50")
    return value / 100


def _rate(text: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKmM]?)(?:pps)?", text)
    value = float(found[1]) * _FACTORS[found[2].lower()] if found else math.nan
    if not 1 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate from 1pps to 1000Mpps, like 250k or 1.5Mpps")
    return value


def _method(arguments: argparse.Namespace) -> Method:
    """Return the method that the arguments describe."""
    method = METHODS[arguments.method]
    given = {
        "trial": arguments.trial,
        "duration_sum": arguments.sum,
        "width": arguments.width,
        "pdr": arguments.pdr,
        "min_rate": arguments.min_rate,
        "max_rate": arguments.max_rate,
        "time_limit": arguments.time_limit,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if arguments.trial is not None:
        changes["initial_trial"] = min(method.initial_trial, arguments.trial)
        # With longer trials than the method's, one trial decides.
        changes.setdefault("duration_sum", max(method.duration_sum, arguments.trial))
    return dataclasses.replace(method, **changes)


def _run(arguments: argparse.Namespace) -> int:
    ends = (arguments.a,) if arguments.b is None else (arguments.a, arguments.b)
    setup = Setup(
        ends,
        arguments.sizes,
        _method(arguments),
        arguments.packet,
        tuple(arguments.fields),
        arguments.direction,
        arguments.settle,
    )
    if arguments.plot is not None:
        check_matplotlib()
        check_writable(arguments.plot)
    if arguments.json is not None:
        check_writable(arguments.json)
        if arguments.plot is not None and os.path.realpath(arguments.json) == os.path.realpath(arguments.plot):
            raise ConfigError(f"--json and --plot have the same file {arguments.plot}; each needs one of its own")
    with progress("throughput", plain=True) as shown:
        display = _Display(shown)
        try:
            report = throughput(
                setup, session_options=session_options(arguments), on_step=display.step, on_size=display.size
            )
        except PollCancelled:  # before the device was there
            return status_of_signal()
    write_report(report, arguments)
    if report.error is not None:
        raise report.error
    return status_of_signal() if report.reason else 0


def write_report(report: Report, arguments: argparse.Namespace) -> None:
    """Print and write the report. After hours of measuring, one that fails must not take the others with it."""
    with contextlib.ExitStack() as stack:  # it goes on behind an error, and raises it at its end
        if arguments.plot is not None:
            stack.callback(plot, report, arguments.plot)
        if arguments.json not in (None, "-"):
            stack.callback(write_whole, arguments.json, report.json().encode() + b"\n")
        stack.callback(print_whole, (report.json() if arguments.json == "-" else report.table()) + "\n")


COMMAND = Command(
    "throughput",
    "measure NDR, PDR and latencies of a device (RFC 2544, RFC 9971)",
    f"""ends:
{MEMIF_SYNTAX}

examples, a device that sends back on its memif, and one between two memifs:
  memifrt throughput memif:@lab,role=master --method quick
  memifrt throughput memif:@lab,role=master,id=0 memif:@lab,role=master,id=1 --sizes 64,imix --json result.json

exit status: 0 if the measurement is complete; 130 after Ctrl+C and 143 after
SIGTERM (with the results so far); 3 without a device in time; 2 on errors""",
    _add_arguments,
    _run,
)
