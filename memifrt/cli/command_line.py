"""The command line ``memifrt NAME``. Each name is a :class:`~memifrt.cli.arguments.Command`.

Owns the list of commands and the exit statuses. Every error is one line on standard error and status 2.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import memifrt
from memifrt.cli.arguments import Command, HelpFormatter, Parser, wrapped
from memifrt.cli.program import NoPeerError, complain, status_of_signal
from memifrt.errors import MemifError, did_you_mean, os_error

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer

#: The commands, in the order in which ``memifrt --help`` lists them. Each is a module of ``memifrt.cli.commands``,
#: which is imported when it is needed: a command that starts loads no other.
COMMANDS = (
    "demo",
    "responder",
    "ping",
    "dump",
    "replay",
    "generate",
    "throughput",
    "bridge",
    "switch",
    "extcap",
    "top",
    "doctor",
    "bench",
)

#: The name of standard output in errors.
_STDOUT = "standard output"
#: The width of lines that a man page keeps as they are: man indents them, on a terminal of 80 columns.
_MAN_WIDTH = 70

_EPILOG = """examples:
  memifrt demo
  memifrt responder --role master --socket @lab &
  memifrt ping --socket @lab 192.168.1.2"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    _open_missing_streams()
    _print_anything()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = f"memifrt {arguments[0]}" if arguments and not arguments[0].startswith("-") else "memifrt"
    before = sys.stdout
    sys.stdout = _named(before)
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except NoPeerError as error:
        complain(f"{name}: {error}")
        return 3
    except MemifError as error:
        return _fail(f"{name}: {error}")
    except BrokenPipeError:  # the reader of our output is gone (memifrt ping … | head)
        return 1
    except OSError as error:
        if error.filename == _STDOUT:
            error = os_error(f"cannot write to {_STDOUT}", error)
        return _fail(f"{name}: {error}")
    except KeyboardInterrupt:
        return status_of_signal()
    finally:
        _flush_or_discard()
        sys.stdout = before


def _flush_or_discard() -> None:
    """Leave nothing in the buffers of the standard streams.

    Python writes them at exit. If it cannot, it prints a traceback and changes the exit status to 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the command has said so, if it could
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def _run(arguments: list[str]) -> int:
    try:
        parsed = parse(arguments)
        command: Callable[[argparse.Namespace], int] = parsed.run
        return command(parsed)
    except SystemExit as error:  # argparse has printed
        return error.code if isinstance(error.code, int) else 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command.

    :raises SystemExit: they are wrong, which is printed; or they ask for help.
    """
    parser, commands = make_parsers(arguments)
    _refuse_unknown_names(parser, commands, arguments)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        command: Parser = parsed.parser
        options = [argument for argument in unknown if argument.startswith("-")]
        unknown = options or command.take_late(parsed, unknown)
        if unknown:
            command.refuse(unknown[0])
    return parsed


class _StandardOutput(io.FileIO):
    """Standard output, which its errors name."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk
            raise OSError(error.errno, error.strerror, _STDOUT) from None


def _named(stream: TextIO) -> TextIO:
    """Return standard output with errors that name it. Return what somebody has put in its place as it is."""
    if stream is not sys.__stdout__ or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    file: Any = _StandardOutput(stream.fileno(), "w", closefd=False)
    if not stream.write_through:  # python -u has no buffer
        file = io.BufferedWriter(file)
    return io.TextIOWrapper(
        file,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _open_missing_streams() -> None:
    """Replace standard streams that were closed (``memifrt ping … >&-``) by the null device.

    Otherwise the next files and sockets would get their numbers, and printing would fail.
    """
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))


def _print_anything() -> None:
    """Print characters that the encoding lacks as escapes: paths and the names of peers may have any."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse_unknown_names(parser: Parser, commands: dict[str, Parser], arguments: Sequence[str]) -> None:
    """End with an error if the command or one of its options does not exist, and name what was probably meant."""
    if not arguments:
        parser.error(f"name a command: {', '.join(commands)}")
    name, *rest = arguments
    if name.startswith("-"):
        parser.refuse_unknown_options([name])
        return
    if name not in commands:
        meant = did_you_mean(name, list(commands)) or f"; there are {', '.join(commands)}"
        parser.error(f"there is no command {name!r}{meant}")
    commands[name].refuse_unknown_options(rest)


def _fail(line: str) -> int:
    complain(line)
    return 2


def load_command(name: str) -> Command:
    """Return the command of this name, one of :data:`COMMANDS`."""
    command: Command = importlib.import_module(f"memifrt.cli.commands.{name}").COMMAND
    return command


class _PrintCompletion(argparse.Action):
    """Prints the script, and ends."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("--print-completion needs shtab, which is not installed: pip install 'memifrt[completion]'")
        print(shtab.complete(make_parser(), str(values)))
        parser.exit()


def make_parser() -> Parser:
    """Return the parser of the whole command line. Shell completion is made from it."""
    return make_parsers(())[0]


def make_man_parser() -> Parser:
    """Return the parser from which ``make man`` makes the man page.

    argparse-manpage leaves out what a command's help has below the options, so it stands above them here.
    """
    parser, commands = make_parsers(())
    for command in commands.values():
        command.description = "\n".join([command.description or "", "", *wrapped(command.epilog or "", _MAN_WIDTH), ""])
    return parser


def make_parsers(arguments: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser for these arguments, and those of the commands by name."""
    parser = Parser(
        "memifrt",
        description="memif, the shared memory packet interface, in Python.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.given = arguments
    parser.add_argument("--version", action="version", version=f"memifrt {memifrt.__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print a script that completes commands and options in this shell",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers: dict[str, Parser] = {}
    # Only the command that is called, unless none is, or one that does not exist.
    called = [name for name in COMMANDS if arguments and name == arguments[0]]
    for command in map(load_command, called or COMMANDS):
        sub = parsers[command.name] = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=command.epilog,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        sub.given = arguments
        sub.set_defaults(run=command.run, parser=sub)
        command.add_arguments(sub)
    return parser, parsers
