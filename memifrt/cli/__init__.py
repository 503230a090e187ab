"""The command line: ``memifrt COMMAND``."""

from memifrt.cli.command_line import main

__all__ = ["main"]
