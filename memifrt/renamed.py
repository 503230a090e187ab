"""Old names that go on working: each warns, names the new one, and points at the caller's line.

Owns the wording of these warnings. Knows nothing of what is renamed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that a caller used an old name.

    :param stacklevel: the stack frame that the warning shows, counted from this function. 3 is its caller's caller.
    """
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed_arguments(**new_names: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Let a function take arguments by their old names too, ``@renamed_arguments(queue="qid")``.

    The function's own signature, and so what a type checker accepts, has the new names alone.

    :param new_names: the new name of each old one.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for old in new_names.keys() & kwargs.keys():
                new = new_names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__}() got {new} and {old}, which is its old name")
                warn_renamed(f"the argument {old} of {function.__qualname__}()", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
