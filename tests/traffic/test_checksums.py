"""Sums of words in NumPy: the same as those of RFC 1071 and of scapy."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum

from memifrt.traffic import signature
from memifrt.traffic.checksums import fold, fold_words, words, words_of
from memifrt.traffic.layout import Checksum, checksum_value, sum_of


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_folding_in_numpy_is_folding(numbers: list[int]) -> None:
    total = np.array([*numbers, 0, 1, 0xFFFF, 0x10000, 0xFFFF0000, 0xFFFFFFFF], np.uint32)
    expected = [fold(int(number)) for number in total]
    fold_words(total, np.zeros_like(total))
    assert total.tolist() == expected


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
@given(st.data())
def test_words_of_a_number_have_its_sum(kind: type, data: st.DataObject) -> None:
    bits = 8 * np.dtype(kind).itemsize
    numbers: Any = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=20)), kind)
    out = np.zeros(len(numbers), np.uint32)
    words_of(numbers, out, np.zeros_like(out))
    assert [fold(int(value)) for value in out] == [fold(int(number)) for number in numbers]


@given(st.binary(min_size=1, max_size=99))
def test_a_checksum_is_scapy_s(data: bytes) -> None:
    whole = Checksum(0, ((0, len(data)),))
    assert checksum_value(whole, sum_of(whole, data)) == checksum(data)


@given(st.binary(max_size=99))
def test_words_are_aligned_to_the_end(data: bytes) -> None:
    padded = bytes(len(data) % 2) + data
    assert words(data) == fold(sum(struct.unpack(f"<{len(padded) // 2}H", padded)))


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(0, 2**63), st.binary())
def test_a_mark_makes_the_sum_behind_the_headers_zero(
    run: int, lane: int, sequence: int, now: int, body: bytes
) -> None:
    sequences = np.array([sequence], np.uint32)
    check, scratch = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    rest = run + lane + words(body)
    signature.check_values(sequences, rest, check, scratch)
    times = np.array([signature.stamp(now)], np.uint64)
    mark = struct.pack("<IIQH", signature.key(run, lane), sequence, int(times[0]), int(check[0]))
    assert len(mark) == signature.SIZE
    assert words(body + mark) in (0, 0xFFFF)
    assert signature.sums(sequences, check, rest).tolist() == [0xFFFF]
    assert signature.sums(sequences ^ np.uint32(1), check, rest).tolist() != [0xFFFF]
    assert signature.sums(sequences, check ^ np.uint32(0x8000), rest).tolist() != [0xFFFF]
    assert signature.has_right_time(times).all()
    assert not signature.has_right_time(times ^ np.uint64(1 << 40)).any()


@given(st.integers(0, 2**63), st.integers(0, 60_000_000_000))
def test_a_latency_is_known_to_16_nanoseconds_whenever_it_is_measured(sent: int, passed: int) -> None:
    times = np.array([signature.stamp(sent)], np.uint64)
    found = signature.latency(times, np.array([sent + passed], np.uint64))
    assert abs(int(found[0]) - passed) <= 16
