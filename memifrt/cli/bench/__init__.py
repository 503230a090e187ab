"""What ``memifrt bench`` measures: the options, the work on a pair of queues, and the measurement around it."""
