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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away: run the tests as root")
@pytest.mark.parametrize("may_give_away", [True, False])
def test_the_file_of_another_user_keeps_owner_group_and_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_give_away: bool
) -> None:
    def refuse(fd: int, user: int, group: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "x"
    path.write_bytes(b"before, and longer")
    os.chown(path, 12345, 23456)
    path.chmod(0o664)
    inode = path.stat().st_ino
    if not may_give_away:  # as a user who may write the file, but does not own it
        monkeypatch.setattr(os, "fchown", refuse)
    write_whole(str(path), b"after")
    status = path.stat()
    assert path.read_bytes() == b"after"
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o664)
    assert (status.st_ino == inode) is not may_give_away
    assert [*tmp_path.iterdir()] == [path]


def test_all_names_of_a_file_get_the_new_content(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"before, and longer")
    (tmp_path / "y").hardlink_to(tmp_path / "x")
    write_whole(str(tmp_path / "x"), b"after")
    assert (tmp_path / "y").read_bytes() == b"after"


def test_attributes_of_the_user_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    try:
        os.setxattr(path, "user.memifrt", b"1")
    except OSError:
        pytest.skip("the file system of the temporary folder has no attributes: set TMPDIR to one that has them")
    write_whole(str(path), b"after")
    assert os.getxattr(path, "user.memifrt") == b"1"


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
