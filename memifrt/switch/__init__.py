"""A learning Ethernet switch between ports. Its parts know nothing of the command line."""
