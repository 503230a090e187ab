"""Shared memory regions, and where rings and buffers lie in them."""
