"""What a user may ask for: each refusal names the thing, its value and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from memifrt.errors import ConfigError, ErrorCode
from memifrt.types import (
    BufferFlag,
    FdEvent,
    InterfaceConfig,
    Mode,
    QueueCounters,
    Role,
    RxMode,
    check_name,
    check_range,
    check_secret,
    parse_mode,
    parse_role,
    parse_rx_mode,
)


def test_the_numbers_are_libmemif_s() -> None:
    assert {event.name: int(event) for event in FdEvent} == {"READ": 1, "WRITE": 2, "ERROR": 4, "DEL": 8, "MOD": 16}
    assert [int(role) for role in (Role.MASTER, Role.SLAVE)] == [0, 1]
    assert [int(mode) for mode in (Mode.ETHERNET, Mode.IP, Mode.PUNT_INJECT)] == [0, 1, 2]
    assert [int(mode) for mode in (RxMode.INTERRUPT, RxMode.POLLING)] == [0, 1]
    assert int(BufferFlag.NEXT) == 1


def test_the_defaults_are_libmemif_s() -> None:
    config = InterfaceConfig()
    assert (config.num_s2m_rings, config.num_m2s_rings) == (1, 1)
    assert (config.log2_ring_size, config.buffer_size) == (10, 2048)
    assert (config.role, config.mode, config.secret) == (Role.SLAVE, Mode.ETHERNET, b"")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log2_ring_size": 15}, "log2_ring_size is 15; it must be a whole number from 0 to 14"),
        ({"log2_ring_size": -1}, "log2_ring_size is -1; it must be a whole number from 0 to 14"),
        ({"log2_ring_size": 9.5}, "log2_ring_size is 9.5; it must be a whole number from 0 to 14"),
        ({"num_s2m_rings": 256}, "num_s2m_rings is 256; it must be a whole number from 1 to 255"),
        ({"num_s2m_rings": 0}, "num_s2m_rings is 0; it must be a whole number from 1 to 255"),
        ({"num_m2s_rings": 256}, "num_m2s_rings is 256; it must be a whole number from 1 to 255"),
        ({"num_m2s_rings": 0}, "num_m2s_rings is 0; it must be a whole number from 1 to 255"),
        ({"buffer_size": 0}, "buffer_size is 0; it must be a whole number from 1 to 65535"),
        ({"buffer_size": 65536}, "buffer_size is 65536; it must be a whole number from 1 to 65535"),
        ({"buffer_size": True}, "buffer_size is True; it must be a whole number from 1 to 65535"),
        ({"rx_headroom": -1}, "rx_headroom is -1; it must be a whole number from 0 to 2047"),
        ({"rx_headroom": 2048}, "rx_headroom is 2048; it must be a whole number from 0 to 2047"),
        (
            {"rx_headroom": 64, "buffer_size": 64},
            "rx_headroom is 64; it must be a whole number from 0 to 63",
        ),
        ({"id": -1}, "id is -1; it must be a whole number from 0 to 4294967295"),
        ({"id": 1 << 32}, "id is 4294967296; it must be a whole number from 0 to 4294967295"),
        ({"id": "0"}, "id is '0'; it must be a whole number from 0 to 4294967295"),
        ({"name": "n" * 32}, f"name {'n' * 32!r} is 32 bytes long; at most 31 fit into a message"),
        ({"name": "é" * 16}, f"name {'é' * 16!r} is 32 bytes long; at most 31 fit into a message"),
        ({"name": "a\0b"}, "name 'a\\x00b' has a NUL byte in it"),
        ({"name": b"bytes"}, "name is b'bytes'; it must be a string"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_refusal_names_the_option_its_value_and_the_limits(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InterfaceConfig(**options)
    assert str(caught.value) == message
    ring_size = "log2_ring_size" in options
    assert caught.value.code is (ErrorCode.MAX_RING if ring_size else ErrorCode.INVAL_ARG)


@pytest.mark.parametrize(
    "options",
    [
        {"log2_ring_size": 0},
        {"log2_ring_size": 14},
        {"num_s2m_rings": 1, "num_m2s_rings": 255},
        {"num_s2m_rings": 255, "num_m2s_rings": 1},
        {"buffer_size": 1},
        {"buffer_size": 65535, "rx_headroom": 65534},
        {"id": 0xFFFFFFFF},
        {"name": "n" * 31},
        {"name": ""},
        {"name": "é" * 15 + "n"},
    ],
    ids=str,
)
def test_the_limits_themselves_are_accepted(options: dict[str, Any]) -> None:
    config = InterfaceConfig(**options)
    assert {key: getattr(config, key) for key in options} == options


def test_a_configuration_does_not_change_and_does_not_show_its_secret() -> None:
    config = InterfaceConfig(secret=b"hush-hush")
    assert "hush" not in repr(config)
    with pytest.raises(AttributeError):
        config.id = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", [None, "", b""])
def test_no_secret_is_an_empty_one(value: str | bytes | None) -> None:
    assert check_secret(value) == b""


@pytest.mark.parametrize(("value", "secret"), [("hush", b"hush"), (b"\xff", b"\xff"), ("s" * 23, b"s" * 23)])
def test_a_secret_is_bytes(value: str | bytes, secret: bytes) -> None:
    assert check_secret(value) == secret


def test_a_secret_from_the_command_line_keeps_bytes_that_are_no_utf8() -> None:
    assert check_secret("hush\udcff") == b"hush\xff"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("s" * 24, "the secret is 24 bytes long; at most 23 fit into a message"),
        (b"s" * 24, "the secret is 24 bytes long; at most 23 fit into a message"),
        ("é" * 12, "the secret is 24 bytes long; at most 23 fit into a message"),
        (b"hush\0", "the secret has a NUL byte in it"),
        ("hush\ud800", "the secret is not text that UTF-8 can encode"),
        (23, "the secret is of type int; it must be a string or bytes"),
    ],
)
def test_a_refused_secret_is_not_shown(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_secret(value)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parse", "names"),
    [
        (
            parse_role,
            {"master": Role.MASTER, "server": Role.MASTER, "slave": Role.SLAVE, "client": Role.SLAVE},
        ),
        (parse_mode, {"ethernet": Mode.ETHERNET, "ip": Mode.IP, "punt-inject": Mode.PUNT_INJECT}),
        (parse_rx_mode, {"interrupt": RxMode.INTERRUPT, "polling": RxMode.POLLING}),
    ],
)
def test_a_choice_is_taken_by_member_and_by_name(parse: Callable[[object], object], names: dict[str, object]) -> None:
    for name, member in names.items():
        assert parse(name) is member
        assert parse(name.upper()) is member
        assert parse(member) is member


@pytest.mark.parametrize("value", ["both", 0, None, RxMode.POLLING, b"master"])
def test_another_choice_is_refused_with_those_that_there_are(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_role(value)
    assert str(caught.value) == f"role is {value!r}; it must be one of master, server, slave, client"


def test_checks_return_what_they_accept() -> None:
    assert check_range("thing", 5, 5, 5) == 5
    assert check_name("thing", "four", limit=4) == "four"
    with pytest.raises(ConfigError, match="thing 'fours' is 5 bytes long; at most 4"):
        check_name("thing", "fours", limit=4)


def test_counters_add_up_field_by_field() -> None:
    assert QueueCounters(1, 2, 3, 4, 5) + QueueCounters(10, 20, 30, 40, 50) == QueueCounters(11, 22, 33, 44, 55)
