"""The hook, the registry of its fds, and an adapter for each event loop. Knows fds and event masks alone."""
