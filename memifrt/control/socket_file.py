"""The socket file of a listener: set its mode and owner, and remove it if it is still ours.

Owns an fd of the file (``O_PATH``), so that no other file at the same path is mistaken for it. Knows nothing of
listening.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat

from memifrt.control.permissions import FilePermissions
from memifrt.errors import ErrorCode, MemifOSError, os_error
from memifrt.system.fds import OwnedFd
from memifrt.system.original_functions import open_fd

logger = logging.getLogger("memifrt")


class SocketFile(OwnedFd):
    """The file that ``bind`` has just created at ``path``.

    While the fd is open the kernel does not reuse the inode, so a file that has replaced ours always differs from it.

    :raises OSError: the file cannot be opened. The caller removes it.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        super().__init__(open_fd(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC), f"socket file {path}")
        self.path = path

    def set_permissions(self, wanted: FilePermissions) -> None:
        """Set the owner of the file, then its mode. Call it before ``listen``: until then no peer can connect.

        It uses the fd, because another user may have replaced the path by a link to a different file of ours.

        :raises MemifOSError: with the errno; EPERM: this process may not set the owner.
        """
        status = os.fstat(self.fileno())
        uid = status.st_uid if wanted.uid is None else wanted.uid
        gid = status.st_gid if wanted.gid is None else wanted.gid
        mode = stat.S_IMODE(status.st_mode) if wanted.mode is None else wanted.mode
        itself = f"/proc/self/fd/{self.fileno()}"
        self._check_new(status)
        try:
            if (uid, gid) != (status.st_uid, status.st_gid):
                os.chown(itself, uid, gid)
            if mode != stat.S_IMODE(status.st_mode):
                os.chmod(itself, mode)
        except OSError as error:
            what = f"cannot give the socket file {self.path} to uid {uid}, gid {gid} with mode {mode:#o}"
            raise os_error(what, error, path=self.path) from error

    def _check_new(self, status: os.stat_result) -> None:
        """Check that this is the file that ``bind`` created.

        Between ``bind`` and ``open`` every user with write access to the directory could have moved another file here.
        """
        if not stat.S_ISSOCK(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
            error = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            raise os_error(
                f"another process replaced the socket file {self.path} while it was created", error, path=self.path
            )

    def remove(self) -> None:
        """Remove the file, unless another file has replaced it. Failures are logged, not raised."""
        if self.closed or self._pid != os.getpid():
            return
        try:
            there = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            logger.info("another process has already removed the socket file %s", self.path)
            return
        except OSError as error:
            logger.warning("cannot remove the socket file %s: %s", self.path, error.strerror)
            return
        if not os.path.samestat(there, os.fstat(self.fileno())):
            logger.warning("not removing %s: another file has replaced our socket file", self.path)
            return
        try:
            os.unlink(self.path)
        except OSError as error:
            logger.warning("cannot remove the socket file %s: %s", self.path, error.strerror)

    def __del__(self) -> None:
        # An unclosed runtime closes its listeners when it is collected, but this object may be collected first.
        if getattr(self, "path", None) is not None:
            with contextlib.suppress(Exception):
                self.remove()
        super().__del__()


def open_new(path: str) -> SocketFile:
    """Open the file that ``bind`` has just created at ``path``. If that fails, remove the file.

    :raises OSError: as ``open`` does.
    """
    try:
        return SocketFile(path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def is_other_file(path: str) -> bool:
    """Return whether there is a file at ``path`` that is not a socket."""
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def not_a_socket(what: str, error: OSError, path: str) -> MemifOSError:
    """Return the error for a file that is not a socket, with the errno of ``error``."""
    return os_error(f"{what}: a file that is not a socket is there", error, path=path, code=ErrorCode.FILE_NOT_SOCK)
