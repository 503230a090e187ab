"""Make, send and check traffic: streams of packets, what came back, and reports.

Needs the extra ``memifrt[traffic]``::

    from memifrt.traffic import Generator, Stream

    generator = Generator(interface, Stream("Ether()/IP()/UDP()", size=64))
    report = generator.run(duration=1, rate="100kpps")
    print(report.streams["stream"].lost, report.total.latency)
"""

from __future__ import annotations

from memifrt.system.optional import Needs

with Needs("memifrt.traffic", "memifrt[traffic]"):
    from memifrt.traffic.fields import Field
    from memifrt.traffic.file import load_streams
    from memifrt.traffic.generator import Generator
    from memifrt.traffic.latency import Latency
    from memifrt.traffic.rate import Rate
    from memifrt.traffic.report import Report, Sample, StreamReport
    from memifrt.traffic.stream import Stream

__all__ = ["Field", "Generator", "Latency", "Rate", "Report", "Sample", "Stream", "StreamReport", "load_streams"]
