"""Which ring implementation is in use, and what an installation makes of it: with a compiler and without one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import types
import warnings
import zipfile
from pathlib import Path

import pytest

import memifrt.ring
from memifrt import Runtime

PROJECT = Path(__file__).parents[2]
#: What goes into an sdist, and all that a build needs.
SOURCES = [
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "memifrt",
    "memifrt_command.py",
    "pyproject.toml",
    "setup.py",
]
#: What the compiled rings are made of.
RING_SOURCES = {
    path.relative_to(PROJECT).as_posix()
    for pattern in ("*.pyx", "*.pxi", "*.h")
    for path in (PROJECT / "memifrt" / "ring").glob(pattern)
}
#: And what the calls of eventfds are made of.
EVENTFD_SOURCES = {f"memifrt/system/{name}" for name in ("_eventfd.pyx", "_eventfd.pxd", "eventfd_calls.h")}
#: And the guards of memory that a peer may truncate.
SIGBUS_SOURCES = {f"memifrt/memory/{name}" for name in ("_sigbus.pyx", "memif_sigbus.h")}
#: And what passes events to handlers.
DISPATCH_SOURCES = {"memifrt/poll/_dispatch.pyx"}
WHICH = "import memifrt.ring; print(memifrt.ring.__impl__)"
SLOW = "packets go through the rings in Python"
WITHOUT_NATIVE = "import sys; sys.modules['memifrt.ring._native'] = None; "


def clean_environment(**variables: str) -> dict[str, str]:
    """This environment without what would choose rings or modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMIFRT_", "PYTHON"))}
    return {**kept, **variables}


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", code, cwd=PROJECT, **variables)


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """Its standard output."""
    assert done.returncode == 0, f"{done.args}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- the loader -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native", "python"])
def test_environment_forces_an_implementation(name: str) -> None:
    code = f"{WHICH}; print(memifrt.ring.implementation is memifrt.ring.load({name!r}))"
    assert succeeded(python(code, MEMIFRT_RING=name)).split() == [name, "True"]


def test_compiled_rings_are_chosen_where_they_are() -> None:
    assert succeeded(python(WHICH)).split() == ["native"]


def test_unknown_implementation_is_an_import_error_that_names_those_there_are() -> None:
    done = python("import memifrt", MEMIFRT_RING="nonsense")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: MEMIFRT_RING is 'nonsense'; it must be one of native, python"


