"""Streams, their files, and rates: the same from YAML, TOML and Python; errors name stream, key and value."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from memifrt import ConfigError, MemifOSError
from memifrt.traffic import Field, Rate, Stream, load_streams
from memifrt.traffic.file import load_file
from memifrt.traffic.rate import Pacer, parse_speed, parse_time
from memifrt.traffic.stream import check_streams
from memifrt.types import Mode

#: Few characters that make 10**7 values.
ALIASES = "a0: &a0 1\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8))
YAML = """\
rate: 2Mpps
duration: 30s
link_speed: 10Gbps
streams:
  - name: web
    packet: Ether()/IP(dst="10.0.0.1")/TCP(dport=80)
    size: imix
    weight: 3
    fields:
      ipv4.src: 10.0.0.1..10.0.0.254
      tcp.src: {first: 1024, last: 65535, order: random, seed: 7}
      ipv4.dst: [10.1.0.1, 10.1.0.2]
  - name: dns
    packet: Ether()/IP()/UDP(dport=53)
    size: [64, 128]
    fcs: false
    rate: 10kpps
    burst: 32
    count: 1000
    direction: forward
    fields: ["udp.src=1..9 decrement"]
"""
TOML = """\
rate = "2Mpps"
duration = "30s"
link_speed = "10Gbps"

[[streams]]
name = "web"
packet = 'Ether()/IP(dst="10.0.0.1")/TCP(dport=80)'
size = "imix"
weight = 3
[streams.fields]
"ipv4.src" = "10.0.0.1..10.0.0.254"
"tcp.src" = {first = 1024, last = 65535, order = "random", seed = 7}
"ipv4.dst" = ["10.1.0.1", "10.1.0.2"]

