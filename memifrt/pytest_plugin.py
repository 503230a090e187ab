"""pytest fixtures for tests of programs that use memif: a VPP plugin, a DPDK application, your own program.

Owns the fixtures, the ini options, and the artefacts of tests that fail. ``memifrt.testing`` has what they give. The
fixture :func:`memif` makes ports, pairs, listeners, responders and peers (VPP, testpmd) with any options. The other
fixtures are shorthands, and :func:`memif_fixture` makes more of them, of any scope. A background thread handles every
interface, so a test is a sequence of sends and receives, each with a deadline::

    def test_plugin_counts_what_it_forwards(memif_vpp):
        port, name = memif_vpp.memif(role="master")
        memif_vpp.cli(f"set interface feature {name} my-feature arc device-input")
        port.send([packet])
        assert port.recv() == [expected]

pytest imports this module in every run where memifrt is installed. So modules that only some tests need are imported in
the functions that use them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import pytest

from memifrt.testing.memif import APP_NAME, Memif
from memifrt.testing.ports import MemifPair, MemifPort, MemifResponder, MemifTimeout, PortOptions

if TYPE_CHECKING:
    from memifrt.testing.testpmd import Testpmd
    from memifrt.testing.vpp import Vpp

__all__ = [
    "APP_NAME",
    "Memif",
    "MemifPair",
    "MemifPort",
    "MemifResponder",
    "MemifTimeout",
    "PortOptions",
    "memif",
    "memif_fixture",
    "memif_listener",
    "memif_pair",
    "memif_responder",
    "memif_socket",
    "memif_testpmd",
    "memif_vpp",
]

_T = TypeVar("_T")

#: The makers that are open now, of every scope.
_OPEN = pytest.StashKey[list[Memif]]()
#: Makes directories below pytest's basetemp.
_DIRECTORIES = pytest.StashKey[pytest.TempPathFactory]()
#: Characters of a test's name in the name of a directory.
_NAME_LENGTH = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("memif_timeout", "seconds that the memif fixtures wait for a peer or a packet", default="10")
    parser.addini("memif_capture", "packets of each memif port to keep for a test that fails; 0: none", default="1000")


# --- fixtures -------------------------------------------------------------------------------------------------------


def memif_fixture(
    make: Callable[[Memif], _T] | None = None,
    *,
    scope: Literal["function", "class", "module", "package", "session"] = "module",
    **options: object,
) -> Callable[..., object]:
    """Make a fixture of a scope, for a conftest.py or a test module::

        lab = memif_fixture(scope="session")                                    # a Memif
        wide_pair = memif_fixture(lambda memif: memif.pair(queues=4), scope="module")
        vpp = memif_fixture(Memif.vpp, scope="session")

    Everything that the fixture made is closed at the end of its scope.

    :param make: makes the value of the fixture; without it, the value is the :class:`Memif` itself.
    :param scope: the scope of the fixture.
    :param options: further arguments of ``pytest.fixture``: ``name``, ``autouse``, ``params``, ``ids``.
    """

    def fixture(request: pytest.FixtureRequest) -> Iterator[object]:
        with _opened(request) as made:
            yield made if make is None else make(made)

    fixture.__doc__ = (make.__doc__ if make is not None else None) or "What memif_fixture() made."
    decorate = cast("Callable[..., Callable[..., Callable[..., object]]]", pytest.fixture)
    return decorate(scope=scope, **options)(fixture)


@pytest.fixture
def memif(request: pytest.FixtureRequest) -> Iterator[Memif]:
    """A :class:`memifrt.pytest_plugin.Memif`: makes ports, pairs, listeners, responders and peers, and closes them."""
    with _opened(request) as made:
        yield made


@pytest.fixture
def memif_socket(memif: Memif) -> str:
    """A path for a memif socket. A file there is removed after the test."""
    return memif.socket()


@pytest.fixture
def memif_pair(memif: Memif) -> MemifPair:
    """A master and a slave, connected to each other."""
    return memif.pair()


@pytest.fixture
def memif_listener(memif: Memif) -> MemifPort:
    """A master that listens on a temporary socket."""
    return memif.listener()


@pytest.fixture
def memif_responder(memif: Memif) -> MemifResponder:
    """Answers ARP and ping for 192.168.1.2, as a master on a temporary socket."""
    return memif.responder()


@pytest.fixture
def memif_vpp(memif: Memif) -> Vpp:
    """A VPP of the test's own, without hugepages: its CLI, its API, and memifs to it. Skips where there is no VPP."""
    return memif.vpp()


@pytest.fixture
def memif_testpmd(memif: Memif) -> Testpmd:
    """DPDK's testpmd with two memif ports, which forwards between them. Skips where it is not installed."""
    return memif.testpmd()


@contextlib.contextmanager
def _opened(request: pytest.FixtureRequest) -> Iterator[Memif]:
    config = request.config
    keep = _number(config, "memif_capture", "a whole number of packets", r"[0-9]{1,7}")
    made = Memif(_number(config, "memif_timeout", "a number of seconds", r"[0-9.]+", positive=True), int(keep))
    config.stash[_DIRECTORIES] = request.getfixturevalue("tmp_path_factory")
    opened = config.stash.setdefault(_OPEN, [])
    opened.append(made)
    try:
        yield made
    finally:
        opened.remove(made)
        made.close()


def _number(config: pytest.Config, name: str, what: str, pattern: str, *, positive: bool = False) -> float:
    text = config.getini(name)
    with contextlib.suppress(ValueError):
        if re.fullmatch(pattern, text) and (float(text) > 0 or not positive):
            return float(text)
    raise pytest.UsageError(f"{name} is {text!r}; it must be {what}")


# --- artefacts ------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the state of every port and peer to the report of a test that fails, and write captures and logs."""
    report = yield
    opened = item.config.stash.get(_OPEN, [])
    if report.failed and call.when != "teardown" and opened:
        report.sections.append(("memif", _artefacts(item, opened)))
    return report


def _artefacts(item: pytest.Item, opened: list[Memif]) -> str:
    directory = _directory(item)
    text = "\n".join(made.write_artefacts(directory) for made in opened)
    (directory / "report.txt").write_text(text)
    return f"captures and logs: {directory}\n{text}"


def _directory(item: pytest.Item) -> Path:
    """Make a directory below pytest's basetemp, which pytest keeps for the last three runs."""
    factory = item.config.stash[_DIRECTORIES]
    name = re.sub(r"[^\w.-]+", "_", item.name)[:_NAME_LENGTH]
    return factory.mktemp(f"memif-{name}", numbered=True)
