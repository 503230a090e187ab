"""What interfaces did, for other programs: a snapshot, a socket that serves it as JSON, Prometheus metrics, a client.

Nothing of it is imported before a runtime is asked for statistics.
"""
