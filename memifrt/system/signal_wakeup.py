"""Make signals wake a loop that waits for fds.

Owns the process's wakeup fd (``signal.set_wakeup_fd``) while it is installed. Knows nothing of loops.

C code writes a byte to the wakeup fd when a signal comes. Python's own handler runs later, between two bytecodes. If a
wait begins before that, the handler would run only after the wait. The wakeup fd ends the wait.
"""

from __future__ import annotations

import contextlib
import os

from memifrt.errors import os_error
from memifrt.system.fds import OwnedFd
from memifrt.system.forks import abandon_after_fork
from memifrt.system.original_functions import read, set_wakeup_fd


class SignalWakeup:
    """A pipe that becomes readable with each signal of this process. Use it in the main thread.

    :raises MemifOSError: the process has too many open files.
    """

    def __init__(self) -> None:
        try:
            near, far = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise os_error("cannot make the pipe that wakes the loop for signals", error) from error
        self._near, self._far = OwnedFd(near, "signals"), OwnedFd(far, "wakeup fd")
        #: Whether signals are written here. False if the process has a wakeup fd already.
        self.installed = True
        before = set_wakeup_fd(far, warn_on_full_buffer=False)
        if before >= 0:
            set_wakeup_fd(before)
            self.installed = False
        abandon_after_fork(self._abandon)

    def fileno(self) -> int:
        """Return the fd that becomes readable."""
        return self._near.fileno()

    def drain(self) -> None:
        """Make it unreadable."""
        with contextlib.suppress(BlockingIOError):
            while len(read(self._near.fileno(), 4096)) == 4096:
                pass

    def uninstall(self) -> None:
        """Write no more signals here, unless somebody else has installed another fd meanwhile."""
        if self.installed:
            self.installed = False
            now = set_wakeup_fd(-1)
            if now not in (-1, self._far.fileno()):
                set_wakeup_fd(now)

    def close(self) -> None:
        """Close both ends. A second call does nothing."""
        self.uninstall()
        self._near.close()
        self._far.close()

    def _abandon(self) -> None:
        """Keep the signals of a forked child away from the parent's pipe."""
        self.uninstall()
        self._near.detach()
        self._far.detach()
