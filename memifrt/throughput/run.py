"""Measure the throughput of a device by frame size: the generator's own maximum, NDR and PDR, then latencies.

Owns the order of these steps, the warnings, and the end by Ctrl+C. It knows trials, and neither memifs nor terminals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memifrt.errors import ConfigError, MemifError, PollCancelled
from memifrt.throughput.method import Method
from memifrt.throughput.report import LoadLatency, Report, SizeReport, pps
from memifrt.throughput.search import ATTEMPTS, Found, Rate, Search, require
from memifrt.throughput.sizes import DEFAULT_SIZES, FrameSize
from memifrt.throughput.trial import Trial

#: The loads for latency, as shares of PDR: those of CSIT.
LATENCY_LOADS = (0.1, 0.5, 0.9)
#: The share of the generator's own maximum from which a result says little about the device.
_NEAR = 0.9
#: The number and the seconds of the trials of the generator against itself.
_SELF_TRIALS, _SELF_SECONDS = 3, 0.3


@dataclass(frozen=True, slots=True)
class Step:
    """What is being done now.

    :ivar what: ``generator`` (against itself), ``search`` or ``latency``.
    :ivar number: counts the trials of this step, from 1.
    :ivar rate: frames a second of the trial that begins; infinity: as fast as the generator can.
    :ivar duration: seconds of the trial that begins.
    :ivar ndr: what is known of NDR so far; None before the search.
    :ivar pdr: what is known of PDR so far; None before the search.
    """

    size: FrameSize
    what: str
    number: int
    rate: float
    duration: float
    ndr: Rate | None = None
    pdr: Rate | None = None


def throughput(
    trial: Trial,
    *,
    generator: Trial | None = None,
    sizes: Sequence[FrameSize] = DEFAULT_SIZES,
    method: Method = Method(),  # noqa: B008 - it is frozen
    on_step: Callable[[Step], object] = lambda step: None,
    on_size: Callable[[SizeReport], object] = lambda report: None,
) -> Report:
    """Measure NDR, PDR and latencies of a device for each frame size.

    Ctrl+C ends the measurement; the report then has what is known so far, and says so in ``reason``. So does an error
    of the connection, which the report has as ``error``.

    :param trial: runs trials through the device.
    :param generator: runs trials of the generator against itself, which show its own maximum; it becomes the highest
        load if ``method`` names none. Without it, ``method.max_rate`` is needed.
    :param on_step: called before each trial.
    :param on_size: called with the result of each frame size.
    :raises ConfigError: MLRsearch is not installed, or the rates do not fit together.
    """
    require()
    measurement = _Measurement(trial, generator, method, on_step)
    report = Report(method=method)
    for size in sizes:
        try:
            done = measurement.measure(size)
        except (KeyboardInterrupt, PollCancelled):
            done = measurement.so_far("interrupted")
            report.reason = "interrupted"
        except MemifError as error:
            if not report.sizes and not measurement.began:
                raise
            done = measurement.so_far(str(error))
            report.reason, report.error = str(error), error
        report.sizes.append(done)
        on_size(done)
        if report.reason:
            break
    return report


class _Measurement:
    """The measurement of one frame size after the other."""

    def __init__(
        self, trial: Trial, generator: Trial | None, method: Method, on_step: Callable[[Step], object]
    ) -> None:
        self._trial = trial
        self._generator = generator
        self._method = method
        self._on_step = on_step
        self._report = SizeReport(FrameSize.of(64))
        self._search: Search | None = None

    @property
    def began(self) -> bool:
        """Whether there is any result of the current size."""
        return self._search is not None and bool(self._search.results)

    def measure(self, size: FrameSize) -> SizeReport:
        report = self._report = SizeReport(size)
        self._search = None
        if self._generator is not None:
            report.generator = self._own_maximum(size, self._generator)
        max_rate = self._method.max_rate or report.generator
        if max_rate is None:
            raise ConfigError("max_rate is None; it must be given, or a generator that finds it")
        self._search = Search(self._trial, size, self._method, max_rate, self._before_trial)
        found = self._search.run()
        _take(report, found)
        self._measure_latencies(report)
        report.warnings = list(warnings(report))
        return report

    def so_far(self, reason: str) -> SizeReport:
        """Return what is known of the current size."""
        report = self._report
        report.reason = reason
        if self._search is not None and report.ndr is None:
            _take(report, self._search.so_far(reason))
        report.warnings = list(warnings(report))
        return report

    def _own_maximum(self, size: FrameSize, generator: Trial) -> float:
        """Return the best rate of the generator against itself, in frames a second."""
        best = 0.0
        for number in range(1, _SELF_TRIALS + 1):
            self._on_step(Step(size, "generator", number, math.inf, _SELF_SECONDS))
            result = generator.measure(math.inf, _SELF_SECONDS, size)
            # The rate is that of each direction, and the counts are those of both.
            best = max(best, result.rate * (1 - result.loss_ratio))
        return best

    def _before_trial(self, rate: float, duration: float) -> None:
        assert self._search is not None
        ndr, pdr = self._search.estimates()
        number = len(self._search.results) + 1
        self._on_step(Step(self._report.size, "search", number, rate, duration, ndr, pdr))

    def _measure_latencies(self, report: SizeReport) -> None:
        if report.pdr is None or report.pdr.throughput is None:
            return
        for number, share in enumerate(LATENCY_LOADS, 1):
            rate = share * report.pdr.throughput
            for _ in range(ATTEMPTS):
                step = Step(report.size, "latency", number, rate, self._method.trial, report.ndr, report.pdr)
                self._on_step(step)
                result = self._trial.measure(rate, self._method.trial, report.size, latency=True)
                if not result.late:
                    break
                report.late += 1
            report.latencies.append(LoadLatency(share, rate, result))


def warnings(report: SizeReport) -> list[str]:
    """Return what a reader of the result must know, as sentences without a full stop."""
    found = []
    highest = [
        (name, rate.lower)
        for name, rate in (("NDR", report.ndr), ("PDR", report.pdr))
        if rate is not None and rate.lower is not None and rate.upper is None and rate.decided
    ]
    if highest:
        names, (_, load) = " and ".join(name for name, _ in highest), highest[0]
        be = "are" if len(highest) > 1 else "is"
        found.append(f"{names} {be} the highest rate that was tried, {pps(load)}; the device may do more")
    for name, rate in (("NDR", report.ndr), ("PDR", report.pdr)):
        if rate is not None and rate.lower is None and rate.upper is not None:
            found.append(f"there is no {name}: the device loses frames even at {pps(rate.upper)}")
    fastest = max((rate.throughput or 0.0 for rate in (report.ndr, report.pdr) if rate is not None), default=0.0)
    if report.generator and fastest > _NEAR * report.generator:
        found.append(
            f"{pps(fastest)} is {100 * fastest / report.generator:.0f} % of what the generator reaches against itself; "
            "this machine may be the bound, not the device"
        )
    if report.late:
        trials = "1 trial" if report.late == 1 else f"{report.late} trials"
        found.append(
            f"{trials} lost frames while the generator was too slow or paused; other programs may need this machine's "
            "cores"
        )
    return found


def _take(report: SizeReport, found: Found) -> None:
    report.ndr, report.pdr, report.trials = found.ndr, found.pdr, found.trials
    report.late, report.reason = found.late, found.reason
