"""The command line ``memifrt NAME``. Each name is a :class:`~memifrt.cli.arguments.Command`.

Owns the list of commands and the exit statuses. Every error is one line on standard error and status 2.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

import memifrt
from memifrt.cli.arguments import Command, Parser
from memifrt.cli.commands import (
    bench,
    bridge,
    demo,
    doctor,
    dump,
    generate,
    ping,
    replay,
    responder,
    throughput,
    top,
)
from memifrt.cli.program import NoPeerError, complain
from memifrt.errors import MemifError

#: In the order in which ``memifrt --help`` lists them.
COMMANDS: tuple[Command, ...] = (
    demo.COMMAND,
    responder.COMMAND,
    ping.COMMAND,
    dump.COMMAND,
    replay.COMMAND,
    generate.COMMAND,
    throughput.COMMAND,
    bridge.COMMAND,
    top.COMMAND,
    doctor.COMMAND,
    bench.COMMAND,
)

_EPILOG = """examples:
  memifrt demo
  memifrt responder --role master --socket @lab &
  memifrt ping --socket @lab 192.168.1.2"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    _print_anything()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments)
    try:
        parsed, unknown = parser.parse_known_args(arguments)
        if unknown:
            parser.prog = f"memifrt {parsed.command}"  # its --help lists the arguments
            # Show only the name: the value may be the secret of a misspelt --secret.
            parser.error(f"unknown argument {unknown[0].partition('=')[0]}")
        command: Callable[[argparse.Namespace], int] = parsed.run
        return command(parsed)
    except SystemExit as error:  # argparse has printed
        return error.code if isinstance(error.code, int) else 2
    except NoPeerError as error:
        complain(f"memifrt {parsed.command}: {error}")
        return 3
    except MemifError as error:
        return _fail(f"memifrt {parsed.command}: {error}")
    except BrokenPipeError:
        # The reader of our output is gone (memifrt ping … | head). The flush at exit must not fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"memifrt {parsed.command}: {error}")
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT: outside the part that handles signals


def _print_anything() -> None:
    """Print characters that the encoding lacks as escapes: paths and the names of peers may have any."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(line: str) -> int:
    complain(line)
    return 2


def _parser(arguments: Sequence[str]) -> Parser:
    parser = Parser(
        "memifrt",
        description="memif, the shared memory packet interface, in Python.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.given = arguments
    parser.add_argument("--version", action="version", version=f"memifrt {memifrt.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.given = arguments
        sub.set_defaults(run=command.run)
        command.add_arguments(sub)
    return parser
