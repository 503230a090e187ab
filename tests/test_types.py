"""The numbers of the wire and of libmemif, and counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from memifrt import ConfigError, Runtime
from memifrt.options import (
    InterfaceConfig,
    ModeName,
    RoleName,
    RxModeName,
    parse_mode,
    parse_role,
    parse_rx_mode,
)
from memifrt.types import BufferFlag, FdEvent, Mode, QueueCounters, Role, RxMode
from tests.lib.support import Pair


def test_the_numbers_are_libmemif_s() -> None:
    assert {event.name: int(event) for event in FdEvent} == {"READ": 1, "WRITE": 2, "ERROR": 4, "DEL": 8, "MOD": 16}
    assert [int(role) for role in (Role.MASTER, Role.SLAVE)] == [0, 1]
    assert [int(mode) for mode in (Mode.ETHERNET, Mode.IP, Mode.PUNT_INJECT)] == [0, 1, 2]
    assert [int(mode) for mode in (RxMode.INTERRUPT, RxMode.POLLING)] == [0, 1]
    assert int(BufferFlag.NEXT) == 1


def test_counters_add_up_field_by_field() -> None:
    assert QueueCounters(1, 2, 3, 4, 5) + QueueCounters(10, 20, 30, 40, 50) == QueueCounters(11, 22, 33, 44, 55)


def test_a_misspelt_choice_is_an_error_of_the_type_checker_and_of_the_call(
    runtime: Runtime, make_pair: Callable[..., Pair]
) -> None:
    """mypy runs on this file with ``warn_unused_ignores``: a comment that it does not need is an error."""
    with pytest.raises(ConfigError, match="role is 'mastr'"):
        runtime.create_interface(role="mastr")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mode is 'ethernt'"):
        runtime.create_interface(mode="ethernt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rx_mode is 'poling'"):
        runtime.create_interface(rx_mode="poling")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rx_mode is 'poling'"):
        InterfaceConfig.of(rx_mode="poling")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rx_mode is 'poling'"):
        make_pair().slave.rx_queues[0].set_rx_mode("poling")  # type: ignore[arg-type]


def test_names_of_choices_are_those_that_are_parsed() -> None:
    assert {parse_role(name) for name in get_args(RoleName)} == {*Role}
    assert {parse_mode(name) for name in get_args(ModeName)} == {*Mode}
    assert {parse_rx_mode(name) for name in get_args(RxModeName)} == {*RxMode}
