"""The command line: ``memifrt COMMAND``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    # Imported here: other parts of the package use this folder's modules without the commands.
    from memifrt.cli.command_line import main as run

    return run(argv)


__all__ = ["main"]
