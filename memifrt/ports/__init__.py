"""The ports of a bridge (memif, TAP and kernel interfaces) and the forwarding between them."""
