"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from memifrt import MemifOSError
from memifrt.capture.whole_file import write_whole


def test_a_file_is_replaced_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    path.chmod(0o640)
    write_whole(str(path), b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_whole(str(tmp_path / "x"), b"1")
    (tmp_path / "y").write_bytes(b"1")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "x")
    write_whole(str(tmp_path / "link"), b"1")
    write_whole(str(tmp_path / "link"), b"2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x").read_bytes() == b"2"


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "x"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(MemifOSError, match=f"cannot write {path}: No space left on device"):
        write_whole(str(path), b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_directly() -> None:
    reader, writer = os.pipe()
    try:
        write_whole(f"/dev/fd/{writer}", b"data")
        assert os.read(reader, 9) == b"data"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(("path", "part"), [("/dev/full", "No space left"), ("/none/x", "No such file")])
def test_errors_name_the_path(path: str, part: str) -> None:
    with pytest.raises(MemifOSError, match=f"cannot write {path}: {part}"):
        write_whole(path, b"data")
