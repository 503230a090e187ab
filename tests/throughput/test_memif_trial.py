"""Trials of the real generator, against itself: what is counted, and whose fault a loss is."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator

import pytest

from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.ports.endpoint import DEFAULTS
from memifrt.throughput import IMIX, FrameSize
from memifrt.throughput import memif_trial as module
from memifrt.throughput.memif_trial import SelfTrial, require

pytest.importorskip("numpy", reason="numpy is not installed (pip install -e '.[dev]')")


@pytest.fixture
def generator() -> Iterator[SelfTrial]:
    with SelfTrial(DEFAULTS) as trial:
        yield trial


@pytest.mark.parametrize("size", [FrameSize.of(64), FrameSize.of(9000), IMIX], ids=str)
def test_a_trial_offers_rate_times_duration_and_counts_what_comes_back(generator: SelfTrial, size: FrameSize) -> None:
    result = generator.measure(2000, 0.05, size, latency=True)
    assert (result.offered, result.rate, result.duration, result.size) == (100, 2000, 0.05, size)
    # A busy machine may keep us from sending the last ones in time.
    assert result.received == result.sent
    assert result.sent == 100 or result.late
    assert result.latency is not None
    assert result.latency.count == result.received
    assert 0 < result.latency.minimum <= result.latency.at(50) <= result.latency.maximum


def test_as_fast_as_it_goes_nothing_is_lost_and_the_rate_is_what_was_sent(generator: SelfTrial) -> None:
    result = generator.measure(math.inf, 0.05, FrameSize.of(64))
    assert result.offered == result.sent == result.received > 0
    assert result.rate == result.sent / 0.05
    assert not result.late
    assert result.latency is None


def test_both_directions_send_at_the_rate_each() -> None:
    with SelfTrial(DEFAULTS, direction="both") as generator:
        result = generator.measure(1000, 0.05, FrameSize.of(64))
    assert result.offered == 100
    assert result.rate == 1000


def test_frames_larger_than_a_buffer_are_chained() -> None:
    with SelfTrial(DEFAULTS.replace(buffer_size=128, log2_ring_size=8)) as generator:
        result = generator.measure(1000, 0.02, FrameSize.of(1518))
    assert result.received == result.sent > 0


def test_a_packet_of_the_caller_s_is_sent_and_a_wrong_one_is_an_error() -> None:
    packet = "Ether()/IPv6()/UDP(dport=53)"
    with SelfTrial(DEFAULTS, packet=packet, fields=["udp.src=1000..1999"]) as generator:
        assert generator.measure(1000, 0.02, FrameSize.of(128)).received > 0
        with pytest.raises(ConfigError, match=r"the size 64 is too small|size of at least"):
            generator.measure(1000, 0.02, FrameSize.of(64))
    for wrong in ({"packet": "os.system('x')"}, {"fields": ["nothing=1..2"]}, {"packet": "Ether()", "fields": ["x"]}):
        with pytest.raises(ConfigError), SelfTrial(DEFAULTS, **wrong):
            pass


def test_packets_without_ethernet_headers_are_sent_in_mode_ip() -> None:
    with SelfTrial(DEFAULTS.replace(mode="ip")) as generator:
        assert generator.measure(1000, 0.02, FrameSize.of(64)).received > 0


def test_a_cancelled_poll_ends_a_trial(generator: SelfTrial) -> None:
    calls = itertools.count()

    def poll() -> None:
        if next(calls) == 2:
            raise PollCancelled

    generator.poll = poll
    with pytest.raises(PollCancelled):
        generator.measure(1000, 10, FrameSize.of(64))


def test_a_peer_that_leaves_ends_a_trial(generator: SelfTrial) -> None:
    calls = itertools.count()

    def poll() -> None:
        if next(calls) == 2:
            next(end for end in generator.ends if end.name == "receiver").disconnect()

    generator.poll = poll
    with pytest.raises(Disconnected, match="the device is gone"):
        generator.measure(1000, 10, FrameSize.of(64))


# --- whose fault a loss is --------------------------------------------------------------------------------------------


class Clock:
    """The time, which a test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("memifrt.throughput.memif_trial.time.monotonic", lambda: self.now)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_the_time_between_two_polls_shows_that_the_process_was_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    polled = itertools.count()
    pauses = module.Pauses(lambda: next(polled))
    pauses.begin()
    clock.pass_by(5)  # before the first one
    for seconds in (0.001, 0.0012, 0.021, 0.001):
        pauses()
        clock.pass_by(seconds)
    pauses()
    assert pauses.seconds == pytest.approx(0.020)
    assert next(polled) == 5
    pauses.begin()
    assert pauses.seconds == 0


def test_a_loss_that_a_pause_explains_is_ours_and_a_larger_one_is_the_device_s() -> None:
    def is_late(offered: int, sent: int, received: int, paused: float = 0.0, ring_was_full: bool = True) -> bool:
        return module.may_be_ours(offered, sent, received, paused * 1e6, ring_was_full)

    assert not is_late(1000, 1000, 1000)
    assert not is_late(1000, 1000, 1000, paused=1)
    # It did not come back, and we were there all the time.
    assert not is_late(1_000_000, 1_000_000, 999_000)
    # 10 ms at 1 Mpps are 10000 frames.
    assert is_late(1_000_000, 1_000_000, 985_000, paused=0.01)
    assert not is_late(1_000_000, 1_000_000, 500_000, paused=0.01)
    # It was not sent: the device had room, or it had none.
    assert is_late(1000, 990, 990, ring_was_full=False)
    assert not is_late(1000, 990, 990)


@pytest.mark.parametrize("package", ["numpy", "hdrh.histogram", "scapy"])
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package} is not installed: pip install 'memifrt\[throughput\]'"):
        require()
