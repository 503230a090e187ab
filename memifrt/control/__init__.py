"""The control channel: messages, the two conversations, and the socket that carries them."""
