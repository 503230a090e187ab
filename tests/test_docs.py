"""Every code block of the README and of the site, run as a reader would run it.

A comment above a block, which no reader sees, says how: ``<!-- run: HOW -->``. Without one a Python block is a program
that runs to its end. See :data:`WAYS`. ``needs MODULE`` skips it where there is no such module.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import memifrt
from memifrt.cli import command_line
from tests.lib import programs, stand_in_vpp
from tests.lib.loops import MISSING
from tests.lib.support import DEADLINE

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: A comment, if there is one, and a fenced block: ``{name}`` is a directive of Sphinx, not code.
_BLOCK = re.compile(
    r"(?:^<!-- run: (?P<how>[^>]*?) -->\n)?^(?P<fence>```+)(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
#: Sockets that blocks name, each of which becomes one of the test's own.
_SOCKET = re.compile(r"/run/vpp/memif\.sock|/tmp/(?P<file>[\w-]+\.sock)|@(?P<name>lab\w*)")

#: What a block may take for given.
GIVEN = {
    "on_interrupt": """
        import memifrt
        from memifrt.packets import parse_ip, parse_mac, reply_in_place
        IP, MAC = parse_ip("192.168.1.2"), parse_mac("02:fe:c0:a8:01:02")
        def on_interrupt(interface, qid):
            with interface.rx_queues[qid].burst() as burst:
                for index, packet in enumerate(burst):
                    if not reply_in_place(packet, IP, MAC):
                        burst.drop(index)
                interface.tx_queues[qid].forward(burst)
    """,
    "pair": """
        import memifrt
        runtime = memifrt.Runtime("docs")
        ends = [runtime.create_interface(socket="/run/vpp/memif.sock", role=role) for role in ("master", "slave")]
        master, slave = ends
        while not all(end.connected for end in ends):
            runtime.poll_event(1)
        runtime.poll_event(0)
        slave.tx_queues[0].send([b"x" * 60] * 600)
        rx, tx = master.rx_queues[0], master.tx_queues[0]
        interface = master
    """,
    "responder": """
        import atexit, subprocess, sys
        options = ["--role", "master", "--socket", "/run/vpp/memif.sock"]
        responder = subprocess.Popen(
            [sys.executable, "-m", "memifrt", "responder", *options], stdout=subprocess.PIPE
        )
        responder.stdout.readline()
        atexit.register(lambda: (responder.terminate(), responder.communicate()))
    """,
}
#: Ends a program that stopped without closing what it was given.
_EPILOGUE = {"pair": "runtime.close()\n"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    how: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def source(self, socket: str) -> str:
        """The program: what it takes for given, then the block, with a socket of the test's own."""
        parts = [self.code]
        for name in self._given():
            parts = [textwrap.dedent(GIVEN[name]).strip() + "\n", *parts, _EPILOGUE.get(name, "")]
        return own_sockets("\n".join(parts), socket)

    def _given(self) -> list[str]:
        return [name for name in GIVEN if re.search(rf"\bgiven {name}\b", self.how)]

    @property
    def way(self) -> str:
        return re.sub(r";? *(given|needs) \w+", "", self.how).strip() or "to its end"

    @property
    def missing(self) -> str | None:
        """A module that the block needs and that is not installed."""
        needed = re.findall(r"\bneeds (\w+)", self.how)
        return next((module for module in needed if importlib.util.find_spec(module) is None), None)


def own_sockets(code: str, socket: str) -> str:
    """The code with sockets next to this one: the same for each name."""
    return _SOCKET.sub(lambda match: socket + (match["file"] or match["name"] or ""), code)


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            if not match["language"].startswith("{"):
                line = text.count("\n", 0, match.start("code"))
                yield Block(page, line, match["language"], match["code"], match["how"] or "")


def run_to_its_end(block: Block, socket: str, folder: Path) -> None:
    with _program(block, socket, folder) as program:
        try:
            out, err = program.communicate(timeout=3 * DEADLINE)
        except BaseException:
            program.kill()
            raise
    assert program.returncode == 0, err or out


def answer_ping(block: Block, socket: str, folder: Path) -> None:
    """The program runs until Ctrl+C, and answers pings for 192.168.1.2 on the socket."""
    ours = "slave" if re.search(r"role=\"(master|server)\"", block.code) else "master"
    with _until_interrupted(block, _program(block, socket, folder)):
        ping = programs.run(
            "ping", "--role", ours, "--socket", socket, "-c", "1", "-W", str(DEADLINE / 2), "192.168.1.2"
        )
        assert ping.returncode == 0, ping.stderr


def start(block: Block, socket: str, folder: Path) -> None:
    """The program runs until Ctrl+C; it has been seen to listen or to connect."""
    ours = "slave" if re.search(r"role=\"(master|server)\"|--role master", block.code) else "master"
    with (
        _until_interrupted(block, _program(block, socket, folder)),
        programs.responder("--role", ours, "--socket", socket) as end,
    ):
        programs.read_until(end, "connected to", stderr=True)


