"""Checks that run in a forked child, which shares every fd of the test and may give up its rights."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator

from tests.lib.patched import fork, settle

#: The uid and gid of nobody.
NOBODY = 65534


def in_child(check: Callable[[], None], *, uid: int | None = None) -> None:
    """Run ``check`` in a forked child, as ``uid`` where root can; what it raises there fails the test here."""
    pid = _fork(check, uid)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the check failed in the child: see its stderr"


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[int]:
    """A forked child that does ``work`` meanwhile, and is killed at the end; its pid."""
    pid = _fork(work, None)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)  # not waited for yet: the pid is still the child's
        os.waitpid(pid, 0)


def _fork(work: Callable[[], None], uid: int | None) -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that the child lacks, and a test runner may have some: no check waits for one.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = fork()
    if pid:
        return pid
    # _exit whatever happens: a child that went on would run the rest of the tests.
    status = 1
    try:
        if uid is not None and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        settle()  # gevent opens its own fds anew
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
