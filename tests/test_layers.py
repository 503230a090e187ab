"""The direction of knowledge: which part of the package may import which, and what is shipped."""

from __future__ import annotations

import ast
import importlib
import importlib.resources
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import memifrt

ROOT = Path(memifrt.__file__).parent
PROJECT = ROOT.parent

#: The layers, from the ground up: each imports only from those before it.
ORDER = [
    "_start",
    "errors",
    "types",
    "columns",
    "renamed",
    "options",
    "_packets",
    "packets",
    "system",
    "memory",
    "control",
    "ring",
    "poll",
    "rekick",
    "queue",
    "connection",
    "interface",
    "sockets",
    "stats",
    "runtime",
    "memifrt",
    "libmemif",
    "waiting",
    "asyncio",
    "gevent",
    "trio",
    "threaded",
    "scapy",
    "capture",
    "ports",
    "impairments",
    "switch",
    "drawing",
    "traffic",
    "throughput",
    "cli",
    "testing",
    "pytest_plugin",
    "background",
    "apps",
]
#: What programs of one loop await or wait with, and the library that each of them is for.
FACES = {"asyncio": "asyncio", "gevent": "gevent", "trio": "trio"}
#: Adapters without a face, and the libraries that they are for.
ADAPTERS = {
    "poll.twisted": ("twisted", "zope"),
    "poll.eventlet": ("eventlet",),
    "poll.glib": ("gi",),
    "poll.qt": ("PySide6",),
}
#: What a person runs, and what lives in scapy or pytest: extras are imported there, where they are used.
PROGRAMS = {
    "capture",
    "drawing",
    "ports",
    "switch",
    "traffic",
    "throughput",
    "cli",
    "scapy",
    "testing",
    "pytest_plugin",
}
#: Underscore names of the standard library that code may use. ``_replace`` of a named tuple and ``os._exit`` are
#: public. The others have no public counterpart: the running loop, without an error where none runs; types for
#: annotations; and accept() that returns a number instead of a socket object, whose class may be patched.
LIBRARY_NAMES = {
    "argparse._ArgumentGroup",
    "asyncio._get_running_loop",
    "ctypes._Pointer",
    "inner._find_fld_pkt_val",
    "listener._accept",
    "os._exit",
    "packet._replace",
}

#: Modules without I/O, and what would be I/O.
SANS_IO = ["control.wire", "control.handshake", "types", "memory.layout"]
IO = {"asyncio", "ctypes", "fcntl", "mmap", "os", "select", "selectors", "signal", "socket", "threading", "time"}


@dataclass(frozen=True)
class Import:
    """One import statement's module."""

    importer: str
    line: int
    target: str
    typing_only: bool = False

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module of the package by its name inside of it; the package itself is the empty name."""
    found = {}
    for path in sorted([*ROOT.rglob("*.py"), *ROOT.rglob("*.pyx")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def layer(module: str) -> str:
    """The layer of a module, by its name inside of the package."""
    first = module.partition(".")[0]
    return {"": "memifrt", "__main__": "cli"}.get(first, first)


def imports(module: str, path: Path) -> list[Import]:
    if path.suffix == ".pyx":
        return list(_cython_imports(module, path))
    return list(_python_imports(module, ast.parse(path.read_text()), False))


def _python_imports(module: str, node: ast.AST, typing_only: bool) -> Iterator[Import]:
    match node:
        case ast.Import(names):
            for alias in names:
                yield Import(module, node.lineno, alias.name, typing_only)
        case ast.ImportFrom():
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                # "from memifrt.control import wire" is of the module; "from memifrt.errors import x" of its name.
                inner = f"{node.module}.{alias.name}"
                is_module = inner.partition(".")[2] in modules() and inner.startswith("memifrt.")
                yield Import(module, node.lineno, inner if is_module else node.module, typing_only)
        case ast.If(test=ast.Name("TYPE_CHECKING")):
            for statement in node.body:
                yield from _python_imports(module, statement, True)
            for statement in node.orelse:
                yield from _python_imports(module, statement, typing_only)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _python_imports(module, child, typing_only)


def _cython_imports(module: str, path: Path) -> Iterator[Import]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        found = re.match(r"\s*(?:from (?P<module>[\w.]+) import|import (?P<name>[\w.]+))", line)
        if found:
            yield Import(module, number, found["module"] or found["name"])


ALL = [found for module, path in modules().items() for found in imports(module, path)]
OURS = [found for found in ALL if found.target.partition(".")[0] == "memifrt"]
FOREIGN = [found for found in ALL if found.target.partition(".")[0] != "memifrt"]


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import socket
from memifrt.control import wire
from memifrt.errors import strerror
if TYPE_CHECKING:
    from memifrt.runtime import Runtime
else:
    import os
def late():
    try:
        import gevent.hub
    except ImportError: ...
"""
    assert [(found.target, found.typing_only) for found in _python_imports("x", ast.parse(source), False)] == [
        ("socket", False),
        ("memifrt.control.wire", False),
        ("memifrt.errors", False),
        ("memifrt.runtime", True),
        ("os", False),
        ("gevent.hub", False),
    ]


