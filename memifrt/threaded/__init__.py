"""A runtime on a thread of its own, for programs without an event loop."""
