"""Search NDR and PDR of one frame size, with the library MLRsearch of FD.io CSIT.

Owns the translation between trials and that library, and what is known when a search ends early. It knows no memif.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError
from memifrt.throughput.method import NDR, Method
from memifrt.throughput.sizes import FrameSize
from memifrt.throughput.trial import Trial, TrialResult

if TYPE_CHECKING:
    from MLRsearch import GoalResult, MeasurementResult

#: The error for a missing library; see :func:`require`.
_EXTRA = "{name} is not installed: pip install 'memifrt[throughput]'"
#: The smallest ratio of the highest load to the lowest: the library cannot search in less.
_LEAST_SPAN = 1.1
#: How often a trial is made in which the generator, not the device, may have caused the loss. The last one counts.
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Rate:
    """The bounds of NDR or PDR that are known, in frames a second.

    :ivar loss_ratio: the goal: the share of frames that may be lost.
    :ivar lower: the highest load that keeps to the goal; None if even the lowest load loses more.
    :ivar upper: the lowest load above it that loses more; None if even the highest load keeps to the goal.
    :ivar throughput: the rate at which frames came back at ``lower``: the conditional throughput of RFC 9971. None
        without ``lower``.
    :ivar decided: whether the search has come to its end. Otherwise the bounds are those of the trials so far.
    """

    loss_ratio: float
    lower: float | None = None
    upper: float | None = None
    throughput: float | None = None
    decided: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one search.

    :ivar late: the number of trials with loss that may be the generator's. All but the last at the same load are
        left out.
    :ivar reason: why the search ended early; empty if it did not.
    """

    ndr: Rate
    pdr: Rate
    trials: tuple[TrialResult, ...]
    late: int = 0
    reason: str = ""


def require() -> None:
    """Check that the library is installed, before anything is opened.

    :raises ConfigError: it is not, and how to install it.
    """
    try:
        import MLRsearch  # noqa: F401
    except ImportError as error:
        raise ConfigError(_EXTRA.format(name=error.name or "MLRsearch")) from error


class Search:
    """One search. The results so far are there even if :meth:`run` was ended by an exception.

    :param max_rate: the highest load in frames a second.
    :param before: called before each trial, with its rate and its duration.
    """

    def __init__(
        self,
        trial: Trial,
        size: FrameSize,
        method: Method,
        max_rate: float,
        before: Callable[[float, float], object] = lambda rate, duration: None,
    ) -> None:
        if max_rate < _LEAST_SPAN * method.min_rate:
            raise ConfigError(
                f"{size}: the highest rate of {max_rate:.0f} packets/s is too close to the lowest one of "
                f"{method.min_rate:.0f}: choose a lower --min-rate"
            )
        self._trial = trial
        self._size = size
        self._method = method
        self._max_rate = max_rate
        self._before = before
        self._results: list[TrialResult] = []
        #: The number of trials in which the generator was too slow or paused.
        self.late = 0

    @property
    def results(self) -> Sequence[TrialResult]:
        """The trials so far."""
        return self._results

    def run(self) -> Found:
        """Search until both goals are decided, or until the time limit.

        :raises BaseException: what a trial raised; see :meth:`so_far`.
        """
        from MLRsearch import Config, MultipleLossRatioSearch, SearchGoal

        method = self._method
        goals = [
            SearchGoal(
                loss_ratio=loss_ratio,
                exceed_ratio=method.exceed_ratio,
                relative_width=method.width,
                initial_trial_duration=method.initial_trial,
                final_trial_duration=method.trial,
                duration_sum=method.duration_sum,
                preceding_targets=2,
                expansion_coefficient=2,
                fail_fast=False,
            )
            for loss_ratio in (NDR, method.pdr)
        ]
        config = Config(
            goals=goals,
            min_load=method.min_rate,
            max_load=self._max_rate,
            search_duration_max=method.time_limit,
            warmup_duration=None,
        )
        deadline = time.monotonic() + method.time_limit
        search = MultipleLossRatioSearch(config=config)
        try:
            found = search.search(measurer=self, debug=_ignore)
        except RuntimeError as error:
            # The library gives up at its time limit, or when trials contradict each other.
            late = time.monotonic() >= deadline
            return self.so_far(f"it took more than {method.time_limit:g} s" if late else f"MLRsearch: {error}")
        ndr, pdr = (_decided(goal.loss_ratio, found[goal]) for goal in goals)
        return Found(ndr, pdr, tuple(self._results), self.late)

    def measure(self, intended_duration: float, intended_load: float) -> MeasurementResult:
        """Run one trial for the library, which calls this by its name."""
        from MLRsearch import MeasurementResult

        for _ in range(ATTEMPTS):
            self._before(intended_load, intended_duration)
            result = self._trial.measure(intended_load, intended_duration, self._size)
            if not result.late:
                break
            self.late += 1
        self._results.append(result)
        return MeasurementResult(
            intended_duration=intended_duration,
            intended_load=intended_load,
            intended_count=result.offered,
            # The library adds what was not sent to what was lost. A duplicate must not make up for a loss.
            offered_count=result.offered,
            loss_count=result.lost,
        )

    def so_far(self, reason: str) -> Found:
        """Return what the trials so far say."""
        ndr, pdr = self.estimates()
        return Found(ndr, pdr, tuple(self._results), self.late, reason)

    def estimates(self) -> tuple[Rate, Rate]:
        """Return NDR and PDR as the trials so far show them."""
        method = self._method
        return (
            estimate(NDR, self._results, method.exceed_ratio),
            estimate(method.pdr, self._results, method.exceed_ratio),
        )


def estimate(loss_ratio: float, trials: Iterable[TrialResult], exceed_ratio: float = 0.5) -> Rate:
    """Return the bounds that some trials show: the highest load below the first that lost more than ``loss_ratio``.

    A load that was tried more than once counts as its longest trials do.

    :param exceed_ratio: the share of these that may lose too much; see :class:`Method`.
    """
    good: dict[float, list[TrialResult]] = {}
    for trial in trials:
        tried = good.setdefault(trial.rate, [])
        if tried and trial.duration > tried[0].duration:
            tried.clear()
        if not tried or trial.duration == tried[0].duration:
            tried.append(trial)
    lower: float | None = None
    for rate in sorted(good):
        results = good[rate]
        if sum(result.loss_ratio > loss_ratio for result in results) > exceed_ratio * len(results):
            return Rate(loss_ratio, lower, rate, _forwarded(lower, loss_ratio, good))
        lower = rate
    return Rate(loss_ratio, lower, None, _forwarded(lower, loss_ratio, good))


def _forwarded(rate: float | None, loss_ratio: float, trials: dict[float, list[TrialResult]]) -> float | None:
    """Return the rate of frames that came back at a load: the worst of the trials that kept to the goal."""
    if rate is None:
        return None
    ratios = [result.loss_ratio for result in trials[rate] if result.loss_ratio <= loss_ratio]
    return rate * (1 - max(ratios, default=0.0))


def _decided(loss_ratio: float, result: GoalResult) -> Rate:
    lower, upper, throughput = (
        None if load is None else float(load)
        for load in (result.relevant_lower_bound, result.relevant_upper_bound, result.conditional_throughput)
    )
    assert throughput is None or math.isfinite(throughput)
    return Rate(loss_ratio, lower, upper, throughput, decided=True)


def _ignore(text: str) -> None:
    """Drop the library's debug lines."""
