"""Compressed captures: what is written is read back, by us and by the tools, and a broken file is one clear error."""

from __future__ import annotations

import gzip
import importlib
import io
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memifrt import ConfigError
from memifrt.capture import compression, pcap
from memifrt.capture.compression import CompressedFile, Compression, DecompressedFile, without_suffix
from memifrt.capture.pcap import CaptureFileError, LinkType, check_writable, create_capture, open_capture, read_capture
from tests.lib.support import DEADLINE

TIME = 1_700_000_000_123_456_789
KINDS = [*Compression]
PACKETS = [bytes([number % 251]) * (60 + number % 1400) for number in range(2000)]


@pytest.fixture(autouse=True)
def _needs_zstd(request: pytest.FixtureRequest) -> None:
    call = getattr(request.node, "callspec", None)
    if call is not None and Compression.ZSTD in call.params.values():
        try:
            compression.check_library(Compression.ZSTD)
        except ConfigError as error:
            pytest.skip(str(error))


def write(path: Path) -> Path:
    with create_capture(str(path), [("x", LinkType.ETHERNET)]) as writer:
        for at in range(0, len(PACKETS), 100):
            writer.write(PACKETS[at : at + 100], TIME + at)
        assert writer.size <= writer.written
    return path


def packed(kind: Compression, data: bytes) -> bytes:
    if kind is Compression.GZIP:
        return gzip.compress(data)
    into = io.BytesIO()
    keep = into.close
    into.close = lambda: None  # type: ignore[method-assign]
    with CompressedFile(cast("BinaryIO", into), kind) as file:
        file.write(data)
    made = into.getvalue()
    keep()
    return made


def plain(tmp_path: Path, end: str = "pcap") -> bytes:
    return write(tmp_path / f"plain.{end}").read_bytes()


def read(data: bytes) -> list[bytes]:
    with read_capture(io.BytesIO(data), "test") as reader:
        return [packet.data for packet in reader]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["pcap", "pcapng", "PCAPNG"])
def test_a_compressed_capture_is_written_by_its_name_and_read_by_its_content(
    end: str, kind: Compression, tmp_path: Path
) -> None:
    path = write(tmp_path / f"x.{end}{kind.value}")
    assert Compression.of_content(path.read_bytes()[:4]) is kind
    other = path.rename(tmp_path / "any-name")
    with open_capture(other) as reader:
        found = [*reader]
        assert reader.offset == reader.size == other.stat().st_size
    assert [packet.data for packet in found] == PACKETS
    assert found[-1].time == TIME + 1900
    assert other.stat().st_size < sum(map(len, PACKETS)) / 4


@pytest.mark.parametrize(("kind", "tool"), [(Compression.GZIP, "gzip"), (Compression.ZSTD, "zstd")])
def test_the_tools_read_what_we_write_and_we_what_they_write(kind: Compression, tool: str, tmp_path: Path) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    made = write(tmp_path / f"x.pcap{kind.value}").read_bytes()
    unpack = [tool, "-d", "-c"]
    done = subprocess.run(unpack, input=made, capture_output=True, check=True, timeout=DEADLINE)
    assert done.stdout == plain(tmp_path)
    theirs = subprocess.run([tool, "-c"], input=done.stdout, capture_output=True, check=True, timeout=DEADLINE).stdout
    assert read(theirs) == PACKETS


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_several_members_is_read_to_its_end(kind: Compression, tmp_path: Path) -> None:
    data = plain(tmp_path)
    pieces = [data[:2], data[2:5000], b"", data[5000:]]
    assert read(b"".join(packed(kind, piece) for piece in pieces)) == PACKETS


def test_zeros_after_gzip_data_are_padding(tmp_path: Path) -> None:
    assert read(gzip.compress(plain(tmp_path)) + bytes(100_000)) == PACKETS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [3, 4, 9, 200, 3000, -9, -1])
