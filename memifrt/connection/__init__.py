"""One peer: its channel, its shared memory and its queues, from accept or connect to the end."""
