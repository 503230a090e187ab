"""The old path of :mod:`memifrt.capture.pcap`."""

import warnings

from memifrt.capture.pcap import *  # noqa: F403

warnings.warn("memifrt.apps.pcap is now memifrt.capture.pcap", DeprecationWarning, stacklevel=2)
