"""Impairments against their definitions, with seeds and a clock of the test: nothing here is timed."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Sequence

import pytest

from memifrt import ConfigError
from memifrt.impairments import GilbertElliott, Impairment, Line, Reorder
from memifrt.ports.impaired import Impaired
from memifrt.ports.impaired_line import OVERHEAD
from memifrt.ports.impairment import parse_setting
from memifrt.ports.port import Port, Traffic

MS = 1_000_000
SECOND = 1000 * MS
START = 10**15


def numbered(count: int, size: int = 8) -> list[bytes]:
    return [number.to_bytes(8, "big").ljust(size, b"\xa5") for number in range(count)]


def numbers(packets: Sequence[bytes]) -> list[int]:
    return [int.from_bytes(packet[:8], "big") for packet in packets]


def passed(impairment: Impairment, count: int, burst: int = 256) -> list[int]:
    """The numbers of the packets that pass when they come in bursts, in the order in which they leave at last."""
    line = Line(impairment)
    packets = numbered(count)
    for start in range(0, count, burst):
        line.put(packets[start : start + burst], START)
    return numbers(line.take(START + 3700 * SECOND))


def delays(impairment: Impairment, count: int) -> list[float]:
    """The delay of each packet in milliseconds, by its number, if one comes every 10 ms."""
    line, found = Line(impairment), [0.0] * count
    for number, packet in enumerate(numbered(count)):
        line.put([packet], START + number * 10 * MS)
    while (due := line.due()) is not None:
        for number in numbers(line.take(due)):
            found[number] = (due - START - number * 10 * MS) / MS
    return found


# --- delays ---------------------------------------------------------------------------------------------------------


def test_a_delayed_packet_leaves_when_its_time_has_come_and_not_before() -> None:
    line = Line(Impairment(delay="10ms"))
    packets = numbered(300)
    line.put(packets[:200], START)
    line.put(packets[200:], START + 5 * MS)
    assert line.due() == START + 10 * MS
    assert line.take(START + 10 * MS - 1) == []
    assert line.take(START + 10 * MS) == packets[:200]
    assert line.due() == START + 15 * MS
    assert line.take(START + 20 * MS) == packets[200:]
    assert (line.due(), len(line)) == (None, 0)
    assert line.impairment.counters.delayed == 300


def test_without_an_impairment_packets_pass_at_once_in_their_order() -> None:
    line = Line(Impairment())
    packets = numbered(1000)
    line.put(packets, START)
    assert line.take(START) == packets
    assert line.impairment.counters.changes() == line.impairment.counters.drops() == {}


@pytest.mark.parametrize("distribution", ["normal", "uniform", "pareto"])
def test_a_jitter_of_zero_is_a_fixed_delay_whatever_the_distribution(distribution: str) -> None:
    impairment = Impairment(delay=0.25, jitter="1ms", distribution=distribution)
    impairment.jitter = 0
    assert {*delays(impairment, 50)} == {250}


#: netem's table for Pareto: shape 3, less 1.5, times 4/3, cut at 4. Its mean and deviation follow from
#: E[min(V, c)] = 3/2 - 1/(2c^2) and E[min(V, c)^2] = 3 - 2/c with c = 4.5.
PARETO_MEAN = (1.5 - 1 / (2 * 4.5**2) - 1.5) * 4 / 3
PARETO_DEVIATION = (3 - 2 / 4.5 - (1.5 - 1 / (2 * 4.5**2)) ** 2) ** 0.5 * 4 / 3
DEFINITIONS = {
    # mean and deviation in multiples of the jitter, and the least and the most
    "normal": (0, 1, -4, 4),
    "uniform": (0, 3**-0.5, -1, 1),
    "pareto": (PARETO_MEAN, PARETO_DEVIATION, -2 / 3, 4),
}


@pytest.mark.parametrize("distribution", DEFINITIONS)
def test_a_distribution_is_as_defined(distribution: str) -> None:
    mean, deviation, least, most = DEFINITIONS[distribution]
    count = 20_000
    found = [
        (each - 100) / 2
        for each in delays(Impairment(delay="100ms", jitter="2ms", distribution=distribution, seed=1), count)
    ]
    assert statistics.fmean(found) == pytest.approx(mean, abs=5 * deviation / count**0.5)
    assert statistics.pstdev(found) == pytest.approx(deviation, rel=0.03)
    assert least - 1e-6 <= min(found) <= max(found) <= most + 1e-6
    assert max(found) > 0.85 * most


def test_quarters_of_normal_and_pareto_are_where_they_must_be() -> None:
    """A deviation alone would not tell them from each other."""
    for distribution, quartiles in {
        "normal": (-0.6745, 0, 0.6745),
        "uniform": (-0.5, 0, 0.5),
        "pareto": tuple(((1 - share) ** (-1 / 3) - 1.5) * 4 / 3 for share in (0.25, 0.5, 0.75)),
    }.items():
        impairment = Impairment(delay="100ms", jitter="2ms", distribution=distribution, seed=2)
        found = sorted((each - 100) / 2 for each in delays(impairment, 20_000))
        for share, quartile in zip((5000, 10_000, 15_000), quartiles, strict=True):
            assert found[share] == pytest.approx(quartile, abs=0.04)


@pytest.mark.parametrize("distribution", DEFINITIONS)
def test_no_delay_is_below_zero(distribution: str) -> None:
    found = delays(Impairment(delay="1ms", jitter="3ms", distribution=distribution, seed=3), 3000)
    assert min(found) == 0
    assert max(found) > 3


def test_packets_with_a_jitter_leave_in_the_order_of_their_times_and_none_is_missing() -> None:
    line = Line(Impairment(delay="10ms", jitter="5ms", seed=4))
    packets, left = numbered(3000), []
    times = []
    for start in range(0, 3000, 10):
        now = START + start * 20_000
        line.put(packets[start : start + 10], now)
        while (due := line.due()) is not None and due <= now:
            taken = line.take(due)
            left += taken
            times += [due] * len(taken)
    while (due := line.due()) is not None:
        taken = line.take(due)
        left += taken
        times += [due] * len(taken)
    assert sorted(left) == packets
    assert left != packets  # they have overtaken each other
    assert times == sorted(times)


def test_a_late_look_takes_packets_in_the_order_of_their_times() -> None:
    impairment = Impairment(delay="10ms", jitter="5ms", seed=5)
    found = [passed(impairment, 2000) for _ in range(2)]
    exact = delays(Impairment(delay="10ms", jitter="5ms", seed=5), 2000)
    assert found[0] == found[1] == sorted(range(2000), key=exact.__getitem__)


def test_a_shorter_delay_applies_to_the_next_packet_and_the_others_keep_theirs() -> None:
    impairment = Impairment(delay="10ms")
    line = Line(impairment)
    first, second = numbered(2)
    line.put([first], START)
    impairment.delay = "1ms"
    line.put([second], START)
    assert line.take(START + MS) == [second]
    assert line.take(START + 10 * MS) == [first]


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.01, 0.25, 0.9])
def test_random_losses_are_as_many_as_said_and_independent(loss: float) -> None:
    count = 50_000
    impairment = Impairment(loss=loss, seed=6)
    kept = passed(impairment, count)
    lost = count - len(kept)
    assert lost == impairment.counters.lost
    assert abs(lost - count * loss) < 4 * (count * loss * (1 - loss)) ** 0.5
    assert kept == sorted(kept)
    bursts = lengths(count, kept)
    assert statistics.fmean(bursts) == pytest.approx(1 / (1 - loss), rel=0.05)


def lengths(count: int, kept: Sequence[int]) -> list[int]:
    """How many packets are missing in a row, each time that some are."""
    there = {*kept}
    return [len([*run]) for lost, run in itertools.groupby(range(count), lambda n: n not in there) if lost]


@pytest.mark.parametrize(("loss", "passes"), [("0", 5000), ("0%", 5000), ("100%", 0), ("gemodel 0%", 5000)])
def test_no_loss_and_complete_loss(loss: str, passes: int) -> None:
    assert len(passed(Impairment(loss=loss), 5000)) == passes


def test_simple_gilbert_loses_in_bursts_of_the_mean_length_1_over_r() -> None:
    count, p, r = 200_000, 0.01, 0.2
    kept = passed(Impairment(loss="gemodel 1% 20%", seed=7), count)
    bursts = lengths(count, kept)
    # Some 1900 bursts: four standard errors are 8 % of their mean length, and 12 % of the share.
    assert statistics.fmean(bursts) == pytest.approx(1 / r, rel=0.08)
    assert (count - len(kept)) / count == pytest.approx(p / (p + r), rel=0.12)
    # Their lengths are geometric: each is followed by another loss with the probability 1 - r.
    longer = sum(length > 1 for length in bursts) / len(bursts)
    assert longer == pytest.approx(1 - r, abs=0.03)
    gaps = lengths(count, [*{*range(count)} - {*kept}])
    assert statistics.fmean(gaps) == pytest.approx(1 / p, rel=0.09)


def test_gilbert_and_elliott_lose_with_a_probability_of_its_own_in_each_state() -> None:
    count, p, r, bad, good = 200_000, 0.02, 0.1, 0.7, 0.05
    impairment = Impairment(loss=GilbertElliott(p, r, bad, good), seed=8)
    lost = count - len(passed(impairment, count))
    assert lost / count == pytest.approx((p * bad + r * good) / (p + r), rel=0.06)


def test_gemodel_with_p_alone_is_independent_losses() -> None:
    count, p = 100_000, 0.2
    kept = passed(Impairment(loss="gemodel 20%", seed=9), count)
    assert (count - len(kept)) / count == pytest.approx(p, rel=0.04)
    assert statistics.fmean(lengths(count, kept)) == pytest.approx(1 / (1 - p), rel=0.03)


def test_bursts_go_on_over_the_bursts_of_a_ring() -> None:
    """The state belongs to the direction, not to a call."""
    for burst in (1, 7, 256):
        assert passed(Impairment(loss="gemodel 5% 20%", seed=10), 2000, burst) == passed(
            Impairment(loss="gemodel 5% 20%", seed=10), 2000
        )


def test_decisions_do_not_depend_on_the_bursts_of_a_ring() -> None:
    settings = {
        "loss": "gemodel 5% 20%",
        "duplicate": "10%",
        "corrupt": "10%",
        "delay": "10ms",
        "jitter": "3ms",
        "reorder": "20% 30% gap 2",
        "seed": 19,
    }
    left = [passed(Impairment(**settings), 2000, burst) for burst in (1, 7, 256)]  # type: ignore[arg-type]
    assert left[0] == left[1] == left[2]


# --- duplicates, wrong bits, order ----------------------------------------------------------------------------------


def test_a_duplicate_follows_its_packet() -> None:
    count = 20_000
    impairment = Impairment(duplicate="5%", seed=11)
    found = passed(impairment, count)
    times = Counter(found)
    assert {*times} == {*range(count)}
    assert {*times.values()} == {1, 2}
    twice = len(found) - count
    assert twice == impairment.counters.duplicated
    assert abs(twice - count * 0.05) < 4 * (count * 0.05 * 0.95) ** 0.5
    assert found == sorted(found)


def test_a_corrupt_packet_has_exactly_one_wrong_bit_anywhere() -> None:
    count, size = 8000, 20
    impairment = Impairment(corrupt="50%", seed=12)
    line = Line(impairment)
    line.put([bytes(size)] * count, START)
    found = line.take(START)
    bits = [bin(int.from_bytes(packet, "big")).count("1") for packet in found]
    assert len(found) == count
    assert {*bits} == {0, 1}
    assert sum(bits) == impairment.counters.corrupted
    assert abs(sum(bits) - count / 2) < 4 * (count / 4) ** 0.5
    assert len({packet for packet in found if any(packet)}) == size * 8
    assert all(type(packet) is bytes and len(packet) == size for packet in found)


def test_an_empty_packet_cannot_be_corrupted() -> None:
    line = Line(Impairment(corrupt=1))
    line.put([b""], START)
    assert line.take(START) == [b""]


def test_reordered_packets_skip_the_delay() -> None:
    count = 20_000
    impairment = Impairment(delay="10ms", reorder="25%", seed=13)
    found = delays(impairment, count)
    assert {*found} == {0, 10}
    ahead = found.count(0)
    assert ahead == impairment.counters.reordered
    assert abs(ahead - count / 4) < 4 * (count * 3 / 16) ** 0.5


def test_reorder_with_a_gap_and_100_percent_takes_every_so_manieth_packet() -> None:
    found = delays(Impairment(delay="10ms", reorder="100% gap 5"), 50)
    assert [number for number, delay in enumerate(found) if not delay] == [*range(4, 50, 5)]


def test_a_gap_and_a_percentage_leave_at_least_so_many_between() -> None:
    found = delays(Impairment(delay="10ms", reorder="25% gap 5", seed=14), 5000)
    ahead = [number for number, delay in enumerate(found) if not delay]
    between = [after - before for before, after in itertools.pairwise(ahead)]
    assert min(between) == 5
    assert statistics.fmean(between) == pytest.approx(4 + 1 / 0.25, rel=0.05)


def test_a_correlation_makes_runs() -> None:
    """Each number is so much of the one before it: x' = u (1 - c) + x c."""

    def runs(correlation: str) -> float:
        found = delays(Impairment(delay="10ms", reorder=f"50% {correlation}", seed=15), 5000)
        return statistics.fmean(len([*run]) for _, run in itertools.groupby(found))

    assert runs("0%") == pytest.approx(2, rel=0.05)
    assert runs("80%") > 3


