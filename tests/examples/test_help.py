"""``--help`` of the examples: what each does, every option, and an example that its parser takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.support import DEADLINE

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.glob("*/*.py") if "argparse" in path.read_text())


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_help_says_what_it_does_its_options_and_an_example(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    first, *rest = done.stdout.splitlines()
    assert first.endswith(".")
    assert any(line.startswith(f"  python {path.name} ") for line in rest)
    example = next(line for line in rest if line.startswith(f"  python {path.name} "))
    options = done.stdout.partition("\noptions:\n")[2]
    for option in re.findall(r" (--[a-z-]+)", example):
        assert f"\n  {option} " in f"\n{options}"
    # Each option has a text beside it or below it.
    for block in re.split(r"\n  (?=-)", f"\n{options}")[1:]:
        assert re.search(r" {2,}\S", block.strip().partition("\n")[0]) or "\n" in block.strip()