def test_every_module_has_a_layer() -> None:
    assert {layer(module) for module in modules()} == {*ORDER}


@pytest.mark.parametrize("name", ORDER)
def test_a_layer_imports_only_from_those_below_it(name: str) -> None:
    allowed = {*ORDER[: ORDER.index(name) + 1]}
    wrong = [
        str(found)
        for found in OURS
        if layer(found.importer) == name and layer(found.target.partition(".")[2]) not in allowed
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports for annotations, and those inside functions, count like any other."""
    importers: dict[str, set[str]] = {module: set() for module in modules()}
    for found in OURS:
        importers[found.importer].add(found.target.partition(".")[2])
    while leaves := {module for module, targets in importers.items() if not targets & importers.keys()}:
        importers = {module: targets for module, targets in importers.items() if module not in leaves}
    assert importers == {}


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def private_uses(tree: ast.Module, *, share: bool) -> Iterator[str]:
    """Yield each use of another object's private name: ``x._name``.

    An object may use the private names of ``self``, ``cls`` and ``super()``, of a class of its own module, and of a
    variable that is annotated with such a class or made by calling one.

    :param share: whether the classes of the module may use each other's private names, whatever the variable.
    """
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    own = classes | {"Self", "cls"}
    shared = set(_private_names(tree)) if share else set()
    for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS))]:
        variables = {"self", "cls"} | classes | set(_variables_of(function, own))
        for node in _within(function):
            if not isinstance(node, ast.Attribute) or not re.match("_(?!_)", node.attr) or node.attr in shared:
                continue
            match node.value:
                case ast.Name(name) if name in variables:
                    pass
                case ast.Call(ast.Name("super")):
                    pass
                case _:
                    yield f"line {node.lineno}: {ast.unparse(node)}"


def _within(function: ast.AST) -> Iterator[ast.AST]:
    """Yield what a function or a module has in itself, without the functions in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, _FUNCTIONS):
            yield child
            yield from _within(child)


def _variables_of(function: ast.AST, classes: set[str]) -> Iterator[str]:
    """Yield the names of a function's parameters and variables that hold an object of one of the classes."""
    for node in ast.walk(function):
        match node:
            case ast.arg(name, annotation) if annotation is not None and _names(annotation) & classes:
                yield name
            case ast.AnnAssign(ast.Name(name), annotation) if _names(annotation) & classes:
                yield name
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name(called))) if called in classes:
                yield name


