"""Summarize a packet in one line by scapy.

Owns nothing of the texts, which are scapy's. tcpdump's lines are in :mod:`memifrt.capture.lines`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from memifrt.errors import ErrorCode, MemifError
from memifrt.types import Mode, printable

Summary = Callable[[bytes], str | None]


def scapy_summary(mode: Mode) -> Summary:
    """Return a function that summarizes a packet in one line. It returns None for garbage that scapy cannot read.

    :raises MemifError: scapy is not installed.
    """
    try:
        link = importlib.import_module("scapy.layers.l2")
        four, six = importlib.import_module("scapy.layers.inet"), importlib.import_module("scapy.layers.inet6")
    except ImportError as error:
        what = "scapy's summaries need scapy: pip install 'memifrt[scapy]'"
        raise MemifError(ErrorCode.INVAL_ARG, f"{what} ({error})") from error

    def describe(data: bytes) -> str | None:
        layer = link.Ether if mode is not Mode.IP else six.IPv6 if data[:1] >= b"\x60" else four.IP
        try:
            return printable(layer(data).summary())
        except Exception:  # a dissector may raise anything on garbage
            return None

    return describe
