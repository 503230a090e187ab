"""The search finds what a device forwards, whatever the device is like, and says what it knows when it ends early."""

from __future__ import annotations

import itertools
import math
import random
import sys
from dataclasses import replace

import pytest

from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.throughput import IMIX, METHODS, FrameSize, Method, Search, SizeReport, Step, TrialResult, throughput
from memifrt.throughput.search import estimate
from tests.throughput.devices import Device, by_length, hard_limit, lossy, unsteady

SIZE = FrameSize.of(64)
QUICK = METHODS["quick"]
MAX = 30e6


def search(device: Device, method: Method = QUICK, max_rate: float = MAX) -> Search:
    return Search(device, SIZE, method, max_rate)


@pytest.mark.parametrize("method", ["quick", "csit", "rfc2544", "tst009"])
@pytest.mark.parametrize("capacity", [3333.0, 1e6, 7.77e6, 29e6])
def test_the_capacity_of_a_steady_device_is_found_within_the_width(method: str, capacity: float) -> None:
    found = search(hard_limit(capacity), METHODS[method]).run()
    width = METHODS[method].width
    for rate, most in ((found.ndr, capacity), (found.pdr, capacity / (1 - 0.005))):
        assert rate.decided
        assert rate.lower is not None
        assert rate.upper is not None
        # A trial of few frames rounds them: half a frame is its own tolerance.
        slack = 1 / (capacity * METHODS[method].trial)
        assert rate.lower <= most * (1 + slack)
        assert rate.upper >= most * (1 - slack)
        assert rate.upper * (1 - width) <= rate.lower * (1 + 1e-9)
    assert found.ndr.throughput == found.ndr.lower
    assert found.pdr.throughput == pytest.approx(capacity, rel=width)
    assert found.reason == ""


def test_a_device_that_loses_four_frames_in_a_thousand_has_no_ndr_and_its_pdr_is_the_highest_rate() -> None:
    found = search(lossy(0.004)).run()
    assert found.ndr.lower is None
    assert found.ndr.throughput is None
    assert found.ndr.upper == QUICK.min_rate
    assert found.pdr.lower == MAX
    assert found.pdr.upper is None
    assert found.pdr.throughput == pytest.approx(0.996 * MAX)


def test_a_device_that_loses_everything_has_neither_rate() -> None:
    found = search(lossy(1.0)).run()
    assert found.ndr.lower is found.pdr.lower is None
    assert found.ndr.upper == found.pdr.upper == QUICK.min_rate
    assert len(found.trials) < 20


def test_a_device_that_loses_nothing_reaches_the_highest_rate() -> None:
    found = search(hard_limit(math.inf)).run()
    assert found.ndr.lower == found.pdr.lower == MAX
    assert found.ndr.upper is found.pdr.upper is None
    assert len(found.trials) < 20


@pytest.mark.parametrize("seed", range(20))
def test_the_search_ends_with_an_unsteady_device_and_its_bounds_are_in_order(seed: int) -> None:
    chosen = random.Random(seed)
    capacity, spread = 10 ** chosen.uniform(3.2, 7.3), chosen.choice((0.01, 0.1, 0.5, 0.9))
    found = search(unsteady(capacity, spread, seed), METHODS[chosen.choice(("quick", "csit"))]).run()
    assert found.reason == ""
    assert found.ndr.lower is not None
    assert found.pdr.lower is not None
    assert found.ndr.upper is not None
    assert found.ndr.lower < found.ndr.upper
    assert found.ndr.lower <= found.pdr.lower
    assert capacity * (1 - spread) * 0.98 <= found.ndr.lower <= capacity * (1 + spread) * 1.02


def test_other_loss_ratios_can_be_searched() -> None:
    method = Method(trial=1, duration_sum=1, initial_trial=1, pdr=0.1)
    found = search(hard_limit(1e6), method).run()
    assert found.pdr.loss_ratio == 0.1
    assert found.pdr.lower == pytest.approx(1e6 / 0.9, rel=2 * method.width)


def test_a_trial_whose_loss_may_be_the_generator_s_is_made_again() -> None:
    """Every first and second one is such a trial here, and loses half."""
    numbers = itertools.count()

    class Paused(Device):
        def measure(self, rate: float, duration: float, size: FrameSize, *, latency: bool = False) -> TrialResult:
            disturbed = next(numbers) % 3 < 2
            self.late_above = 0 if disturbed else math.inf
            self.forward = (lambda r, d, s: r / 2) if disturbed else (lambda r, d, s: min(r, 1e6))
            return super().measure(rate, duration, size, latency=latency)

    device = Paused(lambda rate, duration, size: rate)
    found = search(device).run()
    assert found.ndr.throughput == pytest.approx(1e6, rel=0.01)
    assert found.late == 2 * len(found.trials)
    assert len(device.trials) == 3 * len(found.trials)


