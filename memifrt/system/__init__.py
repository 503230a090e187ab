"""Wrappers of Linux calls: owned fds, kicks, timers, received fds, forks, originals of monkey-patched functions."""
