"""Lint, and the tests on each Python that is found: ``nox``. Needs ``pip install nox``, or the dev extra.

nox names the interpreters that it does not find and goes on. ``nox -s tests-3.12`` runs one. Arguments after ``--`` go
to pytest: ``nox -s tests-3.12 -- tests/ring``. An interpreter of pyenv must be on the path: ``pyenv shell 3.11 3.12``.
"""

from __future__ import annotations

import os
import subprocess

import nox

#: As in pyproject.toml's classifiers.
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
FREE_THREADED = ("3.13t", "3.14t")

nox.options.sessions = ("lint", "tests", "free_threaded")
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True


@nox.session
def lint(session: nox.Session) -> None:
    """Run the checks of make lint: ruff, spelling, prose and mypy --strict."""
    session.install("--editable", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("python", "-m", "tests.prose")
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the whole test suite on one Python."""
    session.install("--editable", ".[dev]")
    pygobject = subprocess.run(["make", "-s", "pygobject"], capture_output=True, text=True, check=True).stdout.strip()
    if pygobject:
        session.install(pygobject, success_codes=(0, 1))  # without it, the tests of GLib's loop are skipped
    jobs = str((os.cpu_count() or 1) + 2)  # as in the Makefile
    session.run("python", "-m", "pytest", "-n", jobs, "--dist", "worksteal", *session.posargs)


@nox.session(python=FREE_THREADED)
def free_threaded(session: nox.Session) -> None:
    """Run the rings' tests without the GIL."""
    session.install("hypothesis", "numpy", "pytest", "pytest-timeout", "pytest-xdist")
    session.install("--no-deps", "--editable", ".")
    session.run(
        "python", "-m", "pytest", "-q", "-p", "no:memifrt", *(session.posargs or ("tests/ring", "tests/memory"))
    )
