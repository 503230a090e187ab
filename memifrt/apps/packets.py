"""The old path of :mod:`memifrt.packets`."""

import warnings

from memifrt.packets import *  # noqa: F403

warnings.warn("memifrt.apps.packets is now memifrt.packets", DeprecationWarning, stacklevel=2)
