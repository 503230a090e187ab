"""How many columns a text takes on a terminal, and texts of a given width.

Names may have wide characters (Chinese, emoji) and characters that take no column of their own (accents that combine
with the letter before them).
"""

from __future__ import annotations

import unicodedata

#: The emoji form of the character before: two columns.
_EMOJI_FORM = "\ufe0f"
#: Vowels and final consonants of Hangul, which combine with the character before.
_HANGUL = range(0x1160, 0x1200)


def width(text: str) -> int:
    """Return the columns that a printable text takes on a terminal."""
    return len(text) if text.isascii() else sum(_widths(text))


def left(text: str, columns: int) -> str:
    """Fill a text with spaces on its right."""
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """Fill a text with spaces on its left."""
    return " " * (columns - width(text)) + text


def cut(text: str, columns: int, mark: str = "") -> str:
    """Shorten a text to at most ``columns``. If anything is cut off, the text ends with ``mark``."""
    if width(text) <= columns:
        return text
    room = columns - width(mark)
    for at, size in enumerate(_widths(text)):
        room -= size
        if room < 0:
            return text[:at] + mark
    return text


def cut_middle(text: str, columns: int, mark: str) -> str:
    """Shorten a text to at most ``columns``, with ``mark`` in place of its middle: names often differ at their ends."""
    if width(text) <= columns:
        return text
    end = next(text[at:] for at in range(len(text) + 1) if width(text[at:]) <= columns // 2)
    return cut(text, columns - width(mark) - width(end)) + mark + end


def _widths(text: str) -> list[int]:
    """Return how many columns each character adds."""
    widths: list[int] = []
    before = 0
    for character in text:
        if character == _EMOJI_FORM:
            size = 1 if before == 1 else 0
        elif unicodedata.category(character) in ("Mn", "Me", "Cf") or ord(character) in _HANGUL:
            size = 0
        else:
            size = before = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        widths.append(size)
    return widths
