"""What a bridge joins: memif, TAP and kernel interfaces, and the forwarding between them."""