def test_forcing_missing_compiled_rings_is_an_import_error_that_says_why() -> None:
    done = python(WITHOUT_NATIVE + "import memifrt", MEMIFRT_RING="native")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: the native ring implementation cannot be imported (import of")
    assert "C compiler" in last


USE_TWICE = """
import sys, uuid, memifrt
for _ in range(2):
    with memifrt.Runtime() as runtime:
        for number in range(2):
            runtime.create_interface(socket=f"@{uuid.uuid4().hex}", role="master", id=number)
"""


def test_missing_compiled_rings_are_told_once() -> None:
    done = python(WITHOUT_NATIVE + USE_TWICE + WHICH)
    assert succeeded(done).split() == ["python"]
    (line,) = done.stderr.splitlines()
    assert SLOW in line
    assert "the native ring implementation cannot be imported" in line
    assert "C compiler" in line


IN_SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import memifrt
print("main interpreter", flush=True)
interpreter = interpreters.create()
interpreters.run_string(interpreter, {code!r})
interpreters.destroy(interpreter)
"""


def test_a_subinterpreter_is_told_why_its_rings_are_slow() -> None:
    done = python(IN_SUBINTERPRETER.format(code=USE_TWICE + WHICH))
    if sys.version_info[:2] == (3, 12):  # has no ctypes in subinterpreters, and the rings in Python need it
        assert done.returncode == 1
        line = done.stderr.splitlines()[-1]
        assert "the python ring implementation cannot be imported" in line
    else:
        assert succeeded(done).split() == ["main", "interpreter", "python"]
        (line,) = done.stderr.splitlines()
        assert SLOW in line
    assert "use memifrt in the main interpreter" in line
    assert "C compiler" not in line


@pytest.mark.parametrize("name", ["native", "python"])
def test_implementation_that_was_asked_for_is_not_commented(name: str) -> None:
    done = python(USE_TWICE, MEMIFRT_RING=name)
    assert (succeeded(done), done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("name", "machine", "warned"),
    [("python", "aarch64", True), ("python", "x86_64", False), ("native", "aarch64", False)],
)
def test_reference_warns_where_memory_is_not_ordered(
    runtime: Runtime,
    socket_name: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    machine: str,
    warned: bool,
) -> None:
    monkeypatch.setattr(memifrt.ring, "__impl__", name)
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine=machine))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runtime.create_interface(socket=socket_name, role="slave")
    assert [warning.category for warning in caught] == [RuntimeWarning] * warned
    for warning in caught:
        assert warning.filename == __file__
        assert f"this is {machine}" in str(warning.message)
        assert "C compiler" in str(warning.message)


# --- an installation ------------------------------------------------------------------------------------------------


def test_every_source_of_the_compiled_rings_builds_them_anew_when_it_changes() -> None:
    included = [*re.findall(r'include "(.+)"', (PROJECT / "memifrt/ring/_native.pyx").read_text()), "memif_ring.h"]
    assert {f"memifrt/ring/{name}" for name in ["_native.pyx", *included]} == RING_SOURCES
    built = succeeded(run("make", "--silent", "--eval", "show: ; @echo $(BUILT)", "show", cwd=PROJECT)).split()
    assert set(built) >= RING_SOURCES | EVENTFD_SOURCES | SIGBUS_SOURCES | DISPATCH_SOURCES


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what an sdist is made of; nothing in it is built."""
    copy = tmp_path / "sources"
    copy.mkdir()
    unbuilt = shutil.ignore_patterns(
        "__pycache__", "*.so", "_native.c", "_eventfd.c", "_sigbus.c", "_dispatch.c", "_packets.c"
    )
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, copy / name, ignore=unbuilt)
        else:
            shutil.copy(PROJECT / name, copy / name)
    return copy


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An empty virtual environment."""
    succeeded(run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path))
    return tmp_path / "venv"


def install(venv: Path, what: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "--disable-pip-version-check"]
    return run(*pip, "install", "--no-deps", what, cwd=venv, **variables)


def installed(venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's Python where there is nothing else: no compiler, no source tree."""
    return run(venv / "bin" / "python", *arguments, cwd=venv, PATH=str(venv / "bin"))


@pytest.mark.packaging
@pytest.mark.timeout(300)
def test_wheel_runs_in_an_empty_environment_without_a_compiler(sources: Path, venv: Path, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    # Without optimisation: compiling is most of this test.
    succeeded(run(sys.executable, "-m", "build", "--outdir", dist, sources, cwd=tmp_path, CFLAGS="-O0"))
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    package = {*RING_SOURCES, *EVENTFD_SOURCES, *SIGBUS_SOURCES, *DISPATCH_SOURCES, "memifrt/poll/_dispatch.pyi"}
    package |= {"memifrt/ring/_native.pyi", "memifrt/memory/_sigbus.pyi", "memifrt/py.typed"}
    assert shipped >= {"LICENSE", "README.md", "pyproject.toml", "setup.py", *package}
    assert not [name for name in shipped if name.endswith((".c", ".so"))]
    with zipfile.ZipFile(wheel) as contents:
        assert package <= set(contents.namelist())
    succeeded(install(venv, wheel, CC="/nonexistent/cc"))
    assert succeeded(installed(venv, "-c", WHICH)).split() == ["native"]
    demo = installed(venv, "-m", "memifrt", "demo", "-c", "2")
    assert "2 of 2 pings were answered" in succeeded(demo)
    assert SLOW not in demo.stderr


@pytest.mark.packaging
@pytest.mark.timeout(300)
def test_installation_without_a_compiler_succeeds_on_the_reference_and_says_so(
    sources: Path, venv: Path, tmp_path: Path
) -> None:
    succeeded(install(venv, sources, CC="/nonexistent/cc", PATH=str(tmp_path)))
    assert succeeded(installed(venv, "-c", WHICH)).split() == ["python"]
    demo = installed(venv, "-m", "memifrt", "demo", "-c", "2")
    assert "2 of 2 pings were answered" in succeeded(demo)
    (line,) = [line for line in demo.stderr.splitlines() if SLOW in line]
    assert "C compiler" in line
