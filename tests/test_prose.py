"""The checker of prose finds a bad text and passes a good one."""

from __future__ import annotations

import pytest

from tests.prose import check_file

BAD = [
    ("docs/a.md", "A port whose peer left.", "whose"),
    ("docs/a.md", "Two rings, each of which is full.", "of which"),
    ("docs/a.md", "Wake whoever waits.", "whoever"),
    ("docs/a.md", "The lock is for who waits for a kick.", "who"),
    ("docs/a.md", "What waits unread in the ring is our own delay, and not the peer's.", "what"),
    ("docs/a.md", "word " * 41 + ".", "41 words"),
    ("docs/a.md", f"A ring ({'word ' * 16}) is full.", "16 words in brackets"),
    ("docs/a.md", "A ring \N{EM DASH} if full \N{EM DASH} waits.", "dash"),
    ("docs/a.md", "See docs/missing.md.", "not in the repository"),
    ("docs/a.md", "See /home/me/notes.", "one machine"),
    ("a.py", "# A port whose peer left.", "whose"),
    ("a.py", '"""A port whose peer left."""', "whose"),
    ("a.py", 'print("a port whose peer has left")', "whose"),
    ("a.pyx", 'cdef f():\n    """Send a packet"""', "period"),
    ("a.h", "/* A port\n * whose peer left. */", "whose"),
]
GOOD = [
    ("docs/a.md", "A user who may open the socket starts it. It says what the call does."),
    ("docs/a.md", "What is memif?"),
    ("docs/a.md", "```text\na port whose peer left\n```"),
    ("docs/a.md", "See docs/protocol.md, and `whose`."),
    ("a.py", '"""Send a packet.\n\n:raises OSError: the peer has left.\n"""\nwhose = 1\n'),
    ("a.pyx", 'cdef f():\n    """Send a packet."""'),
]


@pytest.mark.parametrize(("path", "text", "part"), BAD)
def test_a_bad_text_is_found(path: str, text: str, part: str) -> None:
    (finding,) = check_file(path, text)
    assert part in finding.message


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_a_good_text_is_not(path: str, text: str) -> None:
    assert check_file(path, text) == []


def test_a_finding_names_its_line() -> None:
    (finding,) = check_file("docs/a.md", "One line.\nA port\nwhose peer left.")
    assert finding.line == 3