def test_a_file_that_was_cut_off_says_where(left: int, kind: Compression, tmp_path: Path) -> None:
    data = packed(kind, plain(tmp_path))[:left]
    with pytest.raises(CaptureFileError) as error:
        read(data)
    if Compression.of_content(data) is None:
        assert "not a pcap or pcapng file: it starts with 0x" in str(error.value)
    else:
        name = kind.name.lower()
        assert (
            str(error.value)
            == f"test: at byte {len(data)} of the {name} data: they end too early; the file was cut off"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_broken_data_say_where_and_the_packets_before_are_given(kind: Compression, tmp_path: Path) -> None:
    data = packed(kind, plain(tmp_path))
    found: list[bytes] = []

    def read_all() -> None:
        with read_capture(io.BytesIO(data[:-400] + bytes(200) + data[-200:]), "test") as reader:
            found.extend(packet.data for packet in reader)

    with pytest.raises(CaptureFileError, match=r"^test: at .*byte \d+ "):
        read_all()
    assert found == PACKETS[: len(found)]
    garbage = b"garbage!" * 4
    with pytest.raises(CaptureFileError, match="they are broken"):
        read(data + garbage)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_file_that_is_no_capture_says_so(kind: Compression) -> None:
    with pytest.raises(CaptureFileError, match="it starts with 0x23212f62 after decompression"):
        read(packed(kind, b"#!/bin/sh"))
    with pytest.raises(CaptureFileError, match="the file is empty"):
        read(packed(kind, b""))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_a_decompressed_capture_names_the_position_after_decompression(
    kind: Compression, tmp_path: Path
) -> None:
    with pytest.raises(CaptureFileError, match=r"at byte \d+ after decompression: the file ends within packet 2000"):
        read(packed(kind, plain(tmp_path)[:-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_is_read_in_bounded_pieces(kind: Compression) -> None:
    """64 MiB from some KiB: no piece is longer than what few bytes of input can become."""
    bomb = packed(kind, bytes(64 << 20))
    file = DecompressedFile(cast("BinaryIO", io.BytesIO(bomb)), "bomb", kind, b"")
    room = bytearray(1 << 16)
    total = largest = 0
    while count := file.readinto(room):
        total += count
        largest = max(largest, len(file._ready))
    assert total == 64 << 20
    assert largest <= 33 << 20
    file.close()


def test_a_bomb_of_interfaces_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcap, "_MAX_INTERFACES", 1000)
    block = (1).to_bytes(4, "little") + (20).to_bytes(4, "little") + bytes(8) + (20).to_bytes(4, "little")
    start = bytes.fromhex("0a0d0d0a 1c000000 4d3c2b1a 0100 0000 ffffffffffffffff 1c000000")
    with pytest.raises(CaptureFileError, match="more than 1000 interfaces in a section"):
        read(gzip.compress(start + block * 1001))
    assert read(gzip.compress((start + block * 600) * 3)) == []


def test_without_a_library_for_zstd_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for call in (
        lambda: check_writable(str(tmp_path / "x.pcap.zst")),
        lambda: create_capture(str(tmp_path / "x.pcap.zst"), [("x", LinkType.ETHERNET)]),
        lambda: read(bytes.fromhex("28b52ffd00")),
    ):
        with pytest.raises(
            ConfigError, match=r"^files compressed with zstd need a package: pip install 'memifrt\[zstd\]'$"
        ):
            cast("Callable[[], object]", call)()
    assert not (tmp_path / "x.pcap.zst").exists()


def test_a_flush_lets_a_reader_see_the_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_FLUSH_INTERVAL", 0.0)
    path = tmp_path / "x.pcap.gz"
    with create_capture(str(path), [("x", LinkType.ETHERNET)]) as writer:
        writer.write([b"first"], TIME)
        writer.flush()
        assert zlib.decompressobj(31).decompress(path.read_bytes()).endswith(b"first")


def test_suffixes() -> None:
    assert without_suffix("a/b.pcap.GZ") == ("a/b.pcap", ".GZ")
    assert without_suffix("a.pcapng.zst") == ("a.pcapng", ".zst")
    assert without_suffix("a.pcap") == ("a.pcap", "")


@given(
    st.binary(max_size=200), st.sampled_from([b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b"\x1f\x8b"])
)
def test_no_compressed_data_raise_anything_but_a_clear_error(garbage: bytes, start: bytes) -> None:
    if start[0] != 0x1F and not ("zstandard" in sys.modules or sys.version_info >= (3, 14)):
        return
    said = "test: "
    try:
        read(start + garbage)
    except CaptureFileError as error:
        said = str(error)
    assert said.startswith("test: ")
