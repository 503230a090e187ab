"""What an import says when an optional package is not installed."""

from __future__ import annotations

import importlib
import sys

import pytest

from memifrt.system.optional import Needs


@pytest.mark.parametrize(
    ("module", "package", "install"),
    [
        ("memifrt.gevent", "gevent", "memifrt[gevent]"),
        ("memifrt.trio", "trio", "memifrt[trio]"),
        ("memifrt.scapy", "scapy", "memifrt[scapy]"),
        ("memifrt.poll.gevent", "gevent", "memifrt[gevent]"),
        ("memifrt.poll.trio", "trio", "memifrt[trio]"),
        ("memifrt.poll.twisted", "twisted", "twisted"),
        ("memifrt.poll.eventlet", "eventlet", "eventlet"),
        ("memifrt.poll.glib", "gi", "PyGObject"),
        ("memifrt.poll.qt", "PySide6", "PySide6"),
        ("memifrt.traffic", "numpy", "memifrt[traffic]"),
    ],
)
def test_a_module_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, install: str
) -> None:
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            monkeypatch.delitem(sys.modules, name)
        if name == module or name.startswith("memifrt.traffic"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(package), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(module)
    assert f" needs {package}" in str(caught.value)
    assert str(caught.value).endswith(f"which is not installed: pip install '{install}'")
    assert caught.value.name is not None
    assert caught.value.name.partition(".")[0] == package


class Absent:
    """A finder that finds no module of one package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ImportError, match="broken") as caught, Needs("memifrt.gevent", "memifrt[gevent]"):
        raise ImportError("broken")
    assert type(caught.value) is ImportError
    with pytest.raises(ModuleNotFoundError, match=r"^ours$"), Needs("memifrt.gevent", "memifrt[gevent]"):
        raise ModuleNotFoundError("ours", name="memifrt.nothing")
