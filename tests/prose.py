"""Check the prose of the repository: docstrings, comments and pages in plain English.

``python -m tests.prose`` reads every file that git tracks, or the files that it is given, prints one line for each
finding, and exits with status 1 if there is one. ``make lint`` runs it. The rules hold what a machine can tell:

- words: no "whose", "of which", "whoever", "that which"; "who" and "what" are no subject ("who waits",
  "What arrives is");
- sentences of at most :data:`WORDS` words, and brackets around at most :data:`BRACKETED` words;
- no dash as an aside;
- docstrings of compiled modules begin with a paragraph that ends with a period;
- a file that the text names is in the repository, and no text has a path of one developer's machine.

A line with ``prose: as it is`` in it is exempt, for a text that another program prescribes.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The longest sentence and the longest text in brackets, in words.
WORDS = 40
BRACKETED = 15
#: A string of more words than this in code is a message.
MESSAGE = 4
EXEMPT = "prose: as it is"

#: Where readers look. Tests, benchmarks and fuzzers describe their steps as they need to.
CHECKED = ("memifrt/", "memifrt_command.py", "examples/", "docs/")
#: Pages that GitHub shows.
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")


@dataclass(frozen=True)
class Passage:
    """A piece of prose, joined into one line of text.

    :ivar lines: the line of the file in which each character of ``text`` is.
    :ivar docstring: whether it is a docstring.
    """

    path: str
    text: str
    lines: tuple[int, ...]
    docstring: bool = False

    def line(self, offset: int) -> int:
        """Return the number of the line in which a character is."""
        return self.lines[min(offset, len(self.lines) - 1)]


@dataclass(frozen=True, order=True)
class Finding:
    """A place that breaks a rule."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


# --- what is prose --------------------------------------------------------------------------------------------------


def passages(path: str, text: str) -> Iterator[Passage]:
    """Yield the prose of a file: paragraphs of a page, docstrings and comments of code."""
    if path.endswith(".md"):
        yield from _page(path, text)
    elif path.endswith(".py"):
        yield from _python(path, text)
    elif path.endswith((".pyx", ".pxd", ".pxi", ".pyi")):
        yield from _cython(path, text)
    elif path.endswith((".h", ".c")):
        yield from _c(path, text)


#: A line that is a rule, and one that is a rule or a row of a table.
RULE = re.compile(r"[-=~ ]+$")
TABLE = re.compile(r"^[-=~ ]+$|[^.] {3,}\S")


def _joined(path: str, lines: Iterable[tuple[int, str]], docstring: bool = False) -> Iterator[Passage]:
    """Yield a passage for each paragraph and list item of numbered lines."""
    paragraph: list[tuple[int, str]] = []

    def end() -> Iterator[Passage]:
        if paragraph:
            text, numbers = "", []
            for number, line in paragraph:
                piece = line.strip() + " "
                text += piece
                numbers += [number] * len(piece)
            yield Passage(path, text.rstrip(), tuple(numbers), docstring)
            paragraph.clear()

    for number, line in lines:
        if not line.strip() or re.match(r"\s*(?:[-*]|\d+\.|:\w[^:]*:)\s", line) or TABLE.search(line.strip()):
            yield from end()
        if line.strip() and EXEMPT not in line and not RULE.match(line.strip()):
            paragraph.append((number, re.sub(r"^\s*(?:[-*]|\d+\.)\s", "", line)))
    yield from end()


