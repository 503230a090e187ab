"""What ``memifrt dump`` consists of: its options, the lines, the files, live packets, and packets of a file."""
