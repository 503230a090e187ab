"""One peer, from accept or connect to the end."""