def test_reordered_packets_arrive_before_those_that_came_first() -> None:
    assert passed(Impairment(delay="10ms", reorder="100% gap 3"), 9) == [2, 5, 8, 0, 1, 3, 4, 6, 7]


# --- a rate ---------------------------------------------------------------------------------------------------------


def test_a_rate_spaces_packets_by_their_bits() -> None:
    line = Line(Impairment(rate="1mbit"))
    packets = [bytes(125), bytes(250), bytes(125)]  # 1, 2 and 1 ms
    line.put(packets, START)
    times = []
    while (due := line.due()) is not None:
        times.append((due - START) // MS)
        assert len(line.take(due)) == 1
    assert times == [1, 3, 4]


def test_an_idle_link_saves_nothing_up() -> None:
    line = Line(Impairment(rate="1mbit"))
    line.put([bytes(125)], START)
    line.take(START + MS)
    line.put([bytes(125)] * 2, START + 100 * MS)
    assert line.due() == START + 101 * MS
    assert len(line.take(START + 102 * MS)) == 2


def test_a_rate_comes_before_the_delay() -> None:
    line = Line(Impairment(rate="1mbit", delay="10ms"))
    line.put([bytes(125)] * 2, START)
    assert line.due() == START + 11 * MS
    assert len(line.take(START + 12 * MS)) == 2


def test_what_finds_the_queue_full_is_dropped_at_its_tail() -> None:
    impairment = Impairment(rate="1mbit", queue=3)
    line = Line(impairment)
    line.put(numbered(5, 125), START)
    assert impairment.counters.drops() == {"queue full": 2}
    line.put(numbered(5, 125)[4:], START + MS)  # one has left
    line.put(numbered(6, 125)[5:], START + MS)
    assert impairment.counters.drops() == {"queue full": 3}
    assert numbers(line.take(START + SECOND)) == [0, 1, 2, 4]


def test_packets_in_a_delay_are_not_in_the_queue() -> None:
    impairment = Impairment(rate="1mbit", delay="1s", queue=1)
    line = Line(impairment)
    for number in range(10):
        line.put([bytes(125)], START + number * MS)
    assert (len(line), impairment.counters.queue_full) == (10, 0)


def test_a_rate_holds_over_many_packets() -> None:
    """Nothing is gained or lost by rounding: 64 bytes at 3 Gbit/s are 170.67 ns."""
    line = Line(Impairment(rate="3gbit", queue=10**6))
    for _ in range(300):
        line.put([bytes(64)] * 1000, START)
    last = START
    while (due := line.due()) is not None:
        line.take(due + MS)
        last = due
    assert last - START == pytest.approx(300_000 * 512 / 3, abs=2 * MS)


def test_rate_and_jitter_together_lose_nothing() -> None:
    found = passed(Impairment(rate="100mbit", queue=5000, delay="5ms", jitter="1ms", seed=16), 3000)
    assert sorted(found) == [*range(3000)]


# --- what is held ---------------------------------------------------------------------------------------------------


def test_delayed_packets_take_no_more_memory_than_said() -> None:
    impairment = Impairment(delay="1s", memory=10 * (100 + OVERHEAD))
    line = Line(impairment)
    line.put(numbered(7, 100), START)
    line.put(numbered(7, 100), START)
    assert (len(line), impairment.counters.drops()) == (10, {"memory full": 4})
    assert len(line.take(START + SECOND)) == 10
    line.put(numbered(7, 100), START + SECOND)
    assert (len(line), impairment.counters.memory_full) == (7, 4)


def test_the_memory_bounds_every_kind_of_delay() -> None:
    for more in ({"jitter": "1ms"}, {"rate": "1mbit"}, {"rate": "1mbit", "jitter": "1ms"}):
        impairment = Impairment(delay="1s", memory=10 * (100 + OVERHEAD), **more)  # type: ignore[arg-type]
        line = Line(impairment)
        line.put(numbered(12, 100), START)
        assert (len(line), impairment.counters.memory_full) == (10, 2)
        assert numbers(sorted(line.take(START + 10 * SECOND))) == [*range(10)]


def test_discarded_packets_never_leave() -> None:
    line = Line(Impairment(delay="1s", rate="1mbit", queue=3))
    line.put(numbered(3, 125), START)
    assert line.discard() == 3
    assert (len(line), line.due(), line.take(START + 10 * SECOND)) == (0, None, [])
    line.put(numbered(3, 125), START)  # nor do they hold up others
    assert line.due() == START + 1001 * MS
    assert line.impairment.counters.queue_full == 0


def test_queues_keep_apart() -> None:
    line = Line(Impairment(delay="1ms"))
    line.put([b"one"], START, 1)
    line.put([b"zero"], START, 0)
    assert sorted(line.qids) == [0, 1]
    assert (line.take(START + MS, 0), line.take(START + MS, 1)) == ([b"zero"], [b"one"])


# --- which packets, which decisions ---------------------------------------------------------------------------------


def test_packets_that_do_not_match_pass_and_keep_their_order() -> None:
    impairment = Impairment(delay="10ms", match=lambda packet: packet[7] % 2 == 0)
    line = Line(impairment)
    line.put(numbered(10), START)
    assert numbers(line.take(START)) == [1, 3, 5, 7, 9]
    assert numbers(line.take(START + 10 * MS)) == [0, 2, 4, 6, 8]


def test_a_loss_of_some_keeps_the_order_of_all() -> None:
    found = passed(Impairment(loss="50%", match=lambda packet: packet[7] % 2 == 0, seed=17), 5000)
    assert found == sorted(found)
    assert [number for number in found if number % 2] == [*range(1, 5000, 2)]
    assert 1000 < len(found) - 2500 < 1500


def test_a_filter_in_tcpdump_s_language_decides() -> None:
    udp = bytes.fromhex("020000000001 020000000002 0800 4500001c0001000040110000 0a000001 0a000002 04d20035 00080000")
    tcp = udp[:23] + b"\x06" + udp[24:]
    impairment = Impairment(loss="100%", match="udp port 53")
    line = Line(impairment)
    line.put([udp, tcp, udp], START)
    assert line.take(START) == [tcp]
    impairment.match = "tcp"
    line.put([udp, tcp], START)
    assert line.take(START) == [udp]
    in_ip_mode = Line(Impairment(loss="100%", match="udp port 53", mode="ip"))
    in_ip_mode.put([udp[14:], tcp[14:]], START)
    assert in_ip_mode.take(START) == [tcp[14:]]


def test_the_same_seed_decides_the_same_and_another_direction_otherwise() -> None:
    def lost(seed: int | None, stream: int = 0) -> list[int]:
        line = Line(Impairment(loss="50%", seed=seed), stream)
        line.put(numbered(200), START)
        return numbers(line.take(START))

    assert lost(1) == lost(1)
    assert len({tuple(found) for found in (lost(1), lost(2), lost(1, 1), lost(None), lost(None))}) == 5


def test_a_new_seed_begins_again() -> None:
    impairment = Impairment(loss="50%", seed=1)
    line = Line(impairment)
    line.put(numbered(200), START)
    first = line.take(START)
    impairment.seed = 2
    line.put(numbered(200), START)
    assert line.take(START) != first
    impairment.seed = 1
    line.put(numbered(200), START)
    assert line.take(START) == first


# --- values ---------------------------------------------------------------------------------------------------------


def test_a_value_is_a_number_or_tc_s_text() -> None:
    impairment = Impairment(
        delay="10ms", jitter="250us", loss="1.5%", rate="1.5gbit", memory="2mb", reorder="25% 50% gap 5"
    )
    assert (impairment.delay, impairment.jitter, impairment.loss) == (0.01, 0.00025, 0.015)
    assert (impairment.rate, impairment.memory, impairment.reorder) == (1.5e9, 2 << 20, Reorder(0.25, 0.5, 5))
    impairment.loss = "gemodel 1% 10% 70% 0.1%"
    assert impairment.loss == GilbertElliott(0.01, 0.1, 0.7, 0.001)
    impairment.loss = "random 2%"
    assert impairment.loss == 0.02
    impairment.delay = "1.5 s"
    assert impairment.delay == 1.5
    assert repr(impairment).startswith(
        "<Impairment delay=1.5s, jitter=250us, loss=2%, reorder=25% 50% gap 5, rate=1.5gbit"
    )
    assert str(GilbertElliott(0.01, 0.1)) == "gemodel 1% 10% 100% 0%"


WRONG = [
    ("delay", "10", "'10' is not a time; write a number with a unit"),
    ("delay", -1, "-1 is not a time from 0 to 3600 s"),
    ("delay", "2000000ms s", "is not a time"),
    ("delay", float("nan"), "nan is not a time"),
    ("jitter", "2h", "'2h' is not a time"),
    ("jitter", None, "None is not a time"),
    ("distribution", "gauss", "one of normal, uniform, pareto"),
    ("loss", "1", "'1' is not a percentage; write it like 1%"),
    ("loss", "101%", "'101%' is not a percentage from 0% to 100%"),
    ("loss", 1.5, "1.5 is not a probability from 0 to 1"),
    ("loss", "gemodel", "'gemodel 1% 10%'"),
    ("loss", "state 1%", "'gemodel 1% 10%'"),
    ("loss", "gemodel 1% x", "'x' is not a percentage"),
    ("duplicate", "often", "'often' is not a percentage"),
    ("corrupt", True, "True is not a probability"),
    ("reorder", "25% gap 0", "gap: 0 is not a whole number of at least 1"),
    ("reorder", "gap 5", "'25% 50% gap 5'"),
    ("rate", "100mbps", "'100mbps' is not a rate"),
    ("rate", 0.5, "at least 1 bit/s"),
    ("queue", 0, "0 is not a whole number of at least 1"),
    ("queue", "many", "'many' is not a whole number"),
    ("memory", "10", "'10' is not a size"),
    ("memory", "0kb", "'0kb' is not a size"),
    ("seed", -1, "-1 is not a whole number of at least 0"),
    ("match", 5, "5 is not a filter"),
    ("match", "port port", "does not understand the filter 'port port'"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG, ids=lambda each: str(each)[:20])
def test_a_wrong_value_is_named_and_changes_nothing(name: str, value: object, words: str) -> None:
    impairment = Impairment(seed=1, delay="1ms")
    before = impairment.settings
    with pytest.raises(ConfigError) as caught:
        setattr(impairment, name, value)
    assert words in caught.value.message
    assert caught.value.message.startswith((f"{name}: ", "libpcap "))
    with pytest.raises(ConfigError, match=re.escape(caught.value.message)):
        impairment.change(**{name: value})
    assert impairment.settings is before


def test_settings_that_need_each_other_are_refused_alone() -> None:
    for alone, words in {"reorder": "needs a delay", "queue": "needs a rate", "distribution": "needs a jitter"}.items():
        value = {"reorder": "25%", "queue": 5, "distribution": "pareto"}[alone]
        with pytest.raises(ConfigError, match=words):
            Impairment(**{alone: value})  # type: ignore[arg-type]
    impairment = Impairment()
    impairment.change(reorder="25%", delay="1ms")
    with pytest.raises(ConfigError, match="'colour' is not an impairment; it must be one of delay, jitter"):
        impairment.change(colour=1)


# --- a direction of a bridge ----------------------------------------------------------------------------------------


class Shelf(Port):
    """A port of lists, with room for so many packets."""

    def __init__(self, packets: Sequence[bytes] = (), space: int = 1 << 20) -> None:
        super().__init__("shelf")
        self.packets, self.taken, self.space, self.up, self.came = [*packets], list[bytes](), space, True, 0

    @property
    def can_send(self) -> bool:
        return self.up

    @property
    def received(self) -> Traffic:
        return Traffic(self.came)

    @property
    def sent(self) -> Traffic:
        return Traffic(len(self.taken), sum(map(len, self.taken)))

    def fileno(self) -> int:
        return -1

    def room(self, qid: int = 0) -> int:
        return self.space

    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        found, self.packets = self.packets[:limit], self.packets[limit:]
        self.came += len(found)
        return found

    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        fits = min(len(packets), self.space)
        self.taken += packets[:fits]
        self.space -= fits
        return fits

    def discard(self, limit: int, *, qid: int = 0) -> int:
        return len(self.recv(limit, qid=qid))

    def close(self) -> None:
        pass


class Clock:
    now = START

    def __call__(self) -> int:
        return self.now


def way_between(
    source: Shelf, target: Shelf, impairment: Impairment, recorded: list[bytes] | None = None
) -> tuple[Impaired, Clock]:
    clock = Clock()
    record = None if recorded is None else recorded.extend
    return Impaired(source, target, impairment, record, clock=clock), clock


def test_a_direction_delivers_in_time_and_says_when_to_come_again() -> None:
    packets = numbered(1000)
    source, target, recorded = Shelf(packets), Shelf(), list[bytes]()
    way, clock = way_between(source, target, Impairment(delay="10ms"), recorded)
    assert way.step()
    assert (target.taken, recorded, way.wake_at()) == ([], [], (START + 10 * MS) / SECOND)
    assert way.report().line().endswith(" 0 packets, 0 bytes, 0 dropped, 1000 delayed, 1000 still delayed")
    clock.now += 10 * MS
    assert way.step()
    assert (target.taken, recorded, way.wake_at()) == (packets, packets, float("inf"))
    assert way.report().dropped == way.report().delayed == 0


def test_a_full_target_is_back_pressure_and_nothing_is_lost_or_recorded_twice() -> None:
    packets = numbered(2000)
    source, target, recorded = Shelf(packets), Shelf(space=10), list[bytes]()
    way, clock = way_between(source, target, Impairment(delay="1ms"), recorded)
    for _ in range(3000):
        way.step()
        clock.now += MS
        if way.blocked:
            before = len(source.packets)
            way.step()
            assert len(source.packets) == before  # nothing more is taken
            assert way.wake_at() == float("inf")
        target.space = 10
        if len(target.taken) == 2000:
            break
    assert target.taken == recorded == packets
    assert way.report().dropped == 0


def test_packets_for_a_peer_that_is_gone_are_dropped_and_counted() -> None:
    source, target = Shelf(numbered(100)), Shelf(space=30)
    way, clock = way_between(source, target, Impairment(delay="10ms"))
    way.step()
    clock.now += 10 * MS
    way.step()
    source.packets = numbered(50)
    way.step()
    assert len(target.taken) == 30
    target.up = False
    way.link_changed(False)
    source.packets += numbered(5)
    way.step()
    target.up, target.space = True, 1000
    clock.now += SECOND
    way.step()
    assert len(target.taken) == 30
    report = way.report()
    assert (report.reasons, report.waiting, report.delayed) == ({"without a peer": 125}, 0, 0)


def test_what_is_held_goes_on_when_the_peer_that_sent_it_is_gone() -> None:
    class Gone(Shelf):
        @property
        def queues(self) -> int:
            return 1 if self.up else 0

    source, target = Gone(numbered(100)), Shelf()
    way, clock = way_between(source, target, Impairment(delay="10ms"))
    way.step()
    source.up = False
    clock.now += 10 * MS
    assert way.step()
    assert target.taken == numbered(100)


def test_a_report_counts_every_packet_once() -> None:
    source, target = Shelf(numbered(20_000)), Shelf()
    impairment = Impairment(
        loss="10%", duplicate="10%", corrupt="10%", delay="1ms", jitter="1ms", reorder="10%", rate="1gbit", seed=18
    )
    way, clock = way_between(source, target, impairment)
    while source.packets:
        way.step()
        clock.now += 100_000
    report, counters = way.report(), impairment.counters
    assert report.delayed > 0
    assert report.packets + report.dropped + report.delayed == 20_000 + counters.duplicated
    assert report.dropped == counters.lost + counters.queue_full
    assert [*report.impaired] == ["duplicated", "corrupted", "reordered", "delayed"]
    clock.now += SECOND
    assert way.deliver()
    assert way.report().packets + way.report().dropped == 20_000 + counters.duplicated


def test_a_share_may_begin_with_a_point_in_every_setting() -> None:
    made = Impairment(loss=".5%", duplicate=".5%", corrupt=".5%")
    assert made.loss == made.duplicate == made.corrupt == 0.005


@pytest.mark.parametrize(("name", "text"), [("memory", "0kb"), ("queue", "0")])
def test_an_error_shows_the_text_that_was_given(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: '{text}' is not a "):
        parse_setting(name, text)
