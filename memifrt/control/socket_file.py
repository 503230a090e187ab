"""The file of a listener: its mode and owner, whether it is still ours, and its removal.

Owns an fd of the file itself (``O_PATH``), so that no other file is ever taken for it. Knows nothing of listening.
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
    """The file at ``path`` that ``bind`` has just made.

    While it is open its inode is not used again: a file that somebody else has put in its place is a different one.

    :raises OSError: it cannot be opened; the caller removes it.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        super().__init__(open_fd(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC), f"socket file {path}")
        self.path = path

    def set_permissions(self, wanted: FilePermissions) -> None:
        """Give the file its owner, then its mode. To be called before ``listen``: until then nobody can connect.

        By way of the fd and not of the path, which somebody may have made a link to a file of ours meanwhile.

        :raises MemifOSError: with the errno: EPERM for an owner that this process may not give.
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
        """Whoever may write in the directory could have moved another file here between ``bind`` and ``open``."""
        if not stat.S_ISSOCK(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
            error = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            raise os_error(
                f"somebody has replaced the socket file {self.path} while it was made", error, path=self.path
            )

    def remove(self) -> None:
        """Remove the file from its path, if it is there; another's file stays. What went wrong is logged."""
        if self.closed or self._pid != os.getpid():
            return
        try:
            there = os.lstat(self.path)
        except OSError as error:
            logger.info("the socket file %s is gone already: %s", self.path, error.strerror)
            return
        if not os.path.samestat(there, os.fstat(self.fileno())):
            logger.warning("the file at %s is not the one that was made to listen on: it stays", self.path)
            return
        try:
            os.unlink(self.path)
        except OSError as error:
            logger.warning("cannot remove the socket file %s: %s", self.path, error.strerror)

    def __del__(self) -> None:
        # A runtime that is forgotten closes its listeners, but the collector may come here before it comes there.
        if getattr(self, "path", None) is not None:
            with contextlib.suppress(Exception):
                self.remove()
        super().__del__()


def open_new(path: str) -> SocketFile:
    """The file that ``bind`` has just made at ``path``; it is removed if it cannot be opened.

    :raises OSError: as ``open`` does.
    """
    try:
        return SocketFile(path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def is_other_file(path: str) -> bool:
    """Whether there is a file at ``path`` that is not a socket."""
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def not_a_socket(what: str, error: OSError, path: str) -> MemifOSError:
    """The error for a file of another kind, with the errno of what was tried."""
    return os_error(f"{what}: a file that is not a socket is there", error, path=path, code=ErrorCode.FILE_NOT_SOCK)
