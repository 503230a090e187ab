"""Tests of memifrt.traffic."""
