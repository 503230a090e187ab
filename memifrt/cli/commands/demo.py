"""``memifrt demo``: run a responder and a pinger, two processes that share only memory and an abstract socket."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import uuid
from pathlib import Path

import memifrt
from memifrt.cli.arguments import MANY, Command, Parser, add_loop_argument, seconds, whole
from memifrt.cli.commands.ping import PingOptions, ping
from memifrt.cli.program import ProgramInterface, default_mac, ended_by_signal, status_of_signal
from memifrt.errors import ErrorCode, MemifError
from memifrt.packets import format_ip
from memifrt.ring import __impl__ as rings

_RESPONDER_IP = bytes((192, 168, 1, 2))
_PINGER_IP = bytes((192, 168, 1, 1))
#: Not ``python -m memifrt``: that imports from the current directory first, which may have a logging.py.
_PROGRAM = f"""\
import sys
del sys.path[0]
sys.path.append({str(Path(memifrt.__file__).parent.parent)!r})
from memifrt.cli import main
sys.exit(main())"""
#: Seconds to wait for the end of the responder, which needs milliseconds.
_GRACE = 10.0


def demo(count: int, interval: float, *, loop: str = "internal") -> int:
    """Run the demo and return the exit status: 0 if every ping was answered.

    :raises MemifError: the responder did not start.
    """
    socket = f"@memifrt-demo-{uuid.uuid4().hex}"
    command = [sys.executable, "-c", _PROGRAM, "responder", "--role", "master", "--socket", socket]
    command += ["--ip", format_ip(_RESPONDER_IP), "--until-eof", "--loop", loop]
    # The responder ends when its standard input is closed, so it never outlives the demo.
    environment = {**os.environ, "MEMIFRT_RING": rings}  # the same as here; a warning about them is printed here
    # A session of its own, because Ctrl+C goes to all processes of the terminal's: Python would print a traceback if it
    # came while the responder starts.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as responder:
        try:
            _wait_until_listening(responder)
            print(f"responder: process {responder.pid}, master on {socket}")
            print(f"pinger:    process {os.getpid()}, slave", flush=True)
            pinger = ProgramInterface((_PINGER_IP,), default_mac(_PINGER_IP), socket)
            statistics = ping(PingOptions(_RESPONDER_IP, count, interval, once=True), pinger, loop=loop)
        finally:
            status = _end(responder)
    print(f"\n{statistics.received} of {count} pings were answered over shared memory.", flush=True)
    if ended_by_signal() and statistics.received < count:
        return status_of_signal()
    return 0 if statistics.received == count and status == 0 else 1


def _wait_until_listening(responder: subprocess.Popen[str]) -> None:
    assert responder.stdout is not None
    if not responder.stdout.readline():  # the responder has printed the error on standard error
        raise MemifError(ErrorCode.SYSCALL, f"the responder ended with status {responder.wait()} before it listened")


def _end(responder: subprocess.Popen[str]) -> int:
    assert responder.stdin is not None
    responder.stdin.close()
    try:
        return responder.wait(_GRACE)
    except subprocess.TimeoutExpired:
        responder.kill()
        return responder.wait()


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("-c", type=whole(1, MANY), default=5, dest="count", metavar="COUNT", help="pings; default 5")
    parser.add_argument(
        "-i", type=seconds, default=0.2, dest="interval", metavar="SECONDS", help="between two pings; default 0.2"
    )
    add_loop_argument(parser)


def _run(arguments: argparse.Namespace) -> int:
    return demo(arguments.count, arguments.interval, loop=arguments.loop)


COMMAND = Command(
    "demo",
    "run a responder and a pinger in two processes; it needs nothing else",
    """example:
  memifrt demo -c 100 -i 0.01

exit status: 0 if every ping was answered, 1 if not, 130 after Ctrl+C, 2 on other errors""",
    _add_arguments,
    _run,
)
