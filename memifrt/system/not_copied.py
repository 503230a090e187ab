"""Refuse to copy or pickle objects that own fds, shared memory or threads.

A shallow copy has the same fds as its original. When the copy is dropped it closes them, and the original then uses
numbers that may belong to other files.
"""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


class NotCopied:
    """The base class of objects for which ``copy.copy``, ``copy.deepcopy`` and ``pickle`` raise :class:`TypeError`."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        refuse_to_copy(self)


def refuse_to_copy(thing: object) -> NoReturn:
    """Raise the error for an object that cannot be copied.

    :raises TypeError: always.
    """
    raise TypeError(
        f"{thing!r} cannot be copied or pickled: it uses fds and memory of this process. Share the object itself "
        "between threads; another process makes one of its own"
    )
