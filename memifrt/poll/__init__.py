"""Fds and event masks: the hook, its registry, and what can stand behind it."""
