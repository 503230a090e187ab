"""The compiled ring is optional: where it cannot be built, memifrt runs on the reference in Python, and says so when it
is first used (``memifrt.ring.say_what_is_missing``)."""

import os
from pathlib import Path

from setuptools import Extension, setup

#: What the extension of the rings includes: a change of one of these builds it anew.
RING = Path("memifrt/ring")
INCLUDED = [str(path) for pattern in ("*.pxi", "*.h") for path in sorted(RING.glob(pattern))]
EVENTFD = ["memifrt/system/_eventfd.pxd", "memifrt/system/eventfd_calls.h"]
SIGBUS = ["memifrt/memory/memif_sigbus.h"]

#: CFLAGS may choose another optimisation (-O0 builds faster): setuptools puts our flags behind it, so ours would win.
CHOSEN = any(flag.startswith("-O") for flag in os.environ.get("CFLAGS", "").split())
O2 = [] if CHOSEN else ["-O2"]
O3 = [] if CHOSEN else ["-O3"]

setup(
    ext_modules=[
        Extension(
            "memifrt.system._eventfd",
            ["memifrt/system/_eventfd.pyx"],
            depends=EVENTFD,
            extra_compile_args=O2,
            optional=True,
        ),
        Extension(
            "memifrt.memory._sigbus",
            ["memifrt/memory/_sigbus.pyx"],
            depends=SIGBUS,
            extra_compile_args=O2,
            optional=True,
        ),
        Extension("memifrt.poll._dispatch", ["memifrt/poll/_dispatch.pyx"], extra_compile_args=O2, optional=True),
        Extension("memifrt._packets", ["memifrt/_packets.pyx"], extra_compile_args=O3, optional=True),
        Extension(
            "memifrt.ring._native",
            ["memifrt/ring/_native.pyx"],
            depends=[*INCLUDED, *EVENTFD],
            extra_compile_args=[*O3, "-fno-strict-aliasing"],
            optional=True,
        ),
    ]
)