def run_in_shell(block: Block, socket: str, folder: Path) -> None:
    """bash runs it, with the project's commands at hand; what it left in the background is ended."""
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", own_sockets(block.code, socket)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        shell.wait(3 * DEADLINE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
        out = shell.communicate(timeout=DEADLINE)[0]
    assert shell.returncode == 0, out


def parse_commands(block: Block, socket: str, folder: Path) -> None:
    """Each line is a ``memifrt`` command whose arguments are right; running them needs what a test has not."""
    for line in block.code.replace("\\\n", "").splitlines():
        for command in line.partition(" # ")[0].split(" & "):
            words = shlex.split(command.rstrip("& "), comments=True)
            words = words[1:] if words and words[0].endswith("$") else words
            assert words[:1] == ["memifrt"], line
            parsed = command_line.make_parser().parse_args(words[1:])
            assert parsed.command == words[1]


def run_tests(block: Block, socket: str, folder: Path) -> None:
    """It is a file of tests: pytest runs it, with memifrt's plugin, and a stand-in for VPP unless there is one."""
    vpp = os.environ.get("MEMIFRT_VPP") or shutil.which("vpp") or str(stand_in_vpp.program(folder))
    (folder / "test_block.py").write_text(block.source(socket))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)],
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MEMIFRT_VPP": vpp},
    )
    assert done.returncode == 0, done.stdout


def stand_in_ci(block: Block, socket: str, folder: Path) -> None:
    """CI runs these lines themselves."""
    script = (ROOT / ".ci" / "run").read_text()
    for line in block.code.splitlines():
        assert line.partition("#")[0].strip() in script


#: What a comment may say, and what is then done with the block.
WAYS: dict[str, Callable[[Block, str, Path], None]] = {
    "to its end": run_to_its_end,
    "answers ping": answer_ping,
    "until interrupted": start,
    "shell": run_in_shell,
    "arguments": parse_commands,
    "pytest": run_tests,
    "in CI": stand_in_ci,
}
RUN = [block for block in blocks() if block.language in ("python", "sh")]


@pytest.mark.parametrize("block", RUN, ids=str)
def test_block_does_what_it_says(block: Block, tmp_path: Path) -> None:
    assert block.way in WAYS
    assert block.language == "python" or block.way != "to its end", (
        "a shell block needs a comment that says how it runs"
    )
    if block.missing:
        pytest.skip(MISSING.get(block.missing, f"{block.missing} is not installed (pip install -e '.[dev]')"))
    WAYS[block.way](block, str(tmp_path / "memif.sock"), tmp_path)


def test_every_block_names_its_language() -> None:
    """Text (of other programs, or what is printed) is text; all else is run."""
    assert {block.language for block in blocks()} <= {"python", "sh", "text"}


def test_there_are_blocks_to_run() -> None:
    assert {block.page.name for block in RUN} >= {"README.md", "tutorial.md", "libmemif.md"}


