"""``make bench``: measure everything side by side in one run, and write ``docs/benchmarks.md`` and its plots.

    python -m benchmarks.run [--only GROUP ...] [--rounds N] [--seconds N] [--write]
    python -m benchmarks.run --redraw

The cases of a group take turns, round after round, so that whatever else the machine does hits all of them. A figure is
the median of the rounds. What the project promises are ratios of medians: they are printed at the end, and the exit
status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.cases import Group, Plan
from benchmarks.groups import GROUPS
from benchmarks.promises import promises
from tests.lib import testpmd

DOCS = Path(__file__).resolve().parent.parent / "docs"


def run(groups: list[Group], rounds: int) -> None:
    """Take every figure ``rounds`` times."""
    for group in groups:
        for number in range(rounds):
            for case in group.cases:
                if case.take is not None:
                    shown = f"{group.title}: round {number + 1} of {rounds}, {case.name}"
                    print(f"\r{shown}\033[K", end="", file=sys.stderr)
                    case.figures.append(case.take())
    print("\r\033[K", end="", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="figures for each case; default 3")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure; default 0.5")
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="groups to run")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plots")
    parser.add_argument(
        "--baseline", type=Path, metavar="FOLDER", help="another version to compare with, its rings built in place"
    )
    parser.add_argument(
        "--free-threaded", default="", metavar="PYTHON", help="a free-threaded Python with memifrt installed"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="measure nothing: draw the plots of docs/benchmarks.md again"
    )
    arguments = parser.parse_args()
    if arguments.redraw:
        report.plots(report.read((DOCS / "benchmarks.md").read_text()), DOCS)
        return 0
    if os.cpu_count() in (None, 1):
        parser.error("two cores are needed: one for the device, one for what faces it")
    if testpmd.missing():
        print(f"measured without testpmd: {testpmd.missing()}", file=sys.stderr)
    plan = Plan(arguments.seconds, arguments.baseline, arguments.free_threaded)
    groups = [group for name in arguments.only for group in GROUPS[name](plan) if group.cases]
    run(groups, arguments.rounds)
    print(report.page(groups, arguments.rounds, arguments.seconds))
    if arguments.write:
        public = [group for group in groups if group.is_public]
        report.plots(public, DOCS)
        (DOCS / "benchmarks.md").write_text(report.page(public, arguments.rounds, arguments.seconds))
    lines, kept = promises(groups)
    print("\n".join(["## What must be reached", "", *lines]))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
