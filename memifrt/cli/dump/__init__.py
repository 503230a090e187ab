"""The parts of ``memifrt dump``: its options, the lines, the files, live packets, and packets of a file."""
