"""What stands at more than one place of the repository says the same everywhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML reads the workflows: pip install pyyaml")

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: The Pythons of the classifiers.
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def constant(path: Path, name: str) -> Any:
    """The value of a constant of a Python file that is not imported, because nox may not be installed."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return ast.literal_eval(statement.value)
    raise AssertionError(f"{path} has no {name}")


def test_the_oldest_python_is_that_of_the_metadata() -> None:
    assert f'requires-python = ">={PYTHONS[0]}"' in PYPROJECT


def test_nox_and_the_workflow_test_the_pythons_of_the_classifiers() -> None:
    assert list(constant(ROOT / "noxfile.py", "PYTHONS")) == PYTHONS
    jobs = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == PYTHONS
    free_threaded = jobs["free-threaded"]["strategy"]["matrix"]["python"]
    assert free_threaded == list(constant(ROOT / "noxfile.py", "FREE_THREADED"))


def test_wheels_are_built_for_the_pythons_of_the_classifiers() -> None:
    found = re.search(r"^\[tool\.cibuildwheel\]\nbuild = \[(.*?)\]", PYPROJECT, re.MULTILINE)
    assert found is not None
    tags = re.findall(r'"cp3(\d+)-\*"', found[1])
    assert [f"3.{minor}" for minor in tags] == PYTHONS


def test_citation_has_the_version_of_the_metadata() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert f'version = "{citation["version"]}"' in PYPROJECT
    assert f"## {citation['version']} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_names_jobs_that_exist_and_may_only_read(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        needed = job.get("needs", [])
        assert {*([needed] if isinstance(needed, str) else needed)} <= {*workflow["jobs"]}, name
        assert job["steps"], name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_calls_targets_of_the_makefile(path: Path) -> None:
    targets = {*re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)}
    assert {*re.findall(r"\bmake ([a-z-]+)", path.read_text())} <= targets


def test_issue_forms_ask_for_something() -> None:
    for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")):
        form = load(path)
        if path.stem != "config":
            assert {"name", "description", "body"} <= {*form}, path
            assert any(field.get("validations", {}).get("required") for field in form["body"]), path
