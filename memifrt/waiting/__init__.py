"""The logic of waiting calls, without a loop."""
