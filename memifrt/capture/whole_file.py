"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile

from memifrt.errors import os_error


def write_whole(path: str, data: bytes) -> None:
    """Write a file. If that fails, or the program ends meanwhile, what was there before is still there.

    A path that is no regular file, such as a pipe or ``/dev/stdout``, is written directly.

    :raises MemifOSError: it cannot be written.
    """
    try:
        _write(path, data)
    except OSError as error:
        raise os_error(f"cannot write {path}", error, path=path) from error


def _write(path: str, data: bytes) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        with open(path, "wb") as file:
            file.write(data)
        return
    path = os.path.realpath(path)  # a symbolic link stays one
    try:
        fd, beside = tempfile.mkstemp(prefix=".memifrt-", dir=os.path.dirname(path))
    except PermissionError:  # only the file itself may be written
        with open(path, "wb") as file:
            file.write(data)
        return
    try:
        with open(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, 0o666 & ~_umask() if mode is None else stat.S_IMODE(mode))
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _umask() -> int:
    """Return the mask for the permissions of new files: it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
