"""Run a runtime on its own thread, for programs without an event loop."""
