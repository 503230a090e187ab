"""Fuzzers: whatever bytes they draw, the runtime and the rings live, say what is wrong and free everything.

``make fuzz`` runs them under atheris, led by coverage. Without atheris the same targets run on random bytes.
"""
