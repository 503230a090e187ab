"""The parts of ``memifrt bench``: the options, the work on a pair of queues, and the measurement around it."""