def _names(annotation: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


def _private_names(tree: ast.Module) -> Iterator[str]:
    """Yield the private names that the classes of a module define."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                yield name
            case ast.Attribute(ast.Name("self"), name, ast.Store()):
                yield name


def test_uses_of_private_names_are_found() -> None:
    source = """
class Node:
    def link(self, other: Node, stranger: Stranger, one_of: Node | None):
        self._next = other._next
        stranger._next = super()._next
        self.stranger._secret = one_of._next
        async def late(friend: Node):
            return stranger._late, friend._next
    @classmethod
    def make(cls):
        made = cls()
        made._next = Node._head
        made.other._next = None
"""
    tree = ast.parse(source)
    found = [use.partition(": ")[2] for use in private_uses(tree, share=False)]
    assert sorted(found) == ["made.other._next", "self.stranger._secret", "stranger._late", "stranger._next"]
    found = [use.partition(": ")[2] for use in private_uses(tree, share=True)]
    assert sorted(found) == ["self.stranger._secret", "stranger._late"]


def test_no_object_uses_the_private_names_of_another() -> None:
    """In every module: the core, the faces, libmemif, scapy, pytest's fixtures, ports, captures and the command line.

    A ring and its bursts are one thing in several classes, which only their own module can see."""
    wrong = {}
    for module, path in modules().items():
        if path.suffix == ".py":
            uses = list(private_uses(ast.parse(path.read_text()), share=layer(module) == "ring"))
            uses = [use for use in uses if use.partition(": ")[2] not in LIBRARY_NAMES]
            if uses:
                wrong[module] = uses
    assert wrong == {}


def test_the_core_imports_nothing_outside_the_standard_library() -> None:
    wrong = [
        str(found)
        for found in FOREIGN
        if layer(found.importer) not in PROGRAMS
        and found.target.partition(".")[0] not in sys.stdlib_module_names
        and not (found.typing_only and found.target == "typing_extensions")
        and found.target.partition(".")[0] != FACES.get(found.importer.removeprefix("poll."))
        and found.target.partition(".")[0] not in ADAPTERS.get(found.importer, ())
    ]
    assert wrong == []


def test_importing_the_package_brings_no_loop_along() -> None:
    """Else it would need, or start, what only that loop's programs have."""
    program = f"import memifrt, sys; print([name for name in {[*FACES]} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"


def test_importing_the_package_brings_nothing_that_few_programs_need() -> None:
    """ctypes comes with the first connection, OpenSSL with the first secret, the others with the statistics and the
    command line."""
    late = ["_hashlib", "ctypes", "http", "http.server", "json", "platform", "rich"]
    program = f"import memifrt, sys; print([name for name in {late} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"


@pytest.mark.parametrize("module", SANS_IO)
def test_a_module_without_io_imports_none(module: str) -> None:
    assert module in modules()
    wrong = [str(found) for found in FOREIGN if found.importer == module and found.target.partition(".")[0] in IO]
    assert wrong == []


def test_conversations_know_only_messages_errors_and_numbers() -> None:
    targets = {found.target for found in OURS if found.importer == "control.handshake"}
    assert targets == {"memifrt.control.wire", "memifrt.errors", "memifrt.types"}


def test_the_core_knows_no_configuration_below_the_runtime() -> None:
    """Rings, memory and the poller take what they need, and not what a user asked of an interface."""
    for module, path in modules().items():
        if layer(module) in {"control", "memory", "ring", "poll", "system"}:
            assert "InterfaceConfig" not in path.read_text(), module


def test_every_public_name_exists_once() -> None:
    assert [name for name in memifrt.__all__ if not hasattr(memifrt, name)] == []
    assert len(set(memifrt.__all__)) == len(memifrt.__all__)


def test_every_name_that_the_package_imports_is_public() -> None:
    exported = {name for name, value in vars(memifrt).items() if getattr(value, "__module__", "").startswith("memifrt")}
    assert exported - {*memifrt.__all__} == set()


def test_the_package_is_shipped_with_its_types() -> None:
    assert importlib.resources.files(memifrt).joinpath("py.typed").is_file()
    package_data = (PROJECT / "pyproject.toml").read_text().partition("[tool.setuptools.package-data]")[2]
    assert re.match(r'\s*memifrt = \[[^]]*"py\.typed"', package_data)


def test_every_module_says_what_it_owns() -> None:
    silent = [
        module
        for module, path in modules().items()
        if path.suffix == ".py" and path.read_text() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("memifrt.apps.packets", "memifrt.packets", "reply_in_place"),
        ("memifrt.apps.pcap", "memifrt.capture.pcap", "open_capture"),
        ("memifrt.background", "memifrt.threaded.runtime_thread", "Background"),
    ],
)
def test_an_old_path_warns_and_works(old: str, new: str, name: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        module = importlib.import_module(old)
    assert getattr(module, name) is getattr(importlib.import_module(new), name)
