"""Turn memifrt's errors into libmemif's codes, and let the exceptions of callbacks pass through.

Owns this translation, the last error of each thread, and the texts of codes. Knows no call of libmemif.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from memifrt.errors import ConfigError, ForkedError, MemifError, strerror
from memifrt.libmemif.constants import MEMIF_ERR_SUCCESS
from memifrt.types import VERSION

_P = ParamSpec("_P")
_T = TypeVar("_T")
_E = TypeVar("_E")

logger = logging.getLogger("memifrt")

_last = threading.local()


def memif_last_error() -> MemifError | None:
    """Return the error behind the last code of this thread that was not SUCCESS; None if there was none.

    Its text says what failed. The error of a system call has ``errno`` and ``filename``. C has no such function.
    """
    error: MemifError | None = getattr(_last, "error", None)
    return error


def failed(error: MemifError) -> int:
    """Keep an error for :func:`memif_last_error` and return its code."""
    link: BaseException | None = error
    while link is not None:  # a traceback's frames would keep buffers, and so mappings, alive
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    if isinstance(error, ForkedError):  # no code says that the handle belongs to the parent
        raise error
    _last.error = error
    logger.debug("code %d (%s): %s", error.code, error.code.name, error)
    return error.code


class _CallbackError(Exception):
    """Carries a :class:`MemifError` of a callback past the code that turns memifrt's own errors into codes."""

    def __init__(self, error: MemifError) -> None:
        self.error = error


def recording(callback: Callable[_P, _T]) -> Callable[_P, _T]:
    """Wrap an application's callback, and record the :class:`MemifError` that it raises.

    :func:`pass_callback_errors` then tells it from an error of memifrt's own.
    """

    @functools.wraps(callback)
    def recorded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return callback(*args, **kwargs)
        except MemifError as error:
            if getattr(_last, "watched", False):
                _last.raised = error
            raise

    return recorded


@contextlib.contextmanager
def pass_callback_errors() -> Iterator[None]:
    """Let the exception of a callback pass through a call, even if it is a :class:`MemifError`."""
    watched, outer = getattr(_last, "watched", False), getattr(_last, "raised", None)
    _last.watched, _last.raised = True, None
    try:
        try:
            yield
        except MemifError:
            if _last.raised is None:
                raise
        if _last.raised is not None:
            raise _CallbackError(_last.raised)
    finally:
        _last.watched, _last.raised = watched, outer


def returns_code(call: Callable[_P, None]) -> Callable[_P, int]:
    """Make a function without results return its code."""

    @functools.wraps(call)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            call(*args, **kwargs)
        except _CallbackError as raised:
            raise raised.error from raised.error.__cause__
        except MemifError as error:
            return failed(error)
        return MEMIF_ERR_SUCCESS

    return wrapper


def returns_result(
    empty: Callable[[], _E],
) -> Callable[[Callable[_P, tuple[int, _T]]], Callable[_P, tuple[int, _T | _E]]]:
    """Make a function return its code and a result; on an error the result is ``empty()``."""

    def decorate(call: Callable[_P, tuple[int, _T]]) -> Callable[_P, tuple[int, _T | _E]]:
        @functools.wraps(call)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> tuple[int, _T | _E]:
            try:
                return call(*args, **kwargs)
            except _CallbackError as raised:
                raise raised.error from raised.error.__cause__
            except MemifError as error:
                return failed(error), empty()

        return wrapper

    return decorate


def nothing() -> None:
    return None


def required(what: str, value: _T | None) -> _T:
    """Refuse C's NULL."""
    if value is None:
        raise ConfigError(f"{what} is None")
    return value


def memif_get_version() -> int:
    """Return the version of the protocol: 0x0200."""
    return VERSION


def memif_get_version_str() -> str:
    """Return the version of the protocol as a text: ``"2.0"``."""
    return f"{VERSION >> 8}.{VERSION & 0xFF}"


def memif_strerror(code: int) -> str:
    """Return the text for a code. A number that is not a code gives "undefined error"."""
    return strerror(code)
