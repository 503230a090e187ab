"""Figures and groups of them: what is measured, how to take it once, and what has been taken."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ends import Device, Load, PmdDevice, bench_device, measure

DEVICE_CPU, FACING_CPU = 0, 1
CPUS = (DEVICE_CPU, FACING_CPU)
BASE = Load()


@dataclass(frozen=True)
class Plan:
    """How to measure.

    :param seconds: for each figure.
    :param baseline: the source tree of another version, with its rings built in place, to compare with.
    :param free_threaded: a free-threaded interpreter with memifrt installed.
    """

    seconds: float = 0.5
    baseline: Path | None = None
    free_threaded: str = ""


@dataclass
class Case:
    """One figure: how to take it once, in its group's unit.

    :param take: None if this machine cannot; ``why`` says why.
    :param series: the curve that it is a point of, and ``x`` where.
    """

    name: str
    take: Callable[[], float] | None
    why: str = ""
    series: str = ""
    x: int | str = 0
    figures: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


@dataclass
class Group:
    """Figures of one table.

    :param note: what a reader must know to read them.
    :param x: what its cases differ in, so that the table has a row for each ``x`` and a column for each series.
    :param plot: the name of a plot of these curves.
    :param is_public: whether it belongs on the page of figures.
    """

    title: str
    unit: str
    cases: list[Case]
    note: str = ""
    x: str = ""
    plot: str = ""
    is_public: bool = True


def figure(
    make: Callable[[], Device],
    mode: str,
    load: Load,
    seconds: float,
    extra: Iterable[str],
    key: str,
    scale: float,
    cpu: int,
) -> float:
    """Run a device and the end that faces it once.

    :param key: the key of the figure in what the facing end reports, with dots; ``device.`` before that of the
        device's own report.
    """
    wants_report = key.startswith("device.")
    value = measure(make(), mode, load, seconds, cpu, *extra, wants_report=wants_report)
    for part in key.split("."):
        value = value[part]
    return float(value) * scale  # type: ignore[arg-type]


def case(
    name: str,
    make: Callable[[], Device],
    mode: str,
    load: Load,
    seconds: float,
    *extra: str,
    key: str = "pps",
    scale: float = 1e-6,
    series: str = "",
    x: int | str = 0,
    cpu: int = FACING_CPU,
) -> Case:
    """Return the case of a device and of the mode of the end that faces it, whose load this is."""
    take = functools.partial(figure, make, mode, load, seconds, extra, key, scale, cpu)
    return Case(name, take, series=series, x=x)


def ours(mode: str, role: str, load: Load = BASE, api: str = "burst", ring: str = "native") -> Callable[[], Device]:
    """Return how to make a device that is ``memifrt bench``."""
    return functools.partial(bench_device, mode, role, load, DEVICE_CPU, api=api, ring=ring)


def theirs(
    mode: str, role: str, load: Load = BASE, *, zero_copy: bool = False, burst: int = 0, cpus: tuple[int, ...] = ()
) -> Callable[[], Device]:
    """Return how to make a device that is DPDK's testpmd."""
    return functools.partial(PmdDevice, mode, role, load, cpus or (DEVICE_CPU,), zero_copy, burst)
