"""Packets go through under a seccomp profile that refuses the calls which memifrt can do without."""

from __future__ import annotations

import errno
import platform
import subprocess
import sys

import pytest

from tests.lib.support import DEADLINE

#: The numbers of these calls.
CALLS = {
    "x86_64": {"io_setup": 206, "io_getevents": 208, "io_submit": 209, "preadv2": 327},
    "aarch64": {"io_setup": 0, "io_getevents": 4, "io_submit": 2, "preadv2": 286},
}.get(platform.machine(), {})
#: What the program below exits with where the kernel or a container forbids filters.
NO_FILTERS = 77

#: Refuse the calls with the numbers argv[2:], with the errno argv[1]. Then run the demo, which inherits the filter.
PROGRAM = f"""
import ctypes, os, struct, sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
refusal, *calls = map(int, sys.argv[1:])
steps = [struct.pack("HBBI", LOAD, 0, 0, 0)]
for call in calls:  # another call jumps over the next step
    steps.append(struct.pack("HBBI", JUMP_IF_EQUAL, 0, 1, call))
    steps.append(struct.pack("HBBI", RETURN, 0, 0, 0x50000 | refusal))
steps.append(struct.pack("HBBI", RETURN, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(steps))
program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program):
    sys.exit({NO_FILTERS})
for call in calls:
    assert libc.syscall(call, 0, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == refusal, "the filter has no effect"
os.execv(sys.executable, [sys.executable, "-m", "memifrt", "demo", "-c", "3", "-i", "0.01"])
"""


@pytest.mark.skipif(not CALLS, reason=f"the numbers of the calls are not known for {platform.machine()}")
@pytest.mark.parametrize(
    ("calls", "refusal"),
    [
        (["preadv2"], errno.EPERM),
        (["preadv2"], errno.EACCES),
        (["preadv2"], errno.ENOSYS),
        (["io_setup"], errno.EPERM),
        (["io_setup"], errno.EAGAIN),  # as if aio-max-nr were reached
        (["io_submit"], errno.EPERM),
        (["io_submit"], errno.ENOSYS),
        (list(CALLS), errno.EPERM),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else errno.errorcode[value],
)
def test_refused_calls_have_a_substitute(calls: list[str], refusal: int) -> None:
    numbers = [str(CALLS[call]) for call in calls]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(refusal)), *numbers],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if done.returncode == NO_FILTERS:
        pytest.skip("seccomp filters are not allowed here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 packets transmitted, 3 received" in done.stdout
