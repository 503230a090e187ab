"""Capture filters in tcpdump's language. libpcap compiles and runs them, if it is installed.

Owns the calls of libpcap's functions.
"""

from __future__ import annotations

import ctypes
import os
from typing import Protocol

from memifrt.capture.pcap import MAX_SNAPLEN, LinkType
from memifrt.errors import ConfigError, ErrorCode, MemifError

#: File names of libpcap: on Debian, on other systems, and of the development package.
_LIBRARIES = ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so")
_UNKNOWN_NETMASK = 0xFFFFFFFF
#: libpcap's number for raw IP on Linux. Files use another number.
_DLT_RAW = 12


class Matches(Protocol):
    """Says whether a packet matches a filter."""

    def __call__(self, packet: bytes, length: int | None = None, /) -> bool:
        """Return whether it matches.

        :param length: the length of the packet before it was cut; None if it is whole.
        """
        ...


class _Program(ctypes.Structure):
    """``struct bpf_program``."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Header(ctypes.Structure):
    """``struct pcap_pkthdr``."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


def compile_filter(expression: str, link_type: int) -> Matches:
    """Return a function that says whether a packet matches ``expression``.

    :param link_type: the link type of the packets, by its number in capture files.
    :raises ConfigError: libpcap does not understand the expression. The message has libpcap's own text.
    :raises MemifError: libpcap is not installed.
    """
    library = _library()
    handle = library.pcap_open_dead(_DLT_RAW if link_type == LinkType.RAW else link_type, MAX_SNAPLEN)
    if not handle:
        raise MemifError(ErrorCode.NOMEM, "libpcap could not prepare a filter")
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), os.fsencode(expression), 1, _UNKNOWN_NETMASK):
            words = (library.pcap_geterr(handle) or b"").decode(errors="replace")
            raise ConfigError(f"libpcap does not understand the filter {expression!r}: {words}")
    finally:
        library.pcap_close(handle)
    # The compiled program is never freed: a command has only one.
    run, header = library.pcap_offline_filter, _Header()
    program_at, header_at = ctypes.byref(program), ctypes.byref(header)

    def matches(packet: bytes, length: int | None = None, /) -> bool:
        header.captured = len(packet)
        header.length = len(packet) if length is None else length
        return bool(run(program_at, header_at, packet))

    return matches


def _library() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        library.pcap_compile.argtypes = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint32,
        )
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_geterr.argtypes = (ctypes.c_void_p,)
        library.pcap_close.restype = None
        library.pcap_close.argtypes = (ctypes.c_void_p,)
        library.pcap_offline_filter.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
        return library
    raise MemifError(
        ErrorCode.NO_FILE,
        "a filter needs libpcap, which is not installed: apt install libpcap0.8, or dnf install libpcap",
    )
