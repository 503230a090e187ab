"""The compiled ring is optional: where it cannot be built, memifrt runs on the reference in Python, and says so when it
is first used (``memifrt.ring.say_what_is_missing``)."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "memifrt.ring._native",
            ["memifrt/ring/_native.pyx"],
            extra_compile_args=["-O3", "-fno-strict-aliasing"],
            optional=True,
        )
    ]
)
