"""Measure the throughput of a device by RFC 2544, with the search of RFC 9971 (MLRsearch): NDR, PDR and latencies.

The command ``memifrt throughput`` does this between two memifs. Other programs call :func:`throughput` with a
:class:`Trial` of their own or with that of ``memifrt.throughput.memif_trial``.
"""

from __future__ import annotations

from memifrt.throughput.method import METHODS, Method
from memifrt.throughput.report import LoadLatency, Report, SizeReport
from memifrt.throughput.run import Step, throughput
from memifrt.throughput.search import Found, Rate, Search
from memifrt.throughput.sizes import DEFAULT_SIZES, IMIX, FrameSize, parse_sizes
from memifrt.throughput.trial import Latency, Trial, TrialResult

__all__ = [
    "DEFAULT_SIZES",
    "IMIX",
    "METHODS",
    "FrameSize",
    "Found",
    "Latency",
    "LoadLatency",
    "Method",
    "Rate",
    "Report",
    "Search",
    "SizeReport",
    "Step",
    "Trial",
    "TrialResult",
    "parse_sizes",
    "throughput",
]
