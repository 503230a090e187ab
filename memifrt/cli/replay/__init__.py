"""The parts of ``memifrt replay``: the capture, the choice of its packets, their times, and the sending."""