[[streams]]
name = "dns"
packet = "Ether()/IP()/UDP(dport=53)"
size = [64, 128]
fcs = false
rate = "10kpps"
burst = 32
count = 1000
direction = "forward"
fields = ["udp.src=1..9 decrement"]
"""


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    from_yaml = load_file(written(tmp_path, "a.yaml", YAML))
    assert load_file(written(tmp_path, "a.toml", TOML)) == from_yaml
    assert (from_yaml.rate, from_yaml.duration, from_yaml.link_speed) == (Rate(2e6, "pps"), 30, 1e10)
    web, dns = from_yaml.streams
    assert web.varied == (
        Field("ipv4.src", "10.0.0.1", "10.0.0.254"),
        Field("tcp.src", 1024, 65535, order="random", seed=7),
        Field("ipv4.dst", values=("10.1.0.1", "10.1.0.2")),
    )
    assert dns.own_rate == Rate(10_000, "pps")
    assert [len(template.data) for template in dns.templates(Mode.ETHERNET, mark=False)] == [64, 128]
    assert load_streams(str(tmp_path / "a.yaml")) == [web, dns]


def test_a_capture_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (stream,) = load_streams(written(tmp_path, "x.yaml", "streams: [{pcap: lab.pcap}]"))
    assert stream.pcap == str(tmp_path / "lab.pcap")
    assert stream.name == "stream"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "it must have a list of streams"),
        ("[1, 2]", "it must have a list of streams"),
        ("streams: []", "it has no list of streams"),
        ("streams: [1]", "stream 1 is 1; it must have keys"),
        ("streams: [{packet: Ether()}]\nspeed: 1", "'speed' is not a key; it must be one of streams, rate"),
        ("streams: [{packet: Ether(), sise: 64}]", "stream: 'sise' is not a key"),
        ("streams: [{packet: Ether(), name: a}, {packet: Ether(), size: x}]", "stream 2: the size 'x' must be"),
        ("streams: [{packet: Ether(), fields: {udp.src: 9..1}}]", "stream: field udp.src: the range 9..1"),
        ("streams: [{packet: Ether(), fields: {udp.src: {from: 1}}}]", "field udp.src: 'from' is not a key"),
        ("streams: [{packet: Ether(), fields: {udp.src: {step: 1}}}]", "field udp.src: it needs first and last"),
        ("streams: [{packet: Ether(), fields: udp.src}]", "fields is 'udp.src'; it must be a list"),
        ("streams: [{packet: Ether(), fields: [5]}]", "5 must be text like"),
        ("streams: [{packet: Ether(), rate: quick}]", "stream: the rate 'quick' must be like"),
        ("streams: [{packet: Ether(), weight: -1}]", "stream: weight is -1; it must be a number"),
        ("streams: [{packet: Ether(), burst: 0}]", "stream: burst is 0; it must be a whole number"),
        ("streams: [{packet: Ether(), count: 1.5}]", "stream: count is 1.5"),
        ("streams: [{packet: Ether(), fcs: 1}]", "stream: fcs is 1; it must be true or false"),
        ("streams: [{packet: Ether(), direction: up}]", "stream: direction is 'up'; it must be one of forward"),
        ("streams: [{name: a}]", "stream a: it has neither packet nor pcap"),
        ("streams: [{packet: Ether(), pcap: x}]", "stream: it has both packet and pcap"),
        ("streams: [{pcap: 5}]", "stream: pcap is 5"),
        ("streams: [{packet: Ether(), name: ''}]", "the name of a stream is ''"),
        ("streams: [{packet: Ether()}]\nduration: long", "the time 'long' must be"),
        ("streams: [{packet: Ether()}]\ncount: 0", "count is 0"),
        ("streams: [{packet: Ether()}]\nlink_speed: 10pps", "the speed '10pps' must be like 10Gbps"),
        ("streams: [{packet: Ether(), sizes: 64}]", "did you mean size?"),
        ("streems: []", "did you mean streams?"),
        ("streams: [{packet: Ether(), size: 64, size: 65}]", "the key 'size' is given twice in the mapping of line 1"),
        ("streams: [{packet: Ether(), name: a}, {packet: Ether(), name: a}]", "2 streams have the name 'a'"),
        ("streams: [{packet: Ether(), name: a}, {packet: Ether(), name: a (back)}]", "it needs another name"),
        ("streams: [{packet: Ether(), fields: {5: 1}}]", "5 is not a field"),
        ("streams: [{packet: Ether(), rate: true}]", "the rate True must be"),
        ("streams: [{packet: Ether(), rate: .nan}]", "the rate nan must be"),
        ("streams: [{packet: Ether(), rate: .inf}]", "it has a number that is infinite or too large"),
        ("streams: [{packet: Ether(), rate: 1e400}]", "it has a number that is infinite or too large"),
        ("streams: [{packet: Ether(), rate: -.inf}]", "the rate -inf must be"),
        (f"streams: [{{packet: Ether(), rate: {10**38}}}]", "must be from 0.001 to 1e+15 pps"),
        (f"streams: [{{packet: Ether(), rate: {10**400}}}]", "it has a number of 1329 bits; 128 are the most"),
        (f"streams: [{{packet: Ether(), count: 0x{'f' * 5000}}}]", "it has a number of 20000 bits"),
        ("streams: [{packet: Ether(), weight: .nan}]", "weight is nan; it must be a number"),
        ("streams: [{packet: Ether()}]\nduration: 1:30", "the time '1:30' must be"),
        ("streams: [{packet: Ether()}]\ncount: 0080", "count is '0080'"),
        ("streams: [{packet: Ether()}]\ncount: true", "count is True"),
        (ALIASES, "it has more than 1048576 values"),
        ("streams: &a [*a]", "it has more than 1048576 values"),
        ("? [1]\n: 2", "is not YAML"),
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system [true]", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_streams(written(tmp_path, "x.yaml", text))
    assert part in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/x.yaml")
    assert "\n" not in str(error.value)


def test_numbers_of_yaml_are_those_that_people_mean(tmp_path: Path) -> None:
    """YAML 1.1 reads a MAC address without letters as a number of base 60."""
    text = "streams: [{packet: Ether(), weight: 1e3, rate: 5e3, fields: {eth.src: 22:33:44:55:11:22}}]"
    (stream,) = load_streams(written(tmp_path, "x.yaml", text))
    assert stream.varied == (Field("eth.src", "22:33:44:55:11:22"),)
    assert (stream.weight, stream.own_rate) == (1000.0, Rate(5000, "pps"))


def test_streams_may_share_keys_by_an_anchor_of_yaml(tmp_path: Path) -> None:
    text = "streams: [&a {name: a, packet: Ether(), size: 64}, {<<: *a, name: b}, {<<: *a, name: c, size: 65}]"
    streams = load_streams(written(tmp_path, "x.yaml", text))
    assert [(stream.name, stream.sizes) for stream in streams] == [("a", (64,)), ("b", (64,)), ("c", (65,))]


@pytest.mark.parametrize(
    ("streams", "modes", "part"),
    [
        ([Stream("Ether()"), Stream("Ether()")], [Mode.ETHERNET], "2 streams have the name 'stream'"),
        ([Stream("Ether()", direction="both")], [Mode.ETHERNET], "direction is 'both', which needs a second interface"),
        ([Stream("Ether()", fields=["udp.src=1"])], [Mode.ETHERNET] * 2, "the packet has no such bytes"),
        ([Stream("Ether()", size=[65535] * 5000)], [Mode.ETHERNET], "need more than 256 MiB"),
    ],
)
def test_what_needs_no_peer_is_checked_without_one(streams: list[Stream], modes: list[Mode], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_streams(streams, modes, check=False)
    assert part in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemifOSError, match=r"cannot read .*none.yaml: No such file"):
        load_streams(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"x.json: its name must end with .yaml, .yml, .toml"):
        load_streams(written(tmp_path, "x.json", json.dumps({})))
    with pytest.raises(ConfigError, match="is not TOML"):
        load_streams(written(tmp_path, "x.toml", "a = "))
    with pytest.raises(ConfigError, match="is not TOML: Exceeds the limit"):
        load_streams(written(tmp_path, "x.toml", f"a = {'1' * 5000}"))
    (tmp_path / "y.yaml").write_bytes(b"\xff\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_streams(tmp_path / "y.yaml")


@pytest.mark.parametrize("packet", [None, 5, "", "zz", b""])
def test_a_stream_of_no_packet_is_refused_by_name(packet: Any) -> None:
    with pytest.raises(ConfigError, match="stream s: "):
        Stream(packet, name="s").templates(Mode.ETHERNET, mark=False)


# --- rates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("max", Rate()),
        ("1000", Rate(1000, "pps")),
        ("1.5Mpps", Rate(1.5e6, "pps")),
        ("250k", Rate(250e3, "pps")),
        ("10Gbps", Rate(1e10, "bps")),
        ("100mbit/s", Rate(1e8, "bps")),
        ("10 GbpsL1", Rate(1e10, "bps-l1")),
        ("2gbpsl2", Rate(2e9, "bps")),
        ("50%", Rate(50, "percent")),
        (1000, Rate(1000, "pps")),
        (math.inf, Rate()),
    ],
)
def test_rates(text: Any, rate: Rate) -> None:
    assert Rate.of(text) == rate


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "0", "1Xpps", "1e99", "5k%", "1 pps pps", "nan", True, None, [1], 10**400]
)
def test_wrong_rates_are_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match="rate"):
        Rate.of(text)


def test_bits_count_the_frame_and_layer_1_counts_preamble_and_gap() -> None:
    """14.88 Mpps of 64-byte frames are 10 Gbit/s on a wire (RFC 2544's table)."""
    assert Rate.of("10Gbpsl1").pps(60, Mode.ETHERNET, None) == pytest.approx(14_880_952, rel=1e-6)
    assert Rate.of("100%").pps(60, Mode.ETHERNET, 1e10) == pytest.approx(14_880_952, rel=1e-6)
    assert Rate.of("10Gbps").pps(60, Mode.ETHERNET, None) == pytest.approx(1e10 / 512)
    assert Rate.of("10Gbps").pps(64, Mode.IP, None) == pytest.approx(1e10 / 512)
    assert Rate.of("10Gbpsl1").pps(46, Mode.IP, None) == pytest.approx(14_880_952, rel=1e-6)
    with pytest.raises(ConfigError, match="needs the speed of a link"):
        Rate.of("50%").pps(60, Mode.ETHERNET, None)


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("500ms", 0.5), ("2m", 120), ("1.5s", 1.5), ("1h", 3600)])
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "1d", "1e9", "99999h"])
def test_wrong_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="time"):
        parse_time(text)


@pytest.mark.parametrize("text", ["", "10", "-1Gbps", "10Gpps", "0"])
def test_speeds(text: str) -> None:
    if text == "10":
        assert parse_speed(text) == 10
        return
    with pytest.raises(ConfigError, match="speed"):
        parse_speed(text)


def test_packets_are_due_at_the_rate_and_in_bursts() -> None:
    pacer = Pacer(1000)
    assert [pacer.due(elapsed) for elapsed in (0, 999_999, 1_000_000, 10_500_000)] == [1, 1, 2, 11]
    assert pacer.next_due(11) == pytest.approx(11_000_000)
    pacer = Pacer(1000, burst=10, count=25)
    assert [pacer.due(elapsed) for elapsed in (0, 9_999_999, 10_000_000, 10**9)] == [10, 10, 20, 25]
    assert pacer.next_due(12) == pytest.approx(10_000_000)
    assert pacer.next_due(25) == math.inf
