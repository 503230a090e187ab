"""How long a measurement waits, and how often it looks at the clock."""

#: The number of turns between two looks at the clock.
TURNS = 32
#: Seconds between two samples of the counters, and between two looks at the control channel while a loop polls.
SAMPLE = 0.05
#: Seconds without a first packet after which gen and rr give up: a testpmd may need nine until it forwards.
PATIENCE = 10.0
#: Seconds without a packet after which gen and rr count the packets in flight as lost. The time is long, because an
#: echo that only waited for its core must not find more packets than fit into the ring.
LOST = 1.0
#: Seconds that gen waits for its last packets.
LINGER = 1.0
#: Bursts that one event takes at most. To come back to a loop costs as much as a burst, and more in asyncio and trio.
AT_ONCE = 8
