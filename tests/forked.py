"""Checks that run in a forked child, which shares every fd of the test and may give up its rights."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable

#: The uid and gid of nobody.
NOBODY = 65534


def in_child(check: Callable[[], None], *, uid: int | None = None) -> None:
    """Run ``check`` in a forked child, as ``uid`` where root can; what it raises there fails the test here."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that the child lacks, and a test runner may have some: no check waits for one.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        # _exit whatever happens: a child that went on would run the rest of the tests.
        status = 1
        try:
            if uid is not None and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the check failed in the child: see its stderr"
