"""Settings of an impaired direction: delay, loss, duplicates, reordering, corruption, and a rate.

Owns the values, their texts (tc's words and units), their checks, and the counters. Knows nothing of packets that wait:
``memifrt.ports.impaired_line`` impairs them. The meaning of each setting is that of tc-netem(8).
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast, overload

from memifrt.capture.filter import compile_filter
from memifrt.capture.pcap import LinkType
from memifrt.errors import ConfigError
from memifrt.options import ModeName, parse_mode
from memifrt.types import Mode

#: The distributions of a delay with jitter.
DISTRIBUTIONS = ("normal", "uniform", "pareto")
#: The longest delay or jitter, in seconds: an hour.
_LONGEST = 3600.0
#: tc's units of time in seconds, of rates in bit/s, and of sizes in bytes.
_TIMES = {
    **dict.fromkeys(("s", "sec", "secs"), 1.0),
    **dict.fromkeys(("ms", "msec", "msecs"), 1e-3),
    **dict.fromkeys(("us", "usec", "usecs"), 1e-6),
    **dict.fromkeys(("ns", "nsec", "nsecs"), 1e-9),
}
_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
_SIZES = {"b": 1, "k": 1 << 10, "kb": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30}
_MOST = 1 << 62
_NO_TIME = "is not a time; write a number with a unit, s, ms, us or ns, like 10ms"
_NO_PERCENTAGE = "is not a percentage; write it like 1%"
_NO_RATE = "is not a rate; write a number with a unit, bit, kbit, mbit or gbit, like 100mbit"
_NO_SIZE = "is not a size; write a number with a unit, kb, mb or gb, like 256mb"
_NO_LOSS = "is not a loss; it must be like 1%, or gemodel P [R [1-H [1-K]]], like 'gemodel 1% 10%'"
_NO_REORDERING = "is not a reordering; it must be PERCENT [CORRELATION] [gap DISTANCE], like '25% 50% gap 5'"

#: A filter: says whether a packet matches.
Matches = Callable[[bytes], bool]
_G = TypeVar("_G")
_S = TypeVar("_S")


@dataclass(frozen=True, slots=True)
class GilbertElliott:
    """Losses in bursts, as ``loss gemodel P [R [1-H [1-K]]]`` of netem: a good and a bad state.

    Each packet is first judged in the present state, then the state may change. Bad states last ``1 / r`` packets in
    the mean.

    :ivar p: the probability to go from the good state to the bad one.
    :ivar r: the probability to go from the bad state to the good one; None means ``1 - p``, which makes losses
        independent.
    :ivar bad: the probability of a loss in the bad state (netem's 1-h).
    :ivar good: the probability of a loss in the good state (netem's 1-k).
    """

    p: float
    r: float | None = None
    bad: float = 1.0
    good: float = 0.0

    def __post_init__(self) -> None:
        for name in ("p", "r", "bad", "good"):
            value = getattr(self, name)
            if value is not None:
                _probability(value, f"{name} of gemodel: ")

    @property
    def back(self) -> float:
        """The probability to go from the bad state to the good one."""
        return 1 - self.p if self.r is None else self.r

    def __str__(self) -> str:
        return " ".join(["gemodel", *map(format_percent, (self.p, self.back, self.bad, self.good))])


@dataclass(frozen=True, slots=True)
class Reorder:
    """Packets that overtake the delayed ones, as ``reorder PERCENT [CORRELATION] [gap DISTANCE]`` of netem.

    :ivar probability: the share of packets that are sent at once; the others are delayed.
    :ivar correlation: how much each random number depends on the one before it, from 0 to 1.
    :ivar gap: after a packet that was sent at once, at least ``gap - 1`` packets are delayed.
    """

    probability: float = 0.0
    correlation: float = 0.0
    gap: int = 1

    def __post_init__(self) -> None:
        _probability(self.probability)
        _probability(self.correlation, "correlation: ")
        _whole(self.gap, 1, "gap: ")

    def __str__(self) -> str:
        text = format_percent(self.probability)
        if self.correlation:
            text += f" {format_percent(self.correlation)}"
        return text if self.gap == 1 else f"{text} gap {self.gap}"


@dataclass(slots=True)
class ImpairmentCounters:
    """How many packets met each impairment.

    :ivar lost: dropped by ``loss``.
    :ivar duplicated: copies that were added.
    :ivar corrupted: packets with a wrong bit.
    :ivar reordered: packets that ``reorder`` sent at once.
    :ivar delayed: packets that had to wait, for ``delay`` or ``rate``.
    :ivar queue_full: dropped because ``queue`` packets waited for ``rate``.
    :ivar memory_full: dropped because the delayed packets took ``memory`` bytes.
    """

    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    delayed: int = 0
    queue_full: int = 0
    memory_full: int = 0

    def drops(self) -> dict[str, int]:
        """Return the dropped packets by reason, without reasons that did not occur."""
        return _not_zero({"lost": self.lost, "queue full": self.queue_full, "memory full": self.memory_full})

    def counts(self) -> dict[str, int]:
        """Return all counters by name."""
        return dataclasses.asdict(self)

    def changes(self) -> dict[str, int]:
        """Return the packets that were not dropped, by what was done to them."""
        names = ("duplicated", "corrupted", "reordered", "delayed")
        return _not_zero({name: getattr(self, name) for name in names})


def _not_zero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


# --- values and their texts ------------------------------------------------------------------------------------------


def _number(text: str, units: Mapping[str, float], wrong: str) -> float:
    """Return the number of a text with a unit.

    :param wrong: the end of the message if it is none.
    """
    match = re.fullmatch(r"([0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})\s*([a-zA-Z%]+)", text.strip())
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{text!r} {wrong}")
    return float(match[1]) * unit


def _number_or_zero(text: str, units: Mapping[str, float], wrong: str) -> float:
    return 0.0 if text.strip() == "0" else _number(text, units, wrong)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse_time(value: float | str) -> float:
    """Return a time in seconds, from a number of seconds or a text like ``10ms``.

    :raises ConfigError: it is not a time from 0 to an hour.
    """
    found = _number_or_zero(value, _TIMES, _NO_TIME) if isinstance(value, str) else value
    if not _is_number(found) or not 0 <= found <= _LONGEST:
        raise ConfigError(f"{value!r} is not a time from 0 to {_LONGEST:g} s")
    return float(found)


def parse_percent(value: float | str) -> float:
    """Return a probability from 0 to 1, from such a number or a text like ``1%``.

    :raises ConfigError: it is not a probability.
    """
    if isinstance(value, str):
        found = _number_or_zero(value, {"%": 1}, _NO_PERCENTAGE) / 100
        if found > 1:
            raise ConfigError(f"{value!r} is not a percentage from 0% to 100%")
        return found
    return _probability(value)


def _probability(value: float, what: str = "") -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ConfigError(f"{what}{value!r} is not a probability from 0 to 1, or a text like '1%'")
    return float(value)


def _whole(value: int, low: int, what: str = "") -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _MOST:
        raise ConfigError(f"{what}{value!r} is not a whole number of at least {low}")
    return value


def _parse_whole(low: int) -> Callable[[int | str], int]:
    def parse(value: int | str) -> int:
        if not isinstance(value, str):
            return _whole(value, low)
        if not re.fullmatch(r"[0-9]{1,18}", value.strip()):
            raise ConfigError(f"{value!r} is not a whole number of at least {low}")
        if int(value) < low:
            raise ConfigError(f"{value!r} is not a whole number of at least {low}")
        return int(value)

    return parse


def parse_loss(value: float | str | GilbertElliott) -> float | GilbertElliott:
    """Return a loss from a probability, ``1%``, ``random 1%``, or ``gemodel P [R [1-H [1-K]]]``.

    :raises ConfigError: it is none of them.
    """
    if isinstance(value, GilbertElliott):
        return value
    if not isinstance(value, str):
        return parse_percent(value)
    words = value.split()
    if words[:1] == ["random"]:
        words = words[1:]
    elif words[:1] == ["gemodel"] and 2 <= len(words) <= 5:
        return GilbertElliott(*map(parse_percent, words[1:]))
    if len(words) != 1 or not re.match("[.0-9]", words[0]):
        raise ConfigError(f"{value!r} {_NO_LOSS}")
    return parse_percent(words[0])


def parse_reorder(value: float | str | Reorder) -> Reorder:
    """Return a reordering from a probability, or ``PERCENT [CORRELATION] [gap DISTANCE]``.

    :raises ConfigError: it is neither.
    """
    if isinstance(value, Reorder):
        return value
    if not isinstance(value, str):
        return Reorder(parse_percent(value))
    match = re.fullmatch(r"\s*([0-9.]+%?)(?:\s+([0-9.]+%))?(?:\s+gap\s+([0-9]{1,9}))?\s*", value)
    if match is None:
        raise ConfigError(f"{value!r} {_NO_REORDERING}")
    return Reorder(parse_percent(match[1]), parse_percent(match[2] or 0.0), int(match[3] or 1))


def parse_rate(value: float | str) -> float:
    """Return a rate in bit/s, from such a number or a text like ``100mbit``; 0 means no limit.

    :raises ConfigError: it is not a rate.
    """
    found = _number_or_zero(value, _RATES, _NO_RATE) if isinstance(value, str) else value
    if not _is_number(found) or found < 0 or 0 < found < 1:
        raise ConfigError(f"{value!r} is not a rate; it must be at least 1 bit/s, or 0 for no limit")
    return float(found)


def parse_size(value: int | str) -> int:
    """Return a number of bytes, from such a number or a text like ``256mb`` (of 1024 times 1024, as tc has it).

    :raises ConfigError: it is not a size.
    """
    if not isinstance(value, str):
        return _whole(value, 1)
    found = int(_number(value, _SIZES, _NO_SIZE))
    if not 1 <= found <= _MOST:
        raise ConfigError(f"{value!r} is not a size from 1b on, like 256mb")
    return found


def _parse_distribution(value: str) -> str:
    if value not in DISTRIBUTIONS:
        raise ConfigError(f"{value!r} is not a distribution; it must be one of {', '.join(DISTRIBUTIONS)}")
    return value


def _parse_seed(value: int | str | None) -> int:
    return random.SystemRandom().getrandbits(32) if value is None else _parse_whole(0)(value)


def _parse_match(value: str | Matches | None) -> str | Matches | None:
    if value is not None and not isinstance(value, str) and not callable(value):
        raise ConfigError(
            f"{value!r} is not a filter; it must be a text in tcpdump's language, or a function of a packet"
        )
    if value == "":
        raise ConfigError("the filter is empty; it must be in tcpdump's language, like 'udp port 53'")
    return value


def format_percent(value: float) -> str:
    """Return a probability as tc writes it: ``1%``."""
    return f"{value * 100:.10g}%"


def format_time(value: float) -> str:
    """Return a time as tc writes it: ``10ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.10g}{unit}"
    return f"{value * 1e9:.10g}ns" if value else "0"


def format_rate(value: float) -> str:
    """Return a rate as tc writes it: ``100mbit``."""
    for unit, scale in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if value >= scale:
            return f"{value / scale:.10g}{unit}"
    return f"{value:.10g}bit"


# --- the settings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked values of an :class:`Impairment` at one time. Times are in seconds, the rate is in bit/s."""

    delay: float = 0.0
    jitter: float = 0.0
    distribution: str = DISTRIBUTIONS[0]
    loss: float | GilbertElliott = 0.0
    duplicate: float = 0.0
    reorder: Reorder = field(default_factory=Reorder)
    corrupt: float = 0.0
    rate: float = 0.0
    queue: int = 1000
    memory: int = 256 << 20
    seed: int = 0
    match: str | Matches | None = None
    #: The compiled filter; None if every packet matches.
    matches: Matches | None = None

    def __str__(self) -> str:
        """Return the settings that are not the defaults, and the seed, in tc's words."""
        formats: dict[str, Callable[[float], str]] = {
            **dict.fromkeys(("delay", "jitter"), format_time),
            **dict.fromkeys(("duplicate", "corrupt"), format_percent),
            "rate": format_rate,
        }
        words = []
        for name in SETTINGS:
            value = getattr(self, name)
            if name != "seed" and value != getattr(_DEFAULTS, name):
                shown = formats.get(name, str)
                if name == "loss" and not isinstance(value, GilbertElliott):
                    shown = format_percent
                words.append(f"{name}={shown(value)}")
        return ", ".join([*words, f"seed={self.seed}"])

    def check_together(self) -> None:
        """Check the settings that need each other.

        :raises ConfigError: one has no effect without another.
        """
        if self.reorder.probability and not self.delay:
            raise ConfigError("reorder needs a delay, which the reordered packets skip")
        if self.distribution != _DEFAULTS.distribution and not self.jitter:
            raise ConfigError(f"distribution {self.distribution} needs a jitter")
        if self.queue != _DEFAULTS.queue and not self.rate:
            raise ConfigError("queue needs a rate: it limits the packets that wait for the rate")


_DEFAULTS = Settings()


@dataclass(frozen=True, slots=True)
class TextSetting:
    """A setting as people type it: ``--delay 10ms``, or ``delay=10ms`` for one direction.

    :ivar parse: returns the value, or raises :class:`~memifrt.ConfigError`.
    :ivar values: the placeholder for its value in a help text.
    :ivar help: one line, in lower case; for argparse, which needs ``%%`` for a per cent sign.
    """

    parse: Callable[..., object]
    values: str
    help: str


#: All settings, in the order in which they are shown.
SETTINGS = {
    "delay": TextSetting(parse_time, "TIME", "delay every packet, like 10ms (s, ms, us, ns)"),
    "jitter": TextSetting(parse_time, "TIME", "vary the delay by this much; packets may overtake each other"),
    "distribution": TextSetting(
        _parse_distribution, "NAME", "of the delay with jitter: normal (default), uniform or pareto"
    ),
    "loss": TextSetting(
        parse_loss, "LOSS", "drop packets: 1%%, or in bursts 'gemodel P [R [1-H [1-K]]]', like 'gemodel 1%% 10%%'"
    ),
    "duplicate": TextSetting(parse_percent, "PERCENT", "send packets twice"),
    "reorder": TextSetting(
        parse_reorder, "REORDER", "let packets skip the delay: 'PERCENT [CORRELATION] [gap DISTANCE]'"
    ),
    "corrupt": TextSetting(parse_percent, "PERCENT", "flip one random bit of packets"),
    "rate": TextSetting(parse_rate, "RATE", "send at this rate, like 100mbit (bit, kbit, mbit, gbit)"),
    "queue": TextSetting(_parse_whole(1), "PACKETS", "drop packets if so many wait for the rate; default 1000"),
    "memory": TextSetting(parse_size, "SIZE", "drop packets if the delayed ones take so much memory; default 256mb"),
    "seed": TextSetting(_parse_seed, "N", "make the same random decisions in every run"),
    "match": TextSetting(
        _parse_match,
        "FILTER",
        "impair only packets that match, in tcpdump's language, like 'udp port 53'; needs libpcap",
    ),
}
#: The names of all settings.
NAMES = tuple(SETTINGS)
_FIELDS = tuple(each.name for each in dataclasses.fields(Settings))


def parse_setting(name: str, value: object) -> object:
    """Return the checked value of a setting, from a value or a text.

    :raises ConfigError: there is no such setting, or the value is wrong. The message begins with the name.
    """
    if name not in SETTINGS:
        raise ConfigError(f"{name!r} is not an impairment; it must be one of {', '.join(NAMES)}")
    try:
        return SETTINGS[name].parse(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}") from error


class _Setting(Generic[_G, _S]):
    """An attribute of :class:`Impairment`: it is checked when it is set, and takes effect at the next packet."""

    def __set_name__(self, owner: type[object], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, impairment: None, owner: type[object]) -> _Setting[_G, _S]: ...

    @overload
    def __get__(self, impairment: Impairment, owner: type[object]) -> _G: ...

    def __get__(self, impairment: Impairment | None, owner: type[object]) -> _G | _Setting[_G, _S]:
        return self if impairment is None else cast(_G, getattr(impairment.settings, self._name))

    def __set__(self, impairment: Impairment, value: _S) -> None:
        impairment.settings = impairment.changed({self._name: value})


class Impairment:
    """The settings for the packets of one direction. The words and their meaning are those of tc-netem(8).

    Every parameter is also an attribute. Assign to it at any time, from any thread: the next packet meets the new
    value. Packets that are delayed already keep their time. A text has tc's units.

    :param delay: seconds, or ``"10ms"``.
    :param jitter: by how much the delay varies, in seconds or as ``"2ms"``. Packets may overtake each other.
    :param distribution: of the delay: ``normal`` (``jitter`` is the standard deviation), ``uniform`` (from ``delay -
        jitter`` to ``delay + jitter``) or ``pareto`` (netem's: few long delays). No delay is below 0.
    :param loss: a probability, ``"1%"``, or losses in bursts: ``"gemodel 1% 10%"`` or a :class:`GilbertElliott`.
    :param duplicate: the probability, or ``"1%"``, that a packet comes twice.
    :param reorder: the probability that a packet skips the delay, ``"25% 50% gap 5"`` or a :class:`Reorder`.
    :param corrupt: the probability, or ``"1%"``, that one random bit of a packet is flipped.
    :param rate: bit/s, or ``"100mbit"``; 0 means no limit. A packet counts with its bytes in the memif.
    :param queue: the most packets that wait for ``rate``; further packets are dropped.
    :param memory: the most bytes of delayed packets. Each packet counts with its length and 128 bytes; further
        packets are dropped. A number, or ``"256mb"``.
    :param seed: the same seed makes the same decisions for the same packets; None takes a random one.
    :param match: only these packets are impaired: a filter in tcpdump's language, which needs libpcap, or a function
        that says whether a packet matches.
    :param mode: what a packet begins with, for ``match``.
    :raises ConfigError: a value is wrong, or has no effect without another one.
    :raises MemifError: ``match`` needs libpcap, which is not installed.
    :ivar counters: how many packets met each impairment.
    :ivar settings: all values; see also :meth:`change`.
    """

    delay = _Setting[float, float | str]()
    jitter = _Setting[float, float | str]()
    distribution = _Setting[str, str]()
    loss = _Setting[float | GilbertElliott, float | str | GilbertElliott]()
    duplicate = _Setting[float, float | str]()
    reorder = _Setting[Reorder, float | str | Reorder]()
    corrupt = _Setting[float, float | str]()
    rate = _Setting[float, float | str]()
    queue = _Setting[int, int | str]()
    memory = _Setting[int, int | str]()
    seed = _Setting[int, int | str | None]()
    match = _Setting[str | Matches | None, str | Matches | None]()

    def __init__(
        self,
        *,
        delay: float | str = 0.0,
        jitter: float | str = 0.0,
        distribution: str = DISTRIBUTIONS[0],
        loss: float | str | GilbertElliott = 0.0,
        duplicate: float | str = 0.0,
        reorder: float | str | Reorder = 0.0,
        corrupt: float | str = 0.0,
        rate: float | str = 0.0,
        queue: int | str = _DEFAULTS.queue,
        memory: int | str = _DEFAULTS.memory,
        seed: int | str | None = None,
        match: str | Matches | None = None,
        mode: Mode | ModeName = Mode.ETHERNET,
    ) -> None:
        self.counters = ImpairmentCounters()
        self.settings = _DEFAULTS
        self._link_type = LinkType.of(parse_mode(mode))
        given = locals()
        self.change(**{name: given[name] for name in NAMES})

    def change(self, **changes: object) -> None:
        """Change several settings at once; a packet meets all of them or none.

        :param changes: values by their names, as for the constructor.
        :raises ConfigError: a name or a value is wrong, or has no effect without another one; nothing is changed.
        """
        settings = self.changed(changes)
        settings.check_together()
        self.settings = settings

    def replaced(self, values: Mapping[str, object]) -> Settings:
        """Return the settings with these values and the defaults for the others; the seed stays if none is given.

        :raises ConfigError: as for :meth:`change`.
        """
        settings = self.changed({**_values(_DEFAULTS, NAMES), "seed": self.seed, **values})
        settings.check_together()
        return settings

    def changed(self, changes: Mapping[str, object]) -> Settings:
        """Return the settings after some changes; each is checked by itself."""
        checked: dict[str, object] = {}
        for name, value in changes.items():
            checked[name] = parse_setting(name, value)
        if "match" in checked and checked["match"] != self.settings.match:
            match = cast("str | Matches | None", checked["match"])
            checked["matches"] = compile_filter(match, self._link_type) if isinstance(match, str) else match
        return Settings(**{**_values(self.settings, _FIELDS), **checked})  # type: ignore[arg-type]  # they are checked

    def __repr__(self) -> str:
        return f"<Impairment {self.settings}>"


def _values(settings: Settings, names: Iterable[str]) -> dict[str, object]:
    return {name: getattr(settings, name) for name in names}
