"""Error codes, their texts, and what an error keeps of the system call that failed."""

from __future__ import annotations

import errno
import os
import pickle
import re

import pytest

from memifrt.errors import (
    ConfigError,
    Disconnected,
    ErrorCode,
    MemifError,
    MemifOSError,
    PollCancelled,
    ProtocolError,
    RingViolation,
    os_error,
    strerror,
)

#: libmemif's codes.
LIBMEMIF = """
    0 SUCCESS 1 SYSCALL 2 CONNREFUSED 3 ACCES 4 NO_FILE 5 FILE_LIMIT 6 PROC_FILE_LIMIT 7 ALREADY 8 AGAIN 9 BAD_FD
    10 NOMEM 11 INVAL_ARG 12 NOCONN 13 CONN 14 CB_FDUPDATE 15 FILE_NOT_SOCK 16 NO_SHMFD 17 COOKIE 18 NOBUF_RING
    19 NOBUF 20 NOBUF_DET 21 INT_WRITE 22 MFMSG 23 QID 24 PROTO 25 ID 26 ACCSLAVE 27 ALRCONN 28 MODE 29 SECRET
    30 NOSECRET 31 MAXREG 32 MAXRING 33 NO_INTFD 34 DISCONNECT 35 DISCONNECTED 36 UNKNOWN_MSG 37 POLL_CANCEL
    38 MAX_RING 39 PRIVHDR
"""


def test_the_codes_are_libmemif_s_number_for_number() -> None:
    assert {code.name: int(code) for code in ErrorCode} == {
        name: int(number) for number, name in re.findall(r"(\d+) (\w+)", LIBMEMIF)
    }
    assert len(ErrorCode) == 40


def test_every_code_has_a_text_of_its_own() -> None:
    texts = [strerror(code) for code in ErrorCode]
    assert len(set(texts)) == 40
    assert "undefined error" not in texts
    assert all(texts)


@pytest.mark.parametrize("number", [40, -1, 1 << 32])
def test_a_number_that_is_no_code_is_an_undefined_error(number: int) -> None:
    assert strerror(number) == "undefined error"


def test_an_error_without_words_of_its_own_says_what_its_code_means() -> None:
    assert str(MemifError(ErrorCode.QID)) == strerror(ErrorCode.QID)
    assert str(MemifError(ErrorCode.QID, "queue 7")) == "queue 7"
    assert MemifError(ErrorCode.QID, "queue 7").code is ErrorCode.QID


@pytest.mark.parametrize(
    ("error", "code", "also"),
    [
        (ConfigError("wrong"), ErrorCode.INVAL_ARG, ValueError),
        (ConfigError("wrong", ErrorCode.MAX_RING), ErrorCode.MAX_RING, ValueError),
        (ProtocolError(ErrorCode.COOKIE), ErrorCode.COOKIE, MemifError),
        (RingViolation("broken"), ErrorCode.DISCONNECTED, ProtocolError),
        (Disconnected("gone"), ErrorCode.DISCONNECTED, MemifError),
        (Disconnected("gone"), ErrorCode.DISCONNECTED, ConnectionError),
        (Disconnected("told", ErrorCode.DISCONNECT), ErrorCode.DISCONNECT, MemifError),
        (PollCancelled(), ErrorCode.POLL_CANCEL, MemifError),
        (os_error("cannot", OSError(errno.EBADF, "")), ErrorCode.BAD_FD, OSError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MemifError) else "",
)
def test_each_class_carries_its_code(error: MemifError, code: ErrorCode, also: type[Exception]) -> None:
    assert error.code is code
    assert isinstance(error, MemifError)
    assert isinstance(error, also)


def test_a_disconnect_tells_whether_the_connection_had_been_announced() -> None:
    assert not Disconnected("gone").established
    assert Disconnected("gone", established=True).established


def test_a_disconnect_survives_pickling_and_keeps_its_words() -> None:
    error = pickle.loads(pickle.dumps(Disconnected("gone", established=True)))
    assert (str(error), error.code) == ("gone", ErrorCode.DISCONNECTED)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ECONNREFUSED, ErrorCode.CONNREFUSED),
        (errno.EACCES, ErrorCode.ACCES),
        (errno.ENOENT, ErrorCode.NO_FILE),
        (errno.ENFILE, ErrorCode.FILE_LIMIT),
        (errno.EMFILE, ErrorCode.PROC_FILE_LIMIT),
        (errno.EALREADY, ErrorCode.ALREADY),
        (errno.EAGAIN, ErrorCode.AGAIN),
        (errno.EBADF, ErrorCode.BAD_FD),
        (errno.ENOMEM, ErrorCode.NOMEM),
        (errno.ENOTSOCK, ErrorCode.FILE_NOT_SOCK),
        (errno.EADDRINUSE, ErrorCode.SYSCALL),
        (errno.EIO, ErrorCode.SYSCALL),
    ],
    ids=lambda value: errno.errorcode[value] if not isinstance(value, ErrorCode) else "",
)
def test_an_errno_becomes_its_code_and_stays_readable(number: int, code: ErrorCode) -> None:
    cause = OSError(number, os.strerror(number))
    error = os_error("cannot open it", cause, path="/a/path")
    assert error.code is code
    assert error.errno == number
    assert error.strerror == os.strerror(number)
    assert error.filename == "/a/path"
    assert error.__cause__ is cause
    assert str(error) == f"cannot open it: {os.strerror(number)} [{errno.errorcode[number]}]"


def test_a_code_that_the_caller_knows_better_wins() -> None:
    error = os_error("cannot connect", OSError(errno.EPROTOTYPE, ""), code=ErrorCode.FILE_NOT_SOCK)
    assert error.code is ErrorCode.FILE_NOT_SOCK
    assert error.errno == errno.EPROTOTYPE


def test_an_os_error_without_errno_keeps_its_words() -> None:
    error = os_error("cannot do it", OSError("the device said no"))
    assert isinstance(error, MemifOSError)
    assert error.code is ErrorCode.SYSCALL
    assert "the device said no" in str(error)


def test_an_errno_without_a_name_shows_its_number() -> None:
    assert str(os_error("cannot do it", OSError(9999, ""))).endswith("[9999]")
