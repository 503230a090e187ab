"""The results of a throughput measurement: as values, as a table of text, and as JSON.

It knows nothing of how they were measured.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import memifrt
from memifrt.columns import left, right, width
from memifrt.errors import MemifError
from memifrt.throughput.method import Method
from memifrt.throughput.search import Rate
from memifrt.throughput.sizes import FrameSize
from memifrt.throughput.trial import Latency, TrialResult

#: Stands in a table for what was not measured or does not exist.
_NONE = "-"
#: The width of the text in columns.
_WIDTH = 80
_SHOWN = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class LoadLatency:
    """The latencies at one load.

    :ivar share: the load as a share of PDR.
    :ivar rate: the load in frames a second.
    """

    share: float
    rate: float
    trial: TrialResult

    @property
    def latency(self) -> Latency | None:
        return self.trial.latency


@dataclass(slots=True)
class SizeReport:
    """The results of one frame size.

    :ivar ndr: the highest load without any loss; None if it was not searched.
    :ivar pdr: the highest load that loses at most 0.5 % (or what ``Method.pdr`` says); None if it was not searched.
    :ivar generator: frames a second of the generator against itself, or None.
    :ivar late: the number of trials with loss that may be the generator's; they were made again, up to twice.
    :ivar reason: why the measurement of this size ended early; empty if it did not.
    """

    size: FrameSize
    ndr: Rate | None = None
    pdr: Rate | None = None
    generator: float | None = None
    latencies: list[LoadLatency] = field(default_factory=list)
    trials: tuple[TrialResult, ...] = ()
    late: int = 0
    warnings: list[str] = field(default_factory=list)
    reason: str = ""


@dataclass(slots=True)
class Report:
    """The results of a measurement.

    :ivar reason: why it ended early; empty if it did not.
    :ivar error: the error that ended it early, or None.
    """

    method: Method
    sizes: list[SizeReport] = field(default_factory=list)
    reason: str = ""
    error: MemifError | None = None

    def table(self) -> str:
        """Return the results as text, at most 80 columns wide."""
        lines = [*_aligned(_rates(self.sizes))]
        if any(report.latencies for report in self.sizes):
            lines += ["", *_aligned(_latencies(self.sizes))]
        notes = [f"{report.size}: {warning}" for report in self.sizes for warning in report.warnings]
        if any(not rate.decided for report in self.sizes for rate in (report.ndr, report.pdr) if rate is not None):
            notes.append("~: from the trials so far; the search did not come to its end")
        wrapped = [line for note in notes for line in textwrap.wrap(note, _WIDTH, subsequent_indent="  ")]
        return "\n".join([*lines, *([""] if wrapped else []), *wrapped])

    def json(self) -> str:
        """Return the results as JSON. Rates are frames a second, times seconds, latencies nanoseconds."""
        return json.dumps(
            {
                "memifrt": memifrt.__version__,
                "method": asdict(self.method),
                "complete": not self.reason,
                "reason": self.reason,
                "sizes": [_size_values(report) for report in self.sizes],
            },
            indent=1,
        )


# --- JSON -----------------------------------------------------------------------------------------------------------


def _size_values(report: SizeReport) -> dict[str, object]:
    return {
        "size": report.size.name,
        "mix": [{"bytes": length, "frames": count} for length, count in report.size.mix],
        "mean_bytes": report.size.mean,
        "generator_pps": report.generator,
        "ndr": _rate_values(report.ndr, report.size),
        "pdr": _rate_values(report.pdr, report.size),
        "latency": [
            {"load": found.share, **_trial_values(found.trial), "latency_ns": _latency_values(found.latency)}
            for found in report.latencies
        ],
        "late_trials": report.late,
        "trials": [_trial_values(trial) for trial in report.trials],
        "warnings": report.warnings,
        "complete": not report.reason,
        "reason": report.reason,
    }


def _rate_values(rate: Rate | None, size: FrameSize) -> dict[str, object] | None:
    if rate is None:
        return None
    bits = None if rate.throughput is None else 8 * size.mean * rate.throughput
    return {
        "loss_ratio": rate.loss_ratio,
        "lower_pps": rate.lower,
        "upper_pps": rate.upper,
        "throughput_pps": rate.throughput,
        "throughput_bps": bits,
        "decided": rate.decided,
    }


def _trial_values(trial: TrialResult) -> dict[str, object]:
    return {
        "pps": trial.rate,
        "seconds": trial.duration,
        "offered": trial.offered,
        "sent": trial.sent,
        "received": trial.received,
        "lost": trial.lost,
        "loss_ratio": trial.loss_ratio,
        "late": trial.late,
    }


def _latency_values(latency: Latency | None) -> dict[str, object] | None:
    if latency is None:
        return None
    return {
        "count": latency.count,
        "min": latency.minimum,
        "mean": latency.mean,
        "max": latency.maximum,
        "percentiles": {f"{percentile:g}": value for percentile, value in latency.percentiles},
        "hdrh": latency.hdrh,
    }


# --- tables ---------------------------------------------------------------------------------------------------------


def _rates(reports: Sequence[SizeReport]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("frames", "NDR", "Gbit/s", "PDR", "Gbit/s", "generator", "trials")]
    rows += [
        (
            str(report.size),
            *_rate_cells(report.ndr, report.size),
            *_rate_cells(report.pdr, report.size),
            _NONE if report.generator is None else pps(report.generator),
            str(len(report.trials)),
        )
        for report in reports
    ]
    return rows


def _rate_cells(rate: Rate | None, size: FrameSize) -> tuple[str, str]:
    if rate is None or rate.throughput is None:
        return _NONE, _NONE
    about = "" if rate.decided else "~"
    return f"{about}{pps(rate.throughput)}", f"{8e-9 * size.mean * rate.throughput:.4g}"


def _latencies(reports: Sequence[SizeReport]) -> list[Sequence[str]]:
    head = ("latency, us", "load", "rate", "min", *(f"p{percentile:g}" for percentile in _SHOWN), "max", "lost")
    return [head, *(_latency_row(report, found) for report in reports for found in report.latencies)]


def _latency_row(report: SizeReport, found: LoadLatency) -> Sequence[str]:
    latency = found.latency
    cells = [_NONE] * (len(_SHOWN) + 2)
    if latency is not None:
        nanoseconds = (latency.minimum, *(latency.at(percentile) for percentile in _SHOWN), latency.maximum)
        cells = [_microseconds(value) for value in nanoseconds]
    percent = 100 * found.trial.loss_ratio
    lost = "0" if not percent else f"{percent:.2g} %" if percent >= 0.01 else "<0.01 %"
    return (str(report.size), f"{100 * found.share:.0f} %", pps(found.rate), *cells, lost)


def _microseconds(nanoseconds: int) -> str:
    """Return a latency in at most 5 characters: the table must fit into 80 columns."""
    value = nanoseconds / 1000
    if value < 100:
        return f"{value:.3g}"
    for unit in ("", "k"):
        if value < 9999.5 or (not unit and value < 99_999.5):
            return f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}M"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines: the first column starts at the left, the others end below each other."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        yield "  ".join((left(first, widths[0]), *map(right, rest, widths[1:]))).rstrip()


def pps(rate: float) -> str:
    """Return frames a second as text with a unit."""
    for unit, factor in (("Mpps", 1e6), ("kpps", 1e3)):
        if rate >= factor:
            return f"{rate / factor:.4g} {unit}"
    return f"{rate:.4g} pps"
