"""The data plane: the contract of the rings, and the implementation that is in use.

``protocol`` is the contract. ``reference`` fulfils it in Python, ``_native`` compiled. Read docs/memory-order.md before
you change either. ``__impl__`` names the one in use, ``"native"`` or ``"python"``; ``MEMIFRT_RING=native|python``
forces one.

The rings know nothing of sockets, callbacks and configuration. Everything in shared memory that must not be trusted is
checked here. The compiled module also has the compiled queues (``_native_queue.pxi``, :mod:`memifrt.queue`), because a
call on a queue must reach its ring without Python in between.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import cast

from memifrt.ring.protocol import Burst, Packet, RingImplementation, RingMemory, RxRing, SlaveBuffers, TxRing

logger = logging.getLogger("memifrt")

#: The module of each implementation.
_MODULES = {"native": "memifrt.ring._native", "python": "memifrt.ring.reference"}


def load(name: str) -> RingImplementation:
    """Import an implementation by its name.

    :raises ImportError: there is none of this name, or it cannot be imported; the message says why.
    """
    if name not in _MODULES:
        raise ImportError(f"MEMIFRT_RING is {name!r}; it must be one of {', '.join(_MODULES)}")
    try:
        return cast(RingImplementation, importlib.import_module(_MODULES[name]))
    except ImportError as error:
        if "interpreter" in str(error):  # the words of Cython and of CPython 3.12
            advice = "use memifrt in the main interpreter, or in another process"
        else:
            advice = "install a C compiler and Python's headers, then reinstall memifrt, which compiles it"
        raise ImportError(f"the {name} ring implementation cannot be imported ({error}): {advice}") from error


def _choose() -> tuple[RingImplementation, str, str]:
    """Return an implementation, its name, and why it is not the compiled one (empty if it is, or if one was forced)."""
    forced = os.environ.get("MEMIFRT_RING", "")
    if forced:
        return load(forced), forced, ""
    try:
        return load("native"), "native", ""
    except ImportError as error:
        return load("python"), "python", str(error)


def say_what_is_missing() -> None:
    """Log, once in a process, that the slow rings are in use because the compiled ones are missing.

    An installation without a compiler succeeds, and installers hide the messages of a build.
    """
    global _missing
    if _missing:
        logger.warning("packets go through the rings in Python, many times slower: %s", _missing)
        _missing = ""


def unsafe_reason() -> str:
    """Return why the implementation in use is not safe with a live peer on this machine; empty if it is safe.

    The reference relies on the memory order of x86-64 (docs/memory-order.md, The reference).
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
    "Packet",
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
