"""The screen of ``memifrt top``, from the values of a queue to the live picture."""