def test_a_loss_that_is_always_the_generator_s_counts_in_the_end() -> None:
    found = search(Device(lambda rate, duration, size: min(rate, 1e6), late_above=1e6)).run()
    assert found.ndr.throughput == pytest.approx(1e6, rel=0.01)
    assert found.late > 0


# --- the ends of a search ---------------------------------------------------------------------------------------------


class Ending(Device):
    """It ends the measurement by an exception after some trials."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__(lambda rate, duration, size: min(rate, 1e6))
        self.after = after
        self.error = error

    def measure(self, rate: float, duration: float, size: FrameSize, *, latency: bool = False) -> TrialResult:
        if len(self.trials) == self.after:
            raise self.error
        return super().measure(rate, duration, size, latency=latency)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PollCancelled()], ids=["KeyboardInterrupt", "PollCancelled"])
@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
def test_ctrl_c_reports_what_is_known_so_far(after: int, error: BaseException) -> None:
    report = throughput(Ending(after, error), generator=hard_limit(MAX), sizes=(SIZE, IMIX), method=QUICK)
    assert report.reason == "interrupted"
    assert report.error is None
    (size,) = report.sizes
    assert size.reason == "interrupted"
    assert len(size.trials) == after
    assert size.ndr is not None
    assert not size.ndr.decided
    if after >= 2:
        assert size.ndr.upper is not None
        assert size.ndr.upper > 1e6
    if after >= 9:
        assert size.ndr.lower == pytest.approx(1e6, rel=0.2)
        assert "~" in report.table()


def test_ctrl_c_in_the_second_size_keeps_the_first() -> None:
    device = hard_limit(1e6)
    first = throughput(device, generator=hard_limit(MAX), sizes=(SIZE,), method=QUICK)
    ending = Ending(len(device.trials) + 3, KeyboardInterrupt())
    report = throughput(ending, generator=hard_limit(MAX), sizes=(SIZE, IMIX), method=QUICK)
    assert report.sizes[0] == first.sizes[0]
    assert len(report.sizes[1].trials) == 3


def test_ctrl_c_while_latencies_are_measured_keeps_the_rates() -> None:
    device = hard_limit(1e6)
    throughput(device, generator=hard_limit(MAX), sizes=(SIZE,), method=QUICK)
    ending = Ending(len(device.trials) - 1, KeyboardInterrupt())
    (size,) = throughput(ending, generator=hard_limit(MAX), sizes=(SIZE,), method=QUICK).sizes
    assert size.ndr is not None
    assert size.ndr.decided
    assert [found.share for found in size.latencies] == [0.1, 0.5]


def test_a_device_that_goes_away_ends_the_measurement_with_its_error_and_the_results_so_far() -> None:
    error = Disconnected("the device is gone")
    report = throughput(Ending(4, error), generator=hard_limit(MAX), sizes=(SIZE, IMIX), method=QUICK)
    assert report.error is error
    assert "the device is gone" in report.reason
    assert len(report.sizes) == 1
    assert len(report.sizes[0].trials) == 4


def test_a_device_that_was_never_there_is_an_error() -> None:
    with pytest.raises(Disconnected):
        throughput(Ending(0, Disconnected("gone")), generator=hard_limit(MAX), sizes=(SIZE,), method=QUICK)


def test_the_time_limit_ends_a_search_and_the_next_size_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    method = Method(trial=0.5, duration_sum=2.5, initial_trial=0.1, width=0.01, time_limit=1.5)
    report = throughput(hard_limit(1e6), generator=hard_limit(MAX), sizes=(SIZE, IMIX), method=method)
    assert report.reason == ""
    for size in report.sizes:
        assert size.reason == "it took more than 1.5 s"
        assert size.ndr is not None
        assert not size.ndr.decided


def test_an_estimate_follows_the_longest_trials_of_a_load_and_their_majority() -> None:
    def trial(rate: float, duration: float, lost: float) -> TrialResult:
        offered = round(rate * duration)
        received = round(offered * (1 - lost))
        return TrialResult(size=SIZE, rate=rate, duration=duration, offered=offered, sent=offered, received=received)

    assert estimate(0, []).lower is None
    assert estimate(0, [trial(1e6, 1, 0)]).lower == 1e6
    assert estimate(0, [trial(1e6, 0.1, 0.5), trial(1e6, 1, 0)]).lower == 1e6
    assert estimate(0, [trial(1e6, 1, 0), trial(1e6, 1, 0.1), trial(1e6, 1, 0.1)]).upper == 1e6
    # A good trial above a bad one says nothing.
    rate = estimate(0, [trial(1e6, 1, 0), trial(2e6, 1, 0.1), trial(3e6, 1, 0)])
    assert (rate.lower, rate.upper) == (1e6, 2e6)
    assert estimate(0.2, [trial(1e6, 1, 0.1)]).throughput == pytest.approx(0.9e6)
    # RFC 2544 lets no trial of a load fail.
    trials = [trial(1e6, 1, 0), trial(1e6, 1, 0), trial(1e6, 1, 0.1)]
    assert estimate(0, trials).lower == 1e6
    assert estimate(0, trials, exceed_ratio=0.0).upper == 1e6


# --- all of a measurement ---------------------------------------------------------------------------------------------


def test_sizes_are_measured_one_after_the_other_with_latencies_at_10_50_and_90_per_cent_of_pdr() -> None:
    steps: list[Step] = []
    sizes: list[SizeReport] = []
    report = throughput(
        by_length(1e9),
        generator=hard_limit(MAX),
        method=QUICK,
        on_step=steps.append,
        on_size=sizes.append,
    )
    assert [size.size.name for size in report.sizes] == ["64", "512", "1518", "9000", "imix"]
    assert report.sizes == sizes
    for size in report.sizes:
        assert size.ndr is not None
        assert size.pdr is not None
        assert size.pdr.throughput is not None
        assert size.ndr.throughput == pytest.approx(1e9 / 8 / size.size.mean, rel=0.01)
        rates = [found.rate / size.pdr.throughput for found in size.latencies]
        assert rates == pytest.approx([0.1, 0.5, 0.9])
        assert all(found.latency is not None for found in size.latencies)
        assert size.generator == MAX
        assert size.warnings == []
    own = [step for step in steps if step.size.name == "64"]
    assert [step.what for step in own[:4]] == ["generator", "generator", "generator", "search"]
    assert [step.what for step in own[-3:]] == ["latency"] * 3
    assert [step.number for step in own if step.what == "search"] == [*range(1, len(report.sizes[0].trials) + 1)]


def test_a_result_near_the_generator_s_own_maximum_carries_a_warning() -> None:
    (size,) = throughput(hard_limit(9.5e6), generator=hard_limit(10e6), sizes=(SIZE,), method=QUICK).sizes
    (warning,) = size.warnings
    assert "95 % of what the generator reaches against itself" in warning


def test_a_device_as_fast_as_the_generator_may_do_more() -> None:
    (size,) = throughput(hard_limit(math.inf), generator=hard_limit(10e6), sizes=(SIZE,), method=QUICK).sizes
    assert any("NDR and PDR are the highest rate that was tried, 10 Mpps" in warning for warning in size.warnings)
    assert any("this machine may be the bound" in warning for warning in size.warnings)


def test_a_device_that_always_loses_and_a_slow_generator_carry_warnings() -> None:
    (size,) = throughput(lossy(0.004), generator=hard_limit(MAX), sizes=(SIZE,), method=QUICK).sizes
    assert "there is no NDR: the device loses frames even at 1 kpps" in size.warnings
    late = Device(lambda rate, duration, size: min(rate, 1e6), late_above=1e6)
    (size,) = throughput(late, generator=hard_limit(MAX), sizes=(SIZE,), method=QUICK).sizes
    assert any("the generator was too slow or paused" in warning for warning in size.warnings)


def test_the_highest_rate_of_the_method_goes_before_the_generator_s() -> None:
    method = Method(trial=0.5, duration_sum=0.5, initial_trial=0.1, max_rate=2e6)
    device = hard_limit(math.inf)
    throughput(device, generator=hard_limit(MAX), sizes=(SIZE,), method=method)
    assert max(trial.rate for trial in device.trials) == 2e6


def test_rates_that_leave_no_room_for_a_search_are_an_error() -> None:
    with pytest.raises(ConfigError, match="too close to the lowest one of 1000: choose a lower --min-rate"):
        search(hard_limit(1e6), max_rate=1001)
    with pytest.raises(ConfigError, match="too close"):
        throughput(hard_limit(1e6), generator=hard_limit(500), sizes=(SIZE,), method=QUICK)


def test_without_a_generator_the_highest_rate_must_be_given() -> None:
    with pytest.raises(ConfigError, match="max_rate is None"):
        throughput(hard_limit(1e6), sizes=(SIZE,), method=QUICK)
    method = Method(trial=1, duration_sum=1, initial_trial=1, max_rate=2e6)
    (size,) = throughput(hard_limit(1e6), sizes=(SIZE,), method=method).sizes
    assert size.generator is None
    assert size.ndr is not None
    assert size.ndr.throughput == pytest.approx(1e6, rel=0.005)


def test_the_generator_s_own_maximum_is_that_of_each_direction() -> None:
    class Both(Device):
        def measure(self, rate: float, duration: float, size: FrameSize, *, latency: bool = False) -> TrialResult:
            one = super().measure(rate, duration, size, latency=latency)
            return replace(one, offered=2 * one.offered, sent=2 * one.sent, received=2 * one.received)

    generator = Both(lambda rate, duration, size: min(rate, 10e6))
    (size,) = throughput(Both(generator.forward), generator=generator, sizes=(SIZE,), method=QUICK).sizes
    assert size.generator == pytest.approx(10e6)


def test_a_missing_library_is_one_line_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MLRsearch", None)
    with pytest.raises(ConfigError, match=r"pip install 'memifrt\[throughput\]'"):
        throughput(hard_limit(1e6), generator=hard_limit(MAX), sizes=(SIZE,), method=QUICK)
