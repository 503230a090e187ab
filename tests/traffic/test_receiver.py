"""Sequence numbers and latencies: what counts as lost, duplicated, reordered."""

from __future__ import annotations

import random

import numpy as np
import pytest

from memifrt.traffic.latency import LatencyRecorder, merged
from memifrt.traffic.receiver import WINDOW, Sequence64


def counted(numbers: list[int], step: int = 7) -> tuple[int, int]:
    """The duplicated and the reordered ones of numbers that come a few at a time."""
    sequence = Sequence64()
    duplicated = reordered = 0
    for start in range(0, len(numbers), step):
        part = np.array(numbers[start : start + step], np.int64).astype(np.uint32)
        more, later, again = sequence.take(part)
        assert again == more  # all are whole
        duplicated += more
        reordered += later
    return duplicated, reordered


def defined(numbers: list[int]) -> tuple[int, int]:
    """The same by the definitions, one number at a time."""
    seen: set[int] = set()
    largest = -1
    duplicated = reordered = 0
    for number in numbers:
        if number in seen:
            duplicated += 1
        elif number < largest:
            reordered += 1
        seen.add(number)
        largest = max(largest, number)
    return duplicated, reordered


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (list(range(100)), (0, 0)),
        ([*range(10), *range(20, 40)], (0, 0)),
        ([0, 1, 1, 2, 3, 3, 3], (3, 0)),
        ([0, 2, 1, 3, 5, 4], (0, 2)),
        ([0, 1, 2, 9, 3, 4, 5, 6, 7, 8, 10], (0, 6)),
        ([5, 4, 4, 3, 5], (2, 2)),
    ],
)
def test_duplicated_and_reordered_numbers_are_told_apart(numbers: list[int], expected: tuple[int, int]) -> None:
    for step in (1, 2, 7, 100):
        assert counted(numbers, step) == defined(numbers) == expected


@pytest.mark.parametrize("seed", range(4))
def test_any_mix_is_counted_by_the_definitions(seed: int) -> None:
    made = random.Random(seed)
    numbers = [number for number in range(5000) if made.random() > 0.1]
    for _ in range(500):
        at = made.randrange(len(numbers) - 50)
        numbers.insert(at + made.randrange(50), numbers[at])
        other = at + made.randrange(50)
        numbers[at], numbers[other] = numbers[other], numbers[at]
    for step in (1, 64, 512):
        assert counted(numbers, step) == defined(numbers)


def test_numbers_go_on_behind_32_bits() -> None:
    sequence = Sequence64()
    start = 0
    while start < (1 << 32) + 1000:
        # Each step is a gap of lost packets, as small as the numbers can tell.
        assert sequence.take(np.arange(start, start + 5, dtype=np.int64).astype(np.uint32)) == (0, 0, 0)
        start += (1 << 30) if start < 3 << 30 else 500_000_000
    assert sequence.take(np.array([(start - 500_000_000) & 0xFFFFFFFF], np.uint32)) == (1, 0, 1)


def test_whole_windows_in_order_are_in_order() -> None:
    sequence = Sequence64()
    for start in range(0, 3 * WINDOW, 1000):
        assert sequence.take(np.arange(start, start + 1000, dtype=np.uint32)) == (0, 0, 0)
    assert sequence.take(np.array([3 * WINDOW - 500], np.uint32)) == (1, 0, 1)


def test_latencies_are_those_of_the_percentiles() -> None:
    recorder = LatencyRecorder()
    values = np.random.default_rng(1).integers(1, 50_000_000, 100_001, dtype=np.uint64)
    for start in range(0, len(values), 777):
        recorder.record(values[start : start + 777])
    recorder.record(np.full(70_000, 123, np.uint64))  # more than a buffer at once
    every = np.sort(np.concatenate([values, np.full(70_000, 123, np.uint64)]))
    latency = recorder.latency()
    assert latency is not None
    assert latency.count == len(every)
    for percent in (10, 50, 90, 99, 99.9):
        expected = int(every[int(len(every) * percent / 100)]) / 1000
        assert latency.percentile(percent) == pytest.approx(expected, rel=0.002, abs=0.002)
    assert latency.max == pytest.approx(int(every[-1]) / 1000, rel=0.001)
    assert latency.min == pytest.approx(int(every[0]) / 1000, rel=0.001)
    for percent in (0, 1, 50, 99, 99.9, 100):
        assert latency.percentile(percent) * 1000 == latency.histogram.get_value_at_percentile(percent)
    assert latency.mean * 1000 == pytest.approx(latency.histogram.get_mean_value(), rel=1e-3)
    both = merged([latency, None, latency])
    assert both is not None
    assert both.count == 2 * latency.count
    assert both.p50 == latency.p50
    assert merged([None]) is None
    assert LatencyRecorder().latency() is None