def _page(path: str, text: str) -> Iterator[Passage]:
    prose: list[tuple[int, str]] = []
    fence, indented = "", False
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(?:[-*]|\d+\.)?\s*(`{3,}|~{3,}|:{3,})", line)
        if fence:
            if line.strip().startswith(fence):
                fence = ""
            continue
        if mark and mark[1][0] != ":":
            fence = mark[1]
        code = line.startswith("    ") and (indented or not (prose and prose[-1][1].strip()))
        indented = code or (indented and not line.strip())
        if mark or code or re.match(r"#|\(\S+\)=$|!\[|<!--", line):
            prose.append((number, ""))
        elif line.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", line):
                prose += [(number, ""), (number, cell)]
            prose.append((number, ""))
        else:
            prose.append((number, line))
    yield from _joined(path, prose)


def _python(path: str, text: str) -> Iterator[Passage]:
    docstrings: set[int] = set()
    messages: list[tuple[int, int, str]] = []
    tree = ast.parse(text)  # keeps the nodes, so that their ids stay theirs
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and ast.get_docstring(node):
                docstrings.add(id(first.value))
                yield from _docstring(path, first.lineno, str(first.value.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) > MESSAGE:
            messages.append((id(node), node.lineno, node.value))
    for key, line, message in messages:
        if key not in docstrings and "\n" not in message:
            yield Passage(path, message, (line,) * len(message))
    comments = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.append((token.start, token.string, not token.line[: token.start[1]].strip()))
    yield from _comments(path, comments)


def _cython(path: str, text: str) -> Iterator[Passage]:
    comments = []
    start, quoted = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not start and (mark := re.match(r'\s*"""(.*)', line)):
            start, quoted = number, ""
            line = mark[1]
            if line.endswith('"""'):
                yield from _docstring(path, start, line[:-3])
                start = 0
            else:
                quoted = line
        elif start:
            if line.endswith('"""'):
                yield from _docstring(path, start, f"{quoted}\n{line[:-3]}")
                start = 0
            else:
                quoted += "\n" + line
        elif mark := re.match(r"""((?:[^"'#]|"[^"]*"|'[^']*')*)(#.*)""", line):
            comments.append(((number, len(mark[1])), mark[2], not mark[1].strip()))
    yield from _comments(path, comments)


def _c(path: str, text: str) -> Iterator[Passage]:
    for mark in re.finditer(r"/\*(.*?)\*/", text, re.DOTALL):
        first = text.count("\n", 0, mark.start()) + 1
        lines = [re.sub(r"^\s*\*", "", line) for line in mark[1].splitlines()]
        yield from _joined(path, enumerate(lines, first))


def _docstring(path: str, first: int, text: str) -> Iterator[Passage]:
    lines: list[tuple[int, str]] = []
    literal = -1
    for number, line in enumerate(text.splitlines(), first):
        indent = len(line) - len(line.lstrip())
        if literal >= 0 and (not line.strip() or indent > literal):
            lines.append((number, ""))
            continue
        literal = -1
        if line.rstrip().endswith("::"):
            literal = indent if number > first else 0
            line = line.rstrip()[:-1]
        lines.append((number, line))
    for index, passage in enumerate(_joined(path, lines)):
        yield Passage(passage.path, passage.text, passage.lines, docstring=index == 0)


def _comments(path: str, comments: Iterable[tuple[tuple[int, int], str, bool]]) -> Iterator[Passage]:
    """Yield a passage for each comment: lines below each other in the same column are one."""
    block: list[tuple[int, str]] = []
    before = (0, 0, False)
    for (number, column), text, alone in comments:
        if not (alone and before == (number - 1, column, True)):
            yield from _joined(path, block)
            block = []
        before = (number, column, alone)
        if not re.match(r"#(?:!| ---|\s*(?:type:|noqa|pragma|cython:|distutils:))", text):
            block.append((number, text.lstrip("#:")))
    yield from _joined(path, block)


# --- the rules ------------------------------------------------------------------------------------------------------

#: In place of code, so that words in it are no words of the text.
CODE = "\N{REPLACEMENT CHARACTER}"
SENTENCE = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)[)\"*_]*\s+|;\s|:\s+(?=[A-Z])")
BANNED = [
    (re.compile(r"\bwhose\b", re.I), '"whose"; write "with", "of the", or a second sentence'),
    (re.compile(r"\bof which\b", re.I), '"of which"; write a second sentence'),
    (re.compile(r"\bwho(?:ever|soever)\b", re.I), '"whoever"; name the actor'),
    (re.compile(r"\bthat which\b", re.I), '"that which"; name the thing'),
    (
        re.compile(
            r"(?:^|[,;:] |\b(?:for|to|of|by|and|or|with|from|but|as|than) )"
            r"who (?!may\b|can\b|is who\b|connects\b|listens\b)",
            re.I,
        ),
        '"who" as a subject; name the actor',
    ),
    (re.compile(r"\s[\N{EM DASH}\N{EN DASH}]\s|\N{EM DASH}"), "a dash; write two sentences, or a colon"),
]
MACHINE = re.compile(r"(?<![\w.])/(?:home|Users|work|root)/[\w.]+")
FILE = re.compile(
    r"(?<![\w/.{<*-])((?:docs|tests|examples|benchmarks|memifrt|fuzz)/[\w./-]+\.(?:md|py|pyx|pxi|h|sh|svg)|[A-Z_]{4,}\.md)\b"
)


def plain(text: str) -> str:
    """Return the text with each piece of code, role and link replaced, at the same offsets."""

    def code(match: re.Match[str]) -> str:
        return CODE * len(match[0])

    text = re.sub(r":[\w:]+:`[^`]*`|``.+?``|`[^`]+`", code, text)
    return re.sub(r"\]\([^)\s]*\)|<https?:[^>]*>|https?://\S+", code, text)


def check(passage: Passage) -> Iterator[Finding]:
    """Yield what breaks a rule in one passage."""
    text = plain(passage.text)

    def finding(offset: int, message: str) -> Finding:
        return Finding(passage.path, passage.line(offset), message)

    for pattern, message in BANNED:
        for match in pattern.finditer(text):
            yield finding(match.start(), message)
    start = 0
    for end in [*(match.start() for match in SENTENCE.finditer(text)), len(text)]:
        sentence = text[start:end]
        if re.match(r"\W*what\b", sentence, re.I) and len(sentence) > 40 and not sentence.rstrip().endswith("?"):
            yield finding(start, '"what" as a subject; name the thing')
        words = len(re.findall(rf"[\w'/-]*[A-Za-z][\w'/-]*|{CODE}+", sentence))
        if words > WORDS:
            yield finding(start + 2, f"a sentence of {words} words; at most {WORDS}")
        start = end
    for match in re.finditer(r"(?<!\w)\(([^()]*)\)", text):
        words = len(re.findall(rf"[\w'-]*[A-Za-z][\w'-]*|{CODE}+", match[1]))
        if words > BRACKETED:
            yield finding(match.start(), f"{words} words in brackets; at most {BRACKETED}")
    for match in MACHINE.finditer(passage.text):
        yield finding(match.start(), f"{match[0]} is a path of one machine")
    for match in FILE.finditer(passage.text):
        places = (ROOT / match[1], (ROOT / passage.path).parent / match[1])
        if "NAME" not in match[1] and not any(place.exists() for place in places):
            yield finding(match.start(), f"{match[1]} is not in the repository")
    compiled = passage.docstring and passage.path.endswith((".pyx", ".pxi", ".pxd"))
    if compiled and not passage.text.startswith(":") and not passage.text.rstrip().endswith((".", ":", "?")):
        yield finding(0, "a docstring's first line ends with a period")


def check_file(path: str, text: str) -> list[Finding]:
    """Return the findings in a file, in the order of its lines."""
    return sorted({finding for passage in passages(path, text) for finding in check(passage)})


def tracked() -> list[str]:
    """Return the files that git tracks and that are checked, relative to the root."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    return [path for path in listed if path.startswith(CHECKED) or path in PAGES]


def main(arguments: list[str]) -> int:
    """Print the findings in the files, and return the status to exit with."""
    findings = [
        finding
        for path in arguments or tracked()
        if path.endswith((".md", ".py", ".pyx", ".pxd", ".pxi", ".pyi", ".h", ".c"))
        for finding in check_file(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
