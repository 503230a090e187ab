"""The compiled ring is optional: where it cannot be built, memifrt runs on the reference in Python, and says so when it
is first used (``memifrt.ring.say_what_is_missing``)."""

from pathlib import Path

from setuptools import Extension, setup

#: What the extension includes: a change of one of these builds it anew.
RING = Path("memifrt/ring")
INCLUDED = sorted(str(path) for pattern in ("*.pxi", "*.h") for path in RING.glob(pattern))

setup(
    ext_modules=[
        Extension(
            "memifrt.ring._native",
            ["memifrt/ring/_native.pyx"],
            depends=INCLUDED,
            extra_compile_args=["-O3", "-fno-strict-aliasing"],
            optional=True,
        )
    ]
)
