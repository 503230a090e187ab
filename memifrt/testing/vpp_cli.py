"""VPP's command line over its socket, as vppctl uses it without a terminal.

Owns the conversation: VPP asks for the terminal type in telnet's words; for the type ``vppctl`` it prints no prompt,
echoes nothing, and ends each answer with a NUL.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time

_IAC, _SB, _SE, _TTYPE = b"\xff", b"\xfa", b"\xf0", b"\x18"
_OUR_TYPE = _IAC + _SB + _TTYPE + b"\0vppctl" + _IAC + _SE
_QUESTION = _IAC + _SB + _TTYPE
#: Options: IAC and two bytes, or IAC SB … IAC SE.
_TELNET = re.compile(rb"\xff\xfa.*?\xff\xf0|\xff[\xfb-\xfe].", re.DOTALL)


def run_command(path: str, command: str, timeout: float) -> str:
    """Run one command, and return what it prints.

    :param path: the socket of ``cli-listen``.
    :raises OSError: VPP does not answer within ``timeout`` seconds, or is not there.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        _receive_until(connection, _QUESTION, deadline, command)
        connection.sendall(_OUR_TYPE + command.encode() + b"\n")
        answer = _receive_until(connection, b"\0", deadline, command)
        # The welcome may have ended with a NUL of its own. VPP obeys "quit" after the command, and closes.
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(b"quit\n")
        answer += _receive_until(connection, None, deadline, command)
    text = _TELNET.sub(b"", answer).replace(b"\0", b"").decode(errors="replace")
    return text.replace("\r\n", "\n").strip("\n")


def _receive_until(connection: socket.socket, end: bytes | None, deadline: float, command: str) -> bytes:
    """Receive until ``end`` has come, or (None) until VPP closes the connection."""
    received = b""
    while end is None or end not in received:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer to {command!r} in time; so far: {received!r}")
        connection.settimeout(left)
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            if end is None:
                break
            raise ConnectionError(f"VPP closed the connection during {command!r}; so far: {received!r}")
        received += chunk
    return received
