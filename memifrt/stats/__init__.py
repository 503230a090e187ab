"""Counters of interfaces for other programs: snapshots, a socket that serves them, Prometheus metrics, a client.

Nothing here is imported until a runtime is asked for statistics.
"""
