"""The old path of :mod:`memifrt.threaded.runtime_thread`."""

import warnings

from memifrt.threaded.runtime_thread import Background

warnings.warn("memifrt.background is now memifrt.threaded.runtime_thread", DeprecationWarning, stacklevel=2)

__all__ = ["Background"]
