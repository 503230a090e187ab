"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile

from memifrt.errors import os_error


def write_whole(path: str, data: bytes) -> None:
    """Write a file. If that fails, or the program ends meanwhile, what was there before is still there.

    An old file keeps its owner, group, mode, ACL and user attributes, and a symbolic link still points to it. If this
    process cannot make another file like it, or if it has several names (hard links), it is written in place, so that
    an error may leave half of the data. So is a path that is no regular file, such as a pipe or ``/dev/stdout``.

    :raises MemifOSError: it cannot be written.
    """
    try:
        _write(path, data)
    except OSError as error:
        raise os_error(f"cannot write {path}", error, path=path) from error


def _write(path: str, data: bytes) -> None:
    try:
        old = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # a file that we may not write is not replaced, either
    except FileNotFoundError:
        _write_beside(path, data, None)
        return
    with open(old, "wb") as file:
        status = os.fstat(old)
        is_plain = stat.S_ISREG(status.st_mode)
        if is_plain and status.st_nlink == 1 and _write_beside(path, data, old):
            return
        if is_plain:
            os.ftruncate(old, 0)
        file.write(data)


def _write_beside(path: str, data: bytes, old: int | None) -> bool:
    """Write a new file, and give it the name of the old one.

    :param old: an fd of the old file, which the new one is made like; None if there is none.
    :returns: False if this process cannot make such a file; nothing has changed then.
    """
    path = os.path.realpath(path)  # a symbolic link stays one
    try:
        fd, beside = tempfile.mkstemp(prefix=".memifrt-", dir=os.path.dirname(path))
    except PermissionError:
        if old is None:
            raise
        return False
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if old is None:
                os.fchmod(fd, 0o666 & ~_umask())
            elif not _make_like(fd, old):
                os.unlink(beside)
                return False
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    return True


def _make_like(fd: int, old: int) -> bool:
    """Give a new file the owner, group, mode, ACL and user attributes of the old one; return whether we may."""
    status, new = os.fstat(old), os.fstat(fd)
    try:
        if (status.st_uid, status.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, stat.S_IMODE(status.st_mode))  # after fchown, which clears the bits for set-user-ID
        for name in _attributes(old):
            if name.startswith("user.") or name == "system.posix_acl_access":
                os.setxattr(fd, name, os.getxattr(old, name))
    except OSError:
        return False
    return True


def _attributes(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError:  # the file system has none
        return []


def _umask() -> int:
    """Return the mask for the permissions of new files: it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