def test_the_cookbook_has_twenty_recipes_and_each_one_runs() -> None:
    recipes = re.split(r"^### ", (ROOT / "docs" / "cookbook.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(recipes) >= 20
    assert [
        recipe.splitlines()[0] for recipe in recipes if not re.search(r"^```(python|sh)$", recipe, re.MULTILINE)
    ] == []


def test_the_installation_page_lists_every_extra_for_users() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    assert section
    extras = set(re.findall(r"^([\w-]+) = \[", section[1], re.MULTILINE))
    listed = set(re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE))
    assert listed == extras - {"docs", "fuzz", "bench", "dev"}


@pytest.mark.parametrize(
    "documented", [memifrt.Runtime, memifrt.Socket, memifrt.Interface, memifrt.RxQueue, memifrt.TxQueue]
)
def test_the_api_page_leaves_out_what_only_memifrt_calls(documented: type) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    directive = re.search(rf"^\.\. autoclass:: memifrt\.{documented.__name__}\n((?: +.*\n)+)", page, re.MULTILINE)
    assert directive
    left_out = re.search(r":exclude-members: ((?:[\w, ]|\n {5})+)", directive[1])
    assert left_out
    names = set(re.findall(r"\w+", left_out[1]))
    members = {name: inspect.getdoc(member) or "" for name, member in inspect.getmembers(documented) if name[0] != "_"}
    source = "".join(inspect.getsource(base) for base in documented.__mro__ if base is not object)
    assert [name for name in names if not re.search(rf"(self\.|def ){name}\b", source)] == []  # no name is misspelt
    internal = {name for name, text in members.items() if re.search(r"(Called|Read) by the \w+", text)}
    assert internal <= names


def test_manifests_for_containers_are_yaml() -> None:
    page = (ROOT / "docs" / "guides" / "containers.md").read_text()
    manifests = re.findall(r"^```{code-block} yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(manifests) == 3
    assert all(isinstance(yaml.safe_load(manifest), dict) for manifest in manifests)


def options_listed() -> dict[str, set[str]]:
    """The options below "All options" of docs/command-line.md: those of each group, and those of each command."""
    page = (ROOT / "docs" / "command-line.md").read_text()
    terms = re.findall(r"^[`*](\w+)[`*]\n: ((?:.+\n)+)", page.partition("\n## All options\n")[2], re.MULTILINE)
    listed: dict[str, set[str]] = {}
    for name, text in terms:
        listed[name] = set(re.findall(r"`(-[\w-]+)`", text))
        for group in re.findall(r"\*(\w+)\*", text.partition("Explained")[0]):
            listed[name] |= listed[group]
    return listed


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_the_page_of_the_command_line_lists_all_options_of_a_command(name: str) -> None:
    actions = [
        action for action in command_line.make_parsers([name])[1][name]._actions if action.help != argparse.SUPPRESS
    ]
    assert options_listed()[name] == {option for action in actions for option in action.option_strings} - {
        "-h",
        "--help",
    }


def test_each_option_is_explained_somewhere() -> None:
    pages = [(ROOT / "docs" / "command-line.md").read_text().partition("\nThe commands have:\n")[0]]
    pages += [path.read_text() for path in (ROOT / "docs").rglob("*.md") if path.name != "command-line.md"]
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", "\n".join(pages)))
    every = {option for options in options_listed().values() for option in options if option.startswith("--")}
    assert every - named == set()


def test_troubleshooting_quotes_messages_that_exist() -> None:
    """Each part between ellipses stands in the source; what an OSError adds in brackets is the system's."""
    source = "".join(path.read_text() for pattern in ("*.py", "*.pyx") for path in (ROOT / "memifrt").rglob(pattern))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message that is cut into two literals
    terms = re.findall(r"^(`.*`)(?: \(.*\))?$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [message for term in terms for message in re.findall("`([^`]+)`", term)]
    parts = [
        re.sub(r"(: [A-Z][^:]*)? \[E[A-Z]+\]$", "", part).strip(" :") for text in quoted for part in text.split("…")
    ]
    assert len(quoted) > 20
    assert [part for part in parts if part and part not in source] == []


def walks() -> dict[str, str]:
    """The newcomer's walks of CONTRIBUTING.md: the text below each heading."""
    sections = re.split(r"^## (.*)\n", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    return {name: text for name, text in zip(sections[1::2], sections[2::2], strict=True) if name.startswith("The way")}


def names_in(path: Path) -> set[str]:
    """Each function and class of a module, with its classes: ``Runtime.poll_event``."""

    def collect(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from collect(node.body, f"{prefix}{node.name}.")

    return set(collect(ast.parse(path.read_text()).body, ""))


@pytest.mark.parametrize("walk", ["The way of a packet", "The way of a handshake"])
def test_a_newcomer_s_walk_has_at_most_twelve_steps_and_each_names_code_that_exists(walk: str) -> None:
    text = walks()[walk]
    assert 1 <= len(re.findall(r"^\d+\. ", text, re.MULTILINE)) <= 12
    named = re.findall(r"`((?:memifrt|docs)/[\w/.]+)(?::([\w.]+))?`", text)
    assert len(named) > 10
    missing = [
        f"{file}:{name}"
        for file, name in named
        if not (ROOT / file).is_file() or (name and name not in names_in(ROOT / file))
    ]
    assert missing == []


def _program(block: Block, socket: str, folder: Path) -> subprocess.Popen[str]:
    path = folder / "block.py"
    path.write_text(block.source(socket))
    return subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@contextlib.contextmanager
def _until_interrupted(block: Block, program: subprocess.Popen[str]) -> Iterator[None]:
    """The block's program while it runs; Ctrl+C ends it, and nothing else has."""
    with program:
        try:
            yield
            assert program.poll() is None, program.communicate()[1]
        except BaseException:
            program.kill()
            print(program.communicate()[1])  # why it did not do what was waited for
            raise
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=DEADLINE)
    said = [line for line in err.splitlines() if "; retrying every " not in line]  # a slave waits for its peer
    if "import eventlet" in block.code:
        said = [line for line in said if line == "KeyboardInterrupt" or "Traceback" in line]  # it warns of itself
    # On Python 3.10, anyio ends with CancelledError where later versions raise KeyboardInterrupt.
    if (
        "import anyio" in block.code
        and sys.version_info < (3, 11)
        and said[-1:] == ["asyncio.exceptions.CancelledError"]
    ):
        return
    assert (program.returncode, said) == (0, []), "Ctrl+C ends a program quietly"
