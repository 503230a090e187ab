"""Texts on a terminal: wide characters, those that combine, and tables with both."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from memifrt import columns
from memifrt.types import printable


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("vpp", 3),
        ("路由器", 6),
        ("e\u0301", 1),
        ("한", 2),
        ("\u1112\u1161\u11ab", 2),
        ("🚀", 2),
        ("☎\ufe0f", 2),
    ],
)
def test_a_text_is_as_wide_as_a_terminal_shows_it(text: str, width: int) -> None:
    assert columns.width(text) == width == cell_len(text)
    assert columns.width(columns.left(text, 8)) == columns.width(columns.right(text, 8)) == 8
    assert columns.left(text, 8).startswith(text)
    assert columns.right(text, 8).endswith(text)


@given(st.text(), st.integers(1, 20))
def test_a_text_that_is_cut_fits(text: str, width: int) -> None:
    made = columns.cut(printable(text), width, "~")
    assert columns.width(made) <= width
    assert made == printable(text) or made.endswith("~")


@given(st.text(), st.integers(2, 20))
def test_a_text_that_is_cut_in_its_middle_fits_and_has_its_end(text: str, width: int) -> None:
    made = columns.cut_middle(printable(text), width, "~")
    assert columns.width(made) <= width
    assert made == printable(text) or printable(text).endswith(made.rpartition("~")[2])
    assert columns.cut_middle("web traffic (back)", 12, "~") == "web t~(back)"


def test_an_accent_stays_with_its_letter() -> None:
    assert columns.cut("e\u0301e\u0301e\u0301", 3) == "e\u0301e\u0301e\u0301"
    assert columns.cut("e\u0301e\u0301e\u0301", 2, "~") == "e\u0301~"
