"""Ports and peers for tests. The fixtures of :mod:`memifrt.pytest_plugin` make them."""
