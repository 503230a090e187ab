"""The data plane: one Protocol, and the implementation that is in use.

``__impl__`` names it: ``"native"`` (compiled) or ``"python"`` (the reference). ``MEMIFRT_RING=native|python`` forces
one. Memory in, bursts out: nothing in this folder knows of sockets, callbacks or configuration, and all that must be
distrusted in shared memory is distrusted here.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import cast

from memifrt.ring.protocol import Burst, RingImplementation, RingMemory, RxRing, SlaveBuffers, TxRing

logger = logging.getLogger("memifrt")

#: The module of each implementation.
_MODULES = {"native": "memifrt.ring._native", "python": "memifrt.ring.reference"}


def load(name: str) -> RingImplementation:
    """An implementation by its name.

    :raises ImportError: there is none of this name, or it is not to be had here; the message says why.
    """
    if name not in _MODULES:
        raise ImportError(f"MEMIFRT_RING is {name!r}; it must be one of {', '.join(_MODULES)}")
    try:
        return cast(RingImplementation, importlib.import_module(_MODULES[name]))
    except ImportError as error:
        raise ImportError(
            f"the {name} ring implementation cannot be imported ({error}): it is compiled when memifrt is installed "
            "where a C compiler and Python's headers are present"
        ) from error


def _choose() -> tuple[RingImplementation, str, str]:
    """An implementation, its name, and why it is not the compiled one although nobody chose another."""
    forced = os.environ.get("MEMIFRT_RING", "")
    if forced:
        return load(forced), forced, ""
    try:
        return load("native"), "native", ""
    except ImportError as error:
        return load("python"), "python", str(error)


def say_what_is_missing() -> None:
    """Log, once in a process, that packets take the slow way for want of the compiled rings. An installation without a
    compiler succeeds, and installers hide what a build says."""
    global _missing
    if _missing:
        logger.warning("packets go through the rings in Python, many times slower: %s", _missing)
        _missing = ""


def unsafe_reason() -> str:
    """Why the implementation in use cannot be trusted with a live interface on this machine; empty if it can.

    Python has no memory fences. The reference relies on x86-64 keeping stores in order and loads in order.
    """
    machine = os.uname().machine
    if __impl__ == "python" and machine not in ("x86_64", "AMD64"):
        return (
            f"the Python rings rely on x86-64's memory order and this is {machine}: packets may be read before they "
            "are written. Install memifrt where a C compiler and Python's headers are present, for the compiled rings"
        )
    return ""


#: The implementation in use, and its name.
implementation, __impl__, _missing = _choose()

__all__ = [
    "Burst",
    "RingImplementation",
    "RingMemory",
    "RxRing",
    "SlaveBuffers",
    "TxRing",
    "__impl__",
    "implementation",
    "load",
    "say_what_is_missing",
    "unsafe_reason",
]
